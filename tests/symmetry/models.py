"""The small networks whose groups are known by hand, shared by the tests of this folder."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn

import symmetry
from symmetry import SymmetrySpec


def seeded(build: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """Build a module without touching the global generator."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build()


def draw(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normal numbers from their own generator."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


class Activation(nn.Module):
    """A pointwise function without parameters."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def mlp(widths: list[int], function: Callable[[Tensor], Tensor] | None, bias: bool = True) -> nn.Module:
    layers: list[nn.Module] = []
    for number, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
        layers.append(nn.Linear(inputs, outputs, bias=bias))
        if function is not None and number < len(widths) - 2:
            layers.append(Activation(function))
    return nn.Sequential(*layers)


class BasicBlock(nn.Module):
    """Two convolutions with batch norm around a residual connection."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.down: nn.Module = nn.Identity()
        if inputs != outputs or stride != 1:
            self.down = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        inner = self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x)))))
        return torch.relu(self.down(x) + inner)


def resnet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        BasicBlock(4, 4),
        BasicBlock(4, 6, 2),
        BasicBlock(6, 6),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 3),
    )


def conv_bn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 5, 3, padding=1),
        nn.BatchNorm2d(5),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(80, 3),
    )


def pooled_cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 6, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(),
        nn.Linear(24, 5),
        nn.ReLU(),
        nn.Linear(5, 3),
    )


class Repeated(nn.Module):
    """One square layer applied twice."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.i, self.m, self.o = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        x = self.function(self.i(x))
        x = self.function(self.m(x))
        return self.o(self.function(self.m(x)))


class ResidualMLP(nn.Module):
    """x += W f(V x) on one stream."""

    def __init__(self, width: int, hidden: int, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.i, self.a, self.b, self.o = (
            nn.Linear(3, width),
            nn.Linear(width, hidden),
            nn.Linear(hidden, width),
            nn.Linear(width, 2),
        )
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        x = self.function(self.i(x))
        return self.o(x + self.b(self.function(self.a(x))))


class ActorCritic(nn.Module):
    """Two chains on one observation, and a parameter that is only returned."""

    def __init__(self) -> None:
        super().__init__()
        self.actor = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2))
        self.critic = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1))
        self.log_std = nn.Parameter(torch.zeros(2))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.actor(x), self.critic(x), self.log_std


@dataclass(frozen=True)
class Subject:
    """A network, its input shapes, and its group: permutations, sign bits, and dimensions of the continuous parts.

    Args:
        shape: of the first input.
        more: shapes of further inputs.
        words: inputs are integers below this number, not normal draws.
        pinned: operations that rightly keep an axis fixed.
    """

    name: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    permutations: int
    signs: int
    scales: int
    linear: int = 0
    orthogonal: int = 0
    more: tuple[tuple[int, ...], ...] = ()
    words: int = 0
    pinned: tuple[str, ...] = ()

    def inputs(self) -> tuple[Tensor, ...]:
        """Example inputs, the same ones each time."""
        shapes = enumerate((self.shape, *self.more), 1)
        if self.words:
            seeds = [(shape, torch.Generator().manual_seed(seed)) for seed, shape in shapes]
            return tuple(torch.randint(self.words, shape, generator=generator) for shape, generator in seeds)
        return tuple(draw(*shape, seed=seed) for seed, shape in shapes)

    @property
    def group(self) -> tuple[int, ...]:
        """The numbers in the order of :func:`group_of`."""
        return self.permutations, self.signs, self.scales, self.linear, self.orthogonal


@cache
def traced(subject: Subject) -> tuple[nn.Module, tuple[Tensor, ...], SymmetrySpec]:
    """A subject's model, inputs and spec. Traced once; nobody changes the model."""
    model, inputs = seeded(subject.build), subject.inputs()
    return model, inputs, symmetry.trace(model, inputs, strict=True)


def group_of(spec: SymmetrySpec) -> tuple[int, ...]:
    """Order of permutations, sign bits, dimensions of scalings, general linear and orthogonal factors."""
    return (
        spec.permutation_order,
        spec.sign_bits,
        spec.scale_dimension,
        spec.linear_dimension,
        spec.orthogonal_dimension,
    )


SUBJECTS = (
    Subject("mlp relu", lambda: mlp([3, 4, 4, 2], torch.relu), (7, 3), 576, 0, 8),
    Subject("mlp tanh", lambda: mlp([3, 4, 4, 2], torch.tanh), (7, 3), 576, 8, 0),
    Subject("mlp sin", lambda: mlp([3, 4, 4, 2], torch.sin), (7, 3), 576, 8, 0),
    Subject("mlp gelu", lambda: mlp([3, 4, 4, 2], nn.functional.gelu), (7, 3), 576, 0, 0),
    Subject("mlp relu without bias", lambda: mlp([3, 4, 4, 2], torch.relu, bias=False), (7, 3), 576, 0, 8),
    Subject("mlp on sequences", lambda: mlp([3, 4, 4, 2], torch.relu), (7, 5, 3), 576, 0, 8),
    Subject("conv, batch norm", conv_bn, (7, 2, 4, 4), 2880, 9, 27),
    Subject("resnet", resnet, (7, 3, 8, 8), 214990848000, 42, 110),
    Subject("conv, pooling", pooled_cnn, (7, 1, 8, 8), 2073600, 0, 15),
    Subject("shared weights, relu", lambda: Repeated(torch.relu), (7, 3), 24, 0, 4),
    Subject("shared weights, tanh", lambda: Repeated(torch.tanh), (7, 3), 24, 4, 0),
    Subject("residual stream", lambda: ResidualMLP(4, 5, torch.relu), (7, 3), 24 * 120, 0, 9),
    Subject("actor and critic", ActorCritic, (7, 4), 720 * 120, 11, 0),
    Subject("width one", lambda: nn.Sequential(nn.Linear(3, 1), nn.ReLU(), nn.Linear(1, 2)), (7, 3), 1, 0, 1),
)
