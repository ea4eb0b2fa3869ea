"""How does a network answer to inputs that a metanetwork has chosen? Learned probes, run through its own weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from metanet.graph import Bucket
from metanet.graph.encoding import position_code
from metanet.nn.dense import Dense, Table
from metanet.nn.flow import propagate
from metanet.nn.probes import CODE, Probes
from metanet.nn.structure import Structure

__all__ = ["Sweep"]

_OUTPUTS = 8  # learned summaries of the outputs per probe


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
        self.inputs = Probes(probes)
        self.mix = Dense(probes, probes, gain=0.0)
        self.outputs = Dense(CODE, _OUTPUTS, gain=1.4)
        self.features = probes * (_OUTPUTS + 3 + 3)

    def reset_parameters(self, generator: torch.Generator) -> None:
        """Draw all weights anew; the first half of the probes starts with constant kernels (constant images)."""
        for module in self.modules():
            if isinstance(module, Dense | Table):
                module.reset_parameters(generator)
        self.inputs.start_constant()

    def forward(self, structure: Structure, bucket: Bucket) -> Tensor:
        topology, like = structure.topology, self.mix.weight
        hidden: list[Tensor] = []

        def settled(group: int, x: Tensor) -> Tensor:
            if topology.groups[group].fixed:
                return x
            x = x + self.mix(x)
            size = (x.square().mean(1) + 1e-6).sqrt()
            hidden.append(torch.stack([size.log(), x.mean(1) / size, (x.abs().mean(1) / size)], dim=-1))
            return x

        values = propagate(bucket, lambda _, size: self.inputs.at(size), self.inputs.kernel(topology), settled=settled)
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
        code = self.outputs(position_code(x.shape[1], CODE).to(x))
        squashed = torch.sign(x) * torch.log1p(x.abs())
        averages = torch.einsum("buk,uo->bko", squashed, code) / x.shape[1] ** 0.5
        share = torch.log_softmax(x, dim=1)
        entropy = -(share.exp() * share).sum(1)
        size = (x.var(1, correction=0) + 1e-6).log() / 4
        return torch.cat([averages, torch.stack([size, share.amax(1).exp(), entropy], dim=-1)], dim=-1)
