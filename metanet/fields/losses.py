"""How wrong is a network that a field has written: at its task, beside a teacher, and in its weights?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils import _pytree as pytree

from metanet.errors import FieldError

__all__ = ["divergence", "first_output", "magnitude", "reconstruction", "task_loss"]


def first_output(outputs: Any) -> Tensor:
    """The first tensor among the outputs of a network.

    Raises:
        FieldError: if there is none.
    """
    for leaf in pytree.tree_leaves(outputs):
        if isinstance(leaf, Tensor):
            return leaf
    raise FieldError("the network answers no tensor", hint="a field is trained on the first output")


def task_loss(output: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy for classes (whole numbers), mean squared error for other targets.

    Shapes:
        output (batch, classes, ...) and targets (batch, ...), or both alike.
    """
    if not targets.is_floating_point():
        return functional.cross_entropy(output, targets)
    return functional.mse_loss(output, targets.reshape(output.shape))


def divergence(output: Tensor, teacher: Tensor, classes: bool) -> Tensor:
    """KL divergence from the teacher's class probabilities, or the mean squared error over the teacher's variance."""
    if not classes:
        spread = teacher.var(dim=0, correction=0).mean().clamp_min(1e-12)
        return (output - teacher).square().mean() / spread
    a, b = teacher.log_softmax(1), output.log_softmax(1)
    return (a.exp() * (a - b)).sum(1).mean()


def reconstruction(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], names: list[str]) -> Tensor:
    """Mean over tensors of the squared distance to the wanted values, over their mean square."""
    parts = [(state[name] - wanted[name]).square().mean() / _size(wanted[name]) for name in names]
    return torch.stack(parts).mean()


def magnitude(state: Mapping[str, Tensor], start: Mapping[str, float]) -> Tensor:
    """Mean over tensors of the mean square of weights, over that of the start."""
    return torch.stack([state[name].square().mean() / size for name, size in start.items()]).mean()


def _size(tensor: Tensor) -> Tensor:
    return tensor.detach().square().mean().clamp_min(1e-12)
