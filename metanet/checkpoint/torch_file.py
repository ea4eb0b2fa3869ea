"""How is a PyTorch state dict read, from the zip format or the older one, without running anything?

First the symbolic scan of the pickle (see ``pickle_scan.py``) against the sizes of what is really in the file, then
``torch.load(weights_only=True, map_location="cpu")``, with no fallback, then a check that both saw the same tensors.
"""

from __future__ import annotations

import io
import mmap
import pickle
import struct
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO

import torch
from torch import Tensor

from metanet.checkpoint.limits import MAX_PICKLE_BYTES, MAX_TENSORS, READABLE, check_tensor_name
from metanet.checkpoint.pickle_scan import StorageRef, Table, TensorRef, scan
from metanet.checkpoint.source import Raw, Source
from metanet.checkpoint.zip_file import check_member, open_zip, read_member
from metanet.errors import CheckpointError, clean

__all__ = ["LEGACY_START", "NESTED_KEYS", "read_torch"]

# A state dict is often one entry of a training checkpoint; these are the usual names, the first one found is taken.
NESTED_KEYS = (
    "state_dict", "model_state_dict", "model_state", "model", "net", "network", "net_state_dict", "weights", "params",
    "parameters", "module", "policy", "state",
)  # fmt: skip
MAX_NESTING = 3
# Every Lightning checkpoint has this entry, and its hyper parameters under the other one.
LIGHTNING = "pytorch-lightning_version"
HYPER_PARAMETERS = "hyper_parameters"
MAX_CONFIG_ITEMS = 10_000
MAX_CONFIG_DEPTH = 32
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001
# PROTO 2, then LONG1 of ten bytes, the magic number, STOP: how every file of the older format starts.
LEGACY_START = b"\x80\x02\x8a\x0a" + LEGACY_MAGIC.to_bytes(10, "little") + b"."


def _scan_zip(file: BinaryIO, name: Path) -> tuple[Any, dict[str, StorageRef]]:
    archive = open_zip(file, name)
    members = {info.filename: info for info in archive.infolist()}
    pickles = [member for member in members if member.count("/") == 1 and member.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise CheckpointError("is a zip without a torch state dict (no data.pkl)", file=name, hint=READABLE)
    root = pickles[0].removesuffix("data.pkl")
    if f"{root}constants.pkl" in members or any(member.startswith(f"{root}code/") for member in members):
        raise CheckpointError(
            "is a TorchScript program, which holds code", file=name, hint="save model.state_dict() with torch.save"
        )
    for member, info in members.items():
        # torch never compresses; a compressed record could only be there to unpack into more than the file's size.
        if info.compress_type != zipfile.ZIP_STORED:
            raise CheckpointError(
                f"member '{clean(member, 80)}' is compressed, which torch never does", file=name, hint="save it again"
            )
    data = read_member(archive, pickles[0], name, MAX_PICKLE_BYTES)
    try:
        content, storages = scan(io.BytesIO(data))
    except CheckpointError as error:
        raise _explained(error, data) from None
    for key, storage in storages.items():
        record = members.get(f"{root}data/{key}")
        if record is None or record.file_size != storage.nbytes:
            found = "missing" if record is None else f"{record.file_size} bytes long"
            raise CheckpointError(
                f"storage {clean(repr(key), 40)} should have {storage.nbytes} bytes and is {found}",
                file=name,
                hint="the file is damaged or forged: save it again",
            )
        # torch itself does not look at the checksums, so a flipped bit in a weight would go unseen.
        check_member(archive, record.filename, name)
    return content, storages


def _explained(error: CheckpointError, data: bytes) -> CheckpointError:
    """The same refusal; for a Lightning checkpoint also what in it is most likely meant."""
    if LIGHTNING.encode() not in data:
        return error
    return CheckpointError(
        "is a Lightning checkpoint with more than tensors and plain data in it, as hyper parameters or callbacks are "
        f"often: {error.reason}",
        hint="if you trust it, load it in the program that made it and torch.save its 'state_dict' alone",
    )


def _scan_legacy(file: BinaryIO, name: Path, size: int) -> tuple[Any, dict[str, StorageRef]]:
    for what, expected in (("magic number", LEGACY_MAGIC), ("protocol version", LEGACY_PROTOCOL)):
        found, _ = scan(file, persistent=False)
        if found != expected:
            raise CheckpointError(f"has a wrong {what} for a torch file", file=name, hint=READABLE)
    scan(file, persistent=False)
    content, storages = scan(file)
    keys, _ = scan(file, persistent=False)
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys) or sorted(keys) != sorted(storages):
        raise CheckpointError("its list of storages does not match its tensors", file=name, hint="save it again")
    position = file.tell()
    for key in keys:
        storage = storages[key]
        file.seek(position)
        header = file.read(8)
        if len(header) < 8:
            raise _cut_short(name, position + 8, size)
        stated = struct.unpack("<q", header)[0]
        if stated != storage.numel:
            raise CheckpointError(
                f"storage {clean(repr(key), 40)} should have {storage.numel} elements and is {stated}",
                file=name,
                hint="the file is damaged or forged: copy or save it again",
            )
        position += 8 + storage.nbytes
        if position > size:
            raise _cut_short(name, position, size)
    return content, storages


def _cut_short(name: Path, needed: int, size: int) -> CheckpointError:
    reason = f"is cut short: at least {needed} bytes are needed, {size} are there"
    return CheckpointError(reason, file=name, hint="copy or save the file again")


def _is_state(value: object) -> bool:
    return (
        isinstance(value, Table) and bool(value.items) and all(isinstance(v, TensorRef) for v in value.items.values())
    )


def _nested(content: Table, name: Path, wanted: str | None) -> tuple[str, ...]:
    """The path of keys from the top of the file to the state dict."""
    path: tuple[str, ...] = ()
    here = content
    if wanted is not None:
        for part in wanted.split("/"):
            inner = here.items.get(part)
            if not isinstance(inner, Table):
                keys = ", ".join(clean(key, 40) for key in list(here.items)[:8])
                raise CheckpointError(
                    f"has no dictionary under the key '{clean(wanted, 80)}'", file=name, hint=f"keys here: {keys}"
                )
            path, here = (*path, part), inner
        return path
    while not _is_state(here) and len(path) < MAX_NESTING:
        inner_key = next((key for key in NESTED_KEYS if isinstance(here.items.get(key), Table)), None)
        if inner_key is None:
            break
        path, here = (*path, inner_key), here.items[inner_key]
    return path


def _follow(content: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        content = content[key]
    return content


def _expected(
    content: Any, name: Path, key: str | None, plain: Sequence[str]
) -> tuple[tuple[str, ...], dict[str, TensorRef], Table, dict[str, Any]]:
    if not isinstance(content, Table):
        raise CheckpointError("does not hold a dictionary", file=name, hint="save model.state_dict() with torch.save")
    path = _nested(content, name, key)
    table = content
    for part in path:
        table = table.items[part]
    if not table.items:
        raise CheckpointError("holds an empty state dict", file=name, hint="save model.state_dict() with torch.save")
    if len(table.items) > MAX_TENSORS:
        raise CheckpointError(f"holds more than {MAX_TENSORS} tensors", file=name, hint="split the file")
    beside: dict[str, Any] = {}
    for tensor, value in table.items.items():
        check_tensor_name(tensor, name)
        if tensor in plain and type(value) in (bool, int, float, str):
            beside[tensor] = value
            continue
        if not isinstance(value, TensorRef):
            raise CheckpointError(
                f"is a {type(value).__name__.lower().replace('table', 'dictionary')} and no tensor",
                file=name,
                tensor=tensor,
                hint="save model.state_dict() alone, or under the key 'state_dict', or name its key with key=",
            )
    expected = {tensor: value for tensor, value in table.items.items() if tensor not in beside}
    return path, expected, content, beside


def read_torch(file: BinaryIO, name: Path, size: int, key: str | None = None, plain: Sequence[str] = ()) -> Raw:
    """The state dict in a torch file.

    Args:
        file: seekable, at its start.
        name: for messages.
        size: of the file in bytes.
        key: where in the file the state dict is, parts joined by ``/``; found by itself where it has a usual name.
        plain: entries of the state dict that may be plain numbers or text, such as a label; they become metadata.

    Raises:
        CheckpointError: for anything but a state dict of tensors.
    """
    start = file.read(len(LEGACY_START))
    legacy = start == LEGACY_START
    file.seek(0)
    try:
        if legacy:
            content, storages = _with_clamped_reads(file, lambda view: _scan_legacy(view, name, size))
        else:
            content, storages = _scan_zip(file, name)
        path, expected, top, beside = _expected(content, name, key, plain)
    except CheckpointError as error:
        raise error.within(name) from None
    file.seek(0)
    try:
        with warnings.catch_warnings():
            # Of another protocol torch reads what it can and refuses the rest; both readings are compared below.
            warnings.filterwarnings("ignore", message="Detected pickle protocol")
            loaded = torch.load(file, map_location="cpu", weights_only=True)
    except (RuntimeError, ValueError, TypeError, KeyError, OSError, EOFError, pickle.UnpicklingError) as error:
        reason = clean(str(error).split("\n", 1)[0], 160)
        raise CheckpointError(f"torch cannot read it ({reason})", file=name, hint="save the file again") from None
    found = _follow(loaded, path)
    if beside and isinstance(found, dict):
        if any(type(found.get(entry)) is not type(value) or found[entry] != value for entry, value in beside.items()):
            raise CheckpointError("its two readings differ: the file is forged", file=name, hint="do not use it")
        found = {tensor: value for tensor, value in found.items() if tensor not in beside}
    state = _as_state(found, expected, name)
    devices = tuple(sorted({storage.location for storage in storages.values()}))
    skipped = tuple(clean(entry, 60) for entry in top.items if path and entry != path[0])
    prefix = "module." if all(tensor.startswith("module.") for tensor in state) else ""
    lightning = LIGHTNING in top.items and not legacy
    kind = "torch-legacy" if legacy else "lightning" if lightning else "torch"
    config = _plain_config(loaded.get(HYPER_PARAMETERS)) if lightning else {}
    source = Source(name, kind, "/".join(path), skipped, devices, prefix, config=MappingProxyType(config))
    return Raw(state, source, MappingProxyType(beside))


def _plain_config(value: Any) -> dict[str, Any]:
    """Hyper parameters as JSON values; what is none, such as a tensor, is named by its type."""
    left = [MAX_CONFIG_ITEMS]

    def plain(item: Any, depth: int) -> Any:
        left[0] -= 1
        if left[0] < 0 or depth > MAX_CONFIG_DEPTH:
            return "..."
        if item is None or type(item) in (bool, int, float, str):
            return item
        if isinstance(item, dict):
            return {str(key): plain(inner, depth + 1) for key, inner in item.items()}
        if isinstance(item, list | tuple):
            return [plain(inner, depth + 1) for inner in item]
        return f"<{type(item).__name__}>"

    return plain(value, 0) if isinstance(value, dict) else {}


def _with_clamped_reads(file: BinaryIO, work: Any) -> Any:
    """``work`` on a view of the file that never takes memory for bytes that are not there."""
    if isinstance(file, io.BytesIO):
        return work(file)
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
        return work(view)


def _as_state(loaded: Any, expected: Mapping[str, TensorRef], name: Path) -> dict[str, Tensor]:
    if not isinstance(loaded, dict) or list(loaded) != list(expected):
        raise CheckpointError("its two readings differ: the file is forged", file=name, hint="do not use it")
    for tensor, value in loaded.items():
        if (
            not isinstance(value, Tensor)
            or tuple(value.shape) != expected[tensor].size
            or value.layout != torch.strided
        ):
            raise CheckpointError(
                "its two readings differ: the file is forged", file=name, tensor=tensor, hint="do not use it"
            )
    return {tensor: value.detach() for tensor, value in loaded.items()}
