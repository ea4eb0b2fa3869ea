"""How far apart are the functions of two networks? Both are run on the same inputs, and the answer is measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from metanet.checkpoint import Checkpoint
from metanet.checkpoint.families_inr import SIREN
from metanet.errors import ScoreError, clean
from metanet.score.inputs import Inputs
from metanet.score.layers import FEATURES
from metanet.score.line import measure_line, same_shapes
from metanet.score.measures import Reading
from metanet.score.pairing import Pair
from metanet.score.preservation import Preservation
from metanet.score.probe_inputs import ProbeInputs
from metanet.score.running import Run
from metanet.score.subjects import Comparable, Subject, undisturbed
from metanet.score.values import Line, OutputScore

__all__ = ["compare"]

TOLERANCE = 1e-10
# As many inputs as symmetry.verify asks for: fewer hide errors.
LEAST_INPUTS = 7


def compare(
    a: Comparable,
    b: Comparable,
    inputs: Any = None,
    labels: Any = None,
    *,
    origin: str | None = None,
    kind: str | Mapping[str, str] = "auto",
    class_axis: int | None = None,
    batch_axis: int = 0,
    dtype: torch.dtype | None = torch.float64,
    tolerance: float = TOLERANCE,
    batch: int = 256,
    device: str | torch.device | None = None,
    layers: str | Mapping[str, str] | None = "auto",
    features: str = "standard",
    line: int = 5,
    confidence: float = 0.95,
    resamples: int = 1000,
    interval: str = "bca",
    seed: int = 0,
) -> Preservation:
    """Run two networks on the same inputs, in eval mode, and measure how far apart they are.

    The networks may have any widths, depths and kinds, as long as inputs and outputs fit. Both are run as private
    copies: nothing of the given objects changes. Memory does not grow with the number of inputs.

    Args:
        a: the reference: a module, a :class:`~metanet.Checkpoint`, or a pair of a module and a state for it.
        b: the other network.
        inputs: a tensor or array; a tuple of the arguments of ``forward``; a mapping of its keyword arguments; an
            iterable of batches ``(inputs, labels)``; or :class:`ProbeInputs`. If ``None``, made-up inputs are drawn as
            the architecture of ``a`` describes them, which has to be a checkpoint then.
        labels: classes (whole numbers), or targets, for the first output, one entry per input.
        origin: where the inputs come from, in words, for the record.
        kind: how outputs are read: ``classes`` (logits), ``probabilities``, ``binary`` (one logit each), ``values``, or
            ``auto`` (the first output by labels and shape, others as values); or a mapping from names of outputs.
        class_axis: which axis of an output holds the classes, inputs first; told from shapes if ``None``.
        batch_axis: along which axis the inputs lie in the arguments; for outputs it is found by running the network.
        dtype: to run in; only float64 can be called exact. ``None``: each network as it is.
        tolerance: ``exact`` is an error over spread of at most this.
        batch: how many inputs are run at once.
        device: where to run the networks; where they are if ``None``.
        layers: how layers are matched: ``name``; ``order``: in pairs that never cross, as similar as possible, one to
            one for equal numbers; ``auto``: by name where all names are equal, else in order; a mapping from names in
            ``a`` to names in ``b``; ``None``: layers are not looked at.
        features: how features are prepared for CKA: ``standard`` (over each unit's spread: its scale makes no change),
            ``linear`` (as they are, as in the literature), ``whitened`` (any invertible matrix makes no difference).
        line: places on the straight line between the weights where the loss is measured, if shapes agree; 0 for none.
        confidence: of the intervals.
        resamples: of the bootstrap; 0 for no intervals of means.
        interval: ``bca`` or ``percentile``.
        seed: of the order of inputs and the resamples.

    Returns:
        The measured distance, with a verdict, which is "exact" only for float64 errors under the tolerance.

    Raises:
        ScoreError: where something does not fit, in one line.
        CheckpointError: for a checkpoint whose architecture is not known.
    """
    _check(batch, layers, features, confidence, interval)
    if resamples < 0:
        raise ScoreError(f"resamples={resamples}: expected 0 (no intervals of means) or more")
    if line < 0 or line in (1, 2) or (line and line % 2 == 0):
        raise ScoreError(f"line={line}: expected an odd number of places, 3 or more, or 0 for none")
    if inputs is None:
        inputs = made_up(a, seed)
    given = Inputs.of(inputs, labels, origin, batch_axis)
    with undisturbed():
        subjects = Subject.of(a, "a", dtype, device), Subject.of(b, "b", dtype, device)
        pair = Pair.settle(*subjects, given, batch, layers is not None, features)
        readings, assumed = pair.readings(default_kind(a, kind), class_axis)
        run = Run(pair, readings, layers)
        for batch_of_inputs in given.batches(batch, seed):
            run.add(batch_of_inputs)
        scores = run.scores(resamples, confidence, seed, interval)
        similar = run.similarities(confidence)
        straight = _line(pair, readings[0], line, batch, seed)
    notes = [*pair.notes, *assumed, *run.notes()]
    verdict = _verdict(pair, scores, tolerance, notes)
    return Preservation(
        verdict=verdict,
        inputs=given.count,
        origin=given.origin,
        made_up=given.made_up,
        dtype=pair.dtype,
        device=str(pair.a.device),
        outputs=scores,
        layers=similar,
        features=features if similar else "",
        line=straight,
        confidence=confidence,
        seed=seed,
        tolerance=tolerance,
        notes=tuple(notes),
    )


def _check(batch: int, layers: Any, features: str, confidence: float, interval: str) -> None:
    if batch < 1:
        raise ScoreError(f"batch={batch}: expected at least one input")
    if not (layers is None or isinstance(layers, Mapping) or layers in ("auto", "name", "order")):
        raise ScoreError(f"layers={clean(repr(layers), 60)}", hint="expected auto, name, order, a mapping or None")
    if features not in FEATURES:
        raise ScoreError(f"features={clean(repr(features), 60)}", hint=f"expected one of {', '.join(FEATURES)}")
    if not 0 < confidence < 1:
        raise ScoreError(f"confidence={confidence}: expected a number between 0 and 1, such as 0.95")
    if interval not in ("bca", "percentile"):
        raise ScoreError(f"interval={clean(repr(interval), 60)}: expected bca or percentile")


def made_up(network: Comparable, seed: int) -> ProbeInputs:
    """Inputs for a checkpoint, drawn as its architecture describes them."""
    if not isinstance(network, Checkpoint):
        raise ScoreError("no inputs", hint="give inputs, or ProbeInputs of a description of them")
    return ProbeInputs.of(network, seed=seed)


def default_kind(network: Comparable, kind: str | Mapping[str, str]) -> str | Mapping[str, str]:
    """``kind``, but ``values`` instead of ``auto`` where a checkpoint says that it holds a signal."""
    signal = isinstance(network, Checkpoint) and network.architecture.family == SIREN.name
    return "values" if signal and kind == "auto" else kind


def _line(pair: Pair, reading: Reading, points: int, batch: int, seed: int) -> Line | None:
    if not points or reading.kind == "decisions" or not same_shapes(pair.a, pair.b):
        return None
    main = pair.outputs[0]
    if main.numbers[0] != main.numbers[1] or main.axes[0] != main.axes[1]:
        return None
    place = (main.numbers[0], main.axes[0])
    return measure_line(pair.a, pair.b, pair.inputs, place, reading, points, batch, seed)


def _verdict(pair: Pair, scores: Sequence[OutputScore], tolerance: float, notes: list[str]) -> str:
    if any(count for score in scores for count in score.not_finite):
        return "not finite"
    close = all(score.error <= tolerance for score in scores)
    if not any(score.varies for score in scores):
        notes.append("the outputs do not vary over these inputs: exactness cannot be told")
        return "approximate"
    if close and pair.inputs.count < LEAST_INPUTS:
        notes.append(f"{pair.inputs.count} inputs are too few to call it exact (at least {LEAST_INPUTS})")
        return "approximate"
    return "exact" if close and pair.steady and pair.dtype == "float64" else "approximate"
