"""Are the image sets what they say: fixed, split, of the size that was asked for, refused where they are absent?"""

from __future__ import annotations

import gzip
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from metanet.checkpoint import Architecture
from metanet.commands._compose import compose
from metanet.commands._place_items import place_items
from metanet.commands._score_data import SETS, read_data
from metanet.datasets import ZooConfig, build_zoo, images, load_digits_dataset, load_images, load_zoo_config
from metanet.datasets.generated import GENERATED, generated_images
from metanet.datasets.idx_file import read_idx
from metanet.datasets.images import IMAGE_SETS, check_data_options, load_fashion_mnist_dataset
from metanet.errors import ConfigError, ZooError
from metanet.tasks import UnitTask


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@pytest.fixture
def fashion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A little Fashion-MNIST of random images, one half of it packed; nothing where Debian would put the true one."""
    folder = tmp_path / "data" / "fashion-mnist"
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for stem, count in (("train", 150), ("t10k", 120)):
        pixels = generator.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        (folder / f"{stem}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(pixels)))
        (folder / f"{stem}-labels-idx1-ubyte").write_bytes(idx((np.arange(count) % 10).astype(np.uint8)))
    monkeypatch.setenv("METANET_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(images, "_DEBIAN_FASHION", tmp_path / "debian")
    load_fashion_mnist_dataset.cache_clear()
    yield folder
    load_fashion_mnist_dataset.cache_clear()


def test_fashion_mnist_is_read_from_its_own_files(fashion: Path) -> None:
    data = load_images({"name": "fashion_mnist", "pool": 100, "test": 110, "size": 14})
    pixels = read_idx(fashion / "train-images-idx3-ubyte.gz", 3)
    means = torch.from_numpy(pixels[:100] / 255.0).reshape(100, 14, 2, 14, 2).mean(dim=(2, 4))
    torch.testing.assert_close((data.pool_images[:, 0] * data.spread + data.centre).double(), means, rtol=0, atol=1e-6)
    assert data.pool_labels.tolist() == [i % 10 for i in range(100)]
    assert data.test_images.shape == (110, 1, 14, 14)
    assert data.shape == (1, 14, 14)
    assert data.classes == 10
    whole = load_images({"name": "fashion_mnist", "pool": 100, "test": 110, "size": 28})
    assert whole.shape == (1, 28, 28)
    assert whole.fingerprint != data.fingerprint


def test_fashion_mnist_lies_where_debian_puts_it(fashion: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"name": "fashion_mnist", "pool": 100, "test": 110}
    expected = load_images(options).fingerprint
    load_fashion_mnist_dataset.cache_clear()
    fashion.rename(images._DEBIAN_FASHION)
    assert load_images(options).fingerprint == expected
    monkeypatch.delenv("METANET_DATA")
    load_fashion_mnist_dataset.cache_clear()
    assert load_images(options).fingerprint == expected


def test_absent_files_are_told_in_one_line_and_mnist_is_not_taken_for_them(fashion: Path) -> None:
    # MNIST's own files have the same names: beside the folder they must not be read.
    for file in fashion.iterdir():
        file.rename(fashion.parent / file.name)
    fashion.rmdir()
    with pytest.raises(ZooError, match=r"data set fashion_mnist: there is no .*apt install dataset-fashion-mnist") as e:
        load_images("fashion_mnist")
    assert "\n" not in str(e.value)


LITTLE = np.arange(6, dtype=np.uint8).reshape(2, 3)


@pytest.mark.parametrize(
    ("content", "packed", "message"),
    [
        (idx(LITTLE)[:-1], False, "holds 5 numbers, expected 6"),
        (idx(LITTLE) + b"x", False, "holds more numbers, expected 6"),
        (idx(LITTLE)[:7], False, "is no IDX file of bytes with 2 axes"),
        (idx(LITTLE[0]), False, "is no IDX file of bytes with 2 axes"),
        (b"\x00\x00\x0d\x02" + idx(LITTLE)[4:], False, "is no IDX file"),
        (b"\x00\x00\x08\x02" + b"\xff" * 8, False, "expected at most"),
        (b"", False, "is no IDX file"),
        (gzip.compress(idx(LITTLE), mtime=0)[:-9], True, "cannot be read"),
        (gzip.compress(idx(LITTLE), mtime=0)[:10] + b"\xff" * 20, True, "cannot be read"),
        (idx(LITTLE), True, "cannot be read"),
    ],
    ids=["short", "long", "cut", "axes", "type", "huge", "empty", "packed-cut", "packed-damaged", "unpacked"],
)
def test_damaged_idx_files_are_refused(tmp_path: Path, content: bytes, packed: bool, message: str) -> None:
    path = tmp_path / ("file.gz" if packed else "file")
    path.write_bytes(gzip.compress(idx(LITTLE)) if packed else idx(LITTLE))
    assert np.array_equal(read_idx(path, 2), LITTLE)
    path.write_bytes(content)
    with pytest.raises(ZooError, match=message):
        read_idx(path, 2)


@pytest.mark.parametrize(
    ("file", "array"),
    [
        ("t10k-labels-idx1-ubyte", np.full(120, 11, np.uint8)),
        ("t10k-labels-idx1-ubyte", np.zeros(100, np.uint8)),
        ("train-images-idx3-ubyte.gz", np.zeros((150, 14, 14), np.uint8)),
    ],
)
def test_another_set_in_its_place_is_refused(fashion: Path, file: str, array: np.ndarray) -> None:
    content = idx(array)
    (fashion / file).write_bytes(gzip.compress(content) if file.endswith(".gz") else content)
    with pytest.raises(ZooError, match=r"expected at least 1.0 of 28x28 in ten classes"):
        load_images({"name": "fashion_mnist", "pool": 100, "test": 110})


def test_digits_are_resampled_between_centres_of_pixels() -> None:
    small = load_digits_dataset()
    grey = small.pool_images.double() * small.spread + small.centre
    for size in (14, 28):
        large = load_images({"name": "digits", "size": size})
        expected = torch.nn.functional.interpolate(grey, size=(size, size), mode="bilinear", align_corners=False)
        found = large.pool_images.double() * large.spread + large.centre
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
        assert torch.equal(large.pool_labels, small.pool_labels)


def test_a_size_that_was_always_so_is_not_said() -> None:
    # Otherwise a zoo that was begun before digits had a size could not be gone on with.
    assert check_data_options({"name": "digits", "size": 8}) == check_data_options("digits")
    assert "size" not in check_data_options("digits")
    assert check_data_options({"name": "digits", "size": 14})["size"] == 14
    with pytest.raises(ConfigError, match=r"data.size: 15, expected one of \[8, 14, 28\]"):
        check_data_options({"name": "digits", "size": 15})
    with pytest.raises(ConfigError, match=r"data.size: 8, expected one of \[14, 28\]"):
        check_data_options({"name": "textures", "size": 8})


@pytest.mark.parametrize("name", GENERATED)
@pytest.mark.parametrize("size", [14, 28])
def test_generated_images_are_fixed_one_by_one(name: str, size: int) -> None:
    few, labels = generated_images(name, 120, 100, size)
    more, more_labels = generated_images(name, 1100, 150, size)
    assert np.array_equal(few[:120], more[:120])
    assert np.array_equal(few[120:], more[1100:1200])
    assert np.array_equal(labels, np.concatenate([more_labels[:120], more_labels[1100:1200]]))
    # What measures is never what was learned, and no block of images comes twice.
    assert len(np.unique(more.reshape(len(more), -1), axis=0)) == len(more)
    assert np.array_equal(np.rint(few * 255), few * 255)
    assert few.min() >= 0
    assert few.max() <= 1
    assert np.mean((few == 0) | (few == 1)) < 0.03
    assert len(np.unique(more_labels)) == 10


# The zoos that were built before say on which images, and refuse others: these may never change.
FINGERPRINTS = {
    "textures": "74fb055e4628d55a",
    "gaussian_mixture": "58d9ad20b7da58b8",
    "signals1d": "e4e164a391267c07",
}


@pytest.mark.parametrize("name", GENERATED)
def test_generated_images_stay_the_same_for_ever(name: str) -> None:
    data = load_images({"name": name, "pool": 500, "test": 100})
    assert data.fingerprint[:16] == FINGERPRINTS[name]
    assert data.pool_images.std() == pytest.approx(1, abs=0.05)


def spread_of_means(data: images.ImageData) -> float:
    """The variance of class means over what chance would make it: 1 where means know nothing of the class."""
    x, y = data.pool_images.flatten(1), data.pool_labels
    parts = [x[y == label] for label in range(10)]
    means = torch.stack([part.mean(0) for part in parts])
    chance = torch.stack([part.var(0) / len(part) for part in parts]).mean(0).sum()
    return float(means.var(0).sum() / chance)


def test_the_sets_differ_in_kind() -> None:
    # In textures only products of pixels tell the class, in the others means do, too.
    found = {name: spread_of_means(load_images({"name": name, "pool": 5000, "test": 1000})) for name in GENERATED}
    assert 0.7 < found["textures"] < 1.4
    assert found["gaussian_mixture"] > 20
    assert found["signals1d"] > 20
    # Signals lie in few directions: neighbours in a row are nearly alike.
    rank: dict[str, int] = {}
    for name in GENERATED:
        values = torch.linalg.svdvals(load_images({"name": name, "pool": 5000, "test": 1000}).pool_images.flatten(1))
        rank[name] = int(((values**2).cumsum(0) < 0.9 * (values**2).sum()).sum())
    assert rank["signals1d"] < rank["gaussian_mixture"]
    assert rank["signals1d"] < rank["textures"]


def few_runs(name: str, **training: Any) -> ZooConfig:
    words = [f"zoo.data.name={name}", f"zoo.name=mlp_{name}", "zoo.runs=2", "+zoo.data.pool=4000", "+zoo.data.test=500"]
    raw = compose("zoo_build", ["zoo=transfer_mlp", *words])["zoo"]
    split = {"train": 0.5, "val": 0.0, "test": 0.5}
    return ZooConfig.from_mapping({**raw, "split": split, "training": {**raw["training"], "steps": 600, **training}})


@pytest.mark.parametrize("name", ["textures", "signals1d"])
def test_a_zoo_learns_them_and_finds_them_again(tmp_path: Path, name: str) -> None:
    zoo = build_zoo(few_runs(name), tmp_path / "zoo", threads=1)
    assert zoo.manifest["config"]["name"] == f"mlp_{name}"
    assert zoo.architectures[0].options["inputs"] == 196
    assert zoo.index["test_accuracy"].min() > 0.6
    assert zoo.index["test_accuracy"].max() < 0.985
    assert zoo.data.name == name
    entry = zoo[0]
    measured = zoo.evaluate(entry.state, entry.architecture)
    assert measured["test_accuracy"] == pytest.approx(entry.metrics["test_accuracy"], abs=0.01)
    items = list(place_items(zoo, UnitTask(target="removal", examples=20)))
    assert len(items) == 2


def test_wrong_labels_teach_nothing(tmp_path: Path) -> None:
    zoo = build_zoo(few_runs("gaussian_mixture", label_noise=1.0), tmp_path / "zoo", threads=1)
    assert zoo.index["test_accuracy"].max() < 0.25


def test_every_zoo_of_perceptrons_can_be_compared() -> None:
    transfer, mnist = load_zoo_config("transfer_mlp"), load_zoo_config("mnist_mlp")
    assert isinstance(transfer, ZooConfig)
    assert isinstance(mnist, ZooConfig)
    assert transfer.families == mnist.families
    assert transfer.seed != mnist.seed
    assert mnist.runs == 600


def test_networks_are_scored_on_sets_of_their_own_size() -> None:
    assert SETS == IMAGE_SETS
    for name in ("digits", "textures"):
        network = Architecture("mlp", {"inputs": 196, "widths": [8], "outputs": 10, "activation": "relu"})
        inputs, labels, origin = read_data(network, name, None, 50)
        assert inputs.shape == (50, 196)
        assert labels is not None
        assert f"test images of {name}, 14x14" in origin
    small = Architecture("mlp", {"inputs": 64, "widths": [8], "outputs": 10, "activation": "relu"})
    assert read_data(small, "digits", None, 50)[0].shape == (50, 64)
    with pytest.raises(ConfigError):
        read_data(small, "textures", None, 50)
