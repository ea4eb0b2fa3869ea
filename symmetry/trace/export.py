"""Which operations does a model perform? Its graph by ``torch.export``, as plain nodes without torch's own types."""

from __future__ import annotations

import copy
import logging
import operator
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.export.graph_signature import InputKind

from symmetry.errors import TraceError
from symmetry.trace.explain import explain, misfit

__all__ = ["Graph", "Node", "Ref", "export", "exported"]


@dataclass(frozen=True, slots=True)
class Ref:
    """A reference to the value of another node."""

    name: str


@dataclass(frozen=True, slots=True)
class Node:
    """One operation.

    Args:
        name: unique within the graph.
        operation: as ``aten.relu.default`` or ``getitem``.
        args, kwargs: arguments; other nodes appear as :class:`Ref`, also inside lists.
        shapes: shape of each output (``None`` for outputs that are no tensors).
        several: whether the value is a tuple, even of one.
        source: the line of the model's code that torch knows, or an empty string.
    """

    name: str
    operation: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    shapes: tuple[tuple[int, ...] | None, ...]
    several: bool
    source: str


@dataclass(slots=True)
class Graph:
    """A model's operations.

    Args:
        nodes: in the order of execution.
        tensors: placeholder name -> name in the state dict, parameters and persistent or other buffers.
        buffers: those of ``tensors`` that are buffers.
        inputs: placeholder name -> shape of each tensor input.
        constants: placeholder name -> shape of lifted constants.
        zeros: those of ``constants`` that are zero everywhere.
        outputs: the nodes returned.
        users: how many nodes read each node.
    """

    nodes: list[Node] = field(default_factory=list)
    tensors: dict[str, str] = field(default_factory=dict)
    buffers: set[str] = field(default_factory=set)
    inputs: dict[str, tuple[int, ...]] = field(default_factory=dict)
    constants: dict[str, tuple[int, ...]] = field(default_factory=dict)
    zeros: set[str] = field(default_factory=set)
    outputs: list[Ref] = field(default_factory=list)
    users: dict[str, int] = field(default_factory=dict)


def export(model: nn.Module, example_inputs: Sequence[Any]) -> Graph:
    """Export a model in eval mode, decomposed to core ATen with static shapes, as plain nodes.

    The model is not changed: its training flags are restored.

    Raises:
        TraceError: if torch cannot export it; the message has torch's reason and what to do.
    """
    graph = _read(exported(model, example_inputs))
    if not graph.outputs:
        raise TraceError(f"{type(model).__name__}: forward returns no tensor; trace a module that does")
    return graph


def exported(model: nn.Module, example_inputs: Sequence[Any]) -> torch.export.ExportedProgram:
    """Torch's own form of what :func:`export` reads: decomposed to core ATen, in eval mode, with static shapes.

    Raises:
        TraceError: if torch cannot export it; the message has torch's reason and what to do.
    """
    if not isinstance(model, nn.Module):
        raise TraceError(f"model: {type(model).__name__}, expected a torch.nn.Module")
    if isinstance(example_inputs, Tensor):
        raise TraceError("example_inputs: a tensor, expected a tuple with one entry per argument; write (tensor,)")
    if isinstance(model, torch.jit.ScriptModule):
        raise TraceError(f"model: {type(model).__name__} of TorchScript; trace the torch.nn.Module it was made from")
    if not isinstance(example_inputs, Sequence):
        raise TraceError(
            f"example_inputs: {type(example_inputs).__name__}, expected a tuple with one entry per argument of forward"
        )
    wrong = misfit(model, example_inputs)
    if wrong is not None:
        raise TraceError(wrong)
    modes = {module: module.training for module in model.modules()}
    logger = logging.getLogger("torch.export")
    level = logger.level
    try:
        model.eval()
        logger.setLevel(logging.ERROR)
        with warnings.catch_warnings(), torch.no_grad():
            # torch's own deprecations inside the exporter; nothing a caller could act on.
            warnings.simplefilter("ignore")
            return torch.export.export(model, tuple(example_inputs)).run_decompositions(_decompositions())
    except Exception as error:
        raise TraceError(explain(model, error)) from error
    finally:
        logger.setLevel(level)
        for module, training in modes.items():
            module.training = training


@cache
def _decompositions() -> dict[Any, Any]:
    """Torch's own table, to core ATen; collecting it costs more than decomposing a small model."""
    return dict(torch.export.default_decompositions().materialize())


def _read(program: torch.export.ExportedProgram) -> Graph:
    graph = Graph()
    for spec in program.graph_signature.input_specs:
        name = getattr(spec.arg, "name", "")
        if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER):
            graph.tensors[name] = str(spec.target)
            if spec.kind == InputKind.BUFFER:
                graph.buffers.add(str(spec.target))
        constant = program.constants.get(str(spec.target)) if spec.kind == InputKind.CONSTANT_TENSOR else None
        if isinstance(constant, Tensor) and not bool(constant.any()):
            graph.zeros.add(name)
    kinds = {getattr(spec.arg, "name", ""): spec.kind for spec in program.graph_signature.input_specs}
    for node in program.graph.nodes:
        graph.users[node.name] = len(node.users)
        value = node.meta.get("val")
        if node.op == "placeholder":
            if isinstance(value, Tensor) and node.name not in graph.tensors:
                where = graph.inputs if kinds.get(node.name) == InputKind.USER_INPUT else graph.constants
                where[node.name] = tuple(value.shape)
        elif node.op == "call_function":
            values = value if isinstance(value, tuple | list) else (value,)
            graph.nodes.append(
                Node(
                    node.name,
                    "getitem" if node.target is operator.getitem else str(node.target),
                    _convert(node.args),
                    _convert(dict(node.kwargs)),
                    tuple(_shape(node, item) if isinstance(item, Tensor) else None for item in values),
                    isinstance(value, tuple | list),
                    _source(node.meta.get("stack_trace")),
                )
            )
        elif node.op == "output":
            graph.outputs = [item for item in _flatten(_convert(node.args)) if isinstance(item, Ref)]
        else:
            raise TraceError(
                f"node {node.name}: a graph node of kind {node.op!r}, which is not supported; trace a plain module"
            )
    return graph


def _shape(node: torch.fx.Node, value: Tensor) -> tuple[int, ...]:
    if not all(isinstance(size, int) for size in value.shape):
        source = _source(node.meta.get("stack_trace"))
        where = f" at {source}" if source else ""
        raise TraceError(
            f"{node.target} (node {node.name}){where}: the shape {tuple(value.shape)} of its result depends on the "
            "values of tensors; trace a variant with fixed sizes (torch.where instead of boolean indexing)"
        )
    return tuple(value.shape)


def _convert(value: Any) -> Any:
    """Arguments with graph nodes replaced by references."""
    if isinstance(value, torch.fx.Node):
        return Ref(value.name)
    if isinstance(value, tuple | list):
        return tuple(_convert(item) for item in value)
    if isinstance(value, dict):
        return {key: _convert(item) for key, item in value.items()}
    return copy.copy(value)


def _flatten(value: Any) -> list[Any]:
    if isinstance(value, tuple):
        return [leaf for item in value for leaf in _flatten(item)]
    if isinstance(value, dict):
        return [leaf for item in value.values() for leaf in _flatten(item)]
    return [value]


def _source(trace: str | None) -> str:
    """File and line of the innermost frame outside torch, with the code on it."""
    best = ""
    lines = (trace or "").splitlines()
    for number, line in enumerate(lines):
        text = line.strip()
        if text.startswith("File ") and "/torch/" not in text:
            parts = text.split(", ")
            code = lines[number + 1].strip() if number + 1 < len(lines) else ""
            name = parts[0][5:].strip('"').rsplit("/", 1)[-1]
            best = f"{name}:{parts[1].removeprefix('line ')}: {code}"
    return best
