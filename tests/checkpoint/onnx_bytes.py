"""ONNX files written by hand, field by field, so that a test can say anything in one and needs no other package."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

KINDS = {
    torch.float32: 1, torch.uint8: 2, torch.int8: 3, torch.int32: 6, torch.int64: 7, torch.bool: 9, torch.float16: 10,
    torch.float64: 11, torch.bfloat16: 16,
}  # fmt: skip


def varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    found = bytearray()
    while value >= 0x80:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])


def field(number: int, value: int | str | bytes) -> bytes:
    """A varint field for an integer, else one with a length."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    data = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(data)) + data


def raw_bytes(value: Tensor) -> bytes:
    return value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b""


def tensor(name: str, value: Tensor, style: str = "raw") -> bytes:
    """A TensorProto; ``style`` says where its data lie."""
    made = b"".join(field(1, n) for n in value.shape) + field(2, KINDS[value.dtype]) + (field(8, name) if name else b"")
    match style:
        case "raw":
            return made + field(9, raw_bytes(value))
        case "typed" if value.dtype == torch.float32:
            return made + field(4, raw_bytes(value))
        case "typed" if value.dtype == torch.int64:
            return made + field(7, b"".join(map(varint, value.reshape(-1).tolist())))
        case "typed" if value.dtype == torch.float16:
            bits = value.reshape(-1).view(torch.int16).to(torch.int64).remainder(1 << 16)
            return made + field(5, b"".join(map(varint, bits.tolist())))
        case "unpacked":
            return made + b"".join(varint(4 << 3 | 5) + struct.pack("<f", x) for x in value.reshape(-1).tolist())
    raise ValueError(style)


def external(name: str, shape: Sequence[int], **entries: Any) -> bytes:
    """A TensorProto of float32 whose data lie in another file."""
    made = b"".join(field(1, n) for n in shape) + field(2, 1) + field(8, name)
    made += b"".join(field(13, field(1, key) + field(2, str(value))) for key, value in entries.items())
    return made + field(14, 1)


def attribute(name: str, value: Any) -> bytes:
    """An AttributeProto."""
    match value:
        case bool() | int():
            return field(1, name) + field(3, int(value)) + field(20, 2)
        case float():
            return field(1, name) + varint(2 << 3 | 5) + struct.pack("<f", value) + field(20, 1)
        case str():
            return field(1, name) + field(4, value) + field(20, 3)
        case Tensor():
            return field(1, name) + field(5, tensor("", value)) + field(20, 4)
        case bytes():
            return field(1, name) + field(6, value) + field(20, 5)
        case [float(), *_]:
            return field(1, name) + field(7, struct.pack(f"<{len(value)}f", *value)) + field(20, 6)
        case list() | tuple():
            return field(1, name) + b"".join(field(8, n) for n in value) + field(20, 7)
    raise TypeError(value)


def node(operator: str, inputs: str, outputs: str, name: str = "", domain: str = "", **attributes: Any) -> bytes:
    """A NodeProto; names are parted by spaces, ``_`` stands for none."""
    made = b"".join(field(1, "" if text == "_" else text) for text in inputs.split())
    made += (
        b"".join(field(2, text) for text in outputs.split()) + (field(3, name) if name else b"") + field(4, operator)
    )
    made += b"".join(field(5, attribute(key, value)) for key, value in attributes.items())
    return made + (field(7, domain) if domain else b"")


def value(name: str, shape: Sequence[int | str], kind: int = 1) -> bytes:
    """A ValueInfoProto."""
    axes = b"".join(field(1, field(1, n) if isinstance(n, int) else field(2, n)) for n in shape)
    return field(1, name) + field(2, field(1, field(1, kind) + field(2, axes)))


def graph(
    nodes: Sequence[bytes], tensors: Sequence[bytes], inputs: Sequence[bytes], outputs: Sequence[str], name: str = "g"
) -> bytes:
    """A GraphProto; outputs are only named."""
    made = b"".join(field(1, item) for item in nodes) + field(2, name) + b"".join(field(5, item) for item in tensors)
    return made + b"".join(field(11, item) for item in inputs) + b"".join(field(12, field(1, text)) for text in outputs)


def model(content: bytes, opset: int = 17, more: bytes = b"") -> bytes:
    """A ModelProto around a graph."""
    return field(1, 8) + field(2, "tests") + field(7, content) + field(8, field(1, "") + field(2, opset)) + more


def mlp(state: dict[str, Tensor], style: str = "raw", tensors: Sequence[bytes] | None = None) -> bytes:
    """Linear layers ``0``, ``2``, ``4`` with tanh between them, as Gemm with transposed weights."""
    names = [name.removesuffix(".weight") for name in sorted(state) if name.endswith(".weight")]
    nodes, before = [], "x"
    for i, name in enumerate(names):
        after = "y" if i == len(names) - 1 else f"h{name}"
        nodes.append(node("Gemm", f"{before} {name}.weight {name}.bias", after, transB=1))
        if after != "y":
            nodes.append(node("Tanh", after, f"a{name}"))
        before = f"a{name}"
    tensors = [tensor(name, state[name], style) for name in state] if tensors is None else tensors
    first = state[f"{names[0]}.weight"].shape[1]
    return model(graph(nodes, tensors, [value("x", ("n", first))], ["y"]))
