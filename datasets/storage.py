"""What lies in a zoo's folder, in what order is it written, and how is it read without trust?

    config.json                 the configuration and what it was begun with (written first)
    shards/group-00007.safetensors   the weights of one group: every tensor stacked, one row per snapshot
    parts/group-00007.json      the group's records, written after its shard: the group is done (removed at the end)
    index.jsonl                 one record per snapshot, and one per failed run, by run and snapshot
    manifest.json               size and SHA-256 of every file above (written last)

No file holds a time or a name of a machine: building the same zoo again on the same machine gives the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from metanet.errors import ZooError, clean
from metanet.io import parse_json, read_json, write_bytes_atomic, write_json_atomic

__all__ = ["FORMAT", "digest", "index_bytes", "read_index", "read_manifest", "read_object", "safe_path", "write_group"]

FORMAT = "metanet.zoo/1"
CONFIG, INDEX, MANIFEST, SHARDS, PARTS = "config.json", "index.jsonl", "manifest.json", "shards", "parts"
_NAME = re.compile(r"(config\.json|index\.jsonl|shards/group-[0-9]{5,9}\.safetensors)")
_HASH = re.compile(r"[0-9a-f]{64}")
MAX_INDEX_BYTES = 8 << 30
MAX_LINE_BYTES = 1 << 20
_MANIFEST = {
    "config": dict,
    "data_sha256": str,
    "architectures": list,
    "runs": int,
    "snapshots": int,
    "failed_runs": int,
}


def digest(path: Path) -> dict[str, Any]:
    """Size and SHA-256 of a file, as they stand in the manifest."""
    with open(path, "rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": sha256}


def safe_path(folder: Path, name: object) -> Path:
    """The file ``name`` of a zoo, if it is a name that a zoo may hold and lies inside the folder.

    Raises:
        ZooError: for any other name, and for links that lead out.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ZooError(
            f"names the file {clean(repr(name), 80)}, which no zoo holds", where=folder, hint="do not trust it"
        )
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ZooError(f"{name} is a link that leads out of the folder", where=folder, hint="do not trust it")
    return path


def write_group(
    folder: Path, name: str, records: Sequence[Mapping[str, Any]], states: Sequence[Mapping[str, Tensor]], about: Any
) -> None:
    """Write a group's shard, then its part: the part says that the group is done.

    Args:
        folder: of the zoo.
        name: of the group.
        records: of the group, failed runs among them.
        states: one per snapshot, in the order of the rows that the records name.
        about: JSON that goes into the shard's metadata.
    """
    part: dict[str, Any] = {"shard": None, "records": list(records)}
    if states:
        stacked = {key: torch.stack([state[key] for state in states]).contiguous() for key in states[0]}
        # One entry only: safetensors writes metadata in an order that changes from run to run.
        payload = safetensors.torch.save(stacked, metadata={"metanet.zoo": json.dumps(about, sort_keys=True)})
        shard = f"{SHARDS}/{name}.safetensors"
        write_bytes_atomic(folder / shard, payload)
        part["shard"] = {shard: {"bytes": len(payload), "sha256": hashlib.sha256(payload).hexdigest()}}
    write_json_atomic(folder / PARTS / f"{name}.json", part, indent=None)


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in one of a zoo's small files.

    Raises:
        ZooError: if there is none.
    """
    try:
        value = read_json(path)
    except (OSError, ValueError) as error:
        raise ZooError(
            f"cannot be read: {error}", where=path, hint="restore the file, or build the zoo again"
        ) from error
    if not isinstance(value, dict):
        raise ZooError(f"holds {type(value).__name__}, expected a JSON object", where=path)
    return value


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest, its form checked; not whether the files agree with it.

    Raises:
        ZooError: if the folder is no complete zoo.
    """
    if not (folder / MANIFEST).is_file():
        if (folder / CONFIG).is_file():
            raise ZooError("the build was not finished", where=folder, hint="run the same build again to resume it")
        raise ZooError("is no zoo: there is no manifest.json", where=folder, hint="give the folder of a built zoo")
    manifest = read_object(folder / MANIFEST)
    if manifest.get("format") != FORMAT:
        raise ZooError(
            f"format is {clean(repr(manifest.get('format')), 60)}, expected '{FORMAT}'", where=folder / MANIFEST
        )
    for key, kind in _MANIFEST.items():
        if not isinstance(manifest.get(key), kind) or isinstance(manifest[key], bool):
            found = clean(repr(manifest.get(key)), 40)
            raise ZooError(
                f"{key} is {found}, expected {kind.__name__}", where=folder / MANIFEST, hint="build it again"
            )
    files = manifest.get("files")
    if not isinstance(files, dict) or INDEX not in files or CONFIG not in files:
        raise ZooError("names no files", where=folder / MANIFEST, hint="build the zoo again")
    for name, stated in files.items():
        safe_path(folder, name)
        size = stated.get("bytes") if isinstance(stated, dict) else None
        if type(size) is not int or size < 0 or not _HASH.fullmatch(str(stated.get("sha256"))):
            raise ZooError(f"states no size and SHA-256 of {clean(name, 60)}", where=folder / MANIFEST)
    return manifest


def index_bytes(records: Iterable[Mapping[str, Any]]) -> bytes:
    """The index file: a JSON object per line, by run and snapshot."""
    ordered = sorted(records, key=lambda record: (record["run"], record["snapshot"]))
    return "".join(json.dumps(r, allow_nan=False, separators=(",", ":")) + "\n" for r in ordered).encode()


def read_index(path: Path, stated: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The records of an index whose size and hash are as the manifest states.

    Raises:
        ZooError: if the file is missing, changed, or not an index.
    """
    try:
        size = path.stat().st_size
        if size != stated["bytes"] or size > MAX_INDEX_BYTES:
            raise ZooError(
                f"has {size} bytes, the manifest says {stated['bytes']}", where=path, hint="restore the file"
            )
        data = path.read_bytes()
    except OSError as error:
        raise ZooError(f"cannot be read: {error.strerror}", where=path, hint="restore the file") from error
    if hashlib.sha256(data).hexdigest() != stated["sha256"]:
        raise ZooError(
            "is not the file that the manifest describes (SHA-256 differs)", where=path, hint="restore the file"
        )
    records = []
    for number, line in enumerate(data.splitlines(), 1):
        try:
            record = parse_json(line) if len(line) <= MAX_LINE_BYTES else None
        except ValueError as error:
            raise ZooError(f"line {number} is no JSON: {error}", where=path) from error
        if not isinstance(record, dict) or not record.keys() >= _REQUIRED:
            missing = sorted(_REQUIRED - record.keys())[:1] if isinstance(record, dict) else ["everything"]
            raise ZooError(f"line {number} is no record: {missing[0] if missing else ''} is missing", where=path)
        records.append(record)
    return records


_REQUIRED = {
    "run",
    "snapshot",
    "step",
    "split",
    "parent",
    "status",
    "reason",
    "shard",
    "key",
    "architecture",
}
