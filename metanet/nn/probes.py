"""Which inputs does a metanetwork try a network on? Learned ones, for any number of inputs and kernels of any size."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from metanet.graph import KINDS, Topology
from metanet.graph.encoding import cosine_basis, position_code
from metanet.nn.dense import Dense, Table

__all__ = ["CODE", "Probes"]

CODE = 64  # columns of the positional code of inputs and outputs
_POSITIONS = 16  # cosine coefficients over kernel positions


class Probes(nn.Module):
    """Learned inputs of a network: a function of the input unit's position, and a plane wave for every kernel.

    Args:
        probes: number of probes.
    """

    def __init__(self, probes: int) -> None:
        super().__init__()
        self.probes = probes
        self.code = Dense(CODE, 2 * CODE, gain=1.4)
        self.inputs = Dense(2 * CODE, probes, gain=1.4)
        self.size = Table(probes, scale=0.5)  # logarithm of each probe's root mean square
        self.kernels = Table(len(KINDS), _POSITIONS, probes, scale=0.5)

    def start_constant(self) -> None:
        """Let the first half of the probes start with constant kernels: constant images."""
        with torch.no_grad():
            self.kernels.weight[:, 1:, : (self.probes + 1) // 2] = 0.0
            self.kernels.weight[:, 0] = 1.0

    def at(self, size: int) -> Tensor:
        """The probes on an axis of inputs.

        Shapes:
            returns ``(size, probes)``.
        """
        x = self.inputs(relu(self.code(position_code(size, CODE).to(self.size.weight))))
        return x / (x.square().mean(0, keepdim=True) + 1e-6).sqrt() * self.size.weight.exp()

    def kernel(self, topology: Topology) -> Callable[[int], Tensor]:
        """Number of a block -> the weight of its kernel positions in every probe, ``(features, probes)``."""

        def weights(number: int) -> Tensor:
            block = topology.blocks[number]
            basis = cosine_basis(block.positions, _POSITIONS).to(self.kernels.weight)
            return basis @ self.kernels(KINDS.index(block.kind))[: basis.shape[1]] * block.features**0.5

        return weights
