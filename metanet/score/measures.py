"""How far apart are two networks' answers to the same inputs, input by input?

All functions take any leading axes, so that one pair of networks and a stack of pairs go through the same code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from metanet.errors import ScoreError, clean

__all__ = ["KINDS", "Moments", "Reading", "measure", "reading_of", "row_axis", "rows_first"]

KINDS = ("auto", "classes", "probabilities", "binary", "values")
# Shares that sum to one up to float32 rounding of a long sum.
SUM_TOLERANCE = 1e-4


@dataclass(frozen=True, slots=True)
class Reading:
    """How one output is read.

    Args:
        kind: ``classes``, ``probabilities``, ``binary``, ``values``, or ``decisions`` for whole numbers.
        class_axis: the axis of the classes, with the axis of the inputs first.
    """

    kind: str
    class_axis: int | None = None

    @property
    def distribution(self) -> bool:
        """Whether the numbers stand for a distribution over classes."""
        return self.kind in ("classes", "probabilities", "binary")


def row_axis(shape: Sequence[int], shorter: Sequence[int], rows: int) -> int | None:
    """Along which axis the inputs lie in a tensor, told from its shape for ``rows`` inputs and for one fewer.

    An axis may hold several entries for each input, as after ``view(batch * time, ...)``.
    """
    if rows < 2 or len(shape) != len(shorter):
        return 0 if shape and shape[0] == rows else None
    changed = [i for i, (one, other) in enumerate(zip(shape, shorter, strict=True)) if one != other]
    if len(changed) != 1:
        return None
    size = shape[changed[0]]
    fits = size % rows == 0 and shorter[changed[0]] == size // rows * (rows - 1)
    return changed[0] if fits else None


def rows_first(tensor: Tensor, axis: int, rows: int) -> Tensor:
    """The tensor with one entry for each input along its first axis."""
    moved = tensor.movedim(axis, 0)
    return moved if moved.shape[0] == rows else moved.reshape(rows, -1, *moved.shape[1:])


def reading_of(
    name: str, a: Tensor, b: Tensor, labels: Tensor | None, kind: str, class_axis: int | None
) -> tuple[Reading, str]:
    """How an output is to be read, and a note where that was assumed.

    Args:
        name: of the output.
        a: the first network's answers, inputs first.
        b: the second's.
        labels: of these inputs, if they are for this output.
        kind: what the user said, or ``auto``.
        class_axis: what the user said.

    Raises:
        ScoreError: where the output cannot be read so, or the labels do not fit.
    """
    where = f"output {name!r}" if name else "the output"
    shape = tuple(a.shape)
    if kind not in KINDS:
        raise ScoreError(f"kind={clean(repr(kind), 40)}", hint=f"expected one of {', '.join(KINDS)}")
    if not a.is_floating_point():
        return Reading("values" if a.is_complex() else "decisions"), ""
    whole = labels is not None and not labels.is_floating_point()
    if kind == "values" or (kind == "auto" and labels is not None and not whole):
        if labels is not None and labels.shape != a.shape and labels.numel() != a.numel():
            raise ScoreError(f"targets {list(labels.shape)} for {where} {list(shape)}", hint="one target per number")
        return Reading("values"), ""
    single = a[0].numel() == 1
    if kind == "binary" or (kind == "auto" and whole and single):
        if labels is not None and labels.numel() != a.numel():
            raise ScoreError(f"labels {list(labels.shape)} for {where} {list(shape)}", hint="one label per number")
        return Reading("binary"), ""
    axis = class_axis if class_axis is not None else _class_axis(shape, labels)
    if axis is None or not 0 < axis % max(len(shape), 1) < len(shape) or (kind == "auto" and shape[axis] < 2):
        if kind == "auto" and labels is None:
            return Reading("values"), ""
        told = "" if labels is None else f" for labels {list(labels.shape)}"
        raise ScoreError(
            f"{where} {list(shape)} has no axis of classes{told}",
            hint="say which with class_axis, or kind='values'",
        )
    axis = axis % len(shape)
    if labels is not None:
        _check_labels(labels, shape, axis, where)
    if kind in ("classes", "probabilities"):
        return Reading(kind, axis), ""
    if all(_sums_to_one(value, axis) for value in (a, b)):
        return Reading("probabilities", axis), ""
    note = "" if labels is not None else f"{where} is read as class logits along axis {axis}; kind= says otherwise"
    return Reading("classes", axis), note


def _class_axis(shape: tuple[int, ...], labels: Tensor | None) -> int | None:
    if labels is not None:
        fitting = [i for i in range(1, len(shape)) if shape[:i] + shape[i + 1 :] == tuple(labels.shape)]
        if len(fitting) == 1:
            return fitting[0]
        if not fitting:
            return None
    if len(shape) < 2:
        return None
    # Vectors of classes, sequences of them (last axis), maps of them (channels).
    return {2: 1, 3: 2}.get(len(shape), 1)


def _check_labels(labels: Tensor, shape: tuple[int, ...], axis: int, where: str) -> None:
    expected = shape[:axis] + shape[axis + 1 :]
    if tuple(labels.shape) != expected:
        raise ScoreError(f"labels {list(labels.shape)} for {where} {list(shape)}", hint=f"expected {list(expected)}")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= shape[axis]:
        raise ScoreError(f"labels from {low} to {high} for {shape[axis]} classes", hint="number classes from 0")


def _sums_to_one(value: Tensor, axis: int) -> bool:
    sums = value.sum(axis)
    return bool((value >= 0).all()) and bool(((sums - 1).abs() <= SUM_TOLERANCE).all())


def numbers(value: Tensor) -> Tensor:
    """The numbers of an output in double precision, complex ones as pairs."""
    return (torch.view_as_real(value) if value.is_complex() else value).to(torch.float64)


def _flat(value: Tensor, lead: int) -> Tensor:
    """One axis after that of the inputs."""
    return value.flatten(lead + 1) if value.ndim > lead + 1 else value[..., None]


def measure(a: Tensor, b: Tensor, reading: Reading, labels: Tensor | None = None, lead: int = 0) -> dict[str, Tensor]:
    """What can be said of each input.

    Args:
        a: the first network's answers.
        b: the second's.
        reading: how they are read.
        labels: of the inputs.
        lead: how many axes stand before that of the inputs.

    Returns:
        ``error`` (largest difference), ``square`` and ``norm`` (squared norms of the difference and of ``a``),
        ``broken_a`` and ``broken_b``; for distributions ``kl``, ``kl_reverse``, ``agreement``; with labels ``right_a``,
        ``right_b``, ``loss_a``, ``loss_b``. Inputs to which either network answers with something that is no number are
        infinitely far apart, disagree, and are wrong for that network.

    Shapes:
        a, b: (*lead, inputs, ...); labels: (inputs, ...); result: (*lead, inputs) float64 each.
    """
    a, b = numbers(a), numbers(b)
    x, y = _flat(a, lead), _flat(b, lead)
    # Equal infinities (masked classes) are no difference.
    same = x == y
    broken_a = (~torch.isfinite(x) & ~same).any(-1)
    broken_b = (~torch.isfinite(y) & ~same).any(-1)
    either = broken_a | broken_b
    infinite = torch.tensor(torch.inf, dtype=torch.float64, device=x.device)
    difference = torch.where(same, 0.0, x - y)

    def spoiled(value: Tensor, instead: Tensor | float = infinite, where: Tensor = either) -> Tensor:
        return torch.where(where, instead, value)

    found = {
        "error": spoiled(difference.abs().amax(-1)),
        "square": spoiled(difference.square().sum(-1)),
        "norm": torch.where(torch.isfinite(x), x, 0.0).square().sum(-1),
        "broken_a": broken_a.double(),
        "broken_b": broken_b.double(),
    }
    if reading.kind == "decisions":
        found["agreement"] = same.double().mean(-1)
    if reading.distribution:
        p, q = (log_probabilities(value, reading, lead) for value in (a, b))
        found["kl"] = spoiled(divergence(p, q).mean(-1))
        found["kl_reverse"] = spoiled(divergence(q, p).mean(-1))
        first, second = p.argmax(-1), q.argmax(-1)
        found["agreement"] = spoiled((first == second).double().mean(-1), 0.0)
        if labels is not None:
            target = labels.to(x.device, torch.int64).reshape(labels.shape[0], -1)
            for side, logarithm, decision, broken in (("a", p, first, broken_a), ("b", q, second, broken_b)):
                chosen = logarithm.gather(-1, target.expand(logarithm.shape[:-1])[..., None])[..., 0]
                found[f"right_{side}"] = spoiled((decision == target).double().mean(-1), 0.0, broken)
                found[f"loss_{side}"] = spoiled(-chosen.mean(-1), where=broken)
    elif labels is not None:
        target = numbers(labels.to(x.device)).reshape(labels.shape[0], -1)
        found["loss_a"] = spoiled((x - target).square().mean(-1), where=broken_a)
        found["loss_b"] = spoiled((y - target).square().mean(-1), where=broken_b)
    return found


def log_probabilities(value: Tensor, reading: Reading, lead: int = 0) -> Tensor:
    """Logarithms of the probabilities that an output stands for.

    Shapes:
        (*lead, inputs, ...) -> (*lead, inputs, positions, classes).
    """
    if reading.kind == "binary":
        flat = _flat(value, lead)
        return torch.stack([functional.logsigmoid(-flat), functional.logsigmoid(flat)], -1)
    moved = value.movedim(lead + (reading.class_axis or 1), -1)
    moved = moved.reshape(*moved.shape[: lead + 1], -1, moved.shape[-1])
    return moved.log() if reading.kind == "probabilities" else functional.log_softmax(moved, -1)


def divergence(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q) in nats from logarithms; classes without probability under p add nothing.

    Shapes:
        (..., classes), (..., classes) -> (...).
    """
    share = p.exp()
    # Rounding makes the divergence of equal distributions a negative number now and then.
    return torch.where(share > 0, share * (p - q), 0.0).sum(-1).clamp(min=0.0)


class Moments:
    """Mean and spread of the numbers of an output over the inputs, batch by batch.

    Source: Chan, Golub and LeVeque, Updating formulae and a pairwise algorithm for computing sample variances, 1979.
    """

    def __init__(self, lead: int = 0) -> None:
        self.lead = lead
        self.count = 0
        self.mean: Tensor | float = 0.0
        self.scatter: Tensor | float = 0.0

    def add(self, value: Tensor) -> None:
        """Take a batch into account; what is no number counts as 0, and the score reports it elsewhere.

        Shapes:
            (*lead, inputs, ...).
        """
        x = torch.nan_to_num(numbers(value), nan=0.0, posinf=0.0, neginf=0.0)
        rows = x.shape[self.lead]
        mean = x.mean(self.lead)
        scatter = (x - mean.unsqueeze(self.lead)).square().sum(self.lead)
        shift = mean - self.mean
        total = self.count + rows
        self.scatter = self.scatter + scatter + shift.square() * (self.count * rows / total)
        self.mean = self.mean + shift * (rows / total)
        self.count = total

    @property
    def spread(self) -> Tensor:
        """Root mean square over inputs and numbers of the distance from the mean over inputs.

        Shapes:
            (*lead,).
        """
        scatter = torch.as_tensor(self.scatter)
        return (self._mean(scatter) / max(self.count, 1)).sqrt()

    @property
    def size(self) -> Tensor:
        """Root mean square of all numbers.

        Shapes:
            (*lead,).
        """
        return (self.spread.square() + self._mean(torch.as_tensor(self.mean).square())).sqrt()

    def _mean(self, value: Tensor) -> Tensor:
        return value.flatten(self.lead).mean(-1) if value.ndim > self.lead else value


def columns(batches: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The measures of all batches, one after the other along the axis of the inputs."""
    return {name: torch.cat([batch[name] for batch in batches], -1) for name in batches[0]}
