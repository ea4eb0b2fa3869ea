"""How good is one of many networks on validation inputs, told fast enough to be asked a hundred times?"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from metanet.errors import FieldError, clean
from metanet.fields.losses import divergence, first_output, task_loss
from metanet.morph.running import evaluating

__all__ = ["Judge", "Verdict"]

ROWS = 512


@dataclass(frozen=True)
class Verdict:
    """What a network does on validation inputs.

    Args:
        value: the lower, the better; see ``by``.
        by: ``loss`` on the labels, ``kl`` from the given network, or ``error`` beside it, where outputs are no classes.
        kl: divergence from the given network, nats.
        agreement: share of inputs on which both decide alike.
        accuracy: share of inputs that are told right, where there are classes.
        loss: cross-entropy or mean squared error, where there are labels.
    """

    value: float
    by: str
    kl: float | None
    agreement: float | None
    accuracy: float | None
    loss: float | None

    def like(self, other: Verdict) -> bool:
        """Whether both are of one network, up to rounding."""
        return abs(self.value - other.value) <= 1e-4 * max(abs(self.value), abs(other.value), 1e-3)

    def to_json(self) -> dict[str, Any]:
        """A JSON value."""
        return asdict(self)


class Judge:
    """Tells how good networks are.

    Args:
        teacher: the given network.
        inputs: of validation.
        labels: classes (whole numbers) or values, if there are any.

    Shapes:
        inputs: (count, ...), labels: (count, ...)

    Raises:
        FieldError: without inputs, with labels that do not fit, or where the network gives no finite outputs.
    """

    def __init__(self, teacher: nn.Module, inputs: Tensor, labels: Tensor | None = None) -> None:
        if not len(inputs):
            raise FieldError("no inputs of validation", hint="give at least one")
        if labels is not None and len(labels) != len(inputs):
            raise FieldError(f"{len(labels)} labels for {len(inputs)} inputs", hint="give one for each")
        self.inputs, self.labels = inputs, labels
        try:
            self.told = self._run(teacher)
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            shape = [min(len(inputs), ROWS), *inputs.shape[1:]]
            raise FieldError(
                f"the network does not run on inputs {shape}: {type(error).__name__}: {clean(error, 160)}",
                hint="give inputs for this network",
            ) from None
        if not bool(self.told.isfinite().all()):
            raise FieldError("the network's outputs are not finite", hint="look at its weights and at the inputs")
        self.classes = labels is None and self.told.ndim == 2 and self.told.shape[1] > 1
        if labels is not None:
            self.classes = not labels.is_floating_point()
            self._check(labels)

    def _check(self, labels: Tensor) -> None:
        shape = list(self.told.shape)
        if not bool(labels.isfinite().all()):
            raise FieldError("labels that are not finite", hint="look for NaN and infinity in them")
        if not self.classes:
            if labels.numel() != self.told.numel():
                raise FieldError(f"labels of shape {list(labels.shape)}, outputs of shape {shape}", hint="give as many")
            return
        low, high = int(labels.min()), int(labels.max())
        if list(labels.shape) != [*shape[:1], *shape[2:]] or not 0 <= low <= high < shape[1]:
            raise FieldError(
                f"labels of shape {list(labels.shape)} from {low} to {high}, outputs of shape {shape}",
                hint="expected classes that the network tells apart",
            )

    def __call__(self, model: nn.Module) -> Verdict:
        output = self._run(model)
        if output.shape != self.told.shape:
            raise FieldError(f"outputs of shape {list(output.shape)}, expected {list(self.told.shape)}")
        far = float(divergence(output, self.told, self.classes))
        agreement = accuracy = loss = None
        if self.classes:
            agreement = float((output.argmax(1) == self.told.argmax(1)).double().mean())
        if self.labels is not None:
            loss = float(task_loss(output, self.labels.to(output) if not self.classes else self.labels))
            accuracy = float((output.argmax(1) == self.labels).double().mean()) if self.classes else None
        value, by = (far, "kl" if self.classes else "error") if loss is None else (loss, "loss")
        # What overflows is worse than everything else, and compares as such.
        value = value if value == value else float("inf")
        return Verdict(value, by, far if self.classes else None, agreement, accuracy, loss)

    def _run(self, model: nn.Module) -> Tensor:
        with evaluating(model):
            return torch.cat([first_output(model(rows)) for rows in self.inputs.split(ROWS)])
