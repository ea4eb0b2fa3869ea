"""Which networks does `kernel.py` measure on? Batches of untrained ones, drawn from a seed."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn

from metanet.graph import GraphBatch, ParameterGraph, collate
from symmetry import SymmetrySpec, trace

HIDDEN = {"inr": 64, "small_cnn": 64, "mlp": 32, "mixed": 64}
COPIES = {"inr": 64, "small_cnn": 64, "mlp": 2, "mixed": 4}  # networks of each architecture


class Sine(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(x)


class Residual(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(16, width), nn.Linear(width, 10)
        self.up = nn.ModuleList(nn.Linear(width, hidden) for _ in range(2))
        self.down = nn.ModuleList(nn.Linear(hidden, width) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for up, down in zip(self.up, self.down, strict=True):
            x = x + down(torch.relu(up(x)))
        return self.head(x)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.GRU(8, 24, batch_first=True), nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cell(x)[0][:, -1])


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(8, 16), nn.Linear(16, 10)
        self.block = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.stem(x)).mean(1))


def dense(*widths: int, activation: type[nn.Module] = nn.ReLU) -> nn.Module:
    layers = [part for a, b in itertools.pairwise(widths) for part in (nn.Linear(a, b), activation())]
    return nn.Sequential(*layers[:-1])


def small_cnn(norm: bool = False) -> nn.Module:
    """The Small CNN Zoo's architecture (Unterthiner et al. 2020, section 3)."""
    layers: list[nn.Module] = []
    for a in (1, 16, 16):
        layers += [nn.Conv2d(a, 16, 3, stride=2), *([nn.BatchNorm2d(16)] if norm else []), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))


Build = tuple[Callable[[], nn.Module], tuple[int, ...]]  # a network and the shape of its input
INR: Build = (lambda: dense(2, 32, 32, 1, activation=Sine), (7, 2))
CNN: Build = (small_cnn, (2, 1, 28, 28))
ARCHITECTURES: dict[str, tuple[Build, ...]] = {
    "inr": (INR,),
    "small_cnn": (CNN,),
    "mlp": ((lambda: dense(784, 256, 256, 10), (7, 784)),),
    "mixed": (
        INR,
        CNN,
        (lambda: small_cnn(norm=True), (2, 1, 28, 28)),
        (lambda: dense(64, 32, 32, 10), (7, 64)),
        (lambda: dense(64, 48, 10, activation=nn.Tanh), (7, 64)),
        (lambda: Residual(24, 32), (7, 16)),
        (Recurrent, (7, 5, 8)),
        (Encoder, (7, 5, 8)),
    ),
}


@cache
def specs(case: str) -> list[SymmetrySpec]:
    return [trace(make().eval(), (torch.zeros(shape),)) for make, shape in ARCHITECTURES[case]]


def batch(case: str, seed: int, quick: bool = False) -> GraphBatch:
    graphs = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for (make, _), spec in zip(ARCHITECTURES[case], specs(case), strict=True):
            for _ in range(max(COPIES[case] // (4 if quick else 1), 1)):
                graphs.append(ParameterGraph.build(spec, make().state_dict()))
    return collate(graphs)


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
        self.short = None
        if stride != 1 or inputs != outputs:
            self.short = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(y + (x if self.short is None else self.short(x)))


class ResNet(nn.Module):
    """ResNet-18 (He et al. 2016, table 1) for small images; with 64 channels 11.7 million numbers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        blocks, inputs = [], width
        for stage in range(4):
            for place in range(2):
                outputs = width * 2**stage
                blocks.append(Block(inputs, outputs, 2 if stage and not place else 1))
                inputs = outputs
        self.blocks, self.head = nn.Sequential(*blocks), nn.Linear(inputs, 1000)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(torch.relu(self.bn(self.conv(x)))).mean((2, 3)))


def resnet(width: int) -> GraphBatch:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = ResNet(width).eval()
    spec = trace(model, (torch.zeros(2, 3, 16, 16),))
    return collate([ParameterGraph.build(spec, model.state_dict())])
