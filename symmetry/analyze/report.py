"""What does an analysis say? The values of a report, as text and as JSON."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from symmetry.analyze.matrices import MatrixReport
from symmetry.analyze.units import Unit
from symmetry.analyze.words import listed, pattern
from symmetry.errors import SpecError
from symmetry.spec import Pin, approximate, digits

__all__ = ["SpaceReport", "SymmetryReport"]

FORMAT = "symmetry.report/1"
LEAST_REPEATS = 3


@dataclass(frozen=True, slots=True)
class SpaceReport:
    """One space of a network.

    Args:
        name, size: of the space.
        within: spaces that it has its own permutation or matrix for each unit of.
        inside: spaces that lie within this one.
        group: ``permutation``; ``linear`` or ``orthogonal`` where matrices act.
        copies: how many permutations or matrices it has: one per unit of the spaces in ``within``.
        permutations: number of permutations, as an exact integer (1 where matrices act).
        dimension: of the matrices, over all copies (0 for permutations).
        scales, signs: how many positive scalings and sign flips each unit has.
        activations: pointwise functions applied to it.
        writes, reads: the weight tensors that write and that read its units.
        unread: units whose outgoing weights are all zero: they do not reach the output through any of ``reads``.
        constant: units whose incoming weights are all zero.
        twins: groups of units that compute the same up to a factor that the group allows. In a space that lies within
            others, a unit is a tuple: its place in each of them, then its own.
        matrix: how well conditioned the space is, where matrices act.
        gauge: how far its scalings are from the canonical gauge: the root mean square of the logarithms of the
            canonical scalings, 0 in the gauge; ``None`` without scalings.
        words: the group in plain words, and what was found.
    """

    name: str
    size: int
    within: tuple[str, ...]
    inside: tuple[str, ...]
    group: str
    copies: int
    permutations: int
    dimension: int
    scales: int
    signs: int
    activations: tuple[str, ...]
    writes: tuple[str, ...]
    reads: tuple[str, ...]
    unread: tuple[Unit, ...]
    constant: tuple[Unit, ...]
    twins: tuple[tuple[Unit, ...], ...]
    matrix: MatrixReport | None
    gauge: float | None
    words: str

    @property
    def clean(self) -> bool:
        """Whether no unit is unread, constant or a twin."""
        return not (self.unread or self.constant or self.twins)


@dataclass(frozen=True, slots=True)
class SymmetryReport:
    """The outcome of :func:`symmetry.analyze`: exact order and dimensions, one row per space, and what was pinned.

    Args:
        permutation_order: exact number of permutations.
        sign_bits, scale_dimension, linear_dimension, orthogonal_dimension: of the other parts of the group.
        parameters: numbers in the tensors that are no buffers; tied ones count once.
        spaces: one row for each space.
        other_factors: scalings and signs that belong to no space, in words.
        pinned: axes that could not be kept free: operation, node, line of the model's code, tensors, reason.
        not_finite: tensors with values that are not finite; then units, conditions and gauges are not looked at.
    """

    permutation_order: int
    sign_bits: int
    scale_dimension: int
    linear_dimension: int
    orthogonal_dimension: int
    parameters: int
    spaces: tuple[SpaceReport, ...]
    other_factors: tuple[str, ...]
    pinned: tuple[Pin, ...]
    not_finite: tuple[str, ...] = ()

    def text(self) -> str:
        """The report for people: one line per space, repeated layers together."""
        matrices = "".join(
            f", {kind} dimensions {value:,}"
            for kind, value in (("linear", self.linear_dimension), ("orthogonal", self.orthogonal_dimension))
            if value
        )
        lines = [
            f"{self.parameters:,} parameters; permutations {approximate(self.permutation_order)}, "
            f"scale dimensions {self.scale_dimension:,}, sign bits {self.sign_bits:,}{matrices}"
        ]
        for group in self.repeated():
            first, last = group[0], group[-1]
            name = first.name if len(group) == 1 else f"{first.name} to {last.name}, {len(group)} times"
            lines.append(f"  {name} [{first.size}]: {first.words}")
            condition = describe_conditions([space.matrix for space in group if space.matrix is not None])
            if condition:
                lines.append(f"    {condition}")
        if not self.spaces:
            lines.append("  no hidden units: nothing can be permuted")
        lines += [f"  also: {factor}" for factor in self.others()]
        if self.not_finite:
            shown = listed(self.not_finite)
            lines.append(f"  values that are not finite in {shown}: its units were not looked at")
        lines += [f"  pinned: {pin}" for pin in self.pinned]
        return "\n".join(lines)

    __str__ = text

    def others(self) -> list[str]:
        """The factors of no space, those of repeated layers together."""
        groups: dict[str, list[str]] = {}
        for factor in self.other_factors:
            groups.setdefault(pattern(factor.split(", on ")[0]), []).append(factor)
        found: list[str] = []
        for group in groups.values():
            if len(group) < LEAST_REPEATS:
                found += group
            else:
                head, free = group[0].split(", on ")[0].split(": ")
                found.append(f"{head} to {group[-1].split(': ')[0]}, {len(group)} times: {free}")
        return found

    def repeated(self) -> list[list[SpaceReport]]:
        """The spaces, those of repeated layers together: same words but for numbers, three or more, nothing found."""
        groups: dict[object, list[SpaceReport]] = {}
        for space in self.spaces:
            key = (pattern(space.name), space.size, pattern(space.words)) if space.clean else space.name
            groups.setdefault(key, []).append(space)
        short = [[space] for group in groups.values() if len(group) < LEAST_REPEATS for space in group]
        found = short + [group for group in groups.values() if len(group) >= LEAST_REPEATS]
        order = {space.name: number for number, space in enumerate(self.spaces)}
        return sorted(found, key=lambda group: order[group[0].name])

    def to_json(self) -> dict[str, Any]:
        """A JSON value that :meth:`from_json` reads back.

        The orders of permutation groups are strings, since they do not fit a double; an infinite condition is ``None``.
        """
        found = {"format": FORMAT, **asdict(self)}
        found["permutation_order"] = digits(self.permutation_order)
        for space in found["spaces"]:
            space["permutations"] = digits(space["permutations"])
            if space["matrix"]:
                values = space["matrix"]["conditions"]
                space["matrix"]["conditions"] = [value if math.isfinite(value) else None for value in values]
        return found

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> SymmetryReport:
        """Read back what :meth:`to_json` wrote.

        Raises:
            SpecError: if the value is not the JSON of a report.
        """
        if not isinstance(value, Mapping) or value.get("format") != FORMAT:
            raise SpecError(f"not the JSON of a report of symmetry: expected format {FORMAT!r}")
        try:
            plain = {entry.name: _tuples(value[entry.name]) for entry in fields(cls)}
            plain["permutation_order"] = int(value["permutation_order"])
            plain["spaces"] = tuple(_space(item) for item in value["spaces"])
            plain["pinned"] = tuple(
                Pin(**{key: _tuples(part) for key, part in item.items()}) for item in value["pinned"]
            )
            return cls(**plain)
        except (KeyError, TypeError, ValueError) as error:
            raise SpecError(f"not the JSON of a report of symmetry: {type(error).__name__}: {error}") from error


def describe_conditions(found: Sequence[MatrixReport]) -> str:
    """The range of condition numbers over heads and repeated layers, in a sentence; empty if there are none."""
    values = [condition for report in found for condition in report.conditions]
    if not values:
        return ""
    lacking = [(rank, report.full_rank) for report in found for rank in report.ranks if rank < report.full_rank]
    finite = [value for value in values if math.isfinite(value)]
    text = "condition number"
    if len(finite) == 1:
        text += f" {finite[0]:.3g}"
    elif finite:
        text += (
            f"s {min(finite):.3g} to {max(finite):.3g} (median {statistics.median(finite):.3g}, {len(finite)} values)"
        )
    text += " of the composite" if found[0].measured == "composite" else " of the stacked tensors"
    if lacking:
        text += f"; rank {min(rank for rank, _ in lacking)} of {lacking[0][1]} in {len(lacking)} of {len(values)}"
    return text if finite else f"{text}: none is finite"


def _space(value: Mapping[str, Any]) -> SpaceReport:
    plain = {entry.name: _tuples(value[entry.name]) for entry in fields(SpaceReport)}
    plain["permutations"] = int(value["permutations"])
    if value["matrix"] is not None:
        matrix = {key: _tuples(item) for key, item in value["matrix"].items()}
        conditions = tuple(math.inf if item is None else float(item) for item in matrix["conditions"])
        plain["matrix"] = MatrixReport(**{**matrix, "conditions": conditions})
    return SpaceReport(**plain)


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list | tuple) else value
