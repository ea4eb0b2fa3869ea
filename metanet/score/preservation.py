"""How far are two networks' functions apart? The answer as a value: it prints, compares, and goes to and from JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from metanet.errors import ScoreError, clean
from metanet.score.values import LayerSimilarity, Line, OutputScore, output_lines, shown

__all__ = ["FORMAT", "Preservation"]

FORMAT = "metanet.preservation/1"
MAX_LINES = 40


@dataclass(frozen=True, slots=True)
class Preservation:
    """How far the functions of two networks are apart, on which inputs, and how sure that is.

    Args:
        verdict: ``exact``: every error over spread is at most ``tolerance``, in float64. ``approximate`` otherwise;
            ``not finite`` where a network answers with something that is no number.
        inputs: on how many inputs both were run.
        origin: where these come from.
        made_up: whether they are no data.
        dtype: in which both were run.
        device: on which.
        outputs: one score for each output; the first is the one that labels are for.
        layers: matched layers.
        features: how the features of layers were prepared: ``standard``, ``linear`` or ``whitened``; empty without.
        line: losses on the straight line between the weights, where the shapes agree.
        confidence: of all intervals.
        seed: of the order of the inputs and of the resamples.
        tolerance: for ``exact``.
        notes: what else has to be known.
    """

    verdict: str
    inputs: int
    origin: str
    made_up: bool
    dtype: str
    device: str
    outputs: tuple[OutputScore, ...]
    layers: tuple[LayerSimilarity, ...] = ()
    features: str = ""
    line: Line | None = None
    confidence: float = 0.95
    seed: int = 0
    tolerance: float = 1e-10
    notes: tuple[str, ...] = ()

    @property
    def exact(self) -> bool:
        """Whether the verdict is ``exact``."""
        return self.verdict == "exact"

    @property
    def main(self) -> OutputScore:
        """The first output."""
        return self.outputs[0]

    @property
    def max_error(self) -> float:
        """The largest difference of any number in any output."""
        return max(output.max_error for output in self.outputs)

    @property
    def error(self) -> float:
        """The largest error over spread of any output."""
        return max(output.error for output in self.outputs)

    @property
    def relative_l2(self) -> float:
        """Of the first output."""
        return self.main.relative_l2.value

    @property
    def kl(self) -> float | None:
        """Of the first output: KL(a || b) in nats; ``None`` if it is no distribution."""
        return None if self.main.kl is None else self.main.kl.value

    @property
    def agreement(self) -> float | None:
        """Of the first output; ``None`` if it decides nothing."""
        return None if self.main.agreement is None else self.main.agreement.value

    @property
    def accuracy_change(self) -> float | None:
        """Of the first output; ``None`` without labels."""
        return None if self.main.accuracy_change is None else self.main.accuracy_change.value

    @property
    def barrier(self) -> float | None:
        """On the straight line between the weights; ``None`` where shapes differ."""
        return None if self.line is None else self.line.barrier

    def __str__(self) -> str:
        lines = [
            f"{self.verdict}: error / spread {self.error:.1e} (exact at most {self.tolerance:.0e}), {self.dtype}",
            f"on {self.origin}",
        ]
        for output in self.outputs:
            lines += output_lines(output, f"{output.name}: " if output.name else "")
        if self.layers:
            lines.append(f"similarity of layers (debiased CKA, {self.features} features)")
        for layer in self.layers[:MAX_LINES]:
            name = layer.a if layer.a == layer.b else f"{layer.a} - {layer.b}"
            lines.append(f"  {name:<38} {layer.sizes[0]:>6} {layer.sizes[1]:>6}  {layer.cka}")
        if len(self.layers) > MAX_LINES:
            lines.append(f"  ... and {len(self.layers) - MAX_LINES} more")
        if self.line is not None:
            lines.append(f"barrier on the straight line  {shown(self.line.barrier)} ({self.line.loss})")
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])

    def to_json(self) -> dict[str, Any]:
        """A JSON value that :meth:`from_json` reads back; infinities and NaN are words in it."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        found["outputs"] = [output.to_json() for output in self.outputs]
        found["layers"] = [layer.to_json() for layer in self.layers]
        found["line"] = None if self.line is None else self.line.to_json()
        found["notes"] = list(self.notes)
        return {"format": FORMAT, **found}

    @classmethod
    def from_json(cls, value: Any) -> Preservation:
        """The preservation that a JSON value describes.

        Raises:
            ScoreError: for anything else.
        """
        if not isinstance(value, Mapping) or value.get("format") != FORMAT:
            given = value.get("format") if isinstance(value, Mapping) else type(value).__name__
            raise ScoreError(f"no preservation: format {clean(repr(given), 60)}, expected '{FORMAT}'")
        given = {field.name: value.get(field.name) for field in fields(cls)}
        try:
            given["outputs"] = tuple(OutputScore.from_json(item) for item in value["outputs"])
            given["layers"] = tuple(LayerSimilarity.from_json(item) for item in value["layers"])
            given["line"] = None if value["line"] is None else Line.from_json(value["line"])
            given["notes"] = tuple(map(str, value["notes"]))
        except (KeyError, TypeError, ValueError) as error:
            raise ScoreError(
                f"damaged preservation: {clean(repr(error), 80)}", hint="score the networks again"
            ) from None
        return cls(**given)
