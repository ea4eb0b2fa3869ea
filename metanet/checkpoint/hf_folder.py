"""How is a model folder of the Hugging Face Hub read: one file of weights or several with an index, and config.json?

The index (``*.index.json``) says in which file each tensor is. It is a claim: every file must lie in the folder and
hold exactly the tensors that the index says. ``config.json`` is kept as data; the class that it names is never built.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from metanet.checkpoint.limits import MAX_TENSORS, READABLE, check_tensor_name, file_size
from metanet.checkpoint.safetensors_file import read_safetensors, write_safetensors
from metanet.checkpoint.source import Raw, Source
from metanet.checkpoint.torch_file import read_torch
from metanet.errors import CheckpointError, clean
from metanet.io import open_atomic, write_bytes_atomic, write_text_atomic

__all__ = ["CONFIG", "is_hf_folder", "read_hf_folder", "write_hf_folder"]

CONFIG = "config.json"
INDEX = ".index.json"
# In the order in which the Hub's own loader prefers them.
WHOLE = ("model.safetensors", "pytorch_model.bin")
INDEXES = tuple(name + INDEX for name in WHOLE)
MAX_FILES = 10_000
MAX_CONFIG_BYTES = 16 * 1024 * 1024


def is_hf_folder(folder: Path) -> bool:
    """Whether a folder is laid out as on the Hub: an index, or usual weights beside a ``config.json``."""
    if any((folder / name).is_file() for name in INDEXES):
        return True
    return (folder / CONFIG).is_file() and any((folder / name).is_file() for name in WHOLE)


def _json(path: Path, what: str) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_CONFIG_BYTES + 1)
        if len(data) > MAX_CONFIG_BYTES:
            raise ValueError(f"more than {MAX_CONFIG_BYTES} bytes")
        # Not the strict reader: configurations on the Hub hold Infinity here and there.
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"is not JSON ({clean(error, 80)})", file=path, hint=f"copy {what} again") from None
    except OSError as error:
        raise CheckpointError(f"cannot be read ({error.strerror})", file=path, hint="check the folder") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"is a {type(value).__name__}, expected an object", file=path, hint=f"copy {what} again")
    return value


def _inside(folder: Path, name: str, index: Path) -> Path:
    """The path of a file that an index names.

    The Hub's own cache keeps links in ``snapshots/<revision>`` to files in ``blobs`` of the same model; no other link
    out of the folder is followed.
    """
    pure = PurePosixPath(name)
    plain = 0 < len(name) <= 255 and name.isprintable() and "\\" not in name and ":" not in name
    if not plain or pure.is_absolute() or len(pure.parts) != 1 or pure.name in ("..", "."):
        raise CheckpointError(
            f"names the file '{clean(name, 80)}', which is not a plain name in the folder",
            file=index,
            hint="do not use this folder: nothing outside it is read",
        )
    path = folder / name
    if not path.is_file():
        raise CheckpointError(
            f"names the file '{clean(name, 80)}', which is not there",
            file=index,
            hint="the download is not complete: fetch the missing file",
        )
    home = folder.resolve()
    real = path.resolve()
    blobs = home.parent.parent / "blobs" if home.parent.name == "snapshots" else home
    if home not in real.parents and blobs not in real.parents:
        raise CheckpointError(
            f"names the file '{clean(name, 80)}', a link that leaves the folder",
            file=index,
            hint="copy the file itself into the folder",
        )
    return path


def _read_one(path: Path) -> Raw:
    size = file_size(path)
    with path.open("rb") as file:
        if path.name.endswith(".safetensors"):
            return read_safetensors(file, path, size)
        return read_torch(file, path, size)


def _weight_map(index: Path) -> dict[str, str]:
    found = _json(index, "the index").get("weight_map")
    if not isinstance(found, dict) or not found or not all(isinstance(name, str) for name in found.values()):
        raise CheckpointError(
            "its weight_map is no mapping from tensor to file", file=index, hint="fetch the index again"
        )
    if len(found) > MAX_TENSORS or len(set(found.values())) > MAX_FILES:
        raise CheckpointError(f"lists more than {MAX_TENSORS} tensors", file=index, hint="fetch the index again")
    return {check_tensor_name(tensor, index): name for tensor, name in found.items()}


def _read_shards(folder: Path, index: Path) -> tuple[dict[str, Tensor], tuple[str, ...], dict[str, str], list[str]]:
    weight_map = _weight_map(index)
    files = tuple(dict.fromkeys(weight_map.values()))
    # All paths are looked at before the first file is read.
    paths = {name: _inside(folder, name, index) for name in files}
    state: dict[str, Tensor | None] = dict.fromkeys(weight_map)
    metadata: dict[str, str] = {}
    devices: list[str] = []
    for name, path in paths.items():
        raw = _read_one(path)
        metadata.update(raw.metadata)
        devices += raw.source.devices
        for tensor, value in raw.state.items():
            stated = weight_map.get(tensor)
            if stated != name:
                where = "does not list it" if stated is None else f"says that it is in '{clean(stated, 80)}'"
                raise CheckpointError(
                    f"is in '{name}', but {index.name} {where}",
                    file=folder,
                    tensor=tensor,
                    hint="the files are not of one model: fetch them again",
                )
            state[tensor] = value
    complete: dict[str, Tensor] = {}
    for tensor, found in state.items():
        if found is None:
            raise CheckpointError(
                f"{index.name} says that it is in '{clean(weight_map[tensor], 80)}', where it is not",
                file=folder,
                tensor=tensor,
                hint="the files are not of one model: fetch them again",
            )
        complete[tensor] = found
    return complete, files, metadata, devices


def _find(folder: Path) -> Path:
    for name in (WHOLE[0], INDEXES[0], WHOLE[1], INDEXES[1]):
        if (folder / name).is_file():
            return folder / name
    raise CheckpointError("the folder holds no weights", file=folder, hint=READABLE)


def read_hf_folder(folder: Path) -> Raw:
    """The tensors of a model folder, in the order of its index (or of its one file).

    Args:
        folder: with ``model.safetensors`` or ``pytorch_model.bin``, whole or in pieces with an index.

    Raises:
        CheckpointError: for a file that is missing, lies elsewhere, or does not hold what the index says.
    """
    chosen = _find(folder)
    config = _json(folder / CONFIG, "it") if (folder / CONFIG).is_file() else {}
    try:
        if chosen.name.endswith(INDEX):
            state, files, metadata, devices = _read_shards(folder, chosen)
            files = (chosen.name, *files)
        else:
            raw = _read_one(chosen)
            state, files, metadata = dict(raw.state), (chosen.name,), dict(raw.metadata)
            devices = list(raw.source.devices)
    except OSError as error:
        raise CheckpointError(f"cannot be read ({error.strerror or error})", file=folder, hint="check it") from None
    source = Source(
        folder,
        "huggingface",
        devices=tuple(sorted(set(devices))),
        prefix="module." if all(tensor.startswith("module.") for tensor in state) else "",
        files=files,
        config=MappingProxyType(config),
    )
    return Raw(state, source, MappingProxyType(metadata))


def write_hf_folder(folder: Path, state: Mapping[str, Tensor], source: Source, metadata: Mapping[str, str]) -> None:
    """A folder like the one that ``source`` is, with other weights: the same files with the same tensors in each.

    The index and ``config.json`` are written last. Tokenizers and other files are not copied.

    Raises:
        CheckpointError: where the original's index is gone, or the folder is a file.
    """
    first = source.files[0]
    parts: dict[str, dict[str, Tensor]] = {}
    index: bytes | None = None
    if first.endswith(INDEX):
        original = source.path / first
        weight_map = _weight_map(original)
        index = original.read_bytes()
        for tensor, name in weight_map.items():
            parts.setdefault(_inside(source.path, name, original).name, {})[tensor] = state[tensor]
    else:
        parts[first] = dict(state)
    os.makedirs(folder, exist_ok=True)
    for name, tensors in parts.items():
        if name.endswith(".safetensors"):
            write_safetensors(folder / name, tensors, metadata)
        else:
            with open_atomic(folder / name) as file:
                torch.save({tensor: value.detach().cpu().clone() for tensor, value in tensors.items()}, file)
    if source.config:
        write_text_atomic(folder / CONFIG, json.dumps(dict(source.config), indent=2, ensure_ascii=False) + "\n")
    if index is not None:
        write_bytes_atomic(folder / first, index)
