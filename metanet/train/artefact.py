"""What is in the folder of a trained model, when is it finished, and may a run write there?"""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from metanet.errors import TrainError
from metanet.io import read_json, write_bytes_atomic, write_json_atomic
from metanet.train.logs import CSV_NAME, JSONL_NAME, TENSORBOARD_NAME

FORMAT = "metanet.model/1"
CONFIG_NAME, WEIGHTS_NAME, MANIFEST_NAME, STATE_NAME = (
    "config.json",
    "weights.safetensors",
    "manifest.json",
    "training-state.safetensors",
)
_DISTRIBUTIONS = ("metanet", "torch", "numpy", "scipy", "scikit-learn", "safetensors")
# No honest file of an artefact is near this; a damaged or hostile manifest must not take the memory.
_MAX_BYTES = 8 * 2**30


def versions() -> dict[str, str]:
    """The versions of everything that has a say in the numbers."""
    found = {"python": platform.python_version()}
    for name in _DISTRIBUTIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def fingerprint(value: Any) -> str:
    """SHA-256 of a JSON value, the same for equal values."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, allow_nan=False).encode()).hexdigest()


def open_folder(folder: Path, identity: Mapping[str, Any], config: Mapping[str, Any], overwrite: bool) -> bool:
    """Make a folder ready for a run, and say whether an unfinished equal run is resumed there.

    Args:
        folder: The folder; made if absent.
        identity: What an equal run must share: task, data, model and the deciding settings.
        config: The whole configuration, written to `config.json`.
        overwrite: Replace what an earlier run left, finished or not.

    Raises:
        TrainError: A finished model, another configuration's run, or foreign files are in the way.
    """
    if folder.exists() and not folder.is_dir():
        raise TrainError("is a file, expected a folder", where=folder)
    folder.mkdir(parents=True, exist_ok=True)
    record = {"format": "metanet.training/1", "identity": fingerprint(identity), **config}
    if not (folder / CONFIG_NAME).exists():
        # A kill while the configuration was being written leaves only its temporary file behind.
        foreign = sorted(path.name for path in folder.iterdir() if not path.name.startswith(f".{CONFIG_NAME}"))
        if foreign:
            raise TrainError(
                f"holds {foreign[0]!r} but no {CONFIG_NAME}", hint="name an empty or a new folder", where=folder
            )
        write_json_atomic(folder / CONFIG_NAME, record)
        return False
    if overwrite:
        _clear(folder)
        write_json_atomic(folder / CONFIG_NAME, record)
        return False
    kept = _read(folder / CONFIG_NAME)
    if kept.get("identity") != record["identity"]:
        changed = _differences(kept, record)
        raise TrainError(
            f"holds a run with another configuration (differs in {changed})",
            hint="name another folder, or overwrite it",
            where=folder,
        )
    if (folder / MANIFEST_NAME).exists():
        raise TrainError("holds a finished model", hint="name another folder, or overwrite it", where=folder)
    return (folder / STATE_NAME).exists()


def finish_folder(
    folder: Path,
    weights: Mapping[str, Tensor],
    tensors: Mapping[str, Mapping[str, Tensor]],
    values: Mapping[str, Any],
    summary: Mapping[str, Any],
) -> None:
    """Write weights, what the task adds, and last of all the manifest; then drop the training state."""
    write_bytes_atomic(folder / WEIGHTS_NAME, _pack(weights))
    for name, group in tensors.items():
        write_bytes_atomic(folder / name, _pack(group))
    for name, value in values.items():
        write_json_atomic(folder / name, value)
    names = [CONFIG_NAME, WEIGHTS_NAME, CSV_NAME, JSONL_NAME, *tensors, *values]
    files = {name: {"bytes": len(data), "sha256": _digest(data)} for name in names for data in [_bytes(folder, name)]}
    write_json_atomic(folder / MANIFEST_NAME, {"format": FORMAT, **summary, "versions": versions(), "files": files})
    (folder / STATE_NAME).unlink(missing_ok=True)


@dataclass(frozen=True)
class Artefact:
    """A finished model's folder, read and checked against its manifest.

    Attributes:
        folder: Where it was read from.
        config: Task, data, model and trainer as they were configured.
        manifest: Seed, versions, best epoch and the files with their digests.
    """

    folder: Path
    config: dict[str, Any]
    manifest: dict[str, Any]

    @classmethod
    def open(cls, folder: str | Path) -> Artefact:
        """Read configuration and manifest.

        Raises:
            TrainError: No such folder, not finished, or not in this format.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise TrainError("no such folder", hint="train a model first: metanet train --help", where=folder)
        if not (folder / MANIFEST_NAME).exists():
            unfinished = (folder / CONFIG_NAME).exists()
            reason = "the training is not finished" if unfinished else f"no trained model: no {MANIFEST_NAME}"
            hint = "run the same `metanet train` again to resume it" if unfinished else "name a folder of metanet train"
            raise TrainError(reason, hint=hint, where=folder)
        manifest = _read(folder / MANIFEST_NAME)
        if manifest.get("format") != FORMAT or not isinstance(manifest.get("files"), dict):
            raise TrainError(f"format {manifest.get('format')!r}, expected {FORMAT!r}", where=folder / MANIFEST_NAME)
        artefact = cls(folder, {}, manifest)
        config = artefact.values(CONFIG_NAME)
        return cls(folder, config, manifest)

    def tensors(self, name: str = WEIGHTS_NAME) -> dict[str, Tensor]:
        """The tensors of one of the artefact's safetensors files.

        Raises:
            TrainError: The file is missing, changed since it was written, or unreadable.
        """
        try:
            return load(self._checked(name))
        except SafetensorError as error:
            raise TrainError(f"not a safetensors file ({error})", where=self.folder / name) from error

    def values(self, name: str) -> dict[str, Any]:
        """The value of one of the artefact's JSON files.

        Raises:
            TrainError: The file is missing, changed since it was written, or unreadable.
        """
        self._checked(name)
        return _read(self.folder / name)

    def holds(self, name: str) -> bool:
        """Whether the artefact has such a file."""
        return name in self.manifest["files"]

    def _checked(self, name: str) -> bytes:
        entry, path = self.manifest["files"].get(name), self.folder / name
        if not isinstance(entry, dict):
            raise TrainError(f"the model holds no {name}", where=self.folder)
        if not path.is_file() or path.stat().st_size > _MAX_BYTES:
            raise TrainError("missing, or of an impossible size", where=path)
        data = path.read_bytes()
        if _digest(data) != entry.get("sha256"):
            raise TrainError("differs from what the manifest says: damaged or edited", hint="train again", where=path)
        return data


def _clear(folder: Path) -> None:
    # The manifest goes first: from then on nobody takes the folder for a finished model. Only names that a run
    # writes are touched.
    listed = _read(folder / MANIFEST_NAME).get("files", {}) if (folder / MANIFEST_NAME).exists() else {}
    (folder / MANIFEST_NAME).unlink(missing_ok=True)
    own = {WEIGHTS_NAME, CSV_NAME, JSONL_NAME, STATE_NAME} | {name for name in listed if Path(name).name == name}
    for name in own - {CONFIG_NAME}:
        (folder / name).unlink(missing_ok=True)
    if (folder / TENSORBOARD_NAME).is_dir():
        shutil.rmtree(folder / TENSORBOARD_NAME)


def _pack(tensors: Mapping[str, Tensor]) -> bytes:
    return save({name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()})


def _bytes(folder: Path, name: str) -> bytes:
    return (folder / name).read_bytes()


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _read(path: Path) -> dict[str, Any]:
    try:
        value = read_json(path)
    except (OSError, ValueError) as error:
        raise TrainError(f"not readable as JSON ({error})", where=path) from error
    if not isinstance(value, dict):
        raise TrainError(f"holds a {type(value).__name__}, expected an object", where=path)
    return value


def _differences(kept: Mapping[str, Any], given: Mapping[str, Any]) -> str:
    names: list[str] = []
    for part in ("task", "data", "model", "trainer"):
        old, new = kept.get(part), given.get(part)
        if not isinstance(old, dict) or not isinstance(new, dict):
            names += [part] if old != new else []
            continue
        names += [f"{part}.{key}" for key in sorted({*old, *new}) if old.get(key) != new.get(key)]
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "") if names else "its format"
