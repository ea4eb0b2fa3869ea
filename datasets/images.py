"""Which images do the networks of a zoo learn, and how are they split?

Every set is fixed: the same images in the same order in every process, with one fixed split into a pool for training
(each run takes its own share of it) and a test set that no run ever trains on. A fingerprint of the arrays goes into
the zoo.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metanet.errors import ConfigError, ZooError, clean

from .generated import GENERATED, generated_images
from .idx_file import read_idx

__all__ = [
    "IMAGE_SETS",
    "ImageData",
    "check_data_options",
    "image_sizes",
    "load_digits_dataset",
    "load_fashion_mnist_dataset",
    "load_generated_dataset",
    "load_images",
    "load_mnist_dataset",
]

# Fixed for ever: another split would make every zoo that was built before it incomparable.
SPLIT_SEED = 20240229


@dataclass(frozen=True, eq=False)
class ImageData:
    """Images and labels, in two fixed parts.

    Args:
        name: of the set.
        pool_images: what runs may train on.
        pool_labels: their classes.
        test_images: what no run trains on.
        test_labels: their classes.
        centre: the grey value, from 0 to 1, that is 0 in the arrays.
        spread: how much of a grey value is 1 in the arrays.

    Shapes:
        pool_images (pool, channels, size, size) float32, pool_labels (pool,) int64; test alike.
    """

    name: str
    pool_images: Tensor
    pool_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    centre: float = 0.0
    spread: float = 1.0

    def image(self, number: int) -> tuple[Tensor, int]:
        """Grey values from 0 to 1 and the class of one image; the test images are counted on after the pool.

        Shapes:
            (channels, height, width) float32.
        """
        pool = len(self.pool_labels)
        images, labels = (self.pool_images, self.pool_labels) if number < pool else (self.test_images, self.test_labels)
        row = number if number < pool else number - pool
        return (images[row] * self.spread + self.centre).clamp(0.0, 1.0), int(labels[row])

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one image."""
        channels, height, width = self.pool_images.shape[1:]
        return channels, height, width

    @property
    def classes(self) -> int:
        """How many classes there are."""
        return int(max(self.pool_labels.max(), self.test_labels.max())) + 1

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 over all four arrays."""
        digest = hashlib.sha256()
        for part in (self.pool_images, self.pool_labels, self.test_images, self.test_labels):
            digest.update(str(tuple(part.shape)).encode())
            digest.update(part.contiguous().numpy().tobytes())
        return digest.hexdigest()


def _split(
    name: str,
    grey: np.ndarray,
    labels: np.ndarray,
    test: np.ndarray | None,
    counts: tuple[int, int],
    scale: tuple[float, float],
) -> ImageData:
    # Grey values are centred and scaled with constants, so that the map does not depend on the split.
    centre, spread = scale
    images = (grey[:, None] - centre) / spread
    # `test` marks the rows of an official test set; without one, a fixed shuffle cuts the set in two.
    pool_count, test_count = counts
    if test is None:
        order = np.random.default_rng(SPLIT_SEED).permutation(len(images))
        pool_rows, test_rows = order[: len(order) - test_count][:pool_count], order[len(order) - test_count :]
    else:
        pool_rows, test_rows = np.flatnonzero(~test)[:pool_count], np.flatnonzero(test)[:test_count]
    x = torch.from_numpy(np.ascontiguousarray(images, dtype=np.float32))
    y = torch.from_numpy(np.ascontiguousarray(labels, dtype=np.int64))
    return ImageData(name, x[pool_rows], y[pool_rows], x[test_rows], y[test_rows], centre, spread)


def _resampled(images: np.ndarray, size: int) -> np.ndarray:
    """Bilinear between the centres of pixels, with the outermost ones going on to the edge.

    Whole numbers until the last division: the same bits on every processor.

    Shapes:
        images (count, side, side) of whole numbers; result (count, size, size) float64.
    """
    side = images.shape[1]
    # The centre of pixel i lies at old pixel ((2 i + 1) side - size) / (2 size).
    at = np.clip((2 * np.arange(size) + 1) * side - size, 0, 2 * size * (side - 1))
    left = np.minimum(at // (2 * size), side - 2)
    weights = np.zeros((size, side), dtype=np.int64)
    weights[np.arange(size), left + 1] = at - 2 * size * left
    weights[np.arange(size), left] = 2 * size - weights[np.arange(size), left + 1]
    return np.asarray(weights @ images.astype(np.int64) @ weights.T / (2 * size) ** 2)


@functools.lru_cache(maxsize=2)
def load_digits_dataset(pool: int = 1000, test: int = 797, size: int = 8) -> ImageData:
    """The 1,797 handwritten 8x8 digits that come with scikit-learn.

    Source: Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, UCI repository, 1998.

    Args:
        pool: how many of them runs may train on.
        test: how many measure them.
        size: 8, or 14 or 28 for bilinear interpolation.
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = bunch.images if size == bunch.images.shape[1] else _resampled(bunch.images, size)
    return _split("digits", images / 16.0, bunch.target, None, (pool, test), (0.3, 0.38))


@functools.lru_cache(maxsize=2)
def load_mnist_dataset(pool: int = 10000, test: int = 2000, size: int = 14) -> ImageData:
    """MNIST from ``mnist.npz`` in the folder that the environment variable METANET_DATA names.

    Args:
        pool: how many of the 60,000 training images runs may train on.
        test: how many of the 10,000 test images measure them.
        size: 28, or 14 for means over 2x2 pixels.

    Raises:
        ZooError: if the file is not there or holds something else.
    """
    folder = os.environ.get("METANET_DATA")
    path = Path(folder or ".") / "mnist.npz"
    if not folder or not path.is_file():
        where = f"{path} is not a file" if folder else "METANET_DATA is not set"
        raise ZooError(
            f"data set mnist: {where}",
            hint="set METANET_DATA to the folder that holds mnist.npz, or use data.name=digits",
        )
    with np.load(path, allow_pickle=False) as arrays:
        missing = {"x_train", "y_train", "x_test", "y_test"} - set(arrays.files)
        if missing:
            raise ZooError(f"array {sorted(missing)[0]} is missing", where=path, hint="fetch mnist.npz again")
        parts = [
            (arrays["x_train"][:pool], arrays["y_train"][:pool]),
            (arrays["x_test"][:test], arrays["y_test"][:test]),
        ]
    for x, y in parts:
        if x.shape != (len(y), 28, 28) or x.dtype != np.uint8:
            raise ZooError(f"images are {x.dtype}{x.shape}, expected uint8 (count, 28, 28)", where=path)
    return _published("mnist", parts, size, (0.13, 0.31))


def _published(
    name: str, parts: list[tuple[np.ndarray, np.ndarray]], size: int, scale: tuple[float, float]
) -> ImageData:
    """Sets of 28x28 pixels in 256 grey values, with an official test set."""
    images = np.concatenate([x for x, _ in parts]).astype(np.float32) / 255.0
    if size == 14:
        images = images.reshape(-1, 14, 2, 14, 2).mean(axis=(2, 4))
    labels = np.concatenate([y for _, y in parts])
    official_test = np.arange(len(images)) >= len(parts[0][1])
    return _split(name, images, labels, official_test, (len(parts[0][1]), len(parts[1][1])), scale)


# Where the Debian package dataset-fashion-mnist puts its files.
_DEBIAN_FASHION = Path("/usr/share/datasets/fashion-mnist")


@functools.lru_cache(maxsize=2)
def load_fashion_mnist_dataset(pool: int = 10000, test: int = 2000, size: int = 14) -> ImageData:
    """Fashion-MNIST: ten kinds of clothing, from the four IDX files that it is published in, packed or not.

    They lie in ``fashion-mnist`` in the folder that METANET_DATA names (in a folder of their own, for MNIST's have the
    same names), or where the Debian package ``dataset-fashion-mnist`` puts them.

    Source: Xiao, Rasul and Vollgraf, Fashion-MNIST, arXiv 1708.07747, 2017.

    Args:
        pool: how many of the 60,000 training images runs may train on.
        test: how many of the 10,000 test images measure them.
        size: 28, or 14 for means over 2x2 pixels.

    Raises:
        ZooError: if the files are not there or hold something else.
    """
    folder = os.environ.get("METANET_DATA")
    own = Path(folder) / "fashion-mnist" if folder else None
    place = own if own is not None and own.is_dir() else _DEBIAN_FASHION
    parts = []
    for stem, count in (("train", pool), ("t10k", test)):
        arrays = []
        for content, axes in (("images-idx3", 3), ("labels-idx1", 1)):
            names = [place / f"{stem}-{content}-ubyte{end}" for end in ("", ".gz")]
            path = next((name for name in names if name.is_file()), None)
            if path is None:
                raise ZooError(
                    f"data set fashion_mnist: there is no {names[1]}",
                    hint="put its IDX files into fashion-mnist/ in the folder METANET_DATA, "
                    "or apt install dataset-fashion-mnist",
                )
            arrays.append(read_idx(path, axes))
        x, y = arrays
        if x.shape != (len(y), 28, 28) or len(y) < count or y.max(initial=0) > 9:
            raise ZooError(
                f"data set fashion_mnist: images are {x.shape} with {len(y)} labels up to {y.max(initial=0)}, "
                f"expected at least {count} of 28x28 in ten classes",
                where=place,
            )
        parts.append((x[:count], y[:count]))
    return _published("fashion_mnist", parts, size, (0.29, 0.33))


@functools.lru_cache(maxsize=4)
def load_generated_dataset(name: str, pool: int = 10000, test: int = 2000, size: int = 14) -> ImageData:
    """One of the sets that are made here: "textures", "gaussian_mixture", "signals1d".

    Args:
        name: of the set.
        pool: how many images runs may train on; fewer are the first of more.
        test: how many measure them.
        size: pixels of a side.
    """
    grey, labels = generated_images(name, pool, test, size)
    return _split(name, grey, labels, np.arange(len(grey)) >= pool, (pool, test), (0.5, _SPREADS[name]))


_SPREADS = {"textures": 0.21, "gaussian_mixture": 0.16, "signals1d": 0.11}

_LARGE = {"pool": (10000, 100, 60000), "test": (2000, 100, 10000), "size": (14, 14, 28)}
_OPTIONS: dict[str, dict[str, tuple[int, int, int]]] = {
    # option: default, lowest, highest
    "digits": {"pool": (1000, 50, 1500), "test": (797, 50, 797), "size": (8, 8, 28)},
    "mnist": _LARGE,
    "fashion_mnist": _LARGE,
    **dict.fromkeys(GENERATED, _LARGE),
}
IMAGE_SETS = tuple(_OPTIONS)
_SIZES = (8, 14, 28)
# Zoos were begun before the digits had a size; that they have the usual one is not said.
_UNSAID = ("digits", "size", 8)


def image_sizes(name: str) -> list[int]:
    """The sides in pixels that a set can be had in."""
    _, low, high = _OPTIONS[name]["size"]
    return [size for size in _SIZES if low <= size <= high]


def check_data_options(raw: object) -> dict[str, Any]:
    """``raw`` (from ``data:`` in a zoo's configuration) complete and checked.

    Raises:
        ConfigError: for an unknown set or option, or a value outside its limits.
    """
    options = {"name": raw} if isinstance(raw, str) else raw
    if not isinstance(options, Mapping) or options.get("name") not in _OPTIONS:
        name = options.get("name") if isinstance(options, Mapping) else options
        raise ConfigError(
            f"{clean(repr(name), 60)} is no data set", where="data.name", hint=f"known: {', '.join(_OPTIONS)}"
        )
    known = _OPTIONS[options["name"]]
    unknown = [key for key in options if key != "name" and key not in known]
    if unknown:
        raise ConfigError("unknown option", where=f"data.{clean(unknown[0], 60)}", hint=f"known: {', '.join(known)}")
    result: dict[str, Any] = {"name": options["name"]}
    for key, (default, low, high) in known.items():
        value = options.get(key, default)
        sizes = image_sizes(result["name"])
        expected = f"one of {sizes}" if key == "size" else f"a whole number from {low} to {high}"
        if type(value) is not int or not low <= value <= high or (key == "size" and value not in sizes):
            raise ConfigError(f"{clean(repr(value), 40)}, expected {expected}", where=f"data.{key}")
        if (result["name"], key, value) != _UNSAID:
            result[key] = value
    if result["name"] == "digits" and result["pool"] + result["test"] > 1797:
        raise ConfigError(f"pool + test is {result['pool'] + result['test']}, but there are 1797 images", where="data")
    return result


def load_images(options: Mapping[str, Any]) -> ImageData:
    """The set that checked ``options`` name."""
    checked = check_data_options(options)
    match name := checked.pop("name"):
        case "digits":
            return load_digits_dataset(**checked)
        case "mnist":
            return load_mnist_dataset(**checked)
        case "fashion_mnist":
            return load_fashion_mnist_dataset(**checked)
        case _:
            return load_generated_dataset(name, **checked)
