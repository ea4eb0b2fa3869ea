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

__all__ = ["ImageData", "check_data_options", "load_digits_dataset", "load_images", "load_mnist_dataset"]

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


@functools.lru_cache(maxsize=2)
def load_digits_dataset(pool: int = 1000, test: int = 797) -> ImageData:
    """The 1,797 handwritten 8x8 digits that come with scikit-learn.

    Source: Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, UCI repository, 1998.
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return _split("digits", bunch.images / 16.0, bunch.target, None, (pool, test), (0.3, 0.38))


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
    images = np.concatenate([x for x, _ in parts]).astype(np.float32) / 255.0
    if size == 14:
        images = images.reshape(-1, 14, 2, 14, 2).mean(axis=(2, 4))
    labels = np.concatenate([y for _, y in parts])
    official_test = np.arange(len(images)) >= len(parts[0][1])
    counts = len(parts[0][1]), len(parts[1][1])
    return _split("mnist", images, labels, official_test, counts, (0.13, 0.31))


_OPTIONS: dict[str, dict[str, tuple[int, int, int]]] = {
    # option: default, lowest, highest
    "digits": {"pool": (1000, 50, 1500), "test": (797, 50, 797)},
    "mnist": {"pool": (10000, 100, 60000), "test": (2000, 100, 10000), "size": (14, 14, 28)},
}


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
        if type(value) is not int or not low <= value <= high or (key == "size" and value not in (14, 28)):
            raise ConfigError(
                f"{clean(repr(value), 40)}, expected a whole number from {low} to {high}", where=f"data.{key}"
            )
        result[key] = value
    if result["name"] == "digits" and result["pool"] + result["test"] > 1797:
        raise ConfigError(f"pool + test is {result['pool'] + result['test']}, but there are 1797 images", where="data")
    return result


def load_images(options: Mapping[str, Any]) -> ImageData:
    """The set that checked ``options`` name."""
    checked = check_data_options(options)
    name = checked.pop("name")
    return load_digits_dataset(**checked) if name == "digits" else load_mnist_dataset(**checked)
