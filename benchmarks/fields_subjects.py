"""Which networks does `fields.py` hold in fields, on which images, and how is one of them trained by itself?"""

from __future__ import annotations

import functools
import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from metanet.checkpoint import Architecture
from metanet.datasets.images import ImageData, load_images
from metanet.fields.training import one_cycle


@dataclass(frozen=True)
class Case:
    """A family at full width, and the images that it learns.

    Args:
        name: of the case.
        family: of the architecture.
        options: of it, without the widths.
        widths: of full width.
        data: options of the data set.
        rank: of the field's products, so that it stores fewer numbers than the network.
        width_knots: of its small tables.
        steps: of a network trained by itself.
        field_steps: of a field, for all widths together.
        rate: of a network trained by itself.
        decay: of it.
        random: at how many random widths a field learns in every step, beside the full and the narrowest one.
        widest: the largest width at which a network is trained by itself.
    """

    name: str
    family: str
    options: dict[str, Any]
    widths: tuple[int, ...]
    data: dict[str, Any]
    rank: int | None = None
    width_knots: int = 1
    steps: int = 3000
    field_steps: int = 6000
    rate: float = 0.01
    decay: float = 0.2
    random: int = 1
    widest: float = 4.0

    def architecture(self, share: float = 1.0) -> Architecture:
        widths = [max(1, round(share * width)) for width in self.widths]
        return Architecture(self.family, {**self.options, "widths": widths})


_MLP = {"outputs": 10, "activation": "relu"}
_CNN = {"channels": 1, "outputs": 10, "activation": "relu", "norm": "batch"}
_MNIST = {"name": "mnist", "pool": 10_000, "test": 2_000, "size": 14}
_DIGITS = {"name": "digits", "pool": 1000, "test": 797}
# Rank and tables together hold fewer numbers than the network. With one random width in a step, the widths between
# learn too rarely: each has tables of its own.
_NARROW: dict[str, Any] = {"rank": 10, "width_knots": 7, "rate": 0.03, "decay": 0.02, "random": 4, "widest": 1.0}
CASES = {
    case.name: case
    for case in (
        Case("mnist_mlp", "mlp", {**_MLP, "inputs": 196}, (64, 64), _MNIST, 32, 5),
        Case("digits_mlp", "mlp", {**_MLP, "inputs": 64}, (32, 32), _DIGITS, 12, 4, 1000, 2000),
        Case(
            "digits_cnn",
            "cnn",
            {**_CNN, "size": 8, "strides": [1, 2, 2]},
            (16, 16, 16),
            _DIGITS,
            steps=1000,
            field_steps=1000,
            **_NARROW,
        ),
        Case(
            "mnist_cnn",
            "cnn",
            {**_CNN, "size": 14, "strides": [1, 2, 2]},
            (16, 16, 16),
            _MNIST,
            steps=1500,
            field_steps=3000,
            **_NARROW,
        ),
        Case(
            "fashion_rescnn",
            "cnn",
            {**_CNN, "size": 14, "residual": True, "strides": [2, 2, 1]},
            (16, 16, 16),
            {**_MNIST, "name": "fashion_mnist"},
            steps=1000,
            field_steps=2000,
            **_NARROW,
        ),
    )
}


@dataclass(frozen=True)
class Split:
    """Images and labels to train on and to measure on, as the network takes them."""

    inputs: Tensor
    labels: Tensor
    scored: Tensor
    scored_labels: Tensor


def split(case: Case, held_out: bool) -> Split:
    """Training and test images; with ``held_out`` the last fifth of the training images takes the place of the test."""
    data = _images(case.name)
    shape = case.architecture().example_inputs()[0].shape[1:]
    pool, test = data.pool_images.reshape(-1, *shape), data.test_images.reshape(-1, *shape)
    if not held_out:
        return Split(pool, data.pool_labels, test, data.test_labels)
    cut = len(pool) * 4 // 5
    return Split(pool[:cut], data.pool_labels[:cut], pool[cut:], data.pool_labels[cut:])


@functools.lru_cache(maxsize=4)
def _images(name: str) -> ImageData:
    return load_images(CASES[name].data)


def accuracy(model: nn.Module, images: Split) -> float:
    """Share of the measuring images that are told right."""
    model.eval()
    with torch.no_grad():
        return float((model(images.scored).argmax(1) == images.scored_labels).float().mean())


def trained(
    model: nn.Module,
    images: Split,
    steps: int,
    seed: int,
    rate: float = 1e-2,
    decay: float = 0.2,
    teacher: nn.Module | None = None,
) -> float:
    """Train one network in place, AdamW and one cycle; with a teacher half the loss is the divergence from it.

    Returns:
        Seconds of the processor.
    """
    began = time.process_time()
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=decay)
    model.train()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = one_cycle(step / steps, rate)
        rows = torch.randint(len(images.inputs), (128,), generator=generator)
        inputs, labels = images.inputs[rows], images.labels[rows]
        output = model(inputs)
        loss = functional.cross_entropy(output, labels)
        if teacher is not None:
            with torch.no_grad():
                told = teacher(inputs).log_softmax(1)
            loss = 0.5 * loss + 0.5 * (told.exp() * (told - output.log_softmax(1))).sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    return time.process_time() - began


def latency(model: nn.Module, inputs: Sequence[Tensor]) -> float:
    """Median milliseconds of one call with the example inputs."""
    times = []
    with torch.no_grad():
        for _ in range(23):
            start = time.perf_counter()
            model(*inputs)
            times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times[3:])


def spread(values: Sequence[float]) -> float:
    """Standard deviation over seeds; zero for one."""
    mean = sum(values) / len(values)
    return math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1)) if len(values) > 1 else 0.0
