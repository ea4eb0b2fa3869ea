"""Which networks does `morph.py` narrow, with which images, and how far are they from what they were?

Networks of one architecture are run as a stack (:class:`metanet.morph.batched.Masked`): a masked network computes what
the narrowed one does.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

import symmetry
from metanet.checkpoint import Architecture
from metanet.datasets import Zoo
from metanet.morph.batched import Masked
from symmetry import SymmetrySpec

State = dict[str, Tensor]
CHUNK = 256  # images that a stack runs on at once
MOST_FITTED = 4096


@dataclass(frozen=True, eq=False)
class Subject:
    """Networks of one architecture.

    Args:
        architecture: of all.
        spec: of all.
        masked: runs them.
        states: of all, stacked.

    Shapes:
        states (networks, ...)
    """

    architecture: Architecture
    spec: SymmetrySpec
    masked: Masked
    states: State

    @property
    def count(self) -> int:
        """How many networks."""
        return len(next(iter(self.states.values())))

    def keeps(self, share: float) -> dict[str, int]:
        """Units that stay in each space that can be narrowed."""
        return {space: max(1, round(share * self.spec.sizes[space])) for space in self.masked.spaces}

    def shaped(self, images: Tensor) -> Tensor:
        """Images as these networks take them."""
        return images.reshape(len(images), *self.architecture.example_inputs(1)[0].shape[1:])

    def answers(self, states: Mapping[str, Tensor], images: Tensor) -> Tensor:
        """Logits. Shapes: states (networks, ...), images (n, ...) -> (networks, n, classes)."""
        with torch.no_grad():
            parts = self.shaped(images).split(CHUNK)
            return torch.cat([self.masked.outputs(states, (part,)) for part in parts], 1)


@dataclass(frozen=True, eq=False)
class Images:
    """What is fitted to, and what measures.

    Args:
        fit: to be fitted to; a method that needs fewer takes the first.
        fit_labels: their classes.
        score: that nothing was fitted to.
        score_labels: their classes.
        low: the lowest value that an image can have.
        high: the highest.
    """

    fit: Tensor
    fit_labels: Tensor
    score: Tensor
    score_labels: Tensor
    low: float
    high: float


def images_of(zoo: Zoo, seed: int, most: int, tuning: bool) -> Images:
    """Images of one seed: fitted to is a part of the pool; test images measure, or for tuning another part of the pool.

    Args:
        zoo: whose images.
        seed: of the parts.
        most: images that measure.
        tuning: whether settings are chosen on them.
    """
    data = zoo.data
    order = torch.randperm(len(data.pool_images), generator=torch.Generator().manual_seed(seed))
    aside = min(1000, len(order) // 4)
    fit, other = order[: min(MOST_FITTED, len(order) - aside)], order[-aside:][:most]
    if tuning:
        score, labels = data.pool_images[other], data.pool_labels[other]
    else:
        score, labels = data.test_images[:most], data.test_labels[:most]
    low, high = ((value - data.centre) / data.spread for value in (0.0, 1.0))
    return Images(data.pool_images[fit], data.pool_labels[fit], score, labels, low, high)


def subjects_of(zoo: Zoo, split: str, seed: int, most: int) -> list[Subject]:
    """Networks of one seed: of each drawn run the last, at most two in three of the runs of a split.

    Args:
        zoo: whose networks.
        split: of the zoo.
        seed: of the draw.
        most: networks.
    """
    last: dict[int, int] = {}
    for row in zoo.split(split).tolist():
        record = zoo.index[row]
        if record["status"] == "ok" and record["step"] >= zoo.index[last.get(record["run"], row)]["step"]:
            last[record["run"]] = row
    runs = np.random.default_rng(np.random.SeedSequence([seed, len(last)])).permutation(sorted(last))
    by_architecture: dict[int, list[int]] = defaultdict(list)
    for run in runs[: min(most, -(-2 * len(runs) // 3))].tolist():
        by_architecture[zoo.index[last[run]]["architecture"]].append(last[run])
    return [_subject(zoo, number, rows) for number, rows in sorted(by_architecture.items())]


def _subject(zoo: Zoo, number: int, rows: list[int]) -> Subject:
    architecture = zoo.architectures[number]
    model = architecture.build().eval()
    spec = symmetry.trace(model, architecture.example_inputs())
    return Subject(architecture, spec, Masked(model, spec), zoo.stacked(rows))


def measured(before: Tensor, after: Tensor, labels: Tensor) -> dict[str, list[float]]:
    """Of every network KL(old || narrow) of the class probabilities, agreement of classes, and accuracy of the narrow.

    Shapes:
        (networks, n, classes), the same, (n,)
    """
    a, b = before.double().log_softmax(-1), after.double().log_softmax(-1)
    classes = after.argmax(-1)
    return {
        "kl": (a.exp() * (a - b)).sum(-1).mean(-1).tolist(),
        "agreement": (before.argmax(-1) == classes).double().mean(-1).tolist(),
        "accuracy": (classes == labels).double().mean(-1).tolist(),
    }
