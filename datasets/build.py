"""How is a zoo built, so that it may be killed at any moment and go on where it was?

The unit of work is a group: its shard and then its part are written whole or not at all. Groups are trained in worker
processes with one thread each, so the numbers depend neither on how many there are nor on which of them
took which group.
"""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch

from metanet.errors import ZooError, clean
from metanet.io import write_bytes_atomic, write_json_atomic

from .draw import Group
from .images import ImageData, load_images
from .plan import Config, Plan, parse_config, plan_zoo
from .pool import Pool
from .storage import (
    CONFIG,
    FORMAT,
    INDEX,
    MANIFEST,
    PARTS,
    SHARDS,
    digest,
    index_bytes,
    read_manifest,
    read_object,
    safe_path,
)
from .zoo import Zoo

__all__ = ["BuildProgress", "build_zoo"]


@dataclass(frozen=True)
class BuildProgress:
    """How far a build is.

    Args:
        done: network-steps done or skipped, those of earlier calls included.
        total: network-steps of the whole zoo.
        groups_done: groups on the disk.
        groups: all groups.
        failed: runs that failed so far in this call.
    """

    done: int
    total: int
    groups_done: int
    groups: int
    failed: int = 0


Progress = Callable[[BuildProgress], None]

# Steps of a multilayer perceptron that are done in the time that a worker process takes to start.
_WORTH_STARTING = 30_000


def build_zoo(
    config: Mapping[str, Any] | Config,
    folder: str | os.PathLike[str],
    progress: Progress | bool = False,
    threads: int | None = None,
) -> Zoo:
    """Build a zoo, or finish one that was begun with the same configuration.

    Args:
        config: as in ``configs/zoo``.
        folder: to build in; it is made if it is not there.
        progress: True for a bar on standard error, or a function that is called with a :class:`BuildProgress`.
        threads: processor cores to use; every one runs a process of its own, and 1 stands for this process. By default
            all that this process may use, unless the work is so little that starting others would take longer. The
            result is the same.

    Raises:
        ConfigError: if the configuration is impossible.
        ZooError: if the folder holds something else, or was begun with another configuration or other versions.
    """
    plan = plan_zoo(parsed := parse_config(config), load_images(parsed.data))
    folder = Path(folder)
    with locked(folder), _reporter(progress) as report:
        _begin(folder, plan.config, plan.data)
        if not (folder / MANIFEST).exists():
            _clear_temporary(folder)
            _build_groups(plan, folder, report, threads)
            _finish(folder, plan)
        shutil.rmtree(folder / PARTS, ignore_errors=True)
    return Zoo.open(folder)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ZooError(f"cannot be made: {error.strerror}", where=folder, hint="give another folder") from error
    try:
        import fcntl
    except ImportError:  # no such locks on this platform; two builds at once would do the same work twice
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ZooError("another process is building this zoo", where=folder, hint="wait for it to end") from error
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _reporter(progress: Progress | bool) -> Iterator[Progress]:
    if callable(progress):
        yield progress
        return
    from tqdm import tqdm

    with tqdm(total=1, unit="step", unit_scale=True, desc="zoo", disable=not progress) as bar:

        def report(state: BuildProgress) -> None:
            bar.total = state.total
            bar.set_postfix(groups=f"{state.groups_done}/{state.groups}", failed=state.failed, refresh=False)
            bar.update(state.done - bar.n)

        yield report


def _begin(folder: Path, config: Config, data: ImageData) -> None:
    begun = {
        "format": FORMAT,
        "config": config.to_json(),
        "data_sha256": data.fingerprint,
        "versions": {
            "torch": torch.__version__,
            "numpy": np.__version__,
            "safetensors": safetensors.__version__,
            "python": platform.python_version(),
            "machine": platform.machine(),
        },
    }
    if not (folder / CONFIG).exists():
        others = [entry.name for entry in folder.iterdir() if not entry.name.endswith(".tmp")]
        if others:
            raise ZooError(
                f"holds {clean(sorted(others)[0], 60)!r} but no zoo", where=folder, hint="give a new or empty folder"
            )
        write_json_atomic(folder / CONFIG, begun)
    difference = _difference("", read_object(folder / CONFIG), begun)
    if difference:
        raise ZooError(
            f"was begun differently: {difference}",
            where=folder,
            hint="give another folder, or the configuration and versions that it was begun with",
        )
    for name in (SHARDS, PARTS):
        (folder / name).mkdir(exist_ok=True)


def _difference(where: str, before: Any, now: Any) -> str:
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted(before.keys() | now.keys()):
            found = _difference(f"{where}.{key}" if where else key, before.get(key), now.get(key))
            if found:
                return found
        return ""
    return "" if before == now else f"{clean(where, 80)} was {clean(repr(before), 80)}, is {clean(repr(now), 80)}"


def _clear_temporary(folder: Path) -> None:
    # What a killed build left half written; no other build runs here, because this one holds the lock.
    for place in (folder, folder / SHARDS, folder / PARTS):
        for entry in place.glob(".*.tmp"):
            entry.unlink(missing_ok=True)


def _is_done(folder: Path, group: Group) -> bool:
    path = folder / PARTS / f"{group.name}.json"
    if not path.is_file():
        return False
    shard = read_object(path)["shard"] or {}
    return all((folder / name).is_file() and digest(folder / name) == stated for name, stated in shard.items())


def _build_groups(plan: Plan, folder: Path, report: Progress, threads: int | None) -> None:
    done = [group for group in plan.groups if _is_done(folder, group)]
    # The longest first, so that no core waits for another at the end.
    cost = {group.number: plan.cost(group) for group in plan.groups}
    pending = sorted((g for g in plan.groups if g not in done), key=lambda g: (-cost[g.number], g.number))
    work = sum(plan.work(group) for group in done)
    if threads is None:
        threads = _cores() if sum(cost[group.number] for group in pending) > _WORTH_STARTING else 1
    state = BuildProgress(work, sum(map(plan.work, plan.groups)), len(done), len(plan.groups))
    report(state)
    for event in _events(plan, folder, pending, threads):
        if "steps" in event:
            state = replace(state, done=min(state.done + event["steps"], state.total))
        else:
            # Steps that a run did not take, because it diverged, are done as well.
            work += plan.work(plan.groups[event["done"]])
            state = replace(state, groups_done=state.groups_done + 1, failed=state.failed + event["failed"])
        report(state if state.groups_done < state.groups else replace(state, done=state.total))


def _events(plan: Plan, folder: Path, pending: list[Group], threads: int) -> Iterator[dict[str, Any]]:
    if threads > 1 and len(pending) > 1:
        with Pool(folder, min(threads, len(pending))) as pool:
            yield from pool.run([group.number for group in pending])
        return
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for group in pending:
            steps: list[int] = []
            failed = plan.build(group, folder, steps.append)
            yield {"steps": sum(steps)}
            yield {"done": group.number, "failed": failed}
    finally:
        torch.set_num_threads(before)


def _finish(folder: Path, plan: Plan) -> None:
    records: list[dict[str, Any]] = []
    files: dict[str, Any] = {}
    for group in plan.groups:
        part = read_object(folder / PARTS / f"{group.name}.json")
        records += part["records"]
        files.update(part["shard"] or {})
    write_bytes_atomic(folder / INDEX, index_bytes(records))
    for name in (CONFIG, INDEX):
        files[name] = digest(folder / name)
    failed = sum(record["status"] == "failed" for record in records)
    manifest = {
        **read_object(folder / CONFIG),
        "runs": plan.runs,
        "snapshots": len(records) - failed,
        "failed_runs": failed,
        "architectures": [architecture.to_json() for architecture in plan.architectures],
        "files": dict(sorted(files.items())),
    }
    for name in files:
        safe_path(folder, name)
    write_json_atomic(folder / MANIFEST, manifest)
    read_manifest(folder)
