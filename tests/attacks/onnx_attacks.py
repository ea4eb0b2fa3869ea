"""ONNX files that lie about sizes, reach outside their folder, or would never end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from tests.checkpoint import onnx_bytes as made

from .attack import Attack
from .pickles import write

X = made.value("x", ("n", 3))


def holds(tensors: Sequence[bytes], nodes: Sequence[bytes] | None = None) -> bytes:
    nodes = [made.node("Add", "x w", "y")] if nodes is None else nodes
    return made.model(made.graph(nodes, tensors, [X], ["y"]))


def onnx(name: str, says: str, content: Callable[[], bytes], tensor: str = "") -> Attack:
    return Attack(f"onnx_{name}", lambda folder: write(folder, "a.onnx", content()), says, tensor)


def described(*parts: bytes, name: str = "w") -> bytes:
    return b"".join(parts) + made.field(8, name)


def shaped(*shape: int, data: bytes = b"", kind: int = 1) -> bytes:
    return holds([described(*(made.field(1, n) for n in shape), made.field(2, kind), made.field(9, data))])


def outside(name: str, says: str, link: tuple[str, str] | None = None, size: int = 12, **entries: Any) -> Attack:
    """Weights in another file; ``secret`` lies beside the model's folder, ``inner`` in it."""

    def make(folder: Path) -> Path:
        inner = folder / "model"
        inner.mkdir()
        write(folder, "secret", bytes(64))
        write(inner, "inner", bytes(size))
        if link is not None:
            (inner / link[0]).symlink_to(link[1])
        return write(inner, "a.onnx", holds([made.external("w", (3,), **entries)]))

    return Attack(f"onnx_external_{name}", make, says, "w")


def _overlapping(folder: Path) -> Path:
    write(folder, "data", bytes(4000))
    tensors = [made.external(f"w{i}", (999,), location="data", offset=i, length=3996) for i in range(4)]
    return write(folder, "a.onnx", holds(tensors))


def _nested(depth: int) -> bytes:
    body = made.graph([], [], [], [])
    for _ in range(depth):
        body = made.graph([made.node("If", "c", "y", then_branch=body)], [], [], ["y"])
    return made.model(body)


W = made.tensor("w", torch.ones(3))
# A graph whose only tensor is described by hand, with a key that no tensor has.
ONNX = (
    onnx("lying_shape", "but 12 bytes", lambda: shaped(4, data=bytes(12)), "w"),
    onnx("huge_shape", "impossible shape", lambda: shaped(1 << 40, 1 << 40, data=bytes(12)), "w"),
    onnx("zero_times_huge", "impossible shape", lambda: shaped(0, 1 << 60), "w"),
    onnx("negative_size", "impossible shape", lambda: shaped(-3, data=bytes(12)), "w"),
    onnx("many_axes", "more than 16 axes", lambda: shaped(*[1] * 40, data=bytes(4))),
    onnx("no_data", "but 0 bytes", lambda: holds([described(made.field(1, 3), made.field(2, 1))]), "w"),
    onnx("name_twice", "comes twice among the initialisers", lambda: holds([W, W]), "w"),
    onnx("name_of_control", "not printable", lambda: holds([made.tensor("a\n", torch.ones(3))]), "a\\n"),
    onnx("two_fields", "or in two", lambda: holds([W + made.field(4, bytes(12))]), "w"),
    onnx("raw_twice", "the data of a tensor comes twice", lambda: holds([W + made.field(9, bytes(12))])),
    onnx("two_graphs", "the graph comes twice", lambda: holds([W]) + made.field(7, made.graph([], [W], [], []))),
    onnx("no_graph", "holds no graph", lambda: made.field(1, 8) + made.field(2, "x")),
    onnx("no_weights", "without parameters", lambda: made.model(made.graph([], [], [X], ["x"]))),
    onnx("text", "holds no graph", lambda: made.field(2, "hello")),
    onnx("cut_short", "is cut short", lambda: holds([W])[:-20]),
    onnx("endless_number", "a number of more than 10 bytes", lambda: b"\x08" + b"\xff" * 20),
    onnx("wire_type", "wire type 3", lambda: b"\x0b" + holds([W])),
    onnx("not_utf8", "is not UTF-8", lambda: made.model(made.graph([made.field(4, b"\xff\xfe")], [W], [], []))),
    onnx("nested", "nested more than 32 deep", lambda: _nested(60)),
    onnx("sparse", "a sparse initialiser", lambda: made.model(made.graph([], [W], [], []) + made.field(15, b""))),
    onnx("segments", "a tensor in segments", lambda: holds([W + made.field(3, b"")])),
    onnx(
        "packed_numbers",
        "number of more than 10 bytes",
        lambda: holds([described(made.field(1, b"\xff" * 30 + b"\x01"))]),
    ),
    onnx(
        "numbers_do_not_fit",
        "do not fit torch.int8",
        lambda: holds([described(made.field(1, 100), made.field(2, 3), *(made.field(5, 300) for _ in range(100)))]),
        "w",
    ),
    outside("parent", "not a path inside the model's folder", location="../secret"),
    outside("absolute", "not a path inside the model's folder", location="/etc/passwd"),
    outside("deep_parent", "not a path inside the model's folder", location="x/../../secret"),
    outside("backslash", "not a path inside the model's folder", location="..\\secret"),
    outside("no_place", "not a path inside the model's folder"),
    outside("control", "not a path inside the model's folder", location="in\nner"),
    outside("link", "a link that leaves the model's folder", link=("l", "../secret"), location="l"),
    outside("link_to_folder", "a link that leaves the model's folder", link=("l", ".."), location="l/secret"),
    outside("missing", "which is not there", location="nowhere"),
    outside("folder", "which is not there", location="."),
    outside("short", "lies at bytes 0 to 12 of 'inner', which has 4", size=4, location="inner"),
    outside("offset", "lies at bytes 8 to 20", location="inner", offset=8),
    outside("negative_offset", "lies at bytes -4", location="inner", offset=-4, size=64),
    outside("length", "but 8 bytes", location="inner", length=8),
    outside("huge_length", "but 99999999999999 bytes", location="inner", length=99999999999999),
    outside("no_number", "whose place is no number", location="inner", offset="x"),
    Attack("onnx_external_overlap", _overlapping, "overlaps other tensors", "w1"),
)


def endless(name: str, says: str, nodes: Sequence[bytes], tensors: Sequence[bytes] = ()) -> tuple[str, str, bytes]:
    content = made.graph(nodes, [W, *tensors], [made.value("x", (7, 3))], ["y"])
    return name, says, made.model(content)


def _body(inner: bytes | None) -> bytes:
    """A loop's body that always goes on, around another one."""
    inside = [made.node("Identity", "h", "g")] if inner is None else [made.node("Loop", "_ c h", "g", body=inner)]
    inputs = [made.value("i", (), 7), made.value("c", (), 9), made.value("h", (7, 3))]
    return made.graph([made.node("Identity", "c", "d"), *inside], [], inputs, ["d", "g"])


def _many(count: int) -> torch.Tensor:
    return torch.tensor([count, count], dtype=torch.int64)


# Graphs that open (their tensors are fine) and are refused when they are run.
RUNS = (
    endless(
        "fill",
        "makes a tensor of shape [1000000, 1000000]",
        [made.node("ConstantOfShape", "s", "z"), made.node("Add", "z x", "y")],
        [made.tensor("s", _many(1_000_000))],
    ),
    endless(
        "range",
        "makes a tensor of shape",
        [made.node("Range", "a b c", "z"), made.node("Add", "z x", "y")],
        [made.tensor(n, torch.tensor(v)) for n, v in (("a", 0), ("b", 1 << 62), ("c", 1))],
    ),
    endless(
        "tile",
        "makes a tensor of shape [7000000, 3000000]",
        [made.node("Tile", "x s", "y")],
        [made.tensor("s", _many(1_000_000))],
    ),
    endless(
        "expand",
        "makes a tensor of shape [1000000, 1000000, 7, 3]",
        [made.node("Unsqueeze", "x t", "z"), made.node("Expand", "z s", "y")],
        [
            made.tensor("s", torch.tensor([1_000_000, 1_000_000, 1, 1])),
            made.tensor("t", torch.tensor([0, 1])),
        ],
    ),
    endless(
        "pad", "makes a tensor of shape", [made.node("Pad", "x s", "y")], [made.tensor("s", _many(1 << 40).repeat(2))]
    ),
    endless(
        "loops",
        "its loops take more than 1000 steps",
        [made.node("Loop", "_ yes x", "y", body=_body(_body(None)))],
        [made.tensor("yes", torch.tensor(True))],
    ),
    endless("reads_nothing", "which nothing gives", [made.node("Add", "x nowhere", "y")]),
    endless("missing_attribute", "failed on inputs", [made.node("DepthToSpace", "x", "y")]),
    endless("wrong_body", "has no graph 'else_branch'", [made.node("If", "x", "y")]),
    endless("training", "is in training mode", [made.node("BatchNormalization", "x w w w w", "y", training_mode=1)]),
)
