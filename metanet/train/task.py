"""What must a task tell the trainer, which knows no task by name?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

Json = dict[str, Any]


@dataclass(frozen=True)
class Monitor:
    """The one number that decides which epoch was the best.

    Attributes:
        name: Key in the dictionary that `Task.metrics` returns for the validation part.
        higher_is_better: True for Kendall's tau or an accuracy, False for a loss.
    """

    name: str
    higher_is_better: bool

    def improves(self, value: float, best: float | None) -> bool:
        """Whether `value` beats `best`; a NaN never does, and anything finite beats nothing at all."""
        if math.isnan(value):
            return False
        if best is None:
            return True
        return value > best if self.higher_is_better else value < best


@dataclass(frozen=True)
class Extras:
    """What a task adds to the finished artefact beside the weights: tensors by file name, and JSON by file name."""

    tensors: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    values: Mapping[str, Json] = field(default_factory=dict)


class TrainingData(Protocol):
    """What a task is trained on. Only the task looks inside; the trainer records who it was."""

    def describe(self) -> Json:
        """JSON that names the data: sizes and a fingerprint. A resumed training must be handed equal data."""
        ...


class Task(Protocol):
    """A job that a metanetwork is trained for.

    The trainer calls `model` once, then for each epoch `batches` and `loss` on the training part and `metrics` on the
    validation part, and in the end `complete` with the best weights. All randomness comes in by generators, so a
    training that is resumed repeats itself exactly.
    """

    @property
    def monitor(self) -> Monitor:
        """The validation metric by which the best epoch is chosen."""
        ...

    def describe(self) -> Json:
        """JSON from which an equal task can be made."""
        ...

    def model(self, data: Any, options: Mapping[str, Any], generator: torch.Generator) -> nn.Module:
        """A freshly initialised model for this task and these data."""
        ...

    def batches(self, data: Any, generator: torch.Generator) -> Sequence[Any]:
        """One epoch of the training part, in random order."""
        ...

    def loss(self, model: nn.Module, data: Any, batch: Any, generator: torch.Generator) -> Tensor:
        """The loss of one batch: a scalar that gradients flow from."""
        ...

    def metrics(self, model: nn.Module, data: Any) -> dict[str, float]:
        """The metrics of the validation part; the model is in eval mode and gradients are off."""
        ...

    def complete(self, model: nn.Module, data: Any, generator: torch.Generator) -> Extras:
        """What the artefact holds beside the weights, computed once from the best weights."""
        ...
