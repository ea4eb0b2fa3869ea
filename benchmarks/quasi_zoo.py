"""Which networks does `quasi.py` edit, and how are many of them run and trained at once?

Perceptrons 196-32-32-10 with ReLU on MNIST (means over 2x2 pixels). All that is done to them is written for a stack of
networks: a state is a tuple (W1, b1, W2, b2, W3, b3) whose first axis counts the networks.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from metanet.datasets.images import ImageData, load_mnist_dataset
from metanet.io import write_json_atomic

State = tuple[Tensor, ...]
NAMES = ("0.weight", "0.bias", "2.weight", "2.bias", "4.weight", "4.bias")
WIDTHS = (196, 32, 32, 10)
BATCH = 64


def network() -> nn.Module:
    """The architecture."""
    a, b, c, d = WIDTHS
    return nn.Sequential(nn.Linear(a, b), nn.ReLU(), nn.Linear(b, c), nn.ReLU(), nn.Linear(c, d))


def images() -> ImageData:
    """Ten thousand images to train on; two thousand that neither networks nor metanetworks are trained on."""
    return load_mnist_dataset(pool=10_000, test=2_000, size=14)


def activations(state: State, x: Tensor) -> list[Tensor]:
    """What the hidden layers and the outputs answer.

    Shapes:
        x ``(images, 196)`` or ``(n, images, 196)``; returns three of ``(n, images, units)``.
    """
    found = []
    h = x.expand(len(state[0]), *x.shape[-2:])
    for layer in range(3):
        h = torch.baddbmm(state[2 * layer + 1].unsqueeze(1), h, state[2 * layer].mT)
        h = h.relu() if layer < 2 else h
        found.append(h)
    return found


def outputs(state: State, x: Tensor) -> Tensor:
    """The logits, ``(n, images, 10)``."""
    return activations(state, x)[-1]


def rows(state: State, index: Tensor | slice) -> State:
    """Some networks of a stack."""
    return tuple(tensor[index] for tensor in state)


def losses(state: State, x: Tensor, labels: Tensor, at_once: int = 50) -> Tensor:
    """Cross-entropy of every network on the same images."""
    found = []
    for start in range(0, len(state[0]), at_once):
        logits = outputs(rows(state, slice(start, start + at_once)), x)
        n = len(logits)
        each = nn.functional.cross_entropy(logits.flatten(0, 1), labels.repeat(n), reduction="none")
        found.append(each.view(n, -1).mean(1))
    return torch.cat(found)


def divergences(state: State, edited: State, x: Tensor, at_once: int = 50) -> Tensor:
    """KL(original || edited) of the class probabilities, mean over the images, for every network."""
    found = []
    for start in range(0, len(state[0]), at_once):
        part = slice(start, start + at_once)
        found.append(kl(outputs(rows(state, part), x), outputs(rows(edited, part), x)))
    return torch.cat(found)


def kl(logits: Tensor, edited: Tensor) -> Tensor:
    """KL divergence of the class probabilities, mean over the images."""
    a, b = logits.log_softmax(-1), edited.log_softmax(-1)
    return (a.exp() * (a - b)).sum(-1).mean(-1)


def trained(count: int, steps: tuple[int, int], seed: int, data: ImageData, progress: Callable[[int], None]) -> State:
    """Train all at once with Adam; every network has its own seed, rate, decay, scale, share of images and length.

    The backward pass is written out: batched matrix products, no graph.
    """
    generator = np.random.default_rng(np.random.SeedSequence([seed, 20]))
    torch_generator = torch.Generator().manual_seed(seed)
    rate = torch.from_numpy(10 ** generator.uniform(-3.0, -2.2, count)).float()
    decay = torch.from_numpy(10 ** generator.uniform(-5.0, -2.0, count)).float()
    scale = torch.from_numpy(generator.uniform(0.7, 1.5, count)).float()
    length = torch.from_numpy(generator.integers(steps[0], steps[1] + 1, count))
    share = generator.integers(3_000, len(data.pool_images) + 1, count)
    state = []
    for a, b in itertools.pairwise(WIDTHS):
        deviation = scale[:, None, None] / math.sqrt(a)
        state.append(torch.randn(count, b, a, generator=torch_generator) * deviation)
        state.append(torch.zeros(count, b))
    x, y = data.pool_images.flatten(1), data.pool_labels
    pools = [generator.permutation(len(x))[:k] for k in share]
    first = [torch.zeros_like(p) for p in state]
    second = [torch.zeros_like(p) for p in state]
    for step in range(steps[1]):
        batch = torch.from_numpy(np.stack([pool[generator.integers(len(pool), size=BATCH)] for pool in pools]))
        inputs, labels = x[batch], y[batch]
        values = [inputs, *activations(tuple(state), inputs)]
        delta = values[3].softmax(-1)
        delta.scatter_add_(2, labels[..., None], torch.full((count, BATCH, 1), -1.0))
        delta = delta / BATCH
        gradients: list[Tensor] = []
        for layer in (2, 1, 0):
            gradients = [delta.mT @ values[layer], delta.sum(1), *gradients]
            if layer:
                delta = (delta @ state[2 * layer]) * (values[layer] > 0)
        # Linear decay to zero over each network's own length; who is done stands still.
        now = rate * (1 - step / length).clamp(min=0)
        correction = math.sqrt(1 - 0.999 ** (step + 1)) / (1 - 0.9 ** (step + 1))
        for p, g, m, v in zip(state, gradients, first, second, strict=True):
            m.lerp_(g, 0.1)
            v.mul_(0.999).addcmul_(g, g, value=0.001)
            shape = [count] + [1] * (p.ndim - 1)
            p -= now.view(shape) * (correction * m / (v.sqrt() + 1e-8) + decay.view(shape) * p)
        progress(count)
    return tuple(state)


def zoo(folder: Path, count: int, steps: tuple[int, int], seed: int, progress: Callable[[int], None]) -> State:
    """The networks of one seed; trained once and kept in the folder."""
    file = folder / f"zoo-{seed}-{count}-{steps[0]}-{steps[1]}.npz"
    if not file.exists():
        data = images()
        parts = []
        for start in range(0, count, 100):  # a hundred at once stay in the cache
            parts.append(trained(min(100, count - start), steps, 1000 * seed + start, data, progress))
        state = tuple(torch.cat(tensors) for tensors in zip(*parts, strict=True))
        folder.mkdir(parents=True, exist_ok=True)
        temporary = file.with_suffix(".part.npz")
        np.savez(temporary, **{name: tensor.numpy() for name, tensor in zip(NAMES, state, strict=True)})
        temporary.rename(file)
        test = losses(state, data.test_images.flatten(1), data.test_labels)
        write_json_atomic(file.with_suffix(".json"), {"networks": count, "test_loss": float(test.mean())})
    with np.load(file, allow_pickle=False) as arrays:
        return tuple(torch.from_numpy(arrays[name]) for name in NAMES)
