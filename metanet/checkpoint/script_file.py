"""How are the weights of a TorchScript archive read, without compiling or running the program in it?

The archive (pytorch, ``torch/csrc/jit/docs/serialization.md``) is a zip: ``data.pkl`` describes the tree of modules and
their attributes, ``data/N`` hold the storages, ``code/`` the program, ``constants.pkl`` tensors that the program names.
Only the pickles and the storages are read, by the symbolic machine of ``pickle_scan.py``: its classes stay names, and
tensors are views of the bytes. torch is not asked to load anything. The program is copied, unread, when weights are
written back.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metanet.checkpoint.limits import MAX_PICKLE_BYTES, MAX_RATIO, MAX_TENSORS, check_tensor_name
from metanet.checkpoint.pickle_scan import Machine, StorageRef, Table, TensorRef, scan
from metanet.checkpoint.pickle_values import Global, forbidden, refuse
from metanet.checkpoint.source import Raw, Source
from metanet.checkpoint.zip_file import open_zip, read_member
from metanet.errors import CheckpointError, clean
from metanet.io import open_atomic

__all__ = ["is_script", "read_script", "script_root", "write_script"]

MAX_DEPTH = 64
MAX_WALK = 2 * MAX_TENSORS
# What torch's own pickler for programs writes around plain lists and dictionaries.
_LISTS = {f"torch.jit._pickle.build_{kind}list" for kind in ("int", "tensor", "double", "bool")}
_TAG = "torch.jit._pickle.restore_type_tag"
CONSTANTS = "CONSTANTS"


class ScriptObject:
    """An object of a class that the program defines; the class stays a name."""

    def __init__(self, kind: Global) -> None:
        self.kind = kind
        self.attributes: Any = None


class _Machine(Machine):
    """Also knows objects of the program's own classes, as tables of attributes."""

    def __init__(self) -> None:
        super().__init__(persistent=True)

    def find(self, module: str, name: str) -> Any:
        if module == "__torch__" or module.startswith("__torch__."):
            return Global(module, name)
        if f"{module}.{name}" in _LISTS or f"{module}.{name}" == _TAG:
            return Global(module, name)
        if name.startswith("_rebuild_q") and module == "torch._utils":
            raise refuse("holds quantised tensors", "save the network before it is quantised")
        return super().find(module, name)

    def call(self, function: Any, args: Any) -> Any:
        if isinstance(function, Global) and isinstance(args, tuple):
            if str(function) in _LISTS and len(args) == 1 and isinstance(args[0], list):
                return args[0]
            if str(function) == _TAG and len(args) == 2:
                return args[0]
        return super().call(function, args)

    def new_object(self) -> None:
        self.pop()
        kind = self.pop()
        if not isinstance(kind, Global) or not kind.module.startswith("__torch__"):
            raise forbidden("NEWOBJ")
        self.stack.append(ScriptObject(kind))

    def build(self) -> None:
        state, target = self.pop(), self.top()
        if not isinstance(target, ScriptObject) or target.attributes is not None:
            raise forbidden("BUILD")
        target.attributes = state


def script_root(names: list[str]) -> str | None:
    """The folder of a TorchScript program inside a zip, with its slash; ``None`` where there is none."""
    for name in names:
        root, _, rest = name.partition("/")
        if rest == "constants.pkl" or rest.startswith("code/"):
            return f"{root}/"
    return None


def is_script(names: list[str]) -> bool:
    """Whether a zip with these members is a TorchScript program."""
    return script_root(names) is not None


class _Walk:
    """Every tensor below a value by its path; a module that is used twice is named twice, as in a state dict."""

    def __init__(self) -> None:
        self.steps = 0

    def tensors(
        self, value: Any, path: tuple[str, ...], inside: frozenset[int], listed: bool = False
    ) -> Iterator[tuple[str, TensorRef, bool]]:
        # Modules that hold one another twice over would be walked exponentially often.
        self.steps += 1
        if self.steps > MAX_WALK:
            raise refuse(f"its modules take more than {MAX_WALK} steps to list")
        if isinstance(value, TensorRef):
            yield ".".join(path), value, listed
            return
        listed = listed or not isinstance(value, ScriptObject)
        entries = _entries(value)
        if entries and (id(value) in inside or len(path) >= MAX_DEPTH):
            raise refuse(f"its modules contain each other, or are nested more than {MAX_DEPTH} deep")
        for key, item in entries:
            yield from self.tensors(item, (*path, key), inside | {id(value)}, listed)


def _entries(value: Any) -> list[tuple[str, Any]]:
    match value:
        case ScriptObject(attributes=Table(items=items)) | Table(items=items):
            entries = [(str(key), item) for key, item in items.items()]
        case ScriptObject(attributes=(list() | tuple()) as items) | (list() as items) | (tuple() as items):
            entries = [(str(i), item) for i, item in enumerate(items)]
        case _:
            return []
    return [(key, item) for key, item in entries if isinstance(item, TensorRef | ScriptObject | Table | list | tuple)]


def _described(value: Any, path: tuple[str, ...]) -> dict[str, TensorRef]:
    found: dict[str, TensorRef] = {}
    listed: dict[str, TensorRef] = {}
    for name, tensor, in_list in _Walk().tensors(value, path, frozenset()):
        if len(found) + len(listed) >= MAX_TENSORS:
            raise refuse(f"holds more than {MAX_TENSORS} tensors", "split the file")
        if name in found or name in listed:
            raise refuse(f"the name {clean(repr(name), 80)} comes twice")
        (listed if in_list else found)[check_tensor_name(name, "")] = tensor
    # Recurrent modules list their parameters a second time.
    named = set(found.values())
    return found | {name: tensor for name, tensor in listed.items() if tensor not in named}


def _scan(archive: zipfile.ZipFile, member: str, name: Path) -> tuple[Any, dict[str, StorageRef]]:
    return scan(io.BytesIO(read_member(archive, member, name, MAX_PICKLE_BYTES)), machine=_Machine())


def _storage_bytes(archive: zipfile.ZipFile, member: str, storage: StorageRef, name: Path) -> bytearray:
    found = archive.NameToInfo.get(member)
    if found is None or found.file_size != storage.nbytes:
        shown = "missing" if found is None else f"{found.file_size} bytes long"
        raise CheckpointError(
            f"storage {clean(repr(storage.key), 40)} should have {storage.nbytes} bytes and is {shown}",
            file=name,
            hint="the file is damaged or forged: save it again",
        )
    return bytearray(read_member(archive, member, name, storage.nbytes))


def _view(ref: TensorRef, data: bytearray) -> Tensor:
    dtype: torch.dtype = getattr(torch, ref.storage.dtype)
    flat = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
    if 0 in ref.size:
        return torch.empty(ref.size, dtype=dtype)
    return flat.as_strided(ref.size, ref.stride, ref.offset)


def _open(archive: zipfile.ZipFile, name: Path) -> tuple[str, str, dict[str, TensorRef]]:
    """Root, folder of the storages, and the tensors: those of the modules, else the constants of a frozen program."""
    names = archive.namelist()
    root = script_root(names) or ""
    if f"{root}data.pkl" not in names:
        raise CheckpointError(
            "is a TorchScript program without data.pkl (written before torch 1.4?)",
            file=name,
            hint="load it with torch.jit.load in the program that made it and save its state_dict()",
        )
    if f"{root}byteorder" in names and read_member(archive, f"{root}byteorder", name, 64) != b"little":
        raise CheckpointError("was written on a big-endian machine", file=name, hint="save its state_dict() there")
    try:
        content, _ = _scan(archive, f"{root}data.pkl", name)
        if not isinstance(content, ScriptObject):
            raise refuse("its data.pkl describes no module", "save a torch.jit.ScriptModule")
        found = _described(content, ())
        if found:
            return root, "data", found
        # A frozen program (torch.jit.freeze) keeps its weights among the constants.
        if f"{root}constants.pkl" in names:
            content, _ = _scan(archive, f"{root}constants.pkl", name)
            items = content if isinstance(content, tuple | list) else ()
            named = Table()
            for i, item in enumerate(items):
                named.put(f"c{i}", item)
            found = _described(named, (CONSTANTS,))
    except CheckpointError as error:
        raise error.within(name) from None
    if not found:
        raise CheckpointError("is a TorchScript program without tensors", file=name, hint="save a network with weights")
    return root, "constants", found


def read_script(archive: zipfile.ZipFile, path: Path) -> Raw:
    """The tensors of a TorchScript program, by the paths of their modules; plain tensor attributes are among them.

    A frozen program has no modules left; its constants are named ``CONSTANTS.c0``, ``CONSTANTS.c1``, ...

    Args:
        archive: as checked by ``open_zip``.
        path: of the archive.

    Raises:
        CheckpointError: for anything that is no such program, or that asks for more than tensors and plain data.
    """
    root, folder, found = _open(archive, path)
    data: dict[str, bytearray] = {}
    for ref in found.values():
        key = ref.storage.key
        if key not in data:
            data[key] = _storage_bytes(archive, f"{root}{folder}/{key}", ref.storage, path)
    state = {name: _view(ref, data[ref.storage.key]) for name, ref in found.items()}
    devices = tuple(sorted({ref.storage.location for ref in found.values()}))
    skipped = ["code"] if any(name.startswith(f"{root}code/") for name in archive.namelist()) else []
    if folder == "data" and any(name.startswith(f"{root}constants/") for name in archive.namelist()):
        skipped.append("constants")
    return Raw(state, Source(path, "torchscript", skipped=tuple(skipped), devices=devices))


def _same_bits(a: Tensor, b: Tensor) -> bool:
    return torch.equal(*(value.contiguous().reshape(-1).view(torch.uint8) for value in (a, b.cpu())))


def write_script(path: Path, state: Mapping[str, Tensor], original: Path) -> None:
    """A program like ``original`` with other weights; all else is copied, unread.

    Raises:
        CheckpointError: where the original is gone, or two tensors that share memory in it now differ.
    """
    try:
        source = open(original, "rb")  # noqa: SIM115
    except OSError as error:
        reason = f"the program that this state came from cannot be read ({error.strerror})"
        raise CheckpointError(reason, file=original, hint="save to a .safetensors file instead") from None
    with source, open_zip(source, original) as archive:
        root, folder, found = _open(archive, original)
        data: dict[str, bytearray] = {}
        views = {}
        for name, ref in found.items():
            key = ref.storage.key
            if key not in data:
                data[key] = _storage_bytes(archive, f"{root}{folder}/{key}", ref.storage, original)
            views[name] = _view(ref, data[key])
            value = state.get(name)
            if value is None or value.shape != views[name].shape or value.dtype != views[name].dtype:
                raise CheckpointError(
                    f"is no {views[name].dtype} of shape {list(views[name].shape)}, as in {original.name}",
                    file=path,
                    tensor=name,
                    hint="keep names, shapes and dtypes",
                )
            views[name].copy_(value)
        for name, view in views.items():
            if not _same_bits(view, state[name]):
                raise CheckpointError(
                    "shares its memory with a tensor that now differs", file=path, tensor=name, hint="keep both equal"
                )
        limit = MAX_RATIO * original.stat().st_size
        with open_atomic(path) as target, zipfile.ZipFile(target, "w") as copy:
            for info in archive.infolist():
                replaced = data.get(info.filename.removeprefix(f"{root}{folder}/"))
                in_folder = info.filename.startswith(f"{root}{folder}/")
                content = bytes(replaced) if in_folder and replaced is not None else None
                copy.writestr(info, content or read_member(archive, info.filename, original, limit))
