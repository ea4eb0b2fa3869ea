"""What is measured of two networks, as values: an estimate, an output, a pair of layers, a line of weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

__all__ = ["Estimate", "LayerSimilarity", "Line", "OutputScore", "shown"]

# Outputs that vary by less than this share of their size do not vary but are rounded.
CONSTANT = 1e-9


def number(value: float | None) -> float | str | None:
    """A number as JSON can hold it: infinities and NaN become words."""
    return value if value is None or math.isfinite(value) else str(float(value))


def _read(value: Any) -> float | None:
    return None if value is None else float(value)


@dataclass(frozen=True, slots=True)
class Estimate:
    """A measured value and an interval for what more inputs of the same origin would give.

    Args:
        value: on these inputs.
        low: lower end of the interval, or ``None`` where there is none.
        high: upper end.
        method: ``bca``, ``percentile``, ``wilson``, ``agresti-min`` or ``jackknife``; empty without an interval.
    """

    value: float
    low: float | None = None
    high: float | None = None
    method: str = ""

    def __float__(self) -> float:
        return self.value

    def __str__(self) -> str:
        value = shown(self.value)
        return value if self.low is None else f"{value} [{shown(self.low)}, {shown(self.high)}]"

    def to_json(self) -> dict[str, Any]:
        """A JSON value that :meth:`from_json` reads back."""
        return {"value": number(self.value), "low": number(self.low), "high": number(self.high), "method": self.method}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Estimate:
        """The estimate that a JSON value describes."""
        return cls(float(value["value"]), _read(value["low"]), _read(value["high"]), str(value["method"]))


@dataclass(frozen=True, slots=True)
class OutputScore:
    """One output of both networks, compared.

    Args:
        name: where it stands among the outputs; empty if it is the only one.
        kind: ``classes`` (logits), ``probabilities``, ``binary`` (one logit), or ``values``.
        class_axis: the axis of the classes, counted with the inputs' axis first; ``None`` for values.
        shape: for one input.
        max_error: the largest difference of any number.
        worst: the input where it is met.
        spread: root mean square of the first network's numbers about their mean over the inputs.
        size: root mean square of the first network's numbers.
        relative_l2: norm of the difference over the norm of the first network's outputs.
        kl: mean Kullback-Leibler divergence in nats of the second network's classes from the first's, KL(a || b).
        kl_reverse: KL(b || a).
        agreement: share of equal decisions.
        accuracy: of both networks, where labels are known.
        accuracy_change: the second's minus the first's.
        loss: of both networks: cross entropy, or mean squared error for values.
        loss_change: the second's minus the first's.
        not_finite: for how many inputs either network (first, second) answers with something that is no number. These
            count as infinitely far apart, as disagreement and as wrong.
    """

    name: str
    kind: str
    class_axis: int | None
    shape: tuple[int, ...]
    max_error: float
    worst: int
    spread: float
    size: float
    relative_l2: Estimate
    kl: Estimate | None = None
    kl_reverse: Estimate | None = None
    agreement: Estimate | None = None
    accuracy: tuple[float, float] | None = None
    accuracy_change: Estimate | None = None
    loss: tuple[float, float] | None = None
    loss_change: Estimate | None = None
    not_finite: tuple[int, int] = (0, 0)

    @property
    def varies(self) -> bool:
        """Whether the first network answers differently to different inputs, beyond rounding."""
        return self.spread > CONSTANT * self.size

    @property
    def error(self) -> float:
        """Largest difference over spread; over size for an output that does not vary."""
        if self.max_error == 0:
            return 0.0
        scale = self.spread if self.varies else self.size
        return self.max_error / scale if scale > 0 else math.inf

    @property
    def kl_symmetric(self) -> float | None:
        """Mean of both divergences; the same whichever network comes first."""
        return None if self.kl is None or self.kl_reverse is None else (self.kl.value + self.kl_reverse.value) / 2

    def to_json(self) -> dict[str, Any]:
        """A JSON value that :meth:`from_json` reads back."""
        found: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Estimate):
                value = value.to_json()
            elif isinstance(value, tuple):
                value = [number(item) for item in value]
            elif isinstance(value, float):
                value = number(value)
            found[field.name] = value
        return found | {"error": number(self.error), "kl_symmetric": number(self.kl_symmetric)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> OutputScore:
        """The score that a JSON value describes."""
        given: dict[str, Any] = {}
        for field in fields(cls):
            found = value[field.name]
            if isinstance(found, Mapping):
                found = Estimate.from_json(found)
            elif field.name in ("accuracy", "loss") and found is not None:
                found = (float(found[0]), float(found[1]))
            elif isinstance(found, list):
                found = tuple(int(item) for item in found)
            elif field.name in ("max_error", "spread", "size"):
                found = float(found)
            given[field.name] = found
        return cls(**given)


@dataclass(frozen=True, slots=True)
class LayerSimilarity:
    """How alike two layers are: debiased linear centred kernel alignment of what they give out.

    Args:
        a: name of the first network's layer.
        b: name of the second's.
        sizes: numbers in the output of each, for one input.
        cka: 1 for the same representation, near 0 for unrelated ones (also below, being unbiased).
    """

    a: str
    b: str
    sizes: tuple[int, int]
    cka: Estimate

    def to_json(self) -> dict[str, Any]:
        """A JSON value that :meth:`from_json` reads back."""
        return {"a": self.a, "b": self.b, "sizes": list(self.sizes), "cka": self.cka.to_json()}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> LayerSimilarity:
        """The similarity that a JSON value describes."""
        first, second = value["sizes"]
        return cls(value["a"], value["b"], (int(first), int(second)), Estimate.from_json(value["cka"]))


@dataclass(frozen=True, slots=True)
class Line:
    """Losses on the straight line between the weights of two networks of the same shapes.

    Args:
        loss: what was measured: ``cross entropy``, ``squared error`` (with labels), or ``divergence from both ends``.
        weights: places, from 0 (the first network) to 1.
        losses: the loss at each.
    """

    loss: str
    weights: tuple[float, ...]
    losses: tuple[float, ...]

    @property
    def barrier(self) -> float:
        """The most that any place lies above the straight line between the losses of both ends; at least 0."""
        first, last = self.losses[0], self.losses[-1]
        return max(
            loss - ((1 - weight) * first + weight * last)
            for weight, loss in zip(self.weights, self.losses, strict=True)
        )

    def to_json(self) -> dict[str, Any]:
        """A JSON value that :meth:`from_json` reads back."""
        losses = [number(value) for value in self.losses]
        return {"loss": self.loss, "weights": list(self.weights), "losses": losses, "barrier": number(self.barrier)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Line:
        """The line that a JSON value describes."""
        return cls(value["loss"], tuple(map(float, value["weights"])), tuple(map(float, value["losses"])))


def output_lines(output: OutputScore, prefix: str) -> list[str]:
    """An output's score for people, one measure a line."""
    rows: list[tuple[str, Any]] = [
        ("max error", f"{shown(output.max_error)} (input {output.worst}), {shown(output.error)} of the spread"),
        ("relative L2", output.relative_l2),
    ]
    if output.kl is not None:
        rows += [("KL(a || b)", output.kl), ("KL(b || a)", output.kl_reverse)]
    if output.agreement is not None:
        rows.append(("agreement", output.agreement))
    if output.accuracy is not None:
        before, after = output.accuracy
        rows.append(("accuracy change", f"{output.accuracy_change} ({before:.4f} to {after:.4f})"))
    if output.loss is not None:
        before, after = output.loss
        rows.append(("loss change", f"{output.loss_change} ({shown(before)} to {shown(after)})"))
    if any(output.not_finite):
        rows.append(("not finite", f"{output.not_finite[0]} and {output.not_finite[1]} inputs"))
    return [f"{prefix}{name:<{28 - len(prefix)}}  {value}" for name, value in rows]


def shown(value: float | None) -> str:
    """A number for people."""
    if value is None:
        return "-"
    if value == 0 or not math.isfinite(value):
        return str(value if value else 0)
    return f"{value:.1e}" if abs(value) < 1e-3 or abs(value) >= 1e4 else f"{value:.4f}"
