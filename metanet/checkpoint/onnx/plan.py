"""Which constants of an ONNX graph are the network's parameters, and which only say how it is wired?

A constant is an initialiser or a Constant node, of the graph or of a branch or body inside it. Floating tensors with an
axis are parameters, unless they are only used as shapes, bounds and the like; means and variances of batch norms are
buffers, and so are large tables of integers. All else stays with the graph, as known numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from metanet.checkpoint.limits import check_tensor_name
from metanet.checkpoint.onnx.proto import Graph, Model, Node, TensorRecord
from metanet.checkpoint.onnx.registry import rule_for
from metanet.checkpoint.onnx.tensors import DTYPES, Reader
from metanet.errors import CheckpointError

__all__ = ["Constant", "Plan", "make_plan"]

# Tables of integers up to this length are shapes, indices and axes; longer ones hold what was learned or quantised.
LONG_TABLE = 64
# Operators whose tensors are parameters even where they have one element.
LAYERS = frozenset(
    ("Conv", "ConvTranspose", "Gemm", "MatMul", "BatchNormalization", "InstanceNormalization", "LayerNormalization",
     "GroupNormalization", "RMSNormalization", "LSTM", "GRU", "RNN", "PRelu")
)  # fmt: skip
PARAMETER, BUFFER, STATIC = "parameter", "buffer", "static"


@dataclass(eq=False)
class Constant:
    """A tensor that the file holds.

    Args:
        label: its name in the file.
        record: where it is; ``None`` for a number or list in a Constant node.
        value: its numbers, where it is static.
        role: ``parameter``, ``buffer`` or ``static``.
        name: in the state dict; empty where it is static.
        path: ``name`` in parts: the modules that hold it, and its own.
    """

    label: str
    record: TensorRecord | None
    value: np.ndarray[Any, Any] | None = None
    role: str = STATIC
    name: str = ""
    path: tuple[str, ...] = ()
    is_initializer: bool = False
    uses: list[tuple[Node, int]] = field(default_factory=list)

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes."""
        return self.record.shape if self.record else ()

    @property
    def dtype(self) -> torch.dtype:
        """Element type in the file."""
        return DTYPES[self.record.kind] if self.record else torch.float32


@dataclass(eq=False)
class Plan:
    """A model with its constants sorted out.

    Args:
        model: as parsed.
        constants: for each graph, by the place of the graph in :attr:`graphs`, name to constant.
        graphs: the graph and all inside it; ``places`` finds them by identity.
        stored: the parameters and buffers, in the order of the file.
        unknown: the first node without a rule.
    """

    model: Model
    graphs: list[Graph] = field(default_factory=list)
    constants: list[dict[str, Constant]] = field(default_factory=list)
    stored: list[Constant] = field(default_factory=list)
    unknown: Node | None = None

    def __post_init__(self) -> None:
        self.places: dict[int, int] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> Plan:
        # Copies of a module share the graph, which nothing changes.
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "places": {}}

    def constants_of(self, graph: Graph) -> dict[str, Constant]:
        """The constants of one graph by name."""
        if not self.places:
            self.places = {id(graph): i for i, graph in enumerate(self.graphs)}
        return self.constants[self.places[id(graph)]]


def bodies(node: Node) -> Iterator[tuple[str, Graph]]:
    """The graphs among a node's attributes."""
    for name, value in node.attributes.items():
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, Graph):
                yield name, item


def _constant_node(node: Node) -> Constant | None:
    label = node.outputs[0] if node.outputs else ""
    read = node.attributes
    if isinstance(read.get("value"), TensorRecord):
        return Constant(label, read["value"])
    for name, kind in (
        ("value_float", np.float32),
        ("value_floats", np.float32),
        ("value_int", np.int64),
        ("value_ints", np.int64),
    ):
        if name in read:
            return Constant(label, None, np.asarray(read[name], kind))
    if "value_string" in read or "value_strings" in read:
        return Constant(label, None, np.asarray(read.get("value_string", read.get("value_strings")), object))
    raise CheckpointError(f"{node} holds no dense tensor", hint="export the model again")


class _Planner:
    def __init__(self, model: Model, reader: Reader) -> None:
        self.plan = Plan(model)
        self.reader = reader
        self.taken: set[str] = set()
        self.folders: set[str] = set()
        self.numbers: dict[str, int] = {}
        self.all: list[Constant] = []

    def graph(self, graph: Graph, above: list[dict[str, Constant | None]]) -> None:
        here: dict[str, Constant] = {}
        for name, record in graph.initializers.items():
            here[name] = Constant(name, record, is_initializer=True)
        self.all += here.values()
        for node in graph.nodes:
            if node.operator == "Constant" and node.domain == "":
                constant = _constant_node(node)
                if constant is None or constant.label in here or not constant.label:
                    raise CheckpointError(
                        f"{node} gives a name that is given twice, or none", hint="export the model again"
                    )
                here[constant.label] = constant
                self.all.append(constant)
        self.plan.graphs.append(graph)
        self.plan.constants.append(here)
        runtime: dict[str, Constant | None] = {
            value.name: None for value in graph.inputs if value.name not in graph.initializers
        }
        scope: list[dict[str, Constant | None]] = [*above, {**here, **runtime}]
        for node in graph.nodes:
            if node.operator == "Constant" and node.domain == "":
                continue
            own = (node.domain, node.operator) in self.plan.model.functions
            if not own and rule_for(node.domain, node.operator) is None and self.plan.unknown is None:
                self.plan.unknown = node
            for i, name in enumerate(node.inputs):
                found = next((level[name] for level in reversed(scope) if name in level), None)
                if found is not None:
                    found.uses.append((node, i))
            for name, value in node.attributes.items():
                if isinstance(value, TensorRecord):
                    node.attributes[name] = _array(self.reader, value, f"{node.operator}.{name}")
            for _, body in bodies(node):
                self.graph(body, scope)
        graph.nodes[:] = [node for node in graph.nodes if not (node.operator == "Constant" and node.domain == "")]

    def roles(self) -> Plan:
        for constant in self.all:
            constant.role = _role(constant)
        # Initialisers first take their own names; what repeats them in a branch is numbered.
        for constant in self.all:
            if constant.role == STATIC:
                if constant.record is not None:
                    constant.value = _array(self.reader, constant.record, constant.label)
                continue
            constant.path = self.path(constant.label)
            constant.name = ".".join(constant.path)
            check_tensor_name(constant.name, self.reader.path)
            self.plan.stored.append(constant)
        return self.plan

    def path(self, label: str) -> tuple[str, ...]:
        """The name in the file as a path of modules; the same text wherever a module can have that name."""
        parts = tuple(_part(part) for part in label.split("."))
        if any(".".join(parts[:i]) in self.taken for i in range(1, len(parts))):
            # A tensor already has the name that a module on the way would need.
            parts = (_part(label.replace(".", "/")),)
        last = parts[-1]
        while self.clashes(parts):
            self.numbers[label] = self.numbers.get(label, 1) + 1
            parts = (*parts[:-1], f"{last}#{self.numbers[label]}")
        name = ".".join(parts)
        self.taken.add(name)
        self.folders.update(".".join(parts[:i]) for i in range(1, len(parts)))
        return parts

    def clashes(self, parts: tuple[str, ...]) -> bool:
        name = ".".join(parts)
        return name in self.taken or name in self.folders


_MODULE_NAMES = frozenset(dir(torch.nn.Module())) | {"plan", "fixed", "input_names", "output_names", "tensor"}


def _part(part: str) -> str:
    # torch cannot register an empty name, nor one that every module has already.
    return f"{part}_" if not part or part in _MODULE_NAMES else part


def _role(constant: Constant) -> str:
    record = constant.record
    if record is None or record.kind not in DTYPES:
        return STATIC
    dtype = DTYPES[record.kind]
    elements = int(np.prod([float(n) for n in record.shape])) if record.shape else 1
    rules = [(node, place, rule_for(node.domain, node.operator)) for node, place in constant.uses]
    if rules and all(rule is not None and place in rule.static for _, place, rule in rules):
        return STATIC
    if not dtype.is_floating_point:
        return BUFFER if elements > LONG_TABLE else STATIC
    if not record.shape or elements == 0:
        return STATIC
    if elements == 1:
        # One number in arithmetic is a constant of the formula, unless it is a layer's own, or added as a bias is.
        added = constant.is_initializer and any(rule is None or node.operator == "Add" for node, _, rule in rules)
        if not added and not any(node.operator in LAYERS for node, _ in constant.uses):
            return STATIC
    if rules and all(rule is not None and place in rule.buffers for _, place, rule in rules):
        return BUFFER
    return PARAMETER


def _array(reader: Reader, record: TensorRecord, label: str) -> np.ndarray[Any, Any] | None:
    if record.kind not in DTYPES:
        # Text is no number; an operator that wants it has no rule.
        return None
    value = reader.read(record, label)
    narrow = value.dtype == torch.bfloat16 or (value.dtype.itemsize == 1 and value.is_floating_point())
    array: np.ndarray[Any, Any] = (value.float() if narrow else value).numpy()
    return array


def make_plan(model: Model, reader: Reader) -> Plan:
    """Sort out the constants of a model.

    Raises:
        CheckpointError: for constants that cannot be read.
    """
    planner = _Planner(model, reader)
    planner.graph(model.graph, [])
    for function in model.functions.values():
        planner.graph(function.graph, [])
    return planner.roles()
