"""How does a published zoo become one of ours, network by network, in memory that does not grow with it?

Everything is written in a folder beside the target, which takes the target's name at the very end: an import that was
killed leaves no zoo behind, and the same call begins anew. Weights are written in shards of one architecture each; what
stays in memory of a network is its line of the index.
"""

from __future__ import annotations

import hashlib
import inspect
import math
import os
import platform
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from torch import Tensor

from metanet.checkpoint import Architecture
from metanet.errors import ConfigError, ZooError, clean
from metanet.io import write_bytes_atomic, write_json_atomic

from .build import locked
from .inr_folders import read_inr_folders
from .published import KIND, PublishedNetwork, PublishedZoo, is_number, parts_by_share
from .records import parameter_count
from .small_cnn_zoo import read_small_cnn_zoo
from .storage import CONFIG, FORMAT, INDEX, MANIFEST, PARTS, SHARDS, digest, index_bytes, read_object, write_group
from .transformer_zoo import read_transformer_zoo
from .zoo import Zoo

__all__ = ["LAYOUTS", "import_zoo", "read_layout"]

LAYOUTS: Mapping[str, Callable[..., PublishedZoo]] = {
    "small_cnn_zoo": read_small_cnn_zoo,
    "inr_folders": read_inr_folders,
    "transformer_zoo": read_transformer_zoo,
}
Progress = Callable[[int, int], None]


def read_layout(layout: str, folder: str | os.PathLike[str], options: Mapping[str, Any]) -> PublishedZoo:
    """The networks in a folder of a published layout.

    Args:
        layout: a name in :data:`LAYOUTS`.
        folder: where the zoo was unpacked.
        options: arguments of the layout's reader.

    Raises:
        ConfigError: if there is no such layout or option.
        ZooError: if the folder holds no such zoo, or a part of one.
    """
    if layout not in LAYOUTS:
        raise ConfigError(f"{clean(repr(layout), 40)} is no layout", hint="known: " + ", ".join(LAYOUTS))
    parameters = inspect.signature(LAYOUTS[layout]).parameters
    known = {name: value.default for name, value in parameters.items() if name != "folder"}
    for name, value in options.items():
        if name not in known:
            raise ConfigError("unknown option", where=f"{layout}: {clean(name, 40)}", hint="known: " + ", ".join(known))
        if not _fits(value, known[name], str(parameters[name].annotation)):
            shown = f"{clean(repr(value), 40)}, expected something like {known[name]!r}"
            raise ConfigError(f"{shown} ({parameters[name].annotation})", where=f"{layout}: {name}")
    return LAYOUTS[layout](folder, **options)


def _fits(value: Any, default: Any, annotation: str) -> bool:
    if value is None:
        return default is None or "None" in annotation
    if "Sequence[int]" in annotation:
        return isinstance(value, list | tuple) and bool(value) and all(type(v) is int for v in value)
    if "int" in annotation:
        return type(value) is int
    if "float" in annotation:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, str)


def import_zoo(
    networks: PublishedZoo,
    folder: str | os.PathLike[str],
    name: str,
    layout: str = "",
    options: Mapping[str, Any] | None = None,
    validation: float = 0.1,
    group: int = 512,
    progress: Progress = lambda done, total: None,
) -> Zoo:
    """Write the networks of a published zoo as a zoo of this package, with index, parts and metrics.

    Args:
        networks: from a reader.
        folder: of the new zoo; must not exist, or be empty.
        name: of the new zoo.
        layout: recorded in the new zoo.
        options: of the reader, recorded in the new zoo.
        validation: share of the training runs that becomes "val" where the published parts have none: always the same.
        group: networks in a shard.
        progress: is called with how many networks were written, and of how many.

    Raises:
        ZooError: if a network cannot be read, a run is in two parts, or the folder holds something.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ZooError("is there already", where=folder, hint="give a new or empty folder")
    parts = _parts(networks, validation)
    working = folder.parent / f".{folder.name}.importing"
    with locked(working):
        for entry in working.iterdir():
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        for part in (SHARDS, PARTS):
            (working / part).mkdir()
        writer = _Writer(working, group, name)
        for number, network in enumerate(networks):
            writer.add(network, parts[network.run])
            progress(number + 1, len(networks))
        writer.finish(
            {
                "name": name,
                "kind": KIND,
                "seed": 0,
                "layout": layout,
                "options": dict(options or {}),
                "validation": validation,
                "group": group,
                "metrics": list(networks.metrics),
            }
        )
        if folder.exists():
            folder.rmdir()
        os.replace(working, folder)
    return Zoo.open(folder)


def _parts(networks: PublishedZoo, validation: float) -> dict[str, str]:
    """The part of every run, some of the training ones moved to "val" where there would be none."""
    found: dict[str, str] = {}
    for run, part in networks.parts():
        if found.setdefault(run, part) != part:
            raise ZooError(
                f"run {clean(run, 60)} is in '{found[run]}' and in '{part}'",
                where=networks.folder,
                hint="import checkpoints of one step",
            )
    if not found:
        raise ZooError("holds no network", where=networks.folder)
    if not 0 <= validation < 1:
        raise ZooError(f"validation={validation!r}, expected a share from 0 to below 1", where=networks.folder)
    if "val" in found.values():
        return found
    shares = {"val": validation, "train": 1 - validation}
    return found | parts_by_share([run for run, part in found.items() if part == "train"], shares)


class _Writer:
    """Shards and parts of the zoo that is being written."""

    def __init__(self, folder: Path, group: int, name: str) -> None:
        self.folder, self.group, self.name = folder, group, name
        self.architectures: dict[Architecture, int] = {}
        self.runs: dict[str, list[int]] = {}
        self.groups = 0
        self.hash = hashlib.sha256()
        self.columns: dict[str, None] = {}
        self._open: dict[int, tuple[str, list[dict[str, Any]], list[Mapping[str, Tensor]]]] = {}

    def add(self, network: PublishedNetwork, split: str) -> None:
        number = self.architectures.setdefault(network.architecture, len(self.architectures))
        if number not in self._open:
            self._open[number] = (f"group-{self.groups:05d}", [], [])
            self.groups += 1
        shard, records, states = self._open[number]
        run = self.runs.setdefault(network.run, [len(self.runs), 0])
        record = _record(network, run[0], run[1], split, number)
        run[1] += 1
        self.hash.update(f"{network.name}\x1f{split}\x1e".encode())
        bad = next((name for name, tensor in network.state.items() if not torch.isfinite(tensor).all()), None)
        if bad is None:
            record |= {"shard": f"{SHARDS}/{shard}.safetensors", "key": len(states)}
            states.append(network.state)
            for tensor in network.state.values():
                self.hash.update(tensor.contiguous().numpy().tobytes())
        else:
            record |= {"status": "failed", "reason": f"tensor '{clean(bad, 60)}' is not finite"}
        records.append(record)
        self.columns.update(dict.fromkeys(record))
        if len(states) == self.group or len(records) == 2 * self.group:
            self._close(number)

    def _close(self, number: int) -> None:
        shard, records, states = self._open.pop(number)
        architecture = next(a for a, place in self.architectures.items() if place == number)
        about = {"group": int(shard[-5:]), "architecture": architecture.to_json(), "zoo": self.name}
        write_group(self.folder, shard, records, states, about)

    def finish(self, config: Mapping[str, Any]) -> None:
        for number in list(self._open):
            self._close(number)
        head = {
            "format": FORMAT,
            "config": config,
            # Of names, parts and weights: the images that the networks were trained on are not there.
            "data_sha256": self.hash.hexdigest(),
            "versions": {
                "torch": torch.__version__,
                "numpy": np.__version__,
                "safetensors": safetensors.__version__,
                "python": platform.python_version(),
                "machine": platform.machine(),
            },
        }
        write_json_atomic(self.folder / CONFIG, head)
        files: dict[str, Any] = {}
        lines: list[tuple[int, int, bytes]] = []
        failed = 0
        for group in range(self.groups):
            part = read_object(self.folder / PARTS / f"group-{group:05d}.json")
            files.update(part["shard"] or {})
            failed += sum(record["status"] == "failed" for record in part["records"])
            # A table: what only some networks say of themselves is not known of the others.
            records = [dict.fromkeys(self.columns) | record for record in part["records"]]
            lines += [(record["run"], record["snapshot"], index_bytes([record])) for record in records]
        write_bytes_atomic(self.folder / INDEX, b"".join(line for _, _, line in sorted(lines)))
        for name in (CONFIG, INDEX):
            files[name] = digest(self.folder / name)
        manifest = {
            **head,
            "runs": len(self.runs),
            "snapshots": len(lines) - failed,
            "failed_runs": failed,
            "architectures": [architecture.to_json() for architecture in self.architectures],
            "files": dict(sorted(files.items())),
        }
        shutil.rmtree(self.folder / PARTS)
        write_json_atomic(self.folder / MANIFEST, manifest)


def _record(network: PublishedNetwork, run: int, snapshot: int, split: str, number: int) -> dict[str, Any]:
    architecture = network.architecture
    widths = _widths(architecture)
    record: dict[str, Any] = {
        "run": run,
        "snapshot": snapshot,
        "step": network.step,
        "split": split,
        "parent": None,
        "seed": None,
        "status": "ok",
        "reason": None,
        "published": network.name,
        "architecture": number,
        "family": architecture.family,
        "depth": len(widths),
        "width": sum(widths) / len(widths),
        "activation": architecture.options.get("activation", "sin" if architecture.family == "siren" else "relu"),
        "parameters": parameter_count(architecture),
        "shard": None,
        "key": None,
    }
    if network.label is not None:
        record["label"] = network.label
    own = set(record)
    for name, value in network.metrics.items():
        if name not in own:
            record[name] = value if math.isfinite(value) else None
    for name, text in network.config.items():
        # What the published table calls as this package calls something else keeps its table's prefix.
        record[f"config.{name}" if name in own - {"activation", "seed"} else name] = _value(text)
    return record


def _widths(architecture: Architecture) -> tuple[int, ...]:
    options = architecture.options
    if architecture.family == "zoo_transformer":
        return (options["width"],) * options["layers"]
    return tuple(options["widths"])


def _value(text: str) -> int | float | str | None:
    """A setting as a number where it is one."""
    if not is_number(text):
        return text or None
    number = float(text)
    if not math.isfinite(number):
        return None
    return int(number) if number.is_integer() and abs(number) < 2**53 and "." not in text else number
