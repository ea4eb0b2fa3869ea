"""Small networks of every family whose symmetry is more than permutations, traced once per process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn

import symmetry
from metanet.graph import GraphBatch, ParameterGraph, collate
from symmetry import SymmetrySpec
from symmetry.verify import generic_state
from tests.symmetry.families import Encoder, Recurrent, Stages, SwiGLU
from tests.symmetry.models import conv_bn, draw, mlp, pooled_cnn, resnet, seeded

State = dict[str, Tensor]


@dataclass(frozen=True)
class Case:
    """A module, its spec, and the shape of its inputs."""

    module: nn.Module
    spec: SymmetrySpec
    shape: tuple[int, ...]

    def state(self, seed: int) -> State:
        """A state in general position; biases of sines over several periods."""
        generator = torch.Generator().manual_seed(seed)
        found = generic_state(self.spec, self.module.state_dict(), generator, fresh=seed > 0)
        for name, info in self.spec.tensors.items():
            if info.tied_to is not None:
                found[name] = found[info.tied_to]
            elif self.spec.shifts and info.kind == "bias":
                found[name] = 5 * found[name]
        return found


FAMILIES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp relu": (lambda: mlp([3, 5, 4, 2], torch.relu), (7, 3)),
    "mlp tanh": (lambda: mlp([3, 5, 4, 2], torch.tanh), (7, 3)),
    "siren": (lambda: mlp([2, 5, 4, 2], torch.sin), (7, 2)),
    "sine before a relu": (lambda: Stages(nn.Linear(2, 4), torch.sin, torch.relu, nn.Linear(4, 1)), (7, 2)),
    "cnn": (pooled_cnn, (7, 1, 8, 8)),
    "batch norm": (conv_bn, (7, 2, 4, 4)),
    "residual": (resnet, (7, 3, 8, 8)),
    "transformer": (lambda: Encoder(dropout=0.0), (7, 5, 3)),
    "gru": (lambda: Recurrent(nn.GRU), (7, 5, 3)),
    "folded gains": (SwiGLU, (7, 3)),
}


@cache
def case(name: str) -> Case:
    build, shape = FAMILIES[name]
    module = seeded(build).eval()
    return Case(module, symmetry.trace(module, (draw(*shape),), fold_gains=name == "folded gains"), shape)


def batch_of(spec: SymmetrySpec, states: Sequence[State], dtype: torch.dtype = torch.float64) -> GraphBatch:
    return collate([ParameterGraph.build(spec, state) for state in states], dtype)
