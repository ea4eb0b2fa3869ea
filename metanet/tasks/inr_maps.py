"""Which other weights show the same picture, turned, stretched or moved? Changes that are exact in weight space.

A network that maps coordinates to a signal reads them by a linear layer, ``W x + b``. With the coordinates mapped by
``x -> A x + t`` first it shows the mapped signal, and that is the network with ``W A`` and ``W t + b`` in its first
layer: no rendering, no fitting. What the layer's result is multiplied by (the frequency of a sine) does not matter.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from metanet.errors import ConfigError, TaskError
from metanet.graph import Bucket, GraphBatch, Topology

__all__ = ["CoordinateMaps", "map_coordinates", "mapped"]


@dataclass(frozen=True)
class CoordinateMaps:
    """Random maps of the plane near the identity: turn, then shear, then stretch, then move.

    Attributes:
        rotation: Largest angle, in radians.
        scale: Largest logarithm of the stretch, drawn for each axis.
        shear: Largest shear.
        shift: Largest move along each axis, where the picture goes from -1 to 1.
    """

    rotation: float = 0.0
    scale: float = 0.0
    shear: float = 0.0
    shift: float = 0.0

    def __post_init__(self) -> None:
        for name in ("rotation", "scale", "shear", "shift"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"{getattr(self, name)!r} given, expected 0 or more", where=f"task.{name}")

    @property
    def still(self) -> bool:
        """Whether nothing is ever moved."""
        return not (self.rotation or self.scale or self.shear or self.shift)

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Matrices and moves.

        Shapes:
            return: (count, 2, 2) and (count, 2)
        """
        u = 2 * torch.rand(count, 6, generator=generator) - 1
        angle, stretch = self.rotation * u[:, 0], torch.exp(self.scale * u[:, 1:3])
        turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], dim=1).reshape(count, 2, 2)
        slant = torch.eye(2).repeat(count, 1, 1)
        slant[:, 0, 1] = self.shear * u[:, 3]
        return turn @ slant @ torch.diag_embed(stretch), self.shift * u[:, 4:6]


def _readers(topology: Topology) -> list[tuple[int, int]]:
    """The blocks that read coordinates, each with the block of its bias.

    Raises:
        TaskError: The network does not read two coordinates by linear layers with biases.
    """
    found = []
    for number in topology.edges:
        block = topology.blocks[number]
        source = topology.groups[block.groups[1]]
        if not source.fixed or source.writes or source.depth >= 0:
            continue
        module = block.tensor.rpartition(".")[0]
        beside = [i for i in topology.nodes if topology.blocks[i].tensor.rpartition(".")[0] == module]
        biases = [i for i in beside if topology.blocks[i].kind == "bias"]
        if source.size != 2 or block.features != 1 or len(biases) != 1:
            raise TaskError(
                f"{block.tensor} reads {source.size} inputs and {len(biases)} biases, expected 2 coordinates, 1 bias",
                hint="coordinate maps are for networks of a picture's coordinates",
            )
        found.append((number, biases[0]))
    if not found:
        raise TaskError(
            "no layer reads coordinates", hint="coordinate maps are for networks of a picture's coordinates"
        )
    return found


def map_coordinates(bucket: Bucket, matrices: Tensor, moves: Tensor) -> Bucket:
    """The networks that show at ``x`` what these show at ``A x + t``.

    Args:
        bucket: Networks of two coordinates.
        matrices: A of each; moves: t of each.

    Shapes:
        matrices: (B, 2, 2)
        moves: (B, 2)

    Raises:
        TaskError: The networks do not read two coordinates by linear layers with biases.
    """
    values = list(bucket.values)
    for weight, bias in _readers(bucket.topology):
        w = bucket.value(weight)[..., 0]
        values[weight] = (w @ matrices.to(w)).unsqueeze(-1)
        values[bias] = bucket.value(bias) + w @ moves.to(w).unsqueeze(-1)
    return replace(bucket, values=tuple(values))


def mapped(batch: GraphBatch, maps: CoordinateMaps, generator: torch.Generator) -> GraphBatch:
    """A batch in which every network's picture is mapped at random; what was computed of it before is kept."""
    if maps.still:
        return batch
    buckets = (map_coordinates(bucket, *maps.draw(len(bucket), generator)) for bucket in batch)
    return GraphBatch(tuple(buckets), batch.size)
