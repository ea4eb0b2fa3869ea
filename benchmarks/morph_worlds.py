"""Made-up sets of images, each of another kind, and perceptrons that learn them: on what is transfer learned?

A world has templates and variations, random fields with spectra of their own; moved, rectified, nearly binary or of
absolute values; dark towards the borders or not; with another mean, contrast and noise. Ten classes, 14x14 pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import quasi_zoo
import torch
from torch import Tensor

from metanet.datasets.images import ImageData

SIDE, POOL, TEST = 14, 6000, 1000
NETWORKS, STEPS = 48, (400, 800)
EASY_FROM = 48  # worlds from this number on vary less around their templates


def field(count: int, generator: torch.Generator, exponent: float, stretch: float, floor: float) -> Tensor:
    """Random fields with a spectrum that falls by a power law, of deviation one. Shapes: -> (count, 14, 14)."""
    size = 20
    rows = torch.fft.fftfreq(size)[:, None] * size
    columns = torch.fft.rfftfreq(size)[None] * size
    amplitude = 1 / (floor + torch.sqrt((rows * stretch) ** 2 + (columns / stretch) ** 2)) ** exponent
    white = torch.randn(count, size, size, generator=generator)
    made = torch.fft.irfft2(torch.fft.rfft2(white) * amplitude, s=(size, size))[:, :SIDE, :SIDE]
    return made / made.std()


def world(number: int) -> ImageData:
    """The images of one world."""
    generator = torch.Generator().manual_seed(1000 + number)

    def between(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand(1, generator=generator))

    count = POOL + TEST
    exponent, stretch, floor = between(0.8, 3.5), math.exp(between(-0.5, 0.5)), between(0.3, 2.0)
    modes = int(between(10, 50))
    templates = field(modes, generator, exponent, stretch, floor)
    mode = torch.randint(0, modes, (count,), generator=generator)
    other, across = between(0.5, 3.0), math.exp(between(-0.5, 0.5))
    size = between(0.3, 1.1) * (0.55 if number >= EASY_FROM else 1)
    x = _moved(templates[mode], int(between(0, 2.99)), generator)
    x = x + size * field(count, generator, other, across, floor)
    kind = int(between(0, 3.99))
    if kind == 1:
        x = (x - between(0, 1.2)).relu()
    elif kind == 2:
        x = torch.sigmoid(between(2, 6) * (x - between(0, 1.0)))
    elif kind == 3:
        x = x.abs() * between(0.5, 1)
    at = torch.arange(float(SIDE)) - (SIDE - 1) / 2
    if between(0, 1) < 0.6:
        width, down, right = between(3, 7), between(-1.5, 1.5), between(-1.5, 1.5)
        far = ((at[:, None] - down) / width) ** 2 + ((at[None] - right) / width) ** 2
        x = x * torch.exp(-far.pow(int(between(1, 3))))
    x = x / x.std() * between(0.7, 1.3)
    if between(0, 1) < 0.7:
        x = x - x.mean() + between(-0.2, 0.2)
    x = x + between(0, 0.25) * torch.randn(count, SIDE * SIDE, generator=generator).view(x.shape)
    x, labels = x.unsqueeze(1), mode % 10
    return ImageData(f"world {number}", x[:POOL], labels[:POOL], x[POOL:], labels[POOL:])


def _moved(x: Tensor, most: int, generator: torch.Generator) -> Tensor:
    """Each image moved by up to some places, round the edges."""
    if not most:
        return x
    by = torch.randint(-most, most + 1, (len(x), 2), generator=generator)
    made = torch.zeros_like(x)
    for down in range(-most, most + 1):
        for right in range(-most, most + 1):
            here = (by[:, 0] == down) & (by[:, 1] == right)
            made[here] = torch.roll(x[here], (down, right), (1, 2))
    return made


def networks(number: int, data: ImageData, folder: Path, progress: Callable[[int], None]) -> quasi_zoo.State:
    """Perceptrons trained on a world; trained once and kept in the folder."""
    file = folder / f"world{number}.npz"
    if not file.exists():
        state = quasi_zoo.trained(NETWORKS, STEPS, 90_000 + number, data, progress)
        folder.mkdir(parents=True, exist_ok=True)
        temporary = file.with_suffix(".part.npz")
        np.savez(temporary, **{str(place): tensor.numpy() for place, tensor in enumerate(state)})
        temporary.rename(file)
    with np.load(file, allow_pickle=False) as arrays:
        return tuple(torch.from_numpy(arrays[str(place)]) for place in range(len(quasi_zoo.NAMES)))
