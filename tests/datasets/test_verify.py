"""Does verification pass what is right, and catch each thing that is planted wrong?"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors.torch

from metanet.datasets import build_zoo, load_zoo_config, verify_zoo
from metanet.errors import ZooError

from .forge import change_records, restate


def test_a_good_zoo_passes(tiny_folder: Path) -> None:
    calls: list[tuple[int, int]] = []
    report = verify_zoo(tiny_folder, sample=10, progress=lambda done, total: calls.append((done, total)))
    assert report.passed, report.problems
    assert report.sampled == 10
    assert calls[-1] == (10, 10)
    assert report.worst_loss_error < 1e-4
    assert report.text().endswith("passed")
    assert json.loads(json.dumps(report.to_json()))["passed"] is True


@pytest.mark.parametrize("place", [0.02, 0.5, 0.99])
def test_one_flipped_bit_in_a_shard(tiny_copy: Path, place: float) -> None:
    shard = sorted((tiny_copy / "shards").iterdir())[1]
    data = bytearray(shard.read_bytes())
    data[int(place * len(data))] ^= 0x10
    shard.write_bytes(data)
    report = verify_zoo(tiny_copy, sample=0)
    assert not report.passed
    assert any(shard.name in problem and "SHA-256 differs" in problem for problem in report.problems)
    assert report.text().endswith("FAILED")


def test_a_missing_shard(tiny_copy: Path) -> None:
    next((tiny_copy / "shards").iterdir()).unlink()
    report = verify_zoo(tiny_copy)
    assert not report.passed
    assert any("is missing" in problem for problem in report.problems)


def test_a_truncated_index(tiny_copy: Path) -> None:
    index = tiny_copy / "index.jsonl"
    index.write_bytes(index.read_bytes()[:-100])
    assert not verify_zoo(tiny_copy).passed


def test_an_unfinished_zoo_is_no_zoo(tiny_copy: Path) -> None:
    (tiny_copy / "manifest.json").unlink()
    with pytest.raises(ZooError, match="not finished"):
        verify_zoo(tiny_copy)


@pytest.mark.parametrize(
    ("metric", "value"), [("test_accuracy", 0.99), ("train_accuracy", 0.0), ("test_loss", 1.0), ("train_loss", None)]
)
def test_a_forged_metric_is_measured_again(tiny_copy: Path, metric: str, value: float | None) -> None:
    change_records(tiny_copy, {"run": 4, "snapshot": 1}, **{metric: value})
    report = verify_zoo(tiny_copy, sample=1000)
    assert len(report.problems) == 1
    assert "run 4, snapshot 1" in report.problems[0]
    assert metric in report.problems[0]


def test_forged_weights_are_measured_again(tiny_copy: Path) -> None:
    shard = sorted((tiny_copy / "shards").iterdir())[0]
    with safetensors.safe_open(shard, framework="pt") as file:
        metadata = file.metadata()
    tensors = safetensors.torch.load_file(shard)
    name = next(name for name in tensors if name.endswith("weight"))
    tensors[name][3] *= -1
    safetensors.torch.save_file(tensors, shard, metadata)
    restate(tiny_copy, f"shards/{shard.name}")
    report = verify_zoo(tiny_copy, sample=1000)
    assert not report.passed
    assert len({problem.split(":")[0] for problem in report.problems}) == 1
    tensors[name][3, 0] = float("nan")
    safetensors.torch.save_file(tensors, shard, metadata)
    restate(tiny_copy, f"shards/{shard.name}")
    assert any("not finite" in problem for problem in verify_zoo(tiny_copy, sample=1000).problems)


def test_a_run_in_two_splits(tiny_copy: Path) -> None:
    change_records(tiny_copy, {"run": 0, "snapshot": 0}, split="test")
    report = verify_zoo(tiny_copy, sample=0)
    assert any("run 0" in problem and "more than one split" in problem for problem in report.problems)


def test_a_child_in_another_split_than_its_parent(tiny_copy: Path) -> None:
    for split in ("train", "val", "test"):
        change_records(tiny_copy, {"run": 9}, split=split)
        if not verify_zoo(tiny_copy, sample=0).passed:
            break
    else:
        pytest.fail("no split of the child was refused")


def test_a_lost_record(tiny_copy: Path) -> None:
    index = tiny_copy / "index.jsonl"
    index.write_text("".join(index.read_text().splitlines(keepends=True)[:-1]))
    restate(tiny_copy, "index.jsonl")
    assert any("the manifest says 36 networks" in problem for problem in verify_zoo(tiny_copy, sample=0).problems)


def test_failed_runs_are_records_and_have_a_limit(tmp_path: Path) -> None:
    raw = load_zoo_config("digits_tiny").to_json()
    # Weights grow by a factor of -1e12 in every step.
    raw["optimisers"]["sgd"].update(learning_rate=1e6, weight_decay=1e6)
    zoo = build_zoo(raw, tmp_path / "zoo", threads=1)
    failed = {record["run"]: record for record in zoo.failures}
    assert 0 < len(failed) < 12
    assert len(failed) == len(zoo.failures) == zoo.manifest["failed_runs"]
    for record in failed.values():
        assert record["status"] == "failed"
        assert record["shard"] is None
        assert record["test_accuracy"] is None
        if record["parent"] in failed:
            assert record["reason"] == f"its parent, run {record['parent']}, failed"
        else:
            assert record["optimiser"] == "sgd"
            assert record["reason"].startswith(("training loss became", "a weight became", "test loss", "train loss"))
    # Every run is told about: none vanished.
    assert {record["run"] for record in zoo.index} | failed.keys() == set(range(12))
    strict = verify_zoo(tmp_path / "zoo", sample=0, max_failed=0.0)
    assert not strict.passed
    assert "of the runs failed" in strict.problems[0]
    assert verify_zoo(tmp_path / "zoo", sample=1000, max_failed=1.0).passed


def test_a_zoo_where_every_run_failed(tmp_path: Path) -> None:
    raw = load_zoo_config("digits_tiny", runs=3, children=0.0).to_json()
    raw["optimisers"] = {"sgd": {"learning_rate": 1e6, "weight_decay": 1e6}}
    raw["snapshots"]["count"] = 1
    zoo = build_zoo(raw, tmp_path / "zoo", threads=1)
    assert len(zoo) == 0
    assert len(zoo.failures) == 3
    assert not verify_zoo(tmp_path / "zoo").passed
