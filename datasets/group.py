"""What is done for one group: train it, measure it, write its shard and its records."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from .config import ZooConfig
from .draw import Draw, Group
from .images import ImageData
from .records import failure_record, snapshot_record
from .storage import SHARDS, write_group
from .trainer import Failure, Snapshot, train_group

__all__ = ["build_group"]


def build_group(
    config: ZooConfig, draw: Draw, group: Group, data: ImageData, folder: Path, progress: Callable[[int], None]
) -> int:
    """Train the group's runs, then the runs that go on from them, and write both.

    Returns:
        how many runs failed.
    """
    architecture = draw.architectures[group.architecture]
    roots = [draw.runs[run] for run in group.runs]
    snapshots, failures = train_group(architecture, roots, data, config.batch_size, progress=progress)
    last = _last_states(snapshots, failures)
    children = [draw.runs[run] for run in group.children]
    able = [child for child in children if child.parent in last]
    starts = [last[child.parent] for child in able if child.parent is not None]
    more, more_failures = train_group(architecture, able, data, config.batch_size, starts, progress=progress)
    snapshots += more
    failures += more_failures
    failures += [
        Failure(child.run, 0, f"its parent, run {child.parent}, failed") for child in children if child not in able
    ]
    records: list[dict[str, Any]] = []
    numbers: dict[int, int] = {}
    shard = f"{SHARDS}/{group.name}.safetensors"
    for key, snapshot in enumerate(snapshots):
        number = numbers.get(snapshot.run, 0)
        numbers[snapshot.run] = number + 1
        records.append(snapshot_record(draw.runs[snapshot.run], architecture, number, snapshot, shard, key))
    for failure in failures:
        number = numbers.get(failure.run, 0)
        records.append(failure_record(draw.runs[failure.run], architecture, number, failure))
    about = {"group": group.number, "architecture": architecture.to_json(), "zoo": config.fingerprint}
    write_group(folder, group.name, records, [snapshot.state for snapshot in snapshots], about)
    return len(failures)


def _last_states(snapshots: list[Snapshot], failures: list[Failure]) -> Mapping[int, Mapping[str, Tensor]]:
    failed = {failure.run for failure in failures}
    # In order of steps, so the last one stays.
    return {snapshot.run: snapshot.state for snapshot in snapshots if snapshot.run not in failed}
