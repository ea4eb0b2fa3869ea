"""Which rounds of messages does a metanetwork run? Along edges or through the weights, kept or made anew."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from metanet.graph import Bucket
from metanet.nn.layer import MessageLayer
from metanet.nn.structure import Structure
from metanet.nn.sweep_layer import SweepLayer

__all__ = ["MESSAGES", "Rounds"]

MESSAGES = ("edge", "sweep")


class Rounds(nn.ModuleList):
    """Layers of one interface, ``layer(structure, bucket, nodes, edges, layers) -> (nodes, edges, layers)``, in turn.

    Args:
        messages: "edge" or "sweep". Where edges are answered, sweeps end with one round of edge messages, which brings
            what the units have learned to their weights.
        hidden: width of all features.
        rounds: how many.
        edges: the last round has to give edge features.
        checkpointing: keep only what goes in and out of every round for the backward pass, and make the rest anew.
    """

    def __init__(self, messages: str, hidden: int, rounds: int, edges: bool, checkpointing: bool = False) -> None:
        layers: list[nn.Module]
        if messages == "sweep":
            layers = [SweepLayer(hidden, rounds) for _ in range(rounds)]
            layers += [MessageLayer(hidden, rounds=rounds)] if edges and rounds else []
        else:
            layers = [MessageLayer(hidden, edges or i < rounds - 1, rounds) for i in range(rounds)]
        super().__init__(layers)
        self.checkpointing = checkpointing
        self.needs_edges = any(isinstance(layer, MessageLayer) for layer in layers)

    def run(
        self, structure: Structure, bucket: Bucket, nodes: Tensor, edges: dict[int, Tensor], layers: Tensor
    ) -> tuple[Tensor, dict[int, Tensor], Tensor]:
        """All rounds.

        Shapes:
            nodes: ``(B, nodes, hidden)``. edges: by block, ``(B, target, source, hidden)``. layers: ``(B, layers,
            hidden)``. Returns the same.
        """
        for layer in self:
            if self.checkpointing and torch.is_grad_enabled():
                # No layer draws random numbers: there is no generator whose state would have to be kept.
                nodes, edges, layers = checkpoint(
                    layer, structure, bucket, nodes, edges, layers, use_reentrant=False, preserve_rng_state=False
                )
            else:
                nodes, edges, layers = layer(structure, bucket, nodes, edges, layers)
        return nodes, edges, layers
