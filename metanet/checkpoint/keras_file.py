"""How are the weights of a Keras file read: HDF5 (``.h5``), or a zip around one (``.keras``)?

HDF5 is more than arrays: links into other files, data kept in other files, virtual data sets, filters from plug-ins.
None of that is followed. A data set is read only if its bytes lie in this file, uncompressed and complete, which is how
Keras writes. The configuration of the model is kept as data; no layer is ever made from it. Needs the package ``h5py``
(extra ``keras``).
"""

from __future__ import annotations

import contextlib
import io
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from metanet.checkpoint.limits import MAX_AXES, MAX_RATIO, MAX_TENSORS, check_tensor_name
from metanet.checkpoint.npz_file import as_tensor
from metanet.checkpoint.source import Raw, Source
from metanet.checkpoint.zip_file import open_zip, read_member
from metanet.errors import CheckpointError, clean
from metanet.io import open_atomic, parse_json, write_bytes_atomic

__all__ = ["HDF5_START", "WEIGHTS_MEMBER", "read_keras_h5", "read_keras_zip", "write_keras_h5", "write_keras_zip"]

HDF5_START = b"\x89HDF\r\n\x1a\n"
WEIGHTS_MEMBER = "model.weights.h5"
CONFIG_MEMBER = "config.json"
# In files of whole models (Keras 2) the weights lie in this group, beside those of the optimiser.
MODEL_GROUP = "model_weights"
MAX_DEPTH = 64
# h5py turns any failure inside the C library into one of these.
FAILURES = (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError, OverflowError, MemoryError)
_HINT = "save it again with model.save_weights or model.save"


def _h5py(path: Path) -> Any:
    try:
        import h5py
    except ImportError:
        raise CheckpointError(
            "is a Keras file (HDF5), which needs the package h5py", file=path, hint="pip install 'metanet[keras]'"
        ) from None
    return h5py


@contextlib.contextmanager
def _opened(path: Path, content: BinaryIO, mode: str) -> Iterator[Any]:
    """The HDF5 file in ``content``; whatever the library stumbles over becomes an error of ours."""
    h5py = _h5py(path)
    try:
        with h5py.File(content, mode) as file:
            yield file
    except CheckpointError:
        raise
    # h5py turns any failure inside the C library into one of these.
    except (
        OSError,
        RuntimeError,
        KeyError,
        ValueError,
        TypeError,
        AttributeError,
        OverflowError,
        MemoryError,
    ) as error:
        reason = f"is a damaged HDF5 file ({clean(str(error).splitlines()[0] if str(error) else type(error), 100)})"
        raise CheckpointError(reason, file=path, hint="copy or save the file again") from None


def _names(group: Any, attribute: str) -> list[str]:
    """A list of names that Keras keeps as an attribute (in pieces where it is long); empty where there is none."""
    found: list[str] = []
    chunks = [attribute] if attribute in group.attrs else [f"{attribute}{i}" for i in range(MAX_DEPTH)]
    for chunk in chunks:
        if chunk not in group.attrs:
            break
        value = np.asarray(group.attrs[chunk]).reshape(-1)
        found += [item.decode("utf-8", "replace") if isinstance(item, bytes) else str(item) for item in value.tolist()]
    return found


def _sorted(group: Any) -> list[str]:
    """The members of a group in Keras's own order where the file says it, else by name, numbers by value."""
    stated = [name.partition("/")[0] for name in (*_names(group, "layer_names"), *_names(group, "weight_names"))]
    rank = {name: i for i, name in enumerate(dict.fromkeys(stated))}
    by_name = sorted(group, key=lambda name: (not name.isdecimal(), len(name) if name.isdecimal() else 0, name))
    return sorted(by_name, key=lambda name: rank.get(name, len(rank)))


class _Walk:
    """Finds the data sets of a file that hold weights, each checked before it is read."""

    def __init__(self, path: Path, h5py: Any, size: int) -> None:
        self.path, self.h5py = path, h5py
        self.left = size
        self.found: dict[str, Any] = {}
        self.skipped: list[str] = []
        self.addresses: dict[int, str] = {}
        self.steps = 0

    def refuse(self, name: str, reason: str, hint: str = _HINT) -> CheckpointError:
        return CheckpointError(reason, file=self.path, tensor=name, hint=hint)

    def group(self, group: Any, prefix: str, above: tuple[int, ...]) -> None:
        h5py = self.h5py
        address = h5py.h5o.get_info(group.id).addr
        if address in above or len(above) > MAX_DEPTH:
            raise self.refuse(prefix or "/", f"its groups contain each other, or are nested more than {MAX_DEPTH} deep")
        for name in _sorted(group):
            self.steps += 1
            if self.steps > 2 * MAX_TENSORS:
                raise CheckpointError(f"holds more than {2 * MAX_TENSORS} entries", file=self.path, hint=_HINT)
            full = check_tensor_name(f"{prefix}{name}", self.path)
            if not prefix and name.startswith("optimizer"):
                self.skipped.append(name)
                continue
            link = group.get(name, getlink=True)
            if isinstance(link, h5py.ExternalLink):
                raise self.refuse(full, f"is a link into another file ('{clean(link.filename, 60)}'), not followed")
            if not isinstance(link, h5py.HardLink):
                raise self.refuse(full, "is a symbolic link, which Keras never writes")
            value = group[name]
            if isinstance(value, h5py.Group):
                self.group(value, f"{full}/", (*above, address))
            elif isinstance(value, h5py.Dataset):
                self.dataset(value, full)
            else:
                self.skipped.append(clean(full, 60))

    def dataset(self, value: Any, name: str) -> None:
        if value.external is not None:
            raise self.refuse(name, f"keeps its data in another file ('{clean(value.external[0][0], 60)}'), not read")
        if value.is_virtual:
            raise self.refuse(name, "is a virtual data set, made of parts of other files")
        if value.dtype.hasobject or value.dtype.kind not in "fiubc":
            self.skipped.append(clean(name, 60))
            return
        if value.shape is None or len(value.shape) > MAX_AXES:
            raise self.refuse(name, f"has no shape of at most {MAX_AXES} sizes")
        if value.id.get_create_plist().get_nfilters():
            raise self.refuse(name, "is compressed, which Keras never does")
        # Bytes that were never written would be made up, as many as the shape claims.
        stored = value.id.get_storage_size()
        if value.nbytes > stored:
            raise self.refuse(name, f"has shape {clean(list(value.shape), 60)} of {value.dtype} but {stored} bytes")
        address = self.h5py.h5o.get_info(value.id).addr
        if address not in self.addresses:
            self.addresses[address] = name
            self.left -= value.nbytes
            if self.left < 0:
                raise self.refuse(name, "is beyond the end of the file, or overlaps another")
        self.found[name] = value


def _tensors(walk: _Walk) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for name, value in walk.found.items():
        first = walk.addresses[walk.h5py.h5o.get_info(value.id).addr]
        if first in state:
            state[name] = state[first]
            continue
        try:
            state[name] = as_tensor(np.asarray(value[()]))
        except TypeError:
            raise walk.refuse(name, f"has dtype {clean(value.dtype, 40)}, which torch does not have") from None
    return state


def _base(file: Any, h5py: Any) -> tuple[Any, str]:
    if isinstance(file.get(MODEL_GROUP, getlink=True), h5py.HardLink) and isinstance(file[MODEL_GROUP], h5py.Group):
        return file[MODEL_GROUP], MODEL_GROUP
    return file, ""


def _walk(file: Any, path: Path, size: int) -> tuple[_Walk, str]:
    h5py = _h5py(path)
    base, key = _base(file, h5py)
    walk = _Walk(path, h5py, size)
    walk.group(base, "", ())
    if not walk.found:
        raise CheckpointError("is an HDF5 file without numeric data sets", file=path, hint=_HINT)
    if key:
        walk.skipped += [clean(name, 60) for name in file if name != key]
    return walk, key


def _config(text: str | bytes | None, path: Path) -> Mapping[str, Any]:
    if text is None:
        return MappingProxyType({})
    try:
        value = parse_json(text)
    except ValueError as error:
        reason = f"its model configuration is not JSON ({clean(error, 80)})"
        raise CheckpointError(reason, file=path, hint=_HINT) from None
    return MappingProxyType(value if isinstance(value, dict) else {"config": value})


def read_keras_h5(content: BinaryIO, path: Path, size: int) -> Raw:
    """The weights in an HDF5 file, by their paths in it, in the shapes in which Keras keeps them.

    Args:
        content: the open file.
        path: of the file.
        size: of the file in bytes.

    Raises:
        CheckpointError: without ``h5py``; for data that lie elsewhere, are compressed, or are not there.
    """
    with _opened(path, content, "r") as file:
        walk, key = _walk(file, path, size)
        state = _tensors(walk)
        text = file.attrs.get("model_config")
        config = _config(text if isinstance(text, str | bytes) else None, path)
    return Raw(state, Source(path, "keras-h5", key, skipped=tuple(walk.skipped), config=config))


def read_keras_zip(archive: zipfile.ZipFile, path: Path, size: int) -> Raw:
    """The weights in a ``.keras`` archive.

    Args:
        archive: as checked by ``open_zip``.
        path: of the archive.
        size: of the archive in bytes.

    Raises:
        CheckpointError: as :func:`read_keras_h5`.
    """
    data = read_member(archive, WEIGHTS_MEMBER, path, MAX_RATIO * size)
    raw = read_keras_h5(io.BytesIO(data), path, len(data))
    text = None
    if CONFIG_MEMBER in archive.namelist():
        text = read_member(archive, CONFIG_MEMBER, path, MAX_RATIO * size)
    others = tuple(name for name in archive.namelist() if name not in (WEIGHTS_MEMBER, CONFIG_MEMBER))
    source = Source(path, "keras-zip", raw.source.key, raw.source.skipped + others, config=_config(text, path))
    return Raw(raw.state, source)


def _rewritten(data: bytes, state: Mapping[str, Tensor], path: Path, original: Path) -> bytes:
    content = io.BytesIO(data)
    with _opened(original, content, "r+") as file:
        walk, _ = _walk(file, original, len(data))
        written: dict[int, Tensor] = {}
        for name, target in walk.found.items():
            value = state.get(name)
            expected = torch.from_numpy(np.empty(0, target.dtype.newbyteorder("="))).dtype
            if value is None or tuple(value.shape) != target.shape or value.dtype != expected:
                raise CheckpointError(
                    f"is no {expected} of shape {list(target.shape)}, as in {original.name}",
                    file=path,
                    tensor=name,
                    hint="keep names, shapes and dtypes",
                )
            address = walk.h5py.h5o.get_info(target.id).addr
            if address in written and not torch.equal(written[address], value):
                raise CheckpointError(
                    "shares its memory with a tensor that now differs", file=path, tensor=name, hint="keep both equal"
                )
            written[address] = value
            target[...] = value.detach().cpu().numpy()
    return content.getvalue()


def _original(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        reason = f"the file that this state came from cannot be read ({error.strerror})"
        raise CheckpointError(reason, file=path, hint="save to a .safetensors file instead") from None


def write_keras_h5(path: Path, state: Mapping[str, Tensor], original: Path) -> None:
    """A Keras file like ``original`` with other weights; configuration and optimiser stay as they are.

    Raises:
        CheckpointError: where the original is gone or a tensor does not fit it.
    """
    write_bytes_atomic(path, _rewritten(_original(original), state, path, original))


def write_keras_zip(path: Path, state: Mapping[str, Tensor], original: Path) -> None:
    """A ``.keras`` archive like ``original`` with other weights; all other members are copied, unread.

    Raises:
        CheckpointError: where the original is gone or a tensor does not fit it.
    """
    data = _original(original)
    with open_zip(io.BytesIO(data), original) as source:
        limit = MAX_RATIO * len(data)
        with open_atomic(path) as target, zipfile.ZipFile(target, "w") as archive:
            for info in source.infolist():
                content = read_member(source, info.filename, original, limit)
                if info.filename == WEIGHTS_MEMBER:
                    content = _rewritten(content, state, path, original)
                archive.writestr(info, content)
