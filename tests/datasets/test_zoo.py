"""Does a zoo give back what was built: lazily, by run, and nothing from outside its folder?"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import metanet
from metanet.datasets import Index, Zoo, build_zoo, load_zoo_config
from metanet.datasets.records import METRICS
from metanet.datasets.trainer import train_group
from metanet.errors import MetanetError, ZooError

from .forge import change_records


def test_entries_are_whole(tiny_zoo: Zoo) -> None:
    assert len(tiny_zoo) == len(tiny_zoo.index) == 36
    assert not tiny_zoo.failures
    for i, entry in enumerate(tiny_zoo):
        module = entry.architecture.build()
        module.load_state_dict(entry.state, strict=True)
        assert entry.record is tiny_zoo[i].record
        assert set(entry.metrics) == set(METRICS)
        assert entry.config["optimiser"] in ("sgd", "adam")
        assert entry.config["parameters"] == sum(p.numel() for p in module.parameters())
        assert f"run={entry.run}" in repr(entry)
    assert "36 networks of 12 runs" in repr(tiny_zoo)


def test_recorded_metrics_are_the_true_ones(tiny_zoo: Zoo) -> None:
    for entry in tiny_zoo:
        measured = tiny_zoo.evaluate(entry.state, entry.architecture)
        assert measured["test_loss"] == pytest.approx(entry.metrics["test_loss"], rel=1e-4)
        assert measured["test_accuracy"] == pytest.approx(entry.metrics["test_accuracy"], abs=1.5 / 200)
    # Negative control: another snapshot's metrics are others.
    assert tiny_zoo[0].metrics["test_loss"] != pytest.approx(tiny_zoo[2].metrics["test_loss"], rel=1e-3)


def test_stored_weights_are_the_trained_ones(tiny_zoo: Zoo) -> None:
    from metanet.datasets.draw import draw_zoo

    config = load_zoo_config("digits_tiny")
    draw = draw_zoo(config, tiny_zoo.data)
    group = draw.groups[-1]
    snapshots, _ = train_group(
        draw.architectures[group.architecture], [draw.runs[r] for r in group.runs], tiny_zoo.data, config.batch_size
    )
    stored = {(entry.run, entry.step): entry.state for entry in tiny_zoo}
    for snapshot in snapshots:
        ours = stored[snapshot.run, snapshot.step]
        assert ours.keys() == snapshot.state.keys()
        assert all(torch.equal(ours[name], snapshot.state[name]) for name in ours)


def test_splits_are_by_run(tiny_zoo: Zoo) -> None:
    parts = {name: set(tiny_zoo.index["run"][tiny_zoo.split(name)]) for name in ("train", "val", "test")}
    assert all(parts.values())
    assert sum(map(len, parts.values())) == len(set.union(*parts.values())) == 12
    assert sorted(np.concatenate([tiny_zoo.split(n) for n in parts]).tolist()) == list(range(36))
    children = [record for record in tiny_zoo.index if record["parent"] is not None]
    assert len({record["run"] for record in children}) == 3
    for record in children:
        assert record["parent"] in parts[record["split"]]
        assert record["initial_scale"] is None
    with pytest.raises(ZooError, match="splits: train, val, test"):
        tiny_zoo.split("holdout")


def test_a_child_starts_where_its_parent_ended(tiny_zoo: Zoo) -> None:
    from metanet.datasets.alone import train_alone
    from metanet.datasets.draw import draw_zoo

    config = load_zoo_config("digits_tiny")
    draw = draw_zoo(config, tiny_zoo.data)
    child = next(run for run in draw.runs if run.parent is not None)
    own = [entry for entry in tiny_zoo if entry.run == child.run]
    parent = [entry for entry in tiny_zoo if entry.run == child.parent][-1]
    steps = train_alone(parent.architecture, child, tiny_zoo.data, config.batch_size, start=parent.state)
    name = next(name for name in own[0].state if name.endswith("weight"))
    torch.testing.assert_close(own[0].state[name], steps[own[0].step][name], rtol=1e-3, atol=1e-4)


def test_the_index_is_a_table(tiny_zoo: Zoo) -> None:
    index = tiny_zoo.index
    assert index["test_accuracy"].dtype == np.float64
    assert index["run"].dtype.kind == "i"
    assert index["activation"].dtype.kind == "U"
    assert np.isnan(index["parent"]).sum() == 27
    assert index[3]["test_loss"] == index["test_loss"][3]
    assert [row["step"] for row in index[:3]] == index["step"][:3].tolist()
    with pytest.raises(ZooError, match="columns: run, snapshot"):
        index["accuracy"]
    assert Index([]).names == ()
    with pytest.raises(IndexError):
        tiny_zoo[36]


def test_weights_are_read_when_they_are_asked_for(tiny_copy: Path) -> None:
    zoo = Zoo.open(tiny_copy)
    shards = sorted({record["shard"] for record in zoo.index})
    assert len(shards) == 3
    first, rest = shards[0], shards[1:]
    for name in rest:
        (tiny_copy / name).unlink()
    # Opening and one shard's networks need no other shard.
    for entry in zoo:
        if entry.record["shard"] == first:
            assert entry.state
    missing = next(entry for entry in zoo if entry.record["shard"] == rest[0])
    assert missing.metrics["test_loss"] > 0
    with pytest.raises(ZooError, match="cannot be read"):
        _ = missing.state


def test_an_export_is_a_checkpoint_of_its_own(tiny_zoo: Zoo, tmp_path: Path) -> None:
    best = int(np.argmax(tiny_zoo.index["test_accuracy"]))
    tiny_zoo.export(best, tmp_path / "best.safetensors")
    checkpoint = metanet.load(tmp_path / "best.safetensors")
    entry = tiny_zoo[best]
    assert checkpoint.architecture == entry.architecture
    assert checkpoint.state.keys() == entry.state.keys()
    assert all(torch.equal(checkpoint.state[name], tensor) for name, tensor in entry.state.items())
    assert tiny_zoo.evaluate(checkpoint.state, entry.architecture)["test_accuracy"] == pytest.approx(
        entry.metrics["test_accuracy"], abs=1.5 / 200
    )


def test_networks_for_other_images_are_refused(tiny_zoo: Zoo) -> None:
    large = metanet.Architecture("mlp", {"inputs": 196, "widths": [4], "outputs": 10, "activation": "relu"})
    with pytest.raises(ZooError, match=r"reads inputs of shape \(196,\)"):
        tiny_zoo.evaluate(large.build().state_dict(), large)
    few = metanet.Architecture("mlp", {"inputs": 64, "widths": [4], "outputs": 3, "activation": "relu"})
    with pytest.raises(ZooError, match="3 outputs"):
        tiny_zoo.evaluate(few.build().state_dict(), few)


def test_what_is_no_zoo_is_refused(tmp_path: Path, tiny_copy: Path) -> None:
    with pytest.raises(ZooError, match="no zoo"):
        Zoo.open(tmp_path / "nothing")
    (tiny_copy / "manifest.json").unlink()
    with pytest.raises(ZooError, match="was not finished; run the same"):
        Zoo.open(tiny_copy)
    (tiny_copy / "manifest.json").write_text('{"format": "metanet.zoo/9"}')
    with pytest.raises(ZooError, match=r"expected 'metanet\.zoo/1'"):
        Zoo.open(tiny_copy)
    (tiny_copy / "manifest.json").write_text("[NaN]")
    with pytest.raises(ZooError, match="cannot be read"):
        Zoo.open(tiny_copy)


@pytest.mark.parametrize(
    "name", ["../secret.safetensors", "/etc/passwd", "shards/../../x.safetensors", "shards/a.pt", 3]
)
def test_no_name_leads_out_of_the_folder(tiny_copy: Path, name: Any) -> None:
    change_records(tiny_copy, {"run": 0, "snapshot": 0}, shard=name)
    with pytest.raises(ZooError):
        Zoo.open(tiny_copy)
    manifest = json.loads((tiny_copy / "manifest.json").read_text())
    manifest["files"][str(name)] = {"bytes": 1, "sha256": "0" * 64}
    (tiny_copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ZooError, match="which no zoo holds"):
        Zoo.open(tiny_copy)


def test_no_link_leads_out_of_the_folder(tiny_copy: Path, tmp_path: Path) -> None:
    shard = next((tiny_copy / "shards").iterdir())
    outside = tmp_path / "outside.safetensors"
    shard.rename(outside)
    os.symlink(outside, shard)
    with pytest.raises(ZooError, match="a link that leads out"):
        Zoo.open(tiny_copy)


@pytest.mark.parametrize(
    "changes",
    [
        {"split": "all"},
        {"architecture": 99},
        {"architecture": "0"},
        {"key": -1},
        {"status": "fine"},
        {"shard": None},
        {"shard": []},
        {"parent": []},
    ],
)
def test_impossible_records_are_refused(tiny_copy: Path, changes: dict[str, Any]) -> None:
    change_records(tiny_copy, {"run": 1, "snapshot": 2}, **changes)
    with pytest.raises(ZooError, match="run 1 "):
        Zoo.open(tiny_copy)


@pytest.mark.parametrize("changes", [{"run": "0"}, {"step": 1.5}, {"snapshot": -1}, {"run": True}])
def test_numbers_must_be_numbers(tiny_copy: Path, changes: dict[str, Any]) -> None:
    change_records(tiny_copy, {"run": 0}, **changes)
    with pytest.raises(ZooError, match="expected a whole number"):
        Zoo.open(tiny_copy)


@pytest.mark.parametrize(
    "changes",
    [{"architectures": None}, {"runs": "12"}, {"files": []}, {"files": {}}, {"architectures": [{"format": 1}]}],
)
def test_impossible_manifests_are_refused(tiny_copy: Path, changes: dict[str, Any]) -> None:
    manifest = json.loads((tiny_copy / "manifest.json").read_text())
    (tiny_copy / "manifest.json").write_text(json.dumps({**manifest, **changes}))
    with pytest.raises(MetanetError):
        Zoo.open(tiny_copy)


def test_a_row_that_is_not_there_is_refused(tiny_copy: Path) -> None:
    change_records(tiny_copy, {"run": 0, "snapshot": 0}, key=10_000)
    with pytest.raises(ZooError, match="behind more than 10000 rows"):
        _ = Zoo.open(tiny_copy)[0].state


def test_a_changed_index_is_refused(tiny_copy: Path) -> None:
    index = tiny_copy / "index.jsonl"
    data = bytearray(index.read_bytes())
    data[data.index(b'"step":') + 7] ^= 1
    index.write_bytes(data)
    with pytest.raises(ZooError, match="SHA-256 differs"):
        Zoo.open(tiny_copy)


def test_the_images_must_be_those_it_was_built_on(tiny_copy: Path) -> None:
    manifest = json.loads((tiny_copy / "manifest.json").read_text())
    manifest["data_sha256"] = "0" * 64
    (tiny_copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ZooError, match="built on other images"):
        Zoo.open(tiny_copy).evaluate({}, Zoo.open(tiny_copy).architectures[0])


def test_mnist_trains_as_well(real_data: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    raw = load_zoo_config("digits_tiny", runs=3, children=0.0).to_json()
    raw["data"] = {"name": "mnist", "pool": 300, "test": 100, "size": 14}
    monkeypatch.delenv("METANET_DATA", raising=False)
    with pytest.raises(MetanetError, match="set METANET_DATA"):
        build_zoo(raw, tmp_path / "zoo", threads=1)
    monkeypatch.setenv("METANET_DATA", str(real_data))
    zoo = build_zoo(raw, tmp_path / "zoo", threads=1)
    assert len(zoo) == 9
    assert zoo.data.shape == (1, 14, 14)
    assert zoo.evaluate(zoo[0].state, zoo[0].architecture)["test_loss"] == pytest.approx(
        zoo[0].metrics["test_loss"], rel=1e-4
    )
