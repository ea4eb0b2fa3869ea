"""What are the nodes, edge blocks and layers of an architecture? Built once per spec and shared by all its networks."""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, TypeAlias

from metanet.graph.layout import Region
from symmetry import SymmetrySpec

__all__ = ["Block", "Group", "Layer", "Level", "Topology", "topology_of"]

Level: TypeAlias = Literal["edge", "node", "layer", "raw"]

_CACHE_SIZE = 4096


@dataclass(frozen=True, slots=True)
class Group:
    """The nodes of one space, of the units of several (heads x units), or of one fixed axis.

    Args:
        name: unique in the topology; the space's own name where there is one.
        size: number of nodes.
        spaces: names of the spaces whose units they are, outermost first; empty for a fixed axis.
        reads: some tensor reads from it (role "in"): an input, or a hidden space.
        writes: some tensor writes to it (role "out").
        activations: pointwise functions met there.
        depth: rank of the first layer that writes it; -1 for what no layer writes.
    """

    name: str
    size: int
    spaces: tuple[str, ...]
    reads: bool
    writes: bool
    activations: tuple[str, ...]
    depth: int

    @property
    def fixed(self) -> bool:
        """Whether its nodes are not interchangeable and have a positional identity each."""
        return not self.spaces


@dataclass(frozen=True, slots=True)
class Layer:
    """One stored tensor: its type, its size and its place along the data flow.

    Args:
        name: state-dict name (the one it is stored under, where tied).
        kind: see :class:`symmetry.TensorInfo`.
        size: number of values.
        order: rank of first use among the layers of the topology.
    """

    name: str
    kind: str
    size: int
    order: int


@dataclass(frozen=True, slots=True)
class Block:
    """One tensor, or one part of a concatenation in it, over two groups (edge), one (node) or none (layer).

    A *raw* block is carried bit by bit but not interpreted.

    Args:
        tensor: state-dict name.
        part: index of the part on every axis.
        groups: indices into ``Topology.groups``: (target, source) of edges, (group,) of node features.
        positions: sizes of the axes that are features, as (3, 3) for a kernel; their product is the feature count.
        layer: index into ``Topology.layers``.
        offset: the positive offset of a variance (its eps), else ``None``.
        reason: why a raw block is raw, else "".
    """

    tensor: str
    part: tuple[int, ...]
    level: Level
    kind: str
    groups: tuple[int, ...]
    positions: tuple[int, ...]
    layer: int
    region: Region
    offset: float | None
    reason: str

    @property
    def features(self) -> int:
        """Values per edge or node."""
        return math.prod(self.positions)

    @property
    def label(self) -> str:
        """The tensor's name, with the number of the part where it is one of several."""
        return self.tensor if self.region.whole else f"{self.tensor}[{'.'.join(map(str, self.part))}]"


@dataclass(frozen=True, eq=False)
class Topology:
    """Groups, layers and blocks of one architecture. Specs of equal fingerprint share one object.

    Args:
        owners: state-dict name -> name under which the values are stored (another one for tied tensors only).
    """

    spec: SymmetrySpec
    groups: tuple[Group, ...]
    layers: tuple[Layer, ...]
    blocks: tuple[Block, ...]
    owners: Mapping[str, str]

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the spec."""
        return self.spec.fingerprint

    def _of(self, level: Level) -> tuple[int, ...]:
        found = (i for i, block in enumerate(self.blocks) if block.level == level)
        return tuple(sorted(found, key=lambda i: (self.layers[self.blocks[i].layer].order, i)))

    @cached_property
    def edges(self) -> tuple[int, ...]:
        """Indices of the edge blocks along the data flow."""
        return self._of("edge")

    @cached_property
    def nodes(self) -> tuple[int, ...]:
        """Indices of the blocks of node features along the data flow."""
        return self._of("node")

    @cached_property
    def scalars(self) -> tuple[int, ...]:
        """Indices of the blocks without a unit axis (scalars, unused tensors): features of their layer node."""
        return self._of("layer")

    @cached_property
    def raw(self) -> tuple[int, ...]:
        """Indices of the blocks that are carried but not interpreted."""
        return self._of("raw")

    @cached_property
    def unseen(self) -> tuple[str, ...]:
        """Tensors that the network uses but that a metanetwork on this graph does not see."""
        return tuple(dict.fromkeys(self.blocks[i].tensor for i in self.raw if self.blocks[i].kind != "unused"))

    def report(self) -> str:
        """A table of the blocks for people: what became of every tensor."""
        lines = []
        for block in self.blocks:
            groups = " <- ".join(f"{self.groups[g].name}[{self.groups[g].size}]" for g in block.groups)
            note = block.reason or (f"positions {block.positions}" if block.positions else "")
            lines.append(f"{block.label:40} {block.level:6} {block.kind:18} {groups} {note}".rstrip())
        lines += [f"{name:40} tied to {owner}" for name, owner in self.owners.items() if owner != name]
        return "\n".join(lines)

    def __repr__(self) -> str:
        return (
            f"Topology({len(self.groups)} groups, {len(self.layers)} layers, {len(self.edges)} edge blocks, "
            f"{len(self.raw)} raw, {self.fingerprint[:8]})"
        )


_cache: OrderedDict[str, Topology] = OrderedDict()
_lock = threading.Lock()


def topology_of(spec: SymmetrySpec) -> Topology:
    """The topology of a spec: built on first use, then the same object for every spec of equal fingerprint."""
    from metanet.graph.builder import build_topology  # the builder needs the classes of this module

    key = spec.fingerprint
    with _lock:
        found = _cache.get(key)
        if found is None:
            found = _cache[key] = build_topology(spec)
            if len(_cache) > _CACHE_SIZE:
                _cache.popitem(last=False)
        else:
            _cache.move_to_end(key)
    return found
