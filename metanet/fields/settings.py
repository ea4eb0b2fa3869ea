"""With which losses, widths and steps is a field trained? Every part can be switched off."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from metanet.errors import FieldError, clean

__all__ = ["FieldSettings"]


@dataclass(frozen=True)
class FieldSettings:
    """How a field is trained.

    Args:
        steps: of Adam.
        batch: inputs in a step.
        rate: highest learning rate; it rises over a quarter of the steps and falls by cosines (one cycle). Weights are
            stored over their size at the start, so that it is a relative one.
        clip: largest norm of the gradient; 0 for none.
        decay: weight decay of AdamW.
        low: narrowest width, as a share of the full one.
        high: widest.
        full: whether the full width is in every step.
        lowest: whether the narrowest width is in every step.
        random: how many random widths, uniform between both, are in every step.
        separate: whether every space draws a width of its own.
        task: weight of the loss on the targets.
        distil: weight of the divergence from the teacher, if there is one, at every width.
        own: weight of the divergence of narrower networks from the field's own network of full width (Yu and Huang
            2019: in-place distillation); 1 replaces the loss on the targets there.
        reconstruct: weight of the distance to the teacher's weights at full width, over their mean square.
        reconstruct_until: at which share of the steps that weight has fallen, linearly, to zero.
        regularise: weight of the mean square of all weights that are written, over that of the start.
        noise: how far units stray from their coordinates, in spacings.
        average: decay of the moving average of the field's numbers over the second half of the steps; 0 for none.

    Raises:
        FieldError: for a value outside its range.
    """

    steps: int = 3000
    batch: int = 128
    rate: float = 0.1
    clip: float = 1.0
    decay: float = 0.0
    low: float = 0.25
    high: float = 1.0
    full: bool = True
    lowest: bool = True
    random: int = 1
    separate: bool = False
    task: float = 1.0
    distil: float = 0.0
    own: float = 0.0
    reconstruct: float = 0.0
    reconstruct_until: float = 0.5
    regularise: float = 0.0
    noise: float = 0.0
    average: float = 0.0

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("batch", 2), ("random", 0)):
            if getattr(self, name) < least:
                raise FieldError(f"{name}={getattr(self, name)}", hint=f"expected {least} or more")
        for name in ("clip", "decay", "task", "distil", "own", "reconstruct", "regularise", "noise"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise FieldError(f"{name}={getattr(self, name)}", hint="expected 0 or more")
        for name, value in (
            ("own", self.own),
            ("average", self.average),
            ("reconstruct_until", self.reconstruct_until),
        ):
            if value > 1 or (name == "average" and value == 1):
                raise FieldError(f"{name}={value}", hint="expected at most 1")
        if not 0 < self.rate < float("inf"):
            raise FieldError(f"rate={self.rate}", hint="expected a positive number, such as 0.1")
        if not 0 < self.low <= self.high < float("inf"):
            raise FieldError(f"widths from {self.low} to {self.high}", hint="expected two rising positive numbers")
        if not (self.full or self.lowest or self.random):
            raise FieldError("no width in a step", hint="switch on full or lowest, or draw random ones")

    def to_json(self) -> dict[str, Any]:
        """A JSON value that :meth:`from_json` reads back."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: object) -> FieldSettings:
        """Read back what :meth:`to_json` wrote.

        Raises:
            FieldError: for unknown names or values of another kind.
        """
        if not isinstance(value, Mapping):
            raise FieldError(f"settings are {type(value).__name__}", hint="expected an object")
        kinds = {each.name: type(each.default) for each in fields(cls)}
        for name, given in value.items():
            if name not in kinds:
                raise FieldError(f"unknown setting {clean(repr(name), 60)}", hint=f"there are {', '.join(kinds)}")
            fits = isinstance(given, bool) if kinds[name] is bool else type(given) in (int, kinds[name])
            if not fits:
                raise FieldError(f"setting {name} is {clean(repr(given), 60)}", hint=f"expected {kinds[name].__name__}")
        return cls(**value)
