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


def row_axis(shape: Sequence[int], shorter: Sequence[int] | None, rows: int) -> int | None:
    """Along which axis the inputs lie in a tensor, told from its shape for ``rows`` inputs and for one fewer.

    Without the second (``None``) it is the first axis, if that has as many entries. An axis may hold several
    entries for each input, as after ``view(batch * time, ...)``.
    """
    if rows < 2 or shorter is None:
        return 0 if shape and shape[0] == rows else None
    if len(shape) != len(shorter):
        return None
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

    def misfit(what: str, hint: str) -> ScoreError:
        given = [] if labels is None else list(labels.shape[1:])
        return ScoreError(f"{what} of shape {given} for {where} of shape {list(shape[1:])}, for one input", hint=hint)

    if not a.is_floating_point():
        return Reading("values" if a.is_complex() else "decisions"), ""
    whole = labels is not None and not labels.is_floating_point()
    if kind == "values" or (kind == "auto" and labels is not None and not whole):
        if labels is not None and labels.shape != a.shape and labels.numel() != a.numel():
            raise misfit("targets", "give one target for each number, or none")
        return Reading("values"), ""
    single = a[0].numel() == 1
    if kind == "binary" or (kind == "auto" and whole and single):
        if labels is not None and labels.numel() != a.numel():
            raise misfit("labels", "give one label for each number")
        return Reading("binary"), ""
    axis = class_axis if class_axis is not None else _class_axis(shape, labels)
    if axis is None or not 0 < axis % max(len(shape), 1) < len(shape) or (kind == "auto" and shape[axis] < 2):
        if kind == "auto" and labels is None:
            return Reading("values"), ""
        told = "" if labels is None else f" for labels of shape {list(labels.shape[1:])}"
        raise ScoreError(
            f"{where} of shape {list(shape[1:])} for one input has no axis of classes{told}",
            hint="say which with class_axis, or kind='values'",
        )
    axis = axis % len(shape)
    if labels is not None:
        _check_labels(labels, shape, axis, where)
    if kind in ("classes", "probabilities"):
        return Reading(kind, axis), ""
    if all(_sums_to_one(value, axis) for value in (a, b)):
        return Reading("probabilities", axis), ""
    note = "" if labels is not None else f"{where} is read as class logits along axis {axis}, unless its kind is given"
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
        told = f"{list(labels.shape[1:])} for {where} of shape {list(shape[1:])}"
        raise ScoreError(f"labels of shape {told}, for one input", hint=f"expected {list(expected[1:])}")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= shape[axis]:
        raise ScoreError(f"labels from {low} to {high} for {shape[axis]} classes", hint="number classes from 0")


def _sums_to_one(value: Tensor, axis: int) -> bool:
    sums = value.sum(axis)
    return bool((value >= 0).all()) and bool(((sums - 1).abs() <= SUM_TOLERANCE).all())


def numbers(value: Tensor) -> Tensor:
    """The numbers of an output in double precision, complex ones as pairs."""
    return (torch.view_as_real(value) if value.is_complex() else value).to(torch.float64)


def laid_out(value: Tensor, reading: Reading, lead: int = 0) -> Tensor:
    """The numbers of an output with its classes, or all its values, in front of the inputs.

    Reductions over a few classes are several times faster there than along the last axis.

    Shapes:
        (*lead, inputs, ...) -> (*lead, width, inputs, positions).
    """
    found = torch.view_as_real(value) if value.is_complex() else value
    rows = found.shape[lead]
    if reading.class_axis is not None:
        found = found.movedim(lead + reading.class_axis, lead)
        # Another precision and another order in one pass.
        found = found.to(torch.float64, memory_format=torch.contiguous_format).contiguous()
        return found.reshape(*found.shape[: lead + 1], rows, -1)
    if reading.kind == "binary":
        return numbers(found).reshape(*found.shape[:lead], 1, rows, -1)
    return numbers(found).reshape(*found.shape[:lead], rows, -1).transpose(-1, -2).contiguous()[..., None]


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
    x, y = laid_out(a, reading, lead), laid_out(b, reading, lead)
    difference = x - y
    error, norm = _most(difference.abs(), lead), _sum(x.square(), lead)
    clean = bool(torch.isfinite((error + norm).sum()))
    broken = torch.zeros_like(error, dtype=torch.bool), torch.zeros_like(error, dtype=torch.bool)
    if not clean:
        # Equal infinities (masked classes) are no difference.
        same = x == y
        difference = torch.where(same, 0.0, difference)
        error, norm = _most(difference.abs(), lead), _sum(torch.where(torch.isfinite(x), x, 0.0).square(), lead)
        broken = tuple(_most((~torch.isfinite(side) & ~same).double(), lead) > 0 for side in (x, y))  # type: ignore[assignment]
    found = {"error": error, "square": _sum(difference.square(), lead), "norm": norm}
    target = None if labels is None else labels.to(x.device).reshape(labels.shape[0], -1)
    if reading.distribution:
        found |= _as_distributions(x, y, reading, target, lead)
    elif reading.kind == "decisions":
        found["agreement"] = (difference == 0).double().mean((lead, -1))
    elif target is not None:
        wanted = numbers(target).T[..., None]
        found["loss_a"] = (x - wanted).square().mean((lead, -1))
        found["loss_b"] = (y - wanted).square().mean((lead, -1))
    if not clean:
        _spoil(found, *broken)
    return found | {"broken_a": broken[0].double(), "broken_b": broken[1].double()}


def _as_distributions(x: Tensor, y: Tensor, reading: Reading, target: Tensor | None, lead: int) -> dict[str, Tensor]:
    p, q = log_probabilities(x, reading, lead), log_probabilities(y, reading, lead)
    decisions = [value.max(lead).indices for value in (p, q)]
    kl, reverse = divergences(p, q, lead)
    found = {
        "kl": _average(kl),
        "kl_reverse": _average(reverse),
        "agreement": _average((decisions[0] == decisions[1]).double()),
    }
    if target is not None:
        target = target.to(torch.int64)
        for side, logarithm, decision in (("a", p, decisions[0]), ("b", q, decisions[1])):
            place = target.expand(decision.shape).unsqueeze(lead)
            found[f"right_{side}"] = _average((decision == target).double())
            found[f"loss_{side}"] = _average(-logarithm.gather(lead, place).squeeze(lead))
    return found


def _spoil(found: dict[str, Tensor], broken_a: Tensor, broken_b: Tensor) -> None:
    """Set what was measured of inputs with broken answers to the worst, in place of what came of them by chance."""
    worst = {"agreement": 0.0, "right_a": 0.0, "right_b": 0.0}
    whose = {"a": broken_a, "b": broken_b}
    for name, value in found.items():
        broken = whose.get(name[-1], broken_a | broken_b) if name[-2:] in ("_a", "_b") else broken_a | broken_b
        if name != "norm":
            found[name] = torch.where(broken | torch.isnan(value), worst.get(name, torch.inf), value)


def _most(value: Tensor, lead: int) -> Tensor:
    """The largest over width and positions."""
    found = value.amax(lead)
    return found.amax(-1) if found.shape[-1] > 1 else found[..., 0]


def _average(value: Tensor) -> Tensor:
    """The mean over positions."""
    return value.mean(-1) if value.shape[-1] > 1 else value[..., 0]


def _sum(value: Tensor, lead: int) -> Tensor:
    """The sum over width and positions."""
    found = value.sum(lead)
    return found.sum(-1) if found.shape[-1] > 1 else found[..., 0]


def log_probabilities(value: Tensor, reading: Reading, lead: int = 0) -> Tensor:
    """Logarithms of the probabilities that an output stands for, from :func:`laid_out`.

    Shapes:
        (*lead, width, inputs, positions) -> (*lead, classes, inputs, positions).
    """
    if reading.kind == "binary":
        return torch.cat([functional.logsigmoid(-value), functional.logsigmoid(value)], lead)
    return value.log() if reading.kind == "probabilities" else functional.log_softmax(value, lead)


def divergences(p: Tensor, q: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """KL(p || q) and KL(q || p) in nats from logarithms along an axis; classes without probability add nothing.

    Rounding makes the divergence of equal distributions a negative number now and then: it is 0.
    """
    difference = p - q
    found = []
    for share, apart in ((p.exp(), difference), (q.exp(), -difference)):
        value = (share * apart).sum(axis)
        if not bool(torch.isfinite(value.sum())):
            value = torch.where(share > 0, share * apart, 0.0).sum(axis)
        found.append(value.clamp(min=0.0))
    return found[0], found[1]


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
