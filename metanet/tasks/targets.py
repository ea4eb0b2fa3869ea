"""In which unit is a target learned, and how does a prediction get back to the unit that the user reads?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from metanet.errors import TaskError

TRANSFORMS = ("auto", "standard", "logit", "log")
_EDGE = 5e-3  # accuracies of exactly 0 and 1 exist: the logit is taken of a slightly narrower range


@dataclass(frozen=True)
class TargetTransform:
    """Numbers to the standardised scale they are learned on, and back.

    Attributes:
        name: "standard" (nothing but the scale), "logit" (for shares: differences near 0 and 1 count more) or
            "log" (for positive numbers over several orders of magnitude).
        mean: Mean of the transformed training targets.
        deviation: Their standard deviation.
        low: Smallest training target.
        high: Largest training target.
    """

    name: str
    mean: float
    deviation: float
    low: float
    high: float

    @classmethod
    def fit(cls, name: str, targets: ArrayLike) -> TargetTransform:
        """The transform for these training targets.

        "auto" takes the logit of what lies in [0, 1] and reaches beyond a half, else the logarithm of positive numbers
        over more than two orders of magnitude, and leaves the rest.

        Raises:
            TaskError: An unknown name, no finite targets, or targets outside the transform's range.
        """
        values = np.asarray(targets, dtype=float)
        if name not in TRANSFORMS:
            raise TaskError(f"transform {name!r}, expected one of {', '.join(TRANSFORMS)}")
        if not len(values) or not np.isfinite(values).all():
            raise TaskError(f"{len(values)} training targets, of which {int((~np.isfinite(values)).sum())} not finite")
        low, high = float(values.min()), float(values.max())
        if name == "auto":
            name = "logit" if low >= 0 and 0.5 < high <= 1 else "log" if low > 0 and high > 100 * low else "standard"
        if name == "logit" and (low < 0 or high > 1):
            raise TaskError(f"targets from {low:g} to {high:g}, but a logit needs shares from 0 to 1")
        if name == "log" and low <= 0:
            raise TaskError(f"smallest target {low:g}, but a logarithm needs positive targets")
        raw = _forward(name, values)
        # A constant target has no scale: it is learned as the zero it then is.
        return cls(name, float(raw.mean()), float(raw.std()) or 1.0, low, high)

    def forward(self, targets: ArrayLike) -> NDArray[np.float64]:
        """Targets on the scale they are learned on.

        Shapes:
            targets: any shape, kept
        """
        return (_forward(self.name, np.asarray(targets, dtype=float)) - self.mean) / self.deviation

    def inverse(self, values: ArrayLike) -> NDArray[np.float64]:
        """Learned values in the user's unit. Shares stay in [0, 1] and positive numbers positive.

        Shapes:
            values: any shape, kept
        """
        raw = np.asarray(values, dtype=float) * self.deviation + self.mean
        if self.name == "logit":
            return np.clip((1 / (1 + np.exp(-np.clip(raw, -40, 40))) - _EDGE) / (1 - 2 * _EDGE), 0.0, 1.0)
        return np.exp(np.clip(raw, -700, 700)) if self.name == "log" else raw

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "mean": self.mean, "deviation": self.deviation, "low": self.low, "high": self.high}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> TargetTransform:
        """The transform that `to_json` told of.

        Raises:
            TaskError: Not such a value.
        """
        try:
            transform = cls(str(value["name"]), *(float(value[key]) for key in ("mean", "deviation", "low", "high")))
        except (KeyError, TypeError, ValueError) as error:
            raise TaskError(f"not a target transform ({error!r})") from error
        if transform.name not in TRANSFORMS or not np.isfinite([transform.mean, transform.deviation]).all():
            raise TaskError(f"not a target transform: {dict(value)!r}")
        return transform


def _forward(name: str, values: NDArray[np.float64]) -> NDArray[np.float64]:
    if name == "logit":
        inner = _EDGE + (1 - 2 * _EDGE) * np.clip(values, 0.0, 1.0)
        return np.log(inner / (1 - inner))
    return np.log(values) if name == "log" else values
