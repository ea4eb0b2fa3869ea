"""Which axes of a tensor are units and which are features? From a spec to the topology of its parameter graph.

Rules, for one concatenation-free part of a tensor:

- the spaces on one axis are one unit axis: heads x units are the units of all heads, laid out in the order of their
  names;
- a space within other spaces (the units inside heads) joins them wherever in the tensor they stand;
- a fixed axis without spaces that is read or written is a unit axis of nodes with an identity each;
- every other fixed leaf (kernel positions, pixels behind a flatten) is a feature.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field, replace

from metanet.graph.layout import Region, Span
from metanet.graph.topology import Block, Group, Layer, Level, Topology
from symmetry import Atom, SymmetrySpec, TensorInfo
from symmetry.spaces import Block as AxisPart
from symmetry.spaces import blocks as axis_parts

__all__ = ["KINDS", "build_topology"]

KINDS = (
    "linear.weight",
    "conv.weight",
    "bias",
    "norm.weight",
    "norm.bias",
    "norm.running_mean",
    "norm.running_var",
    "parameter",
    "unused",
)
"""Kinds of tensors that a parameter graph interprets; tensors of any other kind are carried raw."""

_UNIT_ROLES = ("out", "unit", "in")
_LEVELS: tuple[Level, Level, Level] = ("layer", "node", "edge")


@dataclass(slots=True)
class _Unit:
    """A unit axis being assembled: the leaves it runs over and what is known of it."""

    leaves: list[int]
    spaces: list[str]
    sizes: list[int]
    role: str
    fixed_name: str = ""

    @property
    def size(self) -> int:
        return math.prod(self.sizes)


@dataclass(slots=True)
class _Groups:
    """The groups met so far, each under a unique name."""

    spec: SymmetrySpec
    keys: dict[tuple[str, ...], str] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    spaces: dict[str, tuple[str, ...]] = field(default_factory=dict)
    roles: dict[str, set[str]] = field(default_factory=dict)
    depths: dict[str, int] = field(default_factory=dict)

    def add(self, unit: _Unit, order: int) -> str:
        spaces = tuple(unit.spaces)
        wanted = " x ".join(spaces) or unit.fixed_name
        key = spaces or ("", unit.fixed_name, str(unit.size))
        if key not in self.keys:
            name = wanted
            while name in self.sizes or name == "layer":
                name += "'"
            self.keys[key], self.sizes[name], self.spaces[name], self.roles[name] = name, unit.size, spaces, set()
        name = self.keys[key]
        self.roles[name].add(unit.role)
        if unit.role == "out":
            self.depths[name] = min(order, self.depths.get(name, order))
        return name

    def build(self) -> tuple[Group, ...]:
        return tuple(
            Group(
                name=name,
                size=size,
                spaces=self.spaces[name],
                reads="in" in self.roles[name],
                writes="out" in self.roles[name],
                activations=self._activations(name),
                depth=self.depths.get(name, -1),
            )
            for name, size in self.sizes.items()
        )

    def _activations(self, name: str) -> tuple[str, ...]:
        met = [self.spec.activations.get(source, ()) for source in self.spaces[name] or (name,)]
        return tuple(dict.fromkeys(itertools.chain.from_iterable(met)))


def build_topology(spec: SymmetrySpec) -> Topology:
    """Cut every stored tensor of a spec into blocks over groups of nodes."""
    owners = {name: _owner(spec, name) for name in spec.tensors}
    stored = [name for name in spec.tensors if owners[name] == name]
    ranks = {name: rank for rank, name in enumerate(sorted(stored, key=lambda name: spec.tensors[name].order))}
    groups = _Groups(spec)
    layers: list[Layer] = []
    found: list[tuple[Block, list[str]]] = []
    for number, name in enumerate(stored):
        info = spec.tensors[name]
        layers.append(Layer(name, info.kind, math.prod(info.shape), ranks[name]))
        cuts = [axis_parts(axis) for axis in spec.axes[name]]
        for part in itertools.product(*(range(len(parts)) for parts in cuts)):
            chosen = tuple(cuts[axis][i] for axis, i in enumerate(part))
            block, units = _block(spec, name, part, chosen, number)
            found.append((block, [groups.add(unit, ranks[name]) for unit in units]))
    covered = {space for spaces in groups.spaces.values() for space in spaces}
    for space in spec.spaces:
        if space.name not in covered:
            groups.add(_Unit([], [space.name], [space.size], "none"), 0)
    where = {name: i for i, name in enumerate(groups.sizes)}
    blocks = tuple(replace(block, groups=tuple(where[name] for name in names)) for block, names in found)
    return Topology(spec, groups.build(), tuple(layers), blocks, owners)


def _block(
    spec: SymmetrySpec, name: str, part: tuple[int, ...], chosen: tuple[AxisPart, ...], layer: int
) -> tuple[Block, list[_Unit]]:
    """One part of a tensor, its groups still to be numbered, and its unit axes: first what it writes."""
    info = spec.tensors[name]
    spans = tuple(Span.of(one.positions, length) for one, length in zip(chosen, info.shape, strict=True))
    leaves = tuple(leaf.size for one in chosen for leaf in one.leaves)
    units = _units(spec, name, info, part, chosen)
    reason = _refusal(spec, info, units)
    if reason:
        region = Region(spans, leaves, tuple(range(len(leaves))), tuple(span.size for span in spans))
        return Block(name, part, "raw", info.kind, (), (), layer, region, None, reason), []
    units.sort(key=lambda unit: _UNIT_ROLES.index(unit.role) if unit.role in _UNIT_ROLES else 1)
    taken = [leaf for unit in units for leaf in unit.leaves]
    rest = [leaf for leaf in range(len(leaves)) if leaf not in taken]
    positions = tuple(leaves[leaf] for leaf in rest if leaves[leaf] != 1)
    shape = (*(unit.size for unit in units), math.prod(positions))
    region = Region(spans, leaves, (*taken, *rest), shape)
    level = _LEVELS[len(units)]
    return Block(name, part, level, info.kind, (), positions, layer, region, info.positive_offset, ""), units


def _units(
    spec: SymmetrySpec, name: str, info: TensorInfo, part: tuple[int, ...], chosen: tuple[AxisPart, ...]
) -> list[_Unit]:
    units: list[_Unit] = []
    first = 0
    for axis, one in enumerate(chosen):
        atoms = [(first + i, leaf.space) for i, leaf in enumerate(one.leaves) if isinstance(leaf, Atom)]
        role = info.roles[axis] if axis < len(info.roles) else "none"
        if atoms:
            atoms.sort(key=lambda atom: atom[1].name)
            places, spaces = [place for place, _ in atoms], [space for _, space in atoms]
            units.append(_Unit(places, [space.name for space in spaces], [space.size for space in spaces], role))
        elif role in _UNIT_ROLES:
            named = one.leaves[0].name if len(one.leaves) == 1 and not isinstance(one.leaves[0], Atom) else None
            suffix = f".{part[axis]}" if part[axis] else ""
            places = list(range(first, first + len(one.leaves)))
            sizes = [leaf.size for leaf in one.leaves]
            units.append(_Unit(places, [], sizes, role, named or f"{name}:{axis}{suffix}"))
        first += len(one.leaves)
    return _joined(spec, units)


def _joined(spec: SymmetrySpec, units: list[_Unit]) -> list[_Unit]:
    """Units within other spaces join the axis that those stand on, where it is not their own."""
    result = list(units)
    for unit in units:
        outer = {space for inner in unit.spaces for space in spec.within.get(inner, ())} - set(unit.spaces)
        for host in [other for other in result if other is not unit and outer & set(other.spaces)]:
            if unit not in result:
                break
            result.remove(unit)
            merged = sorted(
                zip(host.spaces + unit.spaces, host.sizes + unit.sizes, host.leaves + unit.leaves, strict=True)
            )
            host.spaces = [space for space, _, _ in merged]
            host.sizes = [size for _, size, _ in merged]
            host.leaves = [leaf for _, _, leaf in merged]
            host.role = unit.role if host.role not in _UNIT_ROLES else host.role
    return result


def _refusal(spec: SymmetrySpec, info: TensorInfo, units: list[_Unit]) -> str:
    """Why a block cannot be interpreted, or ""."""
    if "float" not in info.dtype:
        return f"dtype {info.dtype} is not floating point"
    if info.kind not in KINDS:
        return f"kind {info.kind!r} is unknown"
    if 0 in info.shape:
        return f"it is empty, of shape {info.shape}"
    if len(units) > 2:
        return f"it has {len(units)} unit axes, a block has at most 2"
    for unit in units:
        for space in unit.spaces:
            if not set(spec.within.get(space, ())) <= set(unit.spaces):
                return f"space {space} stands without the spaces it lies within"
    return ""


def _owner(spec: SymmetrySpec, name: str) -> str:
    """The name a tied tensor is stored under; names with different axes are stored apart."""
    tied = spec.tensors[name].tied_to
    return tied if tied is not None and tied in spec.tensors and spec.axes[tied] == spec.axes[name] else name
