"""Hostile and damaged pickles, and the torch containers to put them in."""

from __future__ import annotations

import base64
import io
import json
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch

# Where a payload leaves its mark; every test gets a fresh folder as working directory.
MARKER = "payload-was-run"
COMMAND = f"touch {MARKER}"


class Payload:
    """Unpickling this runs a shell command."""

    def __reduce__(self) -> Any:
        return os.system, (COMMAND,)


def state() -> OrderedDict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return OrderedDict(
        (name, torch.randn(shape, generator=generator))
        for name, shape in (("0.weight", (4, 3)), ("0.bias", (4,)), ("2.weight", (2, 4)), ("2.bias", (2,)))
    )


def torch_bytes(value: Any, legacy: bool = False) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


def torch_zip(data: bytes, records: dict[str, bytes] | None = None, compress: bool = False, **more: bytes) -> bytes:
    """A torch zip around a pickle written by hand."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", data)
        for key, content in (records or {}).items():
            archive.writestr(f"archive/data/{key}", content)
        archive.writestr("archive/version", b"3\n")
        for name, content in more.items():
            archive.writestr(f"archive/{name.replace('__', '/').replace('_py', '.py')}", content)
    return buffer.getvalue()


def _text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def _long(value: int) -> bytes:
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def tensor_ops(
    size: tuple[int, ...],
    numel: int,
    key: str = "0",
    stride: tuple[int, ...] | None = None,
    offset: int = 0,
    legacy: bool = False,
) -> bytes:
    """Opcodes that build one float tensor, with whatever the caller claims about it."""
    stride = stride or tuple(int(torch.empty(size, device="meta").stride(i)) for i in range(len(size)))
    return b"".join(
        (
            b"ctorch._utils\n_rebuild_tensor_v2\n((",
            _text("storage"),
            b"ctorch\nFloatStorage\n",
            _text(key),
            _text("cpu"),
            _long(numel),
            b"N" if legacy else b"",
            b"tQ",
            _long(offset),
            b"(" + b"".join(map(_long, size)) + b"t",
            b"(" + b"".join(map(_long, stride)) + b"t",
            b"\x89ccollections\nOrderedDict\n)RtR",
        )
    )


def dictionary(*items: tuple[str, bytes]) -> bytes:
    """A pickled dictionary from names to opcodes."""
    return b"\x80\x02}(" + b"".join(_text(name) + value for name, value in items) + b"u."


def call(module: str, name: str, *args: bytes) -> bytes:
    """Opcodes that call a function."""
    return f"c{module}\n{name}\n(".encode() + b"".join(args) + b"tR"


def legacy_file(data: bytes, keys: list[str], storages: list[tuple[int, bytes]]) -> bytes:
    """A torch file of the older format around a pickle written by hand."""
    parts = [pickle.dumps(0x1950A86A20F9469CFC6C, 2), pickle.dumps(1001, 2), pickle.dumps({}, 2), data]
    parts.append(pickle.dumps(keys, 2))
    parts += [struct.pack("<q", numel) + content for numel, content in storages]
    return b"".join(parts)


def agent_zip(policy: bytes, data: bytes = b"{}", compress: bool = False) -> bytes:
    """A Stable-Baselines3 zip."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED) as archive:
        archive.writestr("data", data)
        archive.writestr("policy.pth", policy)
        archive.writestr("_stable_baselines3_version", "1.5.0")
    return buffer.getvalue()


def agent_state() -> OrderedDict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    shapes = {
        "log_std": (2,),
        "mlp_extractor.policy_net.0.weight": (5, 3),
        "mlp_extractor.policy_net.0.bias": (5,),
        "mlp_extractor.value_net.0.weight": (5, 3),
        "mlp_extractor.value_net.0.bias": (5,),
        "action_net.weight": (2, 5),
        "action_net.bias": (2,),
        "value_net.weight": (1, 5),
        "value_net.bias": (1,),
    }
    return OrderedDict((name, torch.randn(shape, generator=generator)) for name, shape in shapes.items())


def write(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def malicious_data() -> bytes:
    """The ``data`` member of an agent as Stable-Baselines3 writes it, with a payload where it keeps its objects."""
    serialized = base64.b64encode(pickle.dumps(Payload())).decode()
    return json.dumps({"policy_class": {":type:": "<class 'type'>", ":serialized:": serialized}}).encode()
