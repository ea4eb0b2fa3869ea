"""Which networks go through a model together? Few architectures at a time, every network once an epoch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from metanet.graph import ParameterGraph


def by_architecture(graphs: Sequence[ParameterGraph], places: Sequence[int]) -> list[Tensor]:
    """The places, sorted by the architecture of the networks that stand there."""
    found: dict[str, list[int]] = {}
    for place in places:
        found.setdefault(graphs[place].topology.fingerprint, []).append(place)
    return [torch.tensor(group) for group in found.values()]


def random_batches(groups: Sequence[Tensor], batch: int, chunk: int, generator: torch.Generator) -> list[Tensor]:
    """One epoch: every place once, in random order, few architectures in a batch.

    Work is cheap per network and dear per architecture in a batch, so networks of one architecture go in chunks.

    Args:
        groups: Places by architecture.
        batch: Networks per batch, about.
        chunk: Networks of one architecture that go together, about.
        generator: Where the order comes from.
    """
    chunks: list[Tensor] = []
    for places in groups:
        order = places[torch.randperm(len(places), generator=generator)]
        # Equal chunks: a remainder of one network would cost as much as a whole chunk.
        chunks += order.tensor_split(max(1, round(len(order) / chunk)))
    batches: list[list[Tensor]] = []
    size = batch
    for number in torch.randperm(len(chunks), generator=generator).tolist():
        if size >= batch:
            batches.append([])
            size = 0
        batches[-1].append(chunks[number])
        size += len(chunks[number])
    if len(batches) > 1 and size < batch // 4:
        # A last batch of two or three networks would weigh as much as all others.
        batches[-2:] = [batches[-2] + batches[-1]]
    return [torch.cat(each) for each in batches]
