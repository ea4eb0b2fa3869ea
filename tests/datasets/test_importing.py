"""Does a published zoo come back from our format as it was read, whole or not at all, in memory that does not grow?"""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from metanet.checkpoint import Architecture
from metanet.datasets import (
    LAYOUTS,
    PublishedNetwork,
    PublishedZoo,
    import_zoo,
    read_inr_folders,
    read_layout,
    read_small_cnn_zoo,
    read_transformer_zoo,
    verify_zoo,
)
from metanet.errors import ConfigError, ZooError
from tests.datasets.published import mnist_inrs, small_cnn_zoo, transformers

MLPS = [Architecture("mlp", {"inputs": 3, "widths": [width], "outputs": 2, "activation": "relu"}) for width in (20, 30)]


class Made(PublishedZoo):
    """Networks that are made when they are asked for; counts how many are alive at once."""

    metrics = ("quality",)

    def __init__(self, folder: Path, count: int, broken: int | None = None) -> None:
        self.folder, self.count, self.broken = folder, count, broken
        self.alive: weakref.WeakSet[Any] = weakref.WeakSet()
        self.most = 0

    def parts(self) -> list[tuple[str, str]]:
        return [(f"r{i // 2}", "test" if i >= self.count // 2 else "train") for i in range(self.count)]

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> PublishedNetwork:  # type: ignore[override]
        if i == self.broken:
            raise ZooError("is broken", where=self.folder)
        architecture = MLPS[i % 4 // 2]
        state = {name: torch.full(shape, float(i)) for name, shape in architecture.shapes().items()}
        if i == 5:
            state["layers.1.bias"][0] = torch.nan
        for tensor in state.values():
            self.alive.add(tensor)
        self.most = max(self.most, len(self.alive) // len(state))
        config = {"lr": "0.5", "epochs": "8", "seed": "3", "step": "x", "optimizer": "sgd"}
        if i == 7:
            config["note"] = "late"
        run, split = self.parts()[i]
        metrics = {"quality": i / 10 if i else np.nan}
        return PublishedNetwork(state, architecture, metrics, config, split, run, i % 2, name=f"n{i}")


def test_networks_come_back_as_they_were_read(tmp_path: Path) -> None:
    small_cnn_zoo(tmp_path / "cnn", 20)
    mnist_inrs(tmp_path / "inr", 20, 6)
    transformers(tmp_path / "zoo")
    for layout, networks in (
        ("small_cnn_zoo", read_small_cnn_zoo(tmp_path / "cnn", strides=(2, 1), size=8)),
        ("inr_folders", read_inr_folders(tmp_path / "inr", "mnist")),
        ("transformer_zoo", read_transformer_zoo(tmp_path / "zoo", epoch=None)),
    ):
        zoo = import_zoo(networks, tmp_path / "new" / layout, layout, layout, group=4)
        assert (len(zoo), zoo.kind, zoo.metrics) == (len(networks), "published", networks.metrics)
        for entry in zoo:
            network = next(n for n in networks if n.name == entry.record["published"])
            assert entry.architecture == network.architecture
            assert all(torch.equal(entry.state[name], tensor) for name, tensor in network.state.items())
            assert entry.metrics == {name: network.metrics[name] for name in networks.metrics}
            assert entry.step == network.step
            assert entry.record.get("label") == network.label
            assert entry.split == network.split or (network.split, entry.split) == ("train", "val")
        assert set(zoo.index["split"]) == {"train", "val", "test"}
        runs = {(entry.run, entry.split) for entry in zoo}
        assert len(runs) == len({run for run, _ in runs})
        assert verify_zoo(zoo.folder).passed
        assert sorted(p.name for p in (tmp_path / "new").iterdir()) == sorted(
            name for name in LAYOUTS if (tmp_path / "new" / name).exists()
        )
    with pytest.raises(ZooError, match="published zoo"):
        zoo.data  # noqa: B018 - a property that must refuse
    rates = zoo.index["lr"]
    assert rates.dtype.kind == "f"
    assert rates[0] == 0.001


def test_memory_does_not_grow_with_the_zoo(tmp_path: Path) -> None:
    most = []
    for count in (40, 160):
        networks = Made(tmp_path, count)
        gc.collect()
        import_zoo(networks, tmp_path / str(count), "made", group=4)
        most.append(networks.most)
    # Two architectures, four networks of each in an open shard, and those on their way.
    assert most[1] == most[0] <= 12


def test_records_say_what_was_published(tmp_path: Path) -> None:
    zoo = import_zoo(Made(tmp_path, 24), tmp_path / "a", "made", group=5)
    assert (len(zoo), len(zoo.failures)) == (23, 1)
    assert zoo.failures[0]["reason"] == "tensor 'layers.1.bias' is not finite"
    first = zoo.index[0]
    assert (first["quality"], first["lr"], first["epochs"], first["seed"]) == (None, 0.5, 8, 3)
    assert (first["step"], first["config.step"]) == (0, "x")  # its own name is taken
    assert zoo.index["note"].tolist() == [None] * 6 + ["late"] + [None] * 16  # network 5 is a failure
    assert "quality" not in repr(zoo[0])
    assert zoo.index["split"].tolist().count("val") > 0
    again = import_zoo(Made(tmp_path, 24), tmp_path / "b", "made", group=5)
    assert again.manifest == zoo.manifest
    rows = np.flatnonzero(zoo.index["architecture"] == 1)
    assert zoo.stacked(rows)["layers.0.bias"][:, 0].tolist() == [
        float(zoo.index[int(row)]["published"][1:]) for row in rows
    ]


def test_an_import_is_whole_or_not_there(tmp_path: Path) -> None:
    target = tmp_path / "new"
    with pytest.raises(ZooError, match="is broken"):
        import_zoo(Made(tmp_path, 40, broken=30), target, "made", group=4)
    assert not target.exists()
    target.mkdir()
    assert len(import_zoo(Made(tmp_path, 40), target, "made", group=4)) == 39  # over what the broken one left
    assert [path.name for path in tmp_path.iterdir()] == ["new"]
    with pytest.raises(ZooError, match="is there already"):
        import_zoo(Made(tmp_path, 40), target, "made")


def test_runs_in_two_parts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ZooError, match=r"run r5 is in 'train' and in 'test'"):
        import_zoo(Made(tmp_path, 22), tmp_path / "new", "made")


def test_layouts_and_options_are_checked(tmp_path: Path) -> None:
    small_cnn_zoo(tmp_path)
    assert len(read_layout("small_cnn_zoo", tmp_path, {"step": None, "strides": [2, 1], "size": 8})) == 8
    for layout, options, message in (
        ("big_zoo", {}, "'big_zoo' is no layout; known: small_cnn_zoo"),
        ("small_cnn_zoo", {"stride": 2}, "stride: unknown option; known: step, strides, size"),
        ("small_cnn_zoo", {"step": "last"}, "step: 'last', expected something like 86"),
        ("small_cnn_zoo", {"strides": [2, "1"]}, "strides"),
        ("small_cnn_zoo", {"size": None}, "size: None"),
        ("transformer_zoo", {"least": True}, "least: True"),
        ("inr_folders", {"data": 5}, "data: 5"),
    ):
        with pytest.raises(ConfigError, match=message):
            read_layout(layout, tmp_path, options)
