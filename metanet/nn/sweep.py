"""How does a network answer to inputs that a metanetwork has chosen? Learned probes, run through its own weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from metanet.graph import KINDS, Bucket
from metanet.graph.encoding import cosine_basis, position_code
from metanet.nn.dense import Dense, Table
from metanet.nn.flow import propagate
from metanet.nn.structure import Structure

__all__ = ["Sweep"]

_CODE = 64  # columns of the positional code of inputs and outputs
_OUTPUTS = 8  # learned summaries of the outputs per probe
_POSITIONS = 16  # cosine coefficients over kernel positions


class Sweep(nn.Module):
    """Features of the whole network from its responses to learned probes.

    The probes are a learned function of the input units' positions, so that they exist for any number of inputs. They
    pass the network's raw weights and its own activations; every probe weighs kernel positions in its own learned way
    (a plane wave through a convolution). After each group the probes are mixed by a matrix that starts at the
    identity: at the start this is the network, run on random inputs.

    Args:
        probes: number of probes.

    Shapes:
        a bucket of B networks -> ``(B, features)``.
    """

    def __init__(self, probes: int) -> None:
        super().__init__()
        self.probes = probes
        self.code = Dense(_CODE, 2 * _CODE, gain=1.4)
        self.inputs = Dense(2 * _CODE, probes, gain=1.4)
        self.size = Table(probes, scale=0.5)  # logarithm of each probe's root mean square
        self.kernels = Table(len(KINDS), _POSITIONS, probes, scale=0.5)
        self.mix = Dense(probes, probes, gain=0.0)
        self.outputs = Dense(_CODE, _OUTPUTS, gain=1.4)
        self.features = probes * (_OUTPUTS + 3 + 3)

    def reset_parameters(self, generator: torch.Generator) -> None:
        """Draw all weights anew; the first half of the probes starts with constant kernels (constant images)."""
        for module in self.modules():
            if isinstance(module, Dense | Table):
                module.reset_parameters(generator)
        with torch.no_grad():
            self.kernels.weight[:, 1:, : self.probes // 2] = 0.0
            self.kernels.weight[:, 0] = 1.0

    def forward(self, structure: Structure, bucket: Bucket) -> Tensor:
        topology, like = structure.topology, self.mix.weight
        hidden: list[Tensor] = []

        def inputs(_: int, size: int) -> Tensor:
            x = self.inputs(relu(self.code(position_code(size, _CODE).to(like))))
            return x / (x.square().mean(0, keepdim=True) + 1e-6).sqrt() * self.size.weight.exp()

        def kernel(number: int) -> Tensor:
            block = topology.blocks[number]
            basis = cosine_basis(block.positions, _POSITIONS).to(like)
            return basis @ self.kernels(KINDS.index(block.kind))[: basis.shape[1]] * block.features**0.5

        def settled(group: int, x: Tensor) -> Tensor:
            if topology.groups[group].fixed:
                return x
            x = x + self.mix(x)
            size = (x.square().mean(1) + 1e-6).sqrt()
            hidden.append(torch.stack([size.log(), x.mean(1) / size, (x.abs().mean(1) / size)], dim=-1))
            return x

        values = propagate(bucket, inputs, kernel, settled=settled)
        answers = [
            self._summary(values[g])
            for g, group in enumerate(topology.groups)
            if group.fixed and group.writes and g in values
        ]
        batch = len(bucket)
        inside = torch.stack(hidden).mean(0) if hidden else like.new_zeros(batch, self.probes, 3)
        outside = torch.stack(answers).mean(0) if answers else like.new_zeros(batch, self.probes, _OUTPUTS + 3)
        return torch.cat([inside, outside], dim=-1).reshape(batch, self.features)

    def _summary(self, x: Tensor) -> Tensor:
        """Per probe: learned averages of the squashed outputs, and how large, peaked and uncertain they are."""
        code = self.outputs(position_code(x.shape[1], _CODE).to(x))
        squashed = torch.sign(x) * torch.log1p(x.abs())
        averages = torch.einsum("buk,uo->bko", squashed, code) / x.shape[1] ** 0.5
        share = torch.log_softmax(x, dim=1)
        entropy = -(share.exp() * share).sum(1)
        size = (x.var(1, correction=0) + 1e-6).log() / 4
        return torch.cat([averages, torch.stack([size, share.amax(1).exp(), entropy], dim=-1)], dim=-1)
