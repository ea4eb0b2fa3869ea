"""What is the symmetry group of one architecture, and how does it sit in each tensor?

A :class:`SymmetrySpec` belongs to an architecture, not to weights: it holds the layout of every tensor over
:class:`~symmetry.spaces.NeuronSpace`, the generators of the continuous and sign parts, and what was pinned and why.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from decimal import Decimal
from fractions import Fraction
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from symmetry.errors import SpecError
from symmetry.factors import Factor, LinearFactor, LinearSlot, ShiftFactor, ShiftStep, Slot
from symmetry.spaces import Atom, Axis, Fixed, NeuronSpace, axis_from_json

if TYPE_CHECKING:
    from symmetry.elements import GroupElement

__all__ = [
    "Factor",
    "LinearFactor",
    "LinearSlot",
    "Pin",
    "ShiftFactor",
    "ShiftStep",
    "Slot",
    "SymmetrySpec",
    "TensorInfo",
]

KINDS = ("permutation", "scale", "sign", "linear", "orthogonal", "shift")
FORMAT = "symmetry.spec/1"


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """What one entry of the state dict is and does.

    Args:
        shape: its shape.
        dtype: its torch dtype, as ``"float32"``.
        kind: ``linear.weight``, ``conv.weight``, ``bias``, ``norm.weight``, ``norm.bias``, ``norm.running_mean``,
            ``norm.running_var``, ``parameter`` (used otherwise) or ``unused``.
        roles: for each axis ``out`` (units it writes), ``in`` (units it reads), ``unit`` (both), ``position`` or
            ``none``.
        order: rank of first use along the data flow; unused tensors come last.
        buffer: whether the module holds it as a buffer.
        tied_to: name of the entry that shares its storage and carries the group action, else ``None``.
        positive_offset: ``eps`` where the function sees ``tensor + eps`` under a root: scalings act on that sum.
    """

    shape: tuple[int, ...]
    dtype: str
    kind: str = "unused"
    roles: tuple[str, ...] = ()
    order: int = 0
    buffer: bool = False
    tied_to: str | None = None
    positive_offset: float | None = None


@dataclass(frozen=True, slots=True)
class Pin:
    """An axis that could not be kept free, and why.

    Args:
        operation: the operation that pinned it, as ``aten.cumsum.default``.
        node: the name of that node in the exported graph.
        tensors: the entries of the state dict whose axes it pinned, as ``name[axis]``.
        reason: plain words.
        source: the line of the model's code, where torch knows it.
    """

    operation: str
    node: str
    tensors: tuple[str, ...]
    reason: str
    source: str = ""

    def __str__(self) -> str:
        where = f" at {self.source}" if self.source else ""
        return f"{self.operation} (node {self.node}){where}: {self.reason}; pins {_few(self.tensors, 6)}"


@dataclass(frozen=True, eq=False)
class SymmetrySpec:
    """The symmetry group of an architecture.

    Args:
        spaces: the sets of units that the group acts on, by permutations or (those of ``linear``) by matrices.
        axes: for every entry of the state dict one axis per dimension.
        tensors: what each entry is (see :class:`TensorInfo`).
        within: for a space with its own permutation per unit of other spaces (the units inside heads), those spaces.
        factors: generators of scalings and signs.
        scale_dimension: dimension of the group of positive scalings.
        sign_bits: number of independent sign flips.
        pinned: axes that an operation without a rule, or one that mixes units, has pinned.
        activations: pointwise functions met, for each space and fixed axis.
        linear: the spaces on which invertible or orthogonal matrices act.
        shifts: generators of shifts of the biases of sines by whole numbers of half periods.

    Two specs are equal, and have one ``fingerprint``, when all of this is equal.
    """

    spaces: tuple[NeuronSpace, ...]
    axes: Mapping[str, tuple[Axis, ...]]
    tensors: Mapping[str, TensorInfo]
    within: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    factors: tuple[Factor, ...] = ()
    scale_dimension: int = 0
    sign_bits: int = 0
    pinned: tuple[Pin, ...] = ()
    activations: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    linear: tuple[LinearFactor, ...] = ()
    shifts: tuple[ShiftFactor, ...] = ()

    def __post_init__(self) -> None:
        if list(self.axes) != list(self.tensors):
            raise SpecError(
                "axes and tensors of a spec name different entries; expected the same names in the same order"
            )
        sizes = {space.name: space.size for space in self.spaces}
        if len(sizes) != len(self.spaces):
            raise SpecError("two spaces of a spec share one name; expected unique names")
        for name, axes in self.axes.items():
            if tuple(axis.size for axis in axes) != tuple(self.tensors[name].shape):
                raise SpecError(
                    f"{name}: axes {[str(axis) for axis in axes]} do not fit its shape {self.tensors[name].shape}"
                )
            for leaf in (leaf for axis in axes for leaf in axis.leaves() if isinstance(leaf, Atom)):
                if sizes.get(leaf.space.name) != leaf.space.size:
                    raise SpecError(f"{name}: axis over {leaf.space}, which is not among the spec's spaces")
        for space, outer in self.within.items():
            if space not in sizes or not set(outer) <= set(sizes):
                raise SpecError(f"within: {space!r} inside {outer} names a space that the spec does not have")
        for factor in self.linear:
            if sizes.get(factor.space) != factor.size:
                raise SpecError(f"linear: no space {factor.space!r} of {factor.size} units among the spec's spaces")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SymmetrySpec) and self.fingerprint == other.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __repr__(self) -> str:
        parts = [
            f"{len(self.spaces)} spaces",
            f"{len(self.tensors)} tensors",
            f"permutations {approximate(self.permutation_order)}",
            f"{self.sign_bits} sign bits",
            f"{self.scale_dimension} scale dimensions",
        ]
        rest = {
            "linear dimensions": self.linear_dimension,
            "orthogonal dimensions": self.orthogonal_dimension,
            "shifts": self.shift_rank,
        }
        parts += [f"{number} {what}" for what, number in rest.items() if number]
        return f"SymmetrySpec({', '.join(parts)}, {len(self.pinned)} pinned)"

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Number of units of every space and every named fixed axis."""
        found = {space.name: space.size for space in self.spaces}
        for leaf in (leaf for axes in self.axes.values() for axis in axes for leaf in axis.leaves()):
            if isinstance(leaf, Fixed) and leaf.name is not None:
                found.setdefault(leaf.name, leaf.size)
        return found

    def array_shape(self, name: str | None) -> tuple[int, ...]:
        """Shape of an array with one value per unit of ``name``, with the spaces it lies within in front."""
        if name is None:
            return ()
        return (*(self.sizes[outer] for outer in self.within.get(name, ())), self.sizes[name])

    @cached_property
    def permuted(self) -> tuple[NeuronSpace, ...]:
        """The spaces that are permuted: all but those on which matrices act."""
        matrices = {factor.space for factor in self.linear}
        return tuple(space for space in self.spaces if space.name not in matrices)

    def copies(self, space: str) -> int:
        """How many permutations (or matrices) a space has: one per unit of the spaces it lies within."""
        return math.prod(self.sizes[outer] for outer in self.within.get(space, ()))

    @cached_property
    def permutation_order(self) -> int:
        """Exact number of permutations: the product of n! over permuted spaces, to the power of its copies."""
        return math.prod(math.factorial(space.size) ** self.copies(space.name) for space in self.permuted)

    @cached_property
    def linear_dimension(self) -> int:
        """Dimension of the general linear factors: the sum of n^2 over their copies."""
        return sum(f.dimension * self.copies(f.space) for f in self.linear if f.kind == "linear")

    @cached_property
    def orthogonal_dimension(self) -> int:
        """Dimension of the orthogonal factors: the sum of n (n - 1) / 2 over their copies."""
        return sum(f.dimension * self.copies(f.space) for f in self.linear if f.kind == "orthogonal")

    @cached_property
    def shift_rank(self) -> int:
        """Number of independent integers by which biases of sines are shifted."""
        return sum(math.prod(self.array_shape(factor.space)) for factor in self.shifts)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the spec's JSON: equal specs have equal fingerprints."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()

    def check(self, state: Mapping[str, Tensor]) -> None:
        """Refuse a state of other names or shapes.

        Raises:
            SpecError: with the first difference, what was expected and what was found.
        """
        for name, info in self.tensors.items():
            if name not in state:
                raise SpecError(
                    f"state has no entry {name!r} of shape {tuple(info.shape)}; it has {_few(state)}. "
                    "Use the state of the module that the spec was traced from"
                )
            if tuple(state[name].shape) != tuple(info.shape):
                raise SpecError(f"{name}: shape {tuple(state[name].shape)}, expected {tuple(info.shape)} by the spec")
        for name in state:
            if name not in self.tensors:
                raise SpecError(
                    f"state has an entry {name!r} that the spec does not know; the spec has {_few(self.tensors)}"
                )

    def identity(self) -> GroupElement:
        """The neutral element."""
        from symmetry.elements import GroupElement

        return GroupElement.identity(self)

    def sample(
        self, generator: torch.Generator | None = None, kinds: Iterable[str] = KINDS, scale_spread: float = 0.5
    ) -> GroupElement:
        """Draw a random element.

        Args:
            generator: source of randomness; a fresh one with seed 0 if ``None`` (the global one is never read).
            kinds: which parts of the group to draw; the rest is neutral.
            scale_spread: standard deviation of the logarithms of the scalings.

        Raises:
            SpecError: for a kind that does not exist.
        """
        from symmetry.elements import GroupElement

        unknown = set(kinds) - set(KINDS)
        if unknown:
            raise SpecError(f"kinds={sorted(unknown)}: unknown; expected some of {', '.join(KINDS)}")
        return GroupElement.sample(self, generator or torch.Generator().manual_seed(0), set(kinds), scale_spread)

    def act(self, element: GroupElement, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The state under an element of the group: new tensors, same names, order, shapes and dtypes.

        Raises:
            SpecError: if the state has other names or shapes, or the element belongs to another spec.
        """
        from symmetry.action import act

        return act(self, element, state)

    def to_json(self) -> dict[str, Any]:
        """A JSON value that :meth:`from_json` reads back to an equal spec."""
        return {
            "format": FORMAT,
            "spaces": [[space.name, space.size] for space in self.spaces],
            "axes": {name: [axis.to_json() for axis in axes] for name, axes in self.axes.items()},
            "tensors": {name: _record(info) for name, info in self.tensors.items()},
            "order": list(self.axes),
            "within": {name: list(outer) for name, outer in self.within.items()},
            "factors": [
                {
                    **_record(factor),
                    "slots": [[s.tensor, s.block, s.leaf, str(s.exponent)] for s in factor.slots],
                }
                for factor in self.factors
            ],
            "scale_dimension": self.scale_dimension,
            "sign_bits": self.sign_bits,
            "pinned": [_record(pin) for pin in self.pinned],
            "activations": {name: list(found) for name, found in self.activations.items()},
            "linear": [
                {**_record(factor), "slots": [[s.tensor, s.block, s.leaf, s.inverse, s.gain] for s in factor.slots]}
                for factor in self.linear
            ],
            "shifts": [
                {
                    **_record(factor),
                    "steps": [[s.tensor, s.block, s.leaf, s.step] for s in factor.steps],
                    "flips": [[s.tensor, s.block, s.leaf, str(s.exponent)] for s in factor.flips],
                }
                for factor in self.shifts
            ],
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> SymmetrySpec:
        """Read back what :meth:`to_json` wrote.

        Raises:
            SpecError: if the value is not the JSON of a spec.
        """
        if not isinstance(value, Mapping) or value.get("format") != FORMAT:
            found = value.get("format") if isinstance(value, Mapping) else type(value).__name__
            raise SpecError(f"not the JSON of a spec: format {found!r}, expected {FORMAT!r}")
        try:
            return cls(
                spaces=tuple(NeuronSpace(str(name), int(size)) for name, size in value["spaces"]),
                axes={name: tuple(axis_from_json(axis) for axis in value["axes"][name]) for name in value["order"]},
                tensors={name: TensorInfo(**_tuples(value["tensors"][name])) for name in value["order"]},
                within={name: tuple(outer) for name, outer in value["within"].items()},
                factors=tuple(
                    Factor(
                        **{
                            **factor,
                            "slots": tuple(
                                Slot(name, block, leaf, Fraction(power)) for name, block, leaf, power in factor["slots"]
                            ),
                        }
                    )
                    for factor in value["factors"]
                ),
                scale_dimension=int(value["scale_dimension"]),
                sign_bits=int(value["sign_bits"]),
                pinned=tuple(Pin(**_tuples(pin)) for pin in value["pinned"]),
                activations={name: tuple(found) for name, found in value["activations"].items()},
                linear=tuple(
                    LinearFactor(
                        str(factor["kind"]),
                        str(factor["space"]),
                        int(factor["size"]),
                        tuple(
                            LinearSlot(str(t), int(b), int(k), bool(i), gain) for t, b, k, i, gain in factor["slots"]
                        ),
                    )
                    for factor in value.get("linear", ())
                ),
                shifts=tuple(
                    ShiftFactor(
                        **{
                            **factor,
                            "steps": tuple(ShiftStep(str(t), int(b), k, float(s)) for t, b, k, s in factor["steps"]),
                            "flips": tuple(Slot(str(t), int(b), k, Fraction(e)) for t, b, k, e in factor["flips"]),
                        }
                    )
                    for factor in value.get("shifts", ())
                ),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise SpecError(f"not the JSON of a spec: {type(error).__name__}: {error}") from error


def approximate(order: int) -> str:
    """An exact integer if it is short, a power of ten otherwise."""
    if order < 10**12:
        return f"{order:,}"
    exponent = math.log10(order) if order < 10**300 else (order.bit_length() - 1) * math.log10(2)
    return f"about 10^{exponent:.1f}"


def digits(order: int) -> str:
    """All digits of an integer; Python refuses to write out those of more than 4,300."""
    return str(Decimal(order))


def _record(value: Any) -> dict[str, Any]:
    """The fields of a flat dataclass, tuples as lists."""
    found = {entry.name: getattr(value, entry.name) for entry in fields(value)}
    return {name: list(item) if isinstance(item, tuple) else item for name, item in found.items()}


def _tuples(value: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(item) if isinstance(item, list) else item for name, item in value.items()}


def _few(names: Iterable[str], most: int = 4) -> str:
    listed = list(names)
    return ", ".join(listed[:most]) + (f", ... ({len(listed)} in all)" if len(listed) > most else "") or "no entries"
