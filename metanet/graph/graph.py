"""How is one checkpoint a graph, and how does the graph give the checkpoint back bit by bit?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from metanet.errors import GraphError
from metanet.graph.program import Program
from metanet.graph.topology import Topology, topology_of
from symmetry import SymmetrySpec

if TYPE_CHECKING:
    from torch_geometric.data import HeteroData

__all__ = ["ParameterGraph"]


@dataclass(frozen=True, eq=False, repr=False)
class ParameterGraph:
    """A checkpoint as typed nodes and blocks of edges.

    Made by :meth:`build`; the values are the graph's own copies in their own dtypes.

    Args:
        topology: groups of nodes, layers and blocks, shared by all networks of one architecture.
        values: one tensor per block of the topology.
        names: the names of the state, in its order.
        shared: name -> earlier name that is the same tensor in the state.
        program: the operations that the weights take part in, for those who run the network; ``None`` if not known.

    Shapes:
        values: ``(target, source, features)`` for edges, ``(nodes, features)`` for node features, ``(features,)``
        without a unit axis; raw blocks have the shape of their part of the tensor.
    """

    topology: Topology
    values: tuple[Tensor, ...]
    names: tuple[str, ...]
    shared: Mapping[str, str]
    program: Program | None = None

    @classmethod
    def build(cls, spec: SymmetrySpec, state: Mapping[str, Tensor], program: Program | None = None) -> ParameterGraph:
        """The graph of a state.

        Args:
            spec: the symmetry of its architecture.
            state: the state dict, buffers included.
            program: the operations of its architecture; only what runs the network asks for them.

        Raises:
            symmetry.SpecError: if the state has other names or shapes than the spec.
            GraphError: if tensors that the spec ties differ, or one is floating where the spec says it is not.
        """
        spec.check(state)
        topology = _checked(spec, state)
        values = tuple(block.region.read(state[block.tensor]) for block in topology.blocks)
        return cls(topology, values, tuple(state), _shared(state), program)

    @classmethod
    def build_many(
        cls, spec: SymmetrySpec, states: Mapping[str, Tensor], program: Program | None = None
    ) -> list[ParameterGraph]:
        """The graphs of many states of one architecture: equal to those of :meth:`build`, many times faster.

        Args:
            spec: the symmetry of their architecture.
            states: every tensor stacked, one network a row, as :meth:`metanet.datasets.Zoo.stacked` gives them.
            program: as in :meth:`build`.

        Shapes:
            states: ``(networks, *shape)`` by name.

        Raises:
            symmetry.SpecError, GraphError: as in :meth:`build`, or if not all tensors have as many rows.
        """
        counts = {int(tensor.shape[0]) if tensor.dim() else -1 for tensor in states.values()}
        if len(counts) != 1 or -1 in counts:
            raise GraphError(f"stacked tensors have {sorted(counts)[:4]} rows, expected one number of networks")
        count = counts.pop()
        if not count:
            return []
        spec.check({name: tensor[0] for name, tensor in states.items()})
        topology = _checked(spec, states)
        # One copy for all networks: each graph has a row of its own, and one that is kept keeps the memory of all.
        columns = [block.region.batched(count).read(states[block.tensor]).unbind() for block in topology.blocks]
        shared = _shared(states)
        return [cls(topology, values, tuple(states), shared, program) for values in zip(*columns, strict=True)]

    @property
    def spec(self) -> SymmetrySpec:
        """The spec that the topology was built from."""
        return self.topology.spec

    def state(self) -> dict[str, Tensor]:
        """The state: the same tensors bit by bit, in the same order; one tensor under two names where it was one."""
        whole: dict[str, Tensor] = {}
        result: dict[str, Tensor] = {}
        for block, values in zip(self.topology.blocks, self.values, strict=True):
            if block.tensor not in whole:
                shape = self.spec.tensors[block.tensor].shape
                whole[block.tensor] = torch.empty(shape, dtype=values.dtype, device=values.device)
            block.region.write(values, whole[block.tensor])
        given: set[str] = set()
        for name in self.names:
            owner = self.topology.owners[name]
            if name in self.shared:
                result[name] = result[self.shared[name]]
            else:  # names that the spec ties but that were separate tensors stay separate
                result[name] = whole[owner].clone() if owner in given else whole[owner]
                given.add(owner)
        return result

    def raw(self) -> dict[str, str]:
        """Tensors that are carried but not interpreted, each with the reason."""
        return {self.topology.blocks[i].label: self.topology.blocks[i].reason for i in self.topology.raw}

    def to_pyg(self) -> HeteroData:
        """The graph as torch_geometric data; see :func:`metanet.graph.pyg.to_pyg`."""
        from metanet.graph.pyg import to_pyg

        return to_pyg(self)

    @property
    def num_nodes(self) -> int:
        """Number of nodes of all groups, without layer nodes."""
        return sum(group.size for group in self.topology.groups)

    @property
    def num_edges(self) -> int:
        """Number of edges of all blocks."""
        return sum(self.values[i].shape[0] * self.values[i].shape[1] for i in self.topology.edges)

    def __repr__(self) -> str:
        raw = len(self.topology.raw)
        return (
            f"ParameterGraph({len(self.topology.groups)} groups, {self.num_nodes} nodes, {self.num_edges} edges in "
            f"{len(self.topology.edges)} blocks, {len(self.topology.layers)} layers" + (f", {raw} raw)" if raw else ")")
        )


def _checked(spec: SymmetrySpec, state: Mapping[str, Tensor]) -> Topology:
    """The topology, if dtypes and ties are as the spec says; tensors may be stacked."""
    topology = topology_of(spec)
    for name, tensor in state.items():
        if tensor.is_floating_point() != ("float" in spec.tensors[name].dtype):
            raise GraphError(
                f"dtype {tensor.dtype}, expected {spec.tensors[name].dtype} or its like by the spec",
                where=name,
                hint="build the spec from a model of the same dtypes",
            )
        owner = topology.owners[name]
        if owner != name and not _same_bits(tensor, state[owner]):
            raise GraphError(
                f"differs from {owner!r}, to which the spec ties it",
                where=name,
                hint="use the spec of an architecture in which they are separate",
            )
    return topology


def _same_bits(a: Tensor, b: Tensor) -> bool:
    """Equal bit by bit: NaN equals itself, and -0.0 is not 0.0."""
    if a is b:
        return True
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    left, right = (t.detach().contiguous().reshape(-1).view(torch.uint8) for t in (a, b))
    return torch.equal(left, right.to(left.device))


def _shared(state: Mapping[str, Tensor]) -> dict[str, str]:
    """Names under which an earlier tensor appears again: the same object, or the same view of the same storage."""
    first: dict[tuple[object, ...], str] = {}
    found: dict[str, str] = {}
    for name, tensor in state.items():
        key: tuple[object, ...] = (id(tensor),)
        if tensor.numel() and tensor.device.type != "meta":
            key = (tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride(), tensor.device)
        if key in first:
            found[name] = first[key]
        else:
            first[key] = name
    return found
