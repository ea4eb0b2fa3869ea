"""How does one edited network come closer to the old one, on inputs, without labels?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from metanet.errors import PlanError
from metanet.morph.batched import Stacked
from metanet.morph.batched_refine import descended
from metanet.morph.running import doubled

__all__ = ["refine"]


def refine(old: nn.Module, new: nn.Module, batches: Sequence[Sequence[Any]], rounds: int) -> None:
    """Move all weights of an edited network, in place, down KL(old || new) of the class probabilities.

    Rounds of Gauss-Newton; see :func:`metanet.morph.batched_refine.refined`.

    Args:
        old: the network before the edits.
        new: the network after them, in float64.
        batches: argument lists of ``forward``: data, or inputs that are made up; taken together.
        rounds: how many.

    Raises:
        PlanError: if arguments are no tensors, or the outputs no logits of classes.
    """
    given = [doubled(batch) for batch in batches]
    if not all(isinstance(item, Tensor) for batch in given for item in batch):
        raise PlanError("rounds need arguments that are tensors", hint="leave out the rounds")
    inputs = [torch.cat(parts) for parts in zip(*given, strict=True)]
    before, after = Stacked(old), Stacked(new)
    states = [
        # Tied weights once, by the name that torch gives them.
        {name: value.detach().unsqueeze(0) for name, value in (*one.named_parameters(), *one.named_buffers())}
        for one in (old, new)
    ]
    with torch.no_grad():
        answers = before.outputs(states[0], inputs)
    if answers.ndim != 3 or answers.shape[-1] < 2:
        raise PlanError(
            f"rounds go down the divergence of classes, and the outputs are of shape {list(answers.shape[1:])}",
            hint="leave out the rounds",
        )
    made = descended(after, states[1], answers.log_softmax(-1), inputs, {}, rounds)
    with torch.no_grad():
        for name, parameter in new.named_parameters():
            parameter.copy_(made[name][0])
