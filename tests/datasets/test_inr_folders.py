"""Does the reader of the INR folders give back the networks, classes and parts, and refuse everything else?"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from metanet.datasets import read_inr_folders
from metanet.errors import ZooError
from tests.datasets.published import SIREN_SIZES, fashion_inrs, mnist_inrs, siren


def published_values(state: dict[str, torch.Tensor], points: torch.Tensor) -> torch.Tensor:
    """What the published module says: sines of frequency 30, and a half added at the end."""
    x = points
    for i in range(3):
        x = x @ state[f"seq.{i}.weight"].T + state[f"seq.{i}.bias"]
        x = torch.sin(30.0 * x) if i < 2 else x + 0.5
    return x


def test_mnist_folders(tmp_path: Path) -> None:
    names = mnist_inrs(tmp_path)
    zoo = read_inr_folders(tmp_path, data="mnist", validation=0.25)
    assert zoo.left_out == ("cifar10_png_train_airplane_7", "statistics.pth")
    assert [network.split for network in zoo] == ["train"] * 9 + ["val"] * 3 + ["test"] * 4
    assert {network.name for network in zoo} == set(names)
    assert all(network.label == int(network.name.split("_")[3]) for network in zoo)
    numbers = [int(network.name.split("_")[4]) for network in zoo]
    assert numbers[:9] == sorted(numbers[:9])  # 10 comes after 9, not after 1
    assert [network.name for network in zoo] == [n.name for n in read_inr_folders(tmp_path, "mnist", validation=0.25)]
    assert zoo.parts() == [(network.run, network.split) for network in zoo]
    points = torch.rand(5, 2, generator=torch.Generator().manual_seed(0)) * 2 - 1
    for network in zoo:
        module = network.architecture.build()
        module.load_state_dict(dict(network.state))
        expected = published_values(siren(names.index(network.name)), points)
        torch.testing.assert_close(module(points), expected, atol=1e-4, rtol=1e-4)
    assert network.architecture.options["widths"] == SIREN_SIZES[1:-1]
    bare = read_inr_folders(tmp_path, data="mnist", shift=0.0)[-1].state
    assert torch.equal(bare["layers.2.bias"], siren(names.index(network.name))["seq.2.bias"])
    other = read_inr_folders(tmp_path, data="cifar10")
    assert [network.label for network in other] == ["airplane"]


def test_fashion_files_and_their_split(tmp_path: Path) -> None:
    splits = fashion_inrs(tmp_path)
    zoo = read_inr_folders(tmp_path)
    found = {part: {network.name for network in zoo if network.split == part} for part in splits}
    assert found == {part: {"/".join(path.split("/")[-2:]) for path in paths} for part, paths in splits.items()}
    assert [network.label for network in zoo] == [0, 1, 3, 6, 2, 5, 0, 1, 2]
    assert zoo.left_out == ("train/model_4.pth",)
    assert torch.equal(zoo[1].state["layers.0.weight"], siren(1)["seq.0.weight"])
    with pytest.raises(ZooError, match="does not say that it holds 'fmnist'; leave data= out"):
        read_inr_folders(tmp_path, data="fmnist")
    # The other form of split file, with labels, named by the caller.
    path = tmp_path.parent / "my.json"
    path.write_text(json.dumps({p: {"path": v, "label": [str(int(f[-5])) for f in v]} for p, v in splits.items()}))
    assert [n.name for n in read_inr_folders(tmp_path, splits=path)] == [n.name for n in zoo]


def test_folders_that_are_wrong_are_refused(tmp_path: Path) -> None:
    names = mnist_inrs(tmp_path / "mnist-inrs")
    for folder, options, message in (
        (tmp_path / "none", {}, "cannot be listed"),
        (tmp_path, {}, "perhaps they are in mnist-inrs"),
        (tmp_path / "mnist-inrs", {}, "networks of cifar10, mnist; choose one: data=cifar10"),
        (tmp_path / "mnist-inrs", {"data": "svhn"}, "holds no network of 'svhn'"),
        (tmp_path / "mnist-inrs", {"data": "mnist", "validation": 1.0}, "validation=1.0"),
    ):
        with pytest.raises(ZooError, match=message) as caught:
            read_inr_folders(folder, **options)
        assert "\n" not in str(caught.value)
    (tmp_path / "mnist-inrs" / names[3] / "checkpoints" / "model_final.pth").unlink()
    with pytest.raises(ZooError, match=f"{names[3]}: has no checkpoints/model_final.pth; unpack the whole"):
        read_inr_folders(tmp_path / "mnist-inrs", data="mnist")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("train/model_6.pth", "train/model_66.pth", "'train' names train/model_66.pth, which is not there"),
        ("train/model_6.pth", "train/model_5.pth", "names train/model_5.pth in 'train' and again in 'val'"),
        ('"val"', '"validation"', "is no split file"),
        ('"test": [', '"test": [1, ', "'test' is no list of files"),
        ("{", "{{", "cannot be read"),
    ],
)
def test_split_files_that_are_wrong_are_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    fashion_inrs(tmp_path)
    path = tmp_path / "splits.json"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(ZooError, match=message) as caught:
        read_inr_folders(tmp_path)
    assert "\n" not in str(caught.value)


def test_networks_that_are_wrong_are_refused_when_they_are_read(tmp_path: Path) -> None:
    fashion_inrs(tmp_path)
    zoo = read_inr_folders(tmp_path)
    path = tmp_path / zoo[0].name
    good = {**siren(0), "label": 0}

    class Code:
        def __reduce__(self) -> tuple[object, ...]:
            return print, ("executed",)

    for state, message in (
        (siren(0), "says nowhere what it shows"),
        ({**good, "label": Code()}, "print|code"),
        ({**good, "label": [1]}, "'label' is a list and no tensor"),
        ({**good, "seq.1.weight": torch.ones(5, 7)}, r"'seq.1.weight' has shape \[5, 7\], expected \[5, 6\]"),
        ({**good, "seq.1.bias": torch.ones(5, dtype=torch.float64)}, "float32"),
        ({**good, "other": torch.ones(1)}, "holds 'other'"),
        ({key: value for key, value in good.items() if key != "seq.2.bias"}, "no chain of layers"),
    ):
        torch.save(state, path)
        with pytest.raises(ZooError, match=message) as caught:
            zoo[0]
        assert str(caught.value).startswith(str(path))
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(ZooError):
        zoo[0]
