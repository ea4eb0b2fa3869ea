"""Which edits of a network are there, as values that print, compare and go to and from JSON?

A :class:`SpaceEdit` changes the units of one space, a :class:`StateEdit` moves a state within its group; both are
written in terms of the spec and know no module. A :class:`ModuleEdit` (``structure.py``, ``norms.py``) replaces
modules. Each says whether it claims to be exact; that claim is checked by running the network before and after.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from metanet.errors import PlanError, clean
from metanet.morph.resize import Resizing, size_of
from symmetry import GroupElement, SymmetrySpec

__all__ = [
    "Edit",
    "Keep",
    "Merge",
    "ModuleEdit",
    "SpaceEdit",
    "StateEdit",
    "Widen",
    "Written",
    "edit_from_json",
    "units_of",
]

_KINDS: dict[str, type[Edit]] = {}
MOST_UNITS = 1_000_000


@dataclass(frozen=True)
class Edit(abc.ABC):
    """One change of a network. Subclasses are frozen dataclasses of JSON values, known by their ``kind``."""

    kind: ClassVar[str]
    exact: ClassVar[bool]

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "kind" in vars(cls):
            _KINDS[cls.kind] = cls

    def __post_init__(self) -> None:
        for entry in fields(self):
            value = getattr(self, entry.name)
            if isinstance(value, list | Tensor):
                object.__setattr__(self, entry.name, _tuples(value))

    def to_json(self) -> dict[str, Any]:
        """A JSON value that :func:`edit_from_json` reads back; fields with their default value are left out."""
        told = {entry.name: _lists(getattr(self, entry.name)) for entry in fields(self)}
        defaults = {entry.name: entry.default for entry in fields(self) if entry.default is not MISSING}
        kept = {name: value for name, value in told.items() if name not in defaults or value != defaults[name]}
        return {"kind": self.kind, **kept}

    @abc.abstractmethod
    def __str__(self) -> str:
        """In a few words."""


def edit_from_json(value: object) -> Edit:
    """Read back what :meth:`Edit.to_json` wrote.

    Raises:
        PlanError: if the value is no edit.
    """
    if not isinstance(value, Mapping) or value.get("kind") not in _KINDS:
        kind = value.get("kind") if isinstance(value, Mapping) else value
        raise PlanError(f"unknown edit {clean(repr(kind), 60)}", hint="known: " + ", ".join(sorted(_KINDS)))
    given = {str(name): item for name, item in value.items() if name != "kind"}
    made = _KINDS[value["kind"]]
    names = {entry.name: entry.default is MISSING for entry in fields(made)}
    wrong = sorted(set(given) - set(names)) or sorted(n for n, needed in names.items() if needed and n not in given)
    if wrong:
        raise PlanError(
            f"edit {made.kind!r}: {clean(repr(wrong[0]), 60)} is {'missing' if wrong[0] in names else 'unknown'}",
            hint=f"it has {', '.join(names)}",
        )
    try:
        return made(**given)
    except (TypeError, ValueError) as error:
        raise PlanError(f"edit {made.kind!r}: {error}", hint="see the documentation of edits") from error


class SpaceEdit(Edit):
    """An edit of the units of one space."""

    space: str

    @abc.abstractmethod
    def resizing(self, spec: SymmetrySpec) -> Resizing:
        """The change of the space, checked against the spec.

        Raises:
            PlanError: if it does not fit.
        """


class StateEdit(Edit):
    """An edit within the group of the architecture: no shape changes."""

    exact = True

    @abc.abstractmethod
    def element(self, spec: SymmetrySpec) -> GroupElement:
        """The element of the group that acts.

        Raises:
            PlanError: if the spec has no such element.
        """


class ModuleEdit(Edit):
    """An edit that replaces modules."""

    def resolved(self, model: nn.Module) -> ModuleEdit:
        """The same edit with everything decided that depends on weights, so that it can be done without them."""
        return self

    @abc.abstractmethod
    def restructure(self, model: nn.Module, example_inputs: Sequence[Any]) -> None:
        """Replace modules, in place, in a copy of the user's model.

        Raises:
            PlanError: if the module is not there or cannot be replaced.
        """


@dataclass(frozen=True)
class Widen(SpaceEdit):
    """Copy units and divide what is read of them among the copies; the function stays.

    Source: Chen, Goodfellow, Shlens, Net2Net, 2016, section 2.2 (Net2WiderNet), for any space of a spec.

    Args:
        space: which.
        source: for each new unit the old one that it copies; every old unit occurs. One list per unit of the spaces
            that the space lies within.
        share: of each new unit in what is read of its old one; sums to 1 over the copies. Equal shares by default.
    """

    space: str
    source: Sequence[Any]
    share: Sequence[Any] | None = None
    kind = "widen"
    exact = True

    def resizing(self, spec: SymmetrySpec) -> Resizing:
        """See :meth:`SpaceEdit.resizing`."""
        source, size = units_of(spec, self.space, self.source), spec.sizes[self.space]
        count = torch.zeros(*source.shape[:-1], size, dtype=torch.float64)
        count.scatter_add_(-1, source, torch.ones_like(source, dtype=torch.float64))
        if bool((count == 0).any()):
            raise PlanError(
                f"widen {self.space!r}: some of its {size} units occur nowhere", hint="use keep to drop units"
            )
        if self.share is None:
            return Resizing(self.space, source, (1 / count).gather(-1, source))
        share = torch.tensor(self.share, dtype=torch.float64)
        if share.shape == source.shape[-1:]:
            share = share.expand(source.shape)
        if share.shape != source.shape:
            raise PlanError(f"widen {self.space!r}: {self.share!r:.60} shares for {source.shape[-1]} units")
        total = torch.zeros_like(count).scatter_add_(-1, source, share)
        if not torch.allclose(total, torch.ones_like(total), rtol=0, atol=1e-12):
            raise PlanError(
                f"widen {self.space!r}: shares of the copies of one unit sum to {float(total.max()):g}, not 1"
            )
        return Resizing(self.space, source, share)

    def __str__(self) -> str:
        return f"widen {self.space} to {_last(self.source)} units"


@dataclass(frozen=True)
class Keep(SpaceEdit):
    """Keep some units and drop the rest (pruning). What is read of a dropped unit is lost.

    Args:
        space: which.
        units: those kept, in their new order; one list per unit of the spaces that the space lies within.
    """

    space: str
    units: Sequence[Any]
    kind = "keep"
    exact = False

    def resizing(self, spec: SymmetrySpec) -> Resizing:
        """See :meth:`SpaceEdit.resizing`."""
        units = units_of(spec, self.space, self.units)
        if any(len(set(row)) != len(row) for row in units.reshape(-1, units.shape[-1]).tolist()):
            raise PlanError(f"keep {self.space!r}: a unit is named twice", hint="use widen to copy units")
        return Resizing(self.space, units)

    def __str__(self) -> str:
        return f"keep {_last(self.units)} units of {self.space}"


@dataclass(frozen=True)
class Merge(SpaceEdit):
    """Put units together: one new unit for each group, which is read as all of them were.

    Source: the sum of the outgoing weights is that of Srinivas and Babu, Data-free Parameter Pruning, 2015.

    Args:
        space: which.
        groups: the old units of each new one; every old unit occurs once.
        weights: of the old units in the new one's incoming weights, as ``groups``; by default the first unit of a group
            stands for it.
        gains: what a reader multiplies the new unit by in place of each old one, as ``groups``; ones by default.
    """

    space: str
    groups: Sequence[Sequence[int]]
    weights: Sequence[Sequence[float]] | None = None
    gains: Sequence[Sequence[float]] | None = None
    kind = "merge"
    exact = False

    def resizing(self, spec: SymmetrySpec) -> Resizing:
        """See :meth:`SpaceEdit.resizing`."""
        size = size_of(spec, self.space)
        if spec.within.get(self.space):
            raise PlanError(f"merge {self.space!r}: lies within other spaces", hint="merge the units of plain spaces")
        listed = [unit for group in self.groups for unit in group]
        if sorted(listed) != list(range(size)) or not all(self.groups):
            raise PlanError(f"merge {self.space!r}: groups must hold each of the units 0 to {size - 1} once")
        for given, what in ((self.weights, "weights"), (self.gains, "gains")):
            if given is not None and [len(row) for row in given] != [len(row) for row in self.groups]:
                raise PlanError(f"merge {self.space!r}: {what} are not laid out like the groups")
        writer = torch.zeros(len(self.groups), size, dtype=torch.float64)
        reader = torch.zeros(size, len(self.groups), dtype=torch.float64)
        for row, group in enumerate(self.groups):
            if self.weights is None:
                writer[row, group[0]] = 1
            else:
                writer[row, list(group)] = torch.tensor(self.weights[row], dtype=torch.float64)
            gains = torch.ones(len(group)) if self.gains is None else torch.tensor(self.gains[row])
            reader[list(group), row] = gains.double()
        first = torch.tensor([group[0] for group in self.groups])
        return Resizing(self.space, first, writer=writer, reader=reader)

    def __str__(self) -> str:
        return f"merge {self.space} into {len(self.groups)} units"


@dataclass(frozen=True)
class Written(SpaceEdit):
    """A space gets a size, in a network whose weights something else has written: they stand beside the plan.

    Such a plan says what shape a module has (:func:`metanet.morph.written`, :func:`metanet.morph.restore`). It cannot
    be done on other weights.

    Args:
        space: which.
        size: number of units.
        by: what wrote the weights, in words.
    """

    space: str
    size: int
    by: str = ""
    kind = "written"
    exact = False

    def resizing(self, spec: SymmetrySpec) -> Resizing:
        """See :meth:`SpaceEdit.resizing`: units that stand for the new ones, over and over where those are more."""
        here = size_of(spec, self.space)
        if type(self.size) is not int or not 1 <= self.size <= MOST_UNITS:
            raise PlanError(
                f"written {self.space!r}: size {clean(repr(self.size), 40)}", hint=f"expected 1 to {MOST_UNITS:,} units"
            )
        units = torch.arange(self.size) % here
        return Resizing(self.space, units.expand(*spec.array_shape(self.space)[:-1], self.size).contiguous())

    def __str__(self) -> str:
        return f"{self.space}: {self.size} units, written{f' by {clean(self.by, 60)}' if self.by else ''}"


def units_of(spec: SymmetrySpec, space: str, given: Sequence[Any]) -> Tensor:
    """Units as an array of the space's shape; one list serves all units of the spaces around it."""
    size, outer = size_of(spec, space), spec.array_shape(space)[:-1]
    try:
        units = torch.tensor(given)
    except (TypeError, ValueError) as error:
        raise PlanError(f"units of {space!r}: {clean(repr(given), 60)}", hint="give lists of whole numbers") from error
    if units.is_floating_point() or units.dtype == torch.bool or units.numel() == 0:
        raise PlanError(f"units of {space!r}: {clean(repr(given), 60)}", hint="give at least one whole number")
    if units.ndim == 1:
        units = units.expand(*outer, units.shape[0])
    if units.shape[:-1] != outer:
        raise PlanError(f"units of {space!r}: {units.ndim} levels of lists, expected {len(outer) + 1}")
    bad = units[(units < 0) | (units >= size)]
    if len(bad):
        raise PlanError(
            f"unit {int(bad[0])} of {space!r} is out of range", hint=f"it has {size} units, 0 to {size - 1}"
        )
    return units.contiguous()


def _last(nested: Sequence[Any]) -> int:
    return _last(nested[0]) if nested and isinstance(nested[0], Sequence) else len(nested)


def _tuples(value: Any) -> Any:
    if isinstance(value, Tensor):
        value = value.tolist()
    return tuple(_tuples(item) for item in value) if isinstance(value, list | tuple) else value


def _lists(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        raise PlanError(f"{value} in a plan; expected finite numbers")
    return [_lists(item) for item in value] if isinstance(value, tuple) else value
