"""How does a metanetwork answer with whole networks: the strict change of level "state", moved by an element alpha?"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from metanet.graph import Bucket, GraphBatch, Topology
from metanet.nn.frames.motion import Motion
from metanet.nn.heads import EdgeHead
from metanet.nn.quasi import GaugeHead, Moved, move
from metanet.nn.structure import Structure
from symmetry import GroupElement

__all__ = ["MovedState", "QuasiHead", "moved_states"]


class MovedState(dict[str, Tensor]):
    """One network F(theta) by tensor name, with the element that moved it.

    Tensors that the graph only carries are left out: ``{**state, **answer}`` is a complete state.
    """

    def __init__(self, tensors: dict[str, Tensor], moved: Moved, row: int) -> None:
        super().__init__(tensors)
        self.moved, self.row = moved, row

    @property
    def alpha(self) -> GroupElement:
        """The element; for mode "soft" the mean of the channels, which did not make this answer."""
        return self.moved.alpha.element(self.row)

    @property
    def defect(self) -> float:
        """How far the answer is from what alpha makes, over its norm: 0 for "quasi", see :meth:`Moved.defect`."""
        return float(self.moved.defect()[self.row].detach())

    def witness(self, g: GroupElement, other: MovedState) -> GroupElement:
        """The g' with ``F(g . theta) = g' . F(theta)``, where ``other`` is F(g . theta)."""
        return other.alpha @ g @ ~self.alpha


class QuasiHead(nn.Module):
    """F(theta) = alpha(theta) . (theta + change(theta)).

    Args:
        hidden: width of the features.
        positions: see :class:`metanet.nn.heads.EdgeHead`.
        gauge: see there.
        soft: one element per channel instead of one for all.
        base: see :class:`metanet.nn.quasi.GaugeHead`.
        change: predict a strict change; without it alpha moves the network itself, whose function stays as it is.
    """

    def __init__(
        self, hidden: int, positions: int, gauge: str, soft: bool = False, base: str = "own", change: bool = True
    ) -> None:
        super().__init__()
        self.change = EdgeHead(hidden, 1, positions, gauge, whole=True) if change else None
        self.element = GaugeHead(hidden, soft=soft, base=base)

    def forward(
        self,
        structure: Structure,
        given: Bucket,
        framed: Bucket,
        frame: Motion,
        features: tuple[Tensor, dict[int, Tensor], Tensor],
    ) -> Moved:
        """The moved networks.

        Args:
            structure: of the architecture.
            given: the networks as they came.
            framed: the same in their frame.
            frame: what brought them there.
            features: of the nodes, edges by block and layers, read in the frame.
        """
        nodes, edges, layers = features
        beta: Sequence[Tensor | None] = given.values
        if self.change is not None:
            changes = self.change(structure, framed, nodes, edges, layers, ~frame)
            beta = _plus(given, changes)
        return move(given, beta, self.element(structure, nodes, layers, frame))


def _plus(bucket: Bucket, changes: dict[str, Tensor]) -> list[Tensor | None]:
    """Block values after a change of every tensor, ``(B, 1, *shape)`` by name."""
    found: list[Tensor | None] = []
    for block, value in zip(bucket.topology.blocks, bucket.values, strict=True):
        if value is None:
            found.append(None)
        else:
            found.append(value + block.region.batched(len(bucket)).read(changes[block.tensor].squeeze(1)))
    return found


def _tensors(topology: Topology, values: Sequence[Tensor | None], size: int) -> dict[str, Tensor]:
    """Stacked tensors by name, of all that the graph interprets."""
    found: dict[str, Tensor] = {}
    broken = {block.tensor for block, value in zip(topology.blocks, values, strict=True) if value is None}
    for block, value in zip(topology.blocks, values, strict=True):
        if value is None or block.tensor in broken:
            continue
        region = block.region.batched(size)
        if block.region.whole:
            found[block.tensor] = region.restore(value)
            continue
        if block.tensor not in found:
            found[block.tensor] = value.new_zeros(size, *topology.spec.tensors[block.tensor].shape)
        region.write(value, found[block.tensor])
    return {name: found[owner] for name, owner in topology.owners.items() if owner in found}


def moved_states(batch: GraphBatch, answers: Sequence[Moved]) -> list[MovedState]:
    """The answers of all buckets as states, in the order of the batch."""
    rows: dict[int, MovedState] = {}
    for bucket, moved in zip(batch, answers, strict=True):
        stacked = _tensors(bucket.topology, moved.values, len(bucket))
        for row, place in enumerate(bucket.index.tolist()):
            rows[place] = MovedState({name: value[row] for name, value in stacked.items()}, moved, row)
    return [rows[place] for place in range(len(batch))]
