"""How do networks of mixed architectures become one batch of dense blocks?

Networks of one topology share a bucket, in which every block is one dense tensor ``(batch, target, source, features)``:
no gather, no scatter, no padding. The batch remembers the order in which it was given its graphs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from metanet.errors import GraphError
from metanet.graph.graph import ParameterGraph
from metanet.graph.program import Program
from metanet.graph.topology import Topology

__all__ = ["Bucket", "GraphBatch", "collate"]


@dataclass(frozen=True, eq=False, repr=False)
class Bucket:
    """Networks of one topology and one program.

    Args:
        topology: the common topology.
        index: their places in the batch.
        values: one dense tensor per block; ``None`` for raw blocks.
        origin: the bucket that this one was taken from, and which of its networks; cached results come from there.
        cache: results that depend on each network alone, first axis the network.
        program: the operations that their weights take part in, where they are known.
        carried: with a program, raw blocks by number: not interpreted, but the network needs them to run.

    Shapes:
        index: ``(B,)``. values: ``(B, target, source, features)``, ``(B, nodes, features)`` or ``(B, features)``.
    """

    topology: Topology
    index: Tensor
    values: tuple[Tensor | None, ...]
    origin: tuple[Bucket, Tensor | None] | None = None
    cache: dict[str, Tensor] = field(default_factory=dict)
    program: Program | None = None
    carried: Mapping[int, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return int(self.index.numel())

    def value(self, block: int) -> Tensor:
        """The values of an interpreted block."""
        found = self.values[block]
        if found is None:
            raise GraphError("is raw: its values are not part of a batch", where=self.topology.blocks[block].label)
        return found

    def state(self) -> dict[str, Tensor]:
        """The networks' tensors by name, stacked; gradients flow through. What is not known is left out.

        Shapes:
            returns ``(B, *shape)`` per name.
        """
        topology, count = self.topology, len(self)
        whole: dict[str, Tensor] = {}
        unknown: set[str] = set()
        for number, block in enumerate(topology.blocks):
            value = self.carried.get(number) if self.values[number] is None else self.values[number]
            if value is None:
                unknown.add(block.tensor)
                continue
            region = block.region.batched(count)
            if block.region.whole:
                whole[block.tensor] = region.restore(value)
                continue
            if block.tensor not in whole:
                whole[block.tensor] = value.new_zeros(count, *topology.spec.tensors[block.tensor].shape)
            region.write(value, whole[block.tensor])
        # A tensor of which only a part is known would be read as zeros.
        return {name: whole[owner] for name, owner in topology.owners.items() if owner in whole.keys() - unknown}

    def remember(self, key: str, make: Callable[[Bucket], Tensor]) -> Tensor:
        """The result for ``key``, made on first use.

        A selection asks the bucket it was taken from: what depends on the weights alone is computed once for all
        networks of a batch, however many selections of it are trained on.

        Args:
            key: names the result.
            make: one row per network of the bucket it is given; must treat each network by itself.
        """
        if key not in self.cache:
            if self.origin is None:
                self.cache[key] = make(self)
            else:
                source, rows = self.origin
                found = source.remember(key, make)
                self.cache[key] = found.to(self.index.device) if rows is None else found.index_select(0, rows)
        return self.cache[key]

    def select(self, rows: Tensor, index: Tensor) -> Bucket:
        """Some networks of the bucket, at new places."""
        values = tuple(None if value is None else value.index_select(0, rows) for value in self.values)
        carried = {number: value.index_select(0, rows) for number, value in self.carried.items()}
        return Bucket(self.topology, index, values, (self, rows), program=self.program, carried=carried)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Bucket:
        """The bucket on another device or in another dtype; cached results are kept unless the dtype changes."""
        values = tuple(None if value is None else value.to(device=device, dtype=dtype) for value in self.values)
        index = self.index.to(device)
        if index is self.index and all(new is old for new, old in zip(values, self.values, strict=True)):
            return self
        same = all(
            new is None or old is None or new.dtype == old.dtype for new, old in zip(values, self.values, strict=True)
        )
        carried = {number: value.to(device=device, dtype=dtype) for number, value in self.carried.items()}
        origin = (self, None) if same else None
        return Bucket(self.topology, index, values, origin, program=self.program, carried=carried)


@dataclass(frozen=True, eq=False, repr=False)
class GraphBatch:
    """Networks of mixed architectures, in buckets of equal topology and program. Made by :func:`collate`."""

    buckets: tuple[Bucket, ...]
    size: int

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[Bucket]:
        return iter(self.buckets)

    def select(self, indices: Sequence[int] | Tensor) -> GraphBatch:
        """The networks at these places, in this order; cheap, and keeps cached results: collate once, then select.

        Raises:
            GraphError: for an index outside the batch.
        """
        wanted = torch.as_tensor(indices, dtype=torch.int64).reshape(-1).cpu()
        if wanted.numel() and not (int(wanted.min()) >= 0 and int(wanted.max()) < self.size):
            raise GraphError(
                f"index {int(wanted.max() if wanted.min() >= 0 else wanted.min())} of a batch of {self.size} graphs"
            )
        bucket_of = torch.empty(self.size, dtype=torch.int64)
        row_of = torch.empty(self.size, dtype=torch.int64)
        for number, bucket in enumerate(self.buckets):
            places = bucket.index.cpu()
            bucket_of[places] = number
            row_of[places] = torch.arange(len(bucket))
        chosen = []
        for number, bucket in enumerate(self.buckets):
            index = (bucket_of[wanted] == number).nonzero().reshape(-1)
            if index.numel():
                rows = row_of[wanted[index]].to(bucket.index.device)
                chosen.append(bucket.select(rows, index.to(bucket.index.device)))
        return GraphBatch(tuple(chosen), int(wanted.numel()))

    def gather(self, parts: Iterable[Tensor]) -> Tensor:
        """One result per bucket, put back into the order of the batch.

        Shapes:
            parts: ``(B, ...)`` per bucket; returns ``(N, ...)``.
        """
        rows = list(parts)
        if not rows:
            raise GraphError("the batch is empty", hint="give collate at least one graph")
        order = torch.cat([bucket.index for bucket in self.buckets])
        return torch.cat(rows).index_select(0, torch.argsort(order))

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> GraphBatch:
        """The batch on another device or in another dtype."""
        return GraphBatch(tuple(bucket.to(device, dtype) for bucket in self.buckets), self.size)

    def __repr__(self) -> str:
        return f"GraphBatch({self.size} graphs in {len(self.buckets)} buckets)"


def collate(graphs: Iterable[ParameterGraph], dtype: torch.dtype = torch.float32) -> GraphBatch:
    """Batch graphs of mixed architectures. Equal tensors under different operations (strides, say) stay apart.

    Args:
        graphs: at least one graph.
        dtype: floating dtype of the dense blocks; the graphs keep theirs.

    Raises:
        GraphError: without graphs, for something that is no graph, or for a dtype that is not floating.
    """
    if not dtype.is_floating_point:
        raise GraphError(f"dtype={dtype}, expected a floating dtype")
    listed = list(graphs)
    if not listed:
        raise GraphError("collate needs at least one graph, got none")
    rows: dict[tuple[str, str], list[int]] = {}
    for place, graph in enumerate(listed):
        if not isinstance(graph, ParameterGraph):
            raise GraphError(
                f"item {place} is a {type(graph).__name__}, expected a ParameterGraph", hint="use ParameterGraph.build"
            )
        program = graph.program.fingerprint if graph.program is not None else ""
        rows.setdefault((graph.topology.fingerprint, program), []).append(place)
    buckets = []
    for places in rows.values():
        topology, found = listed[places[0]].topology, listed[places[0]].program
        values: list[Tensor | None] = []
        carried: dict[int, Tensor] = {}
        for number, block in enumerate(topology.blocks):
            raw = block.level == "raw"
            if raw and (found is None or not listed[places[0]].values[number].is_floating_point()):
                values.append(None)
                continue
            together = torch.stack([listed[place].values[number].to(dtype) for place in places])
            values.append(None if raw else together)
            if raw:
                carried[number] = together
        buckets.append(Bucket(topology, torch.tensor(places), tuple(values), program=found, carried=carried))
    return GraphBatch(tuple(buckets), len(listed))
