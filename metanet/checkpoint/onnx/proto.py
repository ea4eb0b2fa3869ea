"""What does an ONNX file say: which nodes, which attributes, which tensors and where their data are?

The schema (github.com/onnx/onnx, ``onnx/onnx.proto``) as far as a network needs it. Tensors are only described here;
their data are read by ``tensors.py`` once the sizes have been checked. Nothing in the file is run.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from metanet.checkpoint.limits import MAX_AXES, MAX_NAME, MAX_TENSORS
from metanet.checkpoint.onnx.wire import BYTES, FIXED32, VARINT, Field, damaged, fields, packed_varints
from metanet.errors import CheckpointError, clean

__all__ = ["Function", "Graph", "Input", "Model", "Node", "Reference", "TensorRecord", "looks_like_onnx", "parse"]

MAX_NODES = 200_000
MAX_DEPTH = 32
MAX_ELEMENTS = 1 << 48
MODEL_GRAPH = 7
# Field numbers and wire types of ModelProto: a file with others at its top is no ONNX file.
MODEL_FIELDS = {
    1: VARINT, 2: BYTES, 3: BYTES, 4: BYTES, 5: VARINT, 6: BYTES, 7: BYTES, 8: BYTES, 14: BYTES, 20: BYTES, 25: BYTES,
    26: BYTES,
}  # fmt: skip


@dataclass(slots=True)
class TensorRecord:
    """A tensor as the file describes it.

    Args:
        name: of the tensor; empty in a Constant node.
        kind: element type, a number of ``TensorProto.DataType``.
        shape: its sizes.
        data: the fields that hold the data, by field number of ``TensorProto``.
        external: where the data are, if outside the file: the entries of ``external_data``.
        external_fields: the fields that say so.
        messages: the messages around the tensor, outermost first, the tensor's own last.
    """

    name: str
    kind: int
    shape: tuple[int, ...]
    data: dict[int, list[Field]]
    external: dict[str, str] | None
    external_fields: list[Field]
    messages: tuple[Field, ...]


@dataclass(slots=True)
class Node:
    """One operation: attributes are numbers, text, tensors, graphs, or lists of them."""

    operator: str
    domain: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any]

    def __str__(self) -> str:
        kind = self.operator if self.domain in ("", "ai.onnx") else f"{self.domain}.{self.operator}"
        label = self.name or (self.outputs[0] if self.outputs else "")
        return f"{clean(kind, 80)} (node '{clean(label, 80)}')"


@dataclass(slots=True)
class Input:
    """An input or output of a graph: element type (0: unknown) and sizes, numbers or the names of open ones."""

    name: str
    kind: int
    shape: tuple[int | str, ...] | None


@dataclass(slots=True)
class Graph:
    """A graph: of the model, or a body of If, Loop or Scan."""

    name: str
    nodes: list[Node] = field(default_factory=list)
    initializers: dict[str, TensorRecord] = field(default_factory=dict)
    inputs: list[Input] = field(default_factory=list)
    outputs: list[Input] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Reference:
    """Stands in a function's body for an attribute of the node that calls it."""

    name: str


@dataclass(slots=True)
class Function:
    """An operator that the file itself defines by a graph; ``defaults`` are attributes that a call may leave out."""

    graph: Graph
    defaults: dict[str, Any]


@dataclass(slots=True)
class Model:
    """The whole file: graph, version of each set of operators, who wrote it, operators of its own."""

    graph: Graph
    opsets: dict[str, int]
    producer: str
    functions: dict[tuple[str, str], Function]


def looks_like_onnx(data: Any, size: int) -> bool:
    """Whether the top of the file is a ModelProto: only fields that it has, once a graph, up to the last byte.

    The format has no magic number; only the keys and lengths at the top are looked at, not what they hold.
    """
    graphs = 0
    try:
        for item in fields(data, 0, size):
            if MODEL_FIELDS.get(item.number) != item.kind:
                return False
            graphs += item.number == MODEL_GRAPH
    except CheckpointError:
        return False
    return graphs == 1


class _Parser:
    def __init__(self, data: Any) -> None:
        self.data = data
        self.nodes = 0
        self.tensors = 0

    def text(self, item: Field, what: str, limit: int = MAX_NAME) -> str:
        if item.kind != BYTES or item.end - item.body > 4 * limit:
            raise damaged(f"{what} is no text of at most {limit} characters")
        try:
            return bytes(self.data[item.body : item.end]).decode("utf-8")
        except UnicodeDecodeError:
            raise damaged(f"{what} is not UTF-8") from None

    def inside(self, item: Field, what: str) -> Iterator[Field]:
        if item.kind != BYTES:
            raise damaged(f"{what} is no message")
        return fields(self.data, item.body, item.end)

    def integers(self, item: Field, what: str) -> list[int]:
        """A repeated integer, packed or not."""
        if item.kind == VARINT:
            return [item.value - (1 << 64) if item.value >> 63 else item.value]
        if item.kind != BYTES:
            raise damaged(f"{what} is no list of integers")
        found: list[int] = packed_varints(bytes(self.data[item.body : item.end])).tolist()
        return found

    def once(self, seen: set[int], item: Field, what: str) -> None:
        # Other readers take the last, or merge both: what is said twice could mean two things.
        if item.number in seen:
            raise damaged(f"{what} comes twice")
        seen.add(item.number)

    def model(self, size: int) -> Model:
        graph: Graph | None = None
        opsets: dict[str, int] = {}
        producer = ""
        functions: dict[tuple[str, str], Function] = {}
        seen: set[int] = set()
        for item in fields(self.data, 0, size):
            if item.number == MODEL_GRAPH:
                self.once(seen, item, "the graph")
                graph = self.graph(item, (item,))
            elif item.number == 2:
                producer = self.text(item, "the producer's name")
            elif item.number == 8:
                domain, version = "", 0
                for part in self.inside(item, "an opset"):
                    if part.number == 1:
                        domain = self.text(part, "the domain of an opset")
                    elif part.number == 2:
                        version = part.value
                opsets["" if domain == "ai.onnx" else domain] = version
            elif item.number == 25:
                self.function(item, functions)
        if graph is None:
            raise damaged("holds no graph")
        return Model(graph, opsets, producer, functions)

    def function(self, item: Field, functions: dict[tuple[str, str], Function]) -> None:
        name = domain = ""
        body = Graph("")
        defaults: dict[str, Any] = {}
        for part in self.inside(item, "a function"):
            match part.number:
                case 1:
                    name = self.text(part, "the name of a function")
                case 10:
                    domain = self.text(part, "the domain of a function")
                case 4:
                    body.inputs.append(Input(self.text(part, "the name of an input"), 0, None))
                case 5:
                    body.outputs.append(Input(self.text(part, "the name of an output"), 0, None))
                case 7:
                    body.nodes.append(self.node(part, (item, part)))
                case 11:
                    key, value = self.attribute(part, (item, part))
                    defaults[key] = value
        if (domain, name) in functions:
            raise damaged(f"the function '{clean(name, 60)}' comes twice")
        body.name = name
        functions[domain, name] = Function(body, defaults)

    def graph(self, item: Field, messages: tuple[Field, ...]) -> Graph:
        if len(messages) > MAX_DEPTH:
            raise damaged(f"its graphs are nested more than {MAX_DEPTH} deep")
        found = Graph("")
        for part in self.inside(item, "a graph"):
            match part.number:
                case 1:
                    found.nodes.append(self.node(part, (*messages, part)))
                case 2:
                    found.name = self.text(part, "the name of a graph", 4096)
                case 5:
                    record = self.tensor(part, (*messages, part))
                    if not record.name or record.name in found.initializers:
                        reason = (
                            "comes twice among the initialisers" if record.name else "is an initialiser without name"
                        )
                        raise CheckpointError(reason, tensor=record.name, hint="export the model again")
                    found.initializers[record.name] = record
                case 11 | 12:
                    value = self.value_info(part)
                    (found.inputs if part.number == 11 else found.outputs).append(value)
                case 15:
                    raise CheckpointError("holds a sparse initialiser", hint="export it with dense tensors")
        return found

    def node(self, item: Field, messages: tuple[Field, ...]) -> Node:
        self.nodes += 1
        if self.nodes > MAX_NODES:
            raise damaged(f"holds more than {MAX_NODES} nodes")
        found = Node("", "", "", (), (), {})
        inputs, outputs = [], []
        for part in self.inside(item, "a node"):
            match part.number:
                case 1:
                    inputs.append(self.text(part, "the name of an input"))
                case 2:
                    outputs.append(self.text(part, "the name of an output"))
                case 3:
                    found.name = self.text(part, "the name of a node", 4096)
                case 4:
                    found.operator = self.text(part, "the operator of a node")
                case 5:
                    name, value = self.attribute(part, (*messages, part))
                    if name in found.attributes:
                        raise damaged(f"attribute '{clean(name, 60)}' comes twice in a node")
                    found.attributes[name] = value
                case 7:
                    found.domain = self.text(part, "the domain of a node")
        found.inputs, found.outputs = tuple(inputs), tuple(outputs)
        if found.domain == "ai.onnx":
            found.domain = ""
        return found

    def attribute(self, item: Field, messages: tuple[Field, ...]) -> tuple[str, Any]:
        name, kind = "", 0
        single: Any = None
        several: list[Any] = []
        for part in self.inside(item, "an attribute"):
            match part.number:
                case 1:
                    name = self.text(part, "the name of an attribute")
                case 20:
                    kind = part.value
                case 2:
                    if part.kind != FIXED32:
                        raise damaged("an attribute is no number")
                    single = struct.unpack("<f", part.value.to_bytes(4, "little"))[0]
                case 3:
                    single = self.integers(part, "an attribute")[-1]
                case 4:
                    single = bytes(self.data[part.body : part.end])
                case 5:
                    single = self.tensor(part, (*messages, part))
                case 6:
                    single = self.graph(part, (*messages, part))
                case 7:
                    several += self.floats(part)
                case 8:
                    several += self.integers(part, "an attribute")
                case 9:
                    several.append(bytes(self.data[part.body : part.end]))
                case 10:
                    several.append(self.tensor(part, (*messages, part)))
                case 11:
                    several.append(self.graph(part, (*messages, part)))
                case 21:
                    single = Reference(self.text(part, "the name of an attribute"))
        # An empty list, and a zero that proto3 leaves out, are told by the stated type.
        empty = {1: 0.0, 2: 0, 3: b""}
        return name, several if several or kind in (6, 7, 8, 9, 10) else empty.get(kind) if single is None else single

    def floats(self, item: Field) -> list[float]:
        if item.kind == FIXED32:
            return [struct.unpack("<f", item.value.to_bytes(4, "little"))[0]]
        if item.kind != BYTES or (item.end - item.body) % 4:
            raise damaged("an attribute is no list of numbers")
        return list(struct.unpack(f"<{(item.end - item.body) // 4}f", bytes(self.data[item.body : item.end])))

    def tensor(self, item: Field, messages: tuple[Field, ...]) -> TensorRecord:
        self.tensors += 1
        if self.tensors > MAX_TENSORS:
            raise damaged(f"holds more than {MAX_TENSORS} tensors")
        found = TensorRecord("", 0, (), {}, None, [], messages)
        shape: list[int] = []
        entries: dict[str, str] = {}
        external = False
        seen: set[int] = set()
        for part in self.inside(item, "a tensor"):
            match part.number:
                case 1:
                    shape += self.integers(part, "a shape")
                    if len(shape) > MAX_AXES:
                        raise damaged(f"a tensor has more than {MAX_AXES} axes")
                case 2:
                    self.once(seen, part, "the type of a tensor")
                    found.kind = part.value
                case 3:
                    raise CheckpointError("holds a tensor in segments", hint="export it again")
                case 4 | 5 | 6 | 7 | 10 | 11:
                    found.data.setdefault(part.number, []).append(part)
                case 9:
                    self.once(seen, part, "the data of a tensor")
                    found.data[9] = [part]
                case 8:
                    self.once(seen, part, "the name of a tensor")
                    found.name = self.text(part, "the name of a tensor")
                case 13:
                    key, value = self.entry(part)
                    if key in entries:
                        raise damaged(f"'{clean(key, 40)}' comes twice in external data")
                    entries[key] = value
                    found.external_fields.append(part)
                case 14:
                    external = part.value == 1
        elements = 1
        for size in shape:
            elements *= max(size, 1)
            if size < 0 or elements > MAX_ELEMENTS:
                raise CheckpointError(
                    f"has the impossible shape {clean(shape, 80)}", tensor=found.name, hint="export the model again"
                )
        found.shape = tuple(shape)
        found.external = entries if external else None
        return found

    def entry(self, item: Field) -> tuple[str, str]:
        key = value = ""
        for part in self.inside(item, "an entry"):
            if part.number == 1:
                key = self.text(part, "the key of an entry")
            elif part.number == 2:
                value = self.text(part, "the value of an entry", 4096)
        return key, value

    def value_info(self, item: Field) -> Input:
        found = Input("", 0, None)
        for part in self.inside(item, "an input"):
            if part.number == 1:
                found.name = self.text(part, "the name of an input")
            elif part.number == 2:
                for kind in self.inside(part, "a type"):
                    if kind.number == 1:
                        self.tensor_type(kind, found)
        return found

    def tensor_type(self, item: Field, found: Input) -> None:
        for part in self.inside(item, "a type"):
            if part.number == 1:
                found.kind = part.value
            elif part.number == 2:
                sizes: list[int | str] = []
                for axis in self.inside(part, "a shape"):
                    if axis.number != 1:
                        continue
                    size: int | str = ""
                    for value in self.inside(axis, "a size"):
                        if value.number == 1:
                            size = value.value
                        elif value.number == 2:
                            size = self.text(value, "the name of a size")
                    sizes.append(size)
                    if len(sizes) > MAX_AXES:
                        raise damaged(f"an input has more than {MAX_AXES} axes")
                found.shape = tuple(sizes)


def parse(data: Any, size: int) -> Model:
    """The model that a file describes.

    Args:
        data: indexable bytes.
        size: how many.

    Raises:
        CheckpointError: for what is no ONNX file, or holds what cannot be read safely; the caller adds the file's name.
    """
    return _Parser(data).model(size)
