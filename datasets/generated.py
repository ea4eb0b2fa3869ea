"""Which images can be had without any file, and unlike handwriting? Textures, mixtures of Gaussians, signals.

Each set is a fixed recipe with fixed seeds: ten classes, 256 grey values, as many images as wanted. What is learned
from networks on handwriting can so be tried on networks that saw inputs with quite another covariance. Image ``i`` does
not depend on how many are drawn. Grey values are rounded to 256 levels, so that the last bits of sines and matrix
products, which differ between processors, leave the images alone.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

__all__ = ["GENERATED", "generated_images"]

# Fixed for ever, like the recipes: other images would make every zoo that was built before incomparable.
SEED = 20261125
CLASSES = 10
_BLOCK = 1000
_FIXED, _POOL, _TEST = 0, 1, 2

Recipe = Callable[[np.random.Generator, np.random.Generator, np.ndarray, int], np.ndarray]


def generated_images(name: str, pool: int, test: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """``pool`` images to learn from and ``test`` others behind them, with their classes.

    Args:
        name: a key of :data:`GENERATED`.
        pool: how many.
        test: how many.
        size: pixels of a side.

    Shapes:
        grey values (pool + test, size, size) from 0 to 1 float64, classes (pool + test,) int64.
    """
    recipe, number = GENERATED[name], list(GENERATED).index(name)
    images: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    for part, count in ((_POOL, pool), (_TEST, test)):
        for start in range(0, count, _BLOCK):
            # A block is always drawn as a whole and then cut: fewer images are the first ones of more.
            generator = _generator(number, part, start // _BLOCK)
            classes = generator.integers(CLASSES, size=_BLOCK)
            grey = recipe(_generator(number, _FIXED), generator, classes, size)
            keep = min(_BLOCK, count - start)
            images.append(np.rint(np.clip(grey[:keep], 0.0, 1.0) * 255.0) / 255.0)
            labels.append(classes[:keep])
    return np.concatenate(images), np.concatenate(labels)


def _generator(*key: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(SEED, spawn_key=key))


def _textures(fixed: np.random.Generator, generator: np.random.Generator, labels: np.ndarray, size: int) -> np.ndarray:
    """Noise in a narrow band: a class is one of five directions and one of two frequencies.

    Four plane waves of random strength and phase, whose directions and frequencies scatter about those of the class:
    no pixel has a mean that depends on the class, only products of pixels do.
    """
    count, waves = len(labels), 4
    shape = (count, waves)
    angle = np.pi * (labels % 5)[:, None] / 5 + generator.normal(0.0, 0.16, shape)
    frequency = np.array([1.5, 2.5])[labels // 5][:, None] * np.exp(generator.normal(0.0, 0.2, shape))
    phase = generator.uniform(0.0, 2 * np.pi, shape)
    strength = generator.rayleigh(1.0, shape) / np.sqrt(waves)
    across, down = frequency * np.cos(angle), frequency * np.sin(angle)
    x = 2 * np.pi * (np.arange(size) + 0.5) / size
    # cos(a + b + c) of a wave is the real part of a product of one factor for each axis.
    columns = np.exp(1j * across[..., None] * x) * (strength * np.exp(1j * phase))[..., None]
    rows = np.exp(1j * down[..., None] * x)
    waves_added = np.einsum("nwy,nwx->nyx", rows, columns).real
    return 0.5 + 0.2 * (waves_added + generator.normal(0.0, 0.4, waves_added.shape))


def _smooth(coefficients: np.ndarray, size: int) -> np.ndarray:
    """The sum of cosines with these coefficients, at the centres of pixels.

    Shapes:
        coefficients (..., k, k); result (..., size, size).
    """
    k = np.arange(coefficients.shape[-1])
    basis = np.cos(np.pi * k * (np.arange(size)[:, None] + 0.5) / size)
    return np.asarray(basis @ coefficients @ basis.T)


def _decay(terms: int, length: float) -> np.ndarray:
    """Standard deviations of cosine coefficients that make a field of variance about 1, correlated over ``length``."""
    squared = np.arange(terms)[:, None] ** 2 + np.arange(terms) ** 2
    weights = np.exp(-0.25 * (np.pi * length) ** 2 * squared)
    weights[0, 0] = 0.0  # brightness of the whole image is no feature
    return np.asarray(2 * weights / np.sqrt((weights**2).sum()))


def _gaussian_mixture(
    fixed: np.random.Generator, generator: np.random.Generator, labels: np.ndarray, size: int
) -> np.ndarray:
    """Three smooth means for each class, and smooth Gaussian noise about them, the same for all."""
    modes, terms = 3, 8
    means = fixed.normal(size=(CLASSES, modes, terms, terms)) * _decay(terms, 0.12)
    noise = generator.normal(size=(len(labels), terms, terms)) * _decay(terms, 0.08)
    mode = generator.integers(modes, size=len(labels))
    grain = generator.normal(0.0, 0.2, (len(labels), size, size))
    return 0.5 + 0.12 * (0.66 * _smooth(means[labels, mode], size) + _smooth(noise, size) + grain)


def _signals1d(fixed: np.random.Generator, generator: np.random.Generator, labels: np.ndarray, size: int) -> np.ndarray:
    """Signals of 40 samples, drawn out to ``size * size`` ones and laid row below row.

    Made as MNIST-1D is: a template of 12 points for each class, somewhere among zeros, stretched, scaled, sheared, with
    correlated and white noise. The templates are our own, random curves, and move less: a perceptron is to learn them.
    Source: Greydanus and Kobak, Scaling Down Deep Learning with MNIST-1D, ICML 2024, section 2.
    """
    count, points, samples = len(labels), 12, 40
    knots = np.concatenate([np.zeros((CLASSES, 1)), fixed.normal(size=(CLASSES, 6)), np.zeros((CLASSES, 1))], axis=1)
    place = np.linspace(0.0, knots.shape[1] - 1.0, points)
    templates = 2 * np.stack([np.interp(place, np.arange(knots.shape[1]), row) for row in knots])
    stretch = generator.uniform(1.4, 2.2, (count, 1))
    start = generator.uniform(3.0, 13.0, (count, 1))
    at = (np.arange(samples) - start) / stretch
    left = np.clip(np.floor(at), 0, points - 2).astype(int)
    rest = np.clip(at - left, 0.0, 1.0)
    own = templates[labels]
    signal = np.take_along_axis(own, left, 1) * (1 - rest) + np.take_along_axis(own, left + 1, 1) * rest
    signal *= 1 + generator.normal(0.0, 0.2, (count, 1))
    signal += generator.normal(0.0, 0.75, (count, 1)) * np.linspace(-0.5, 0.5, samples)
    distance = np.arange(samples)[:, None] - np.arange(samples)
    blur = np.exp(-0.5 * (distance / 2.0) ** 2)
    blur /= np.sqrt((blur**2).sum(axis=0))
    signal += 0.4 * generator.normal(size=(count, samples)) @ blur + generator.normal(0.0, 0.02, (count, samples))
    # Linear between the samples.
    at = np.linspace(0.0, samples - 1.0, size * size)
    left = np.minimum(at.astype(int), samples - 2)
    drawn_out = signal[:, left] * (left + 1 - at) + signal[:, left + 1] * (at - left)
    return 0.5 + 0.1 * drawn_out.reshape(count, size, size)


GENERATED: dict[str, Recipe] = {
    # Its place decides the seed: new recipes go to the end.
    "textures": _textures,
    "gaussian_mixture": _gaussian_mixture,
    "signals1d": _signals1d,
}
