"""An ONNX graph as a torch module: an interpreter that walks the nodes and looks each operator up in a table.

Nothing is generated and nothing of the file is run: nodes are data. Parameters are registered under the names of their
initialisers, so ``state_dict``, ``torch.func.functional_call``, ``torch.export`` and ``symmetry.trace`` work as on any
module. Shapes, axes and what is computed from them stay NumPy arrays, outside of torch.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from metanet.checkpoint.onnx.plan import PARAMETER, Constant, Plan
from metanet.checkpoint.onnx.proto import Function, Graph, Input, Node, Reference
from metanet.checkpoint.onnx.registry import Rule, rule_for
from metanet.checkpoint.onnx.static import STATIC
from metanet.checkpoint.onnx.tensors import DTYPES
from metanet.errors import CheckpointError, clean

__all__ = ["OnnxModule", "runtime_inputs", "unknown_operator"]

# Above this, what a graph fills with one number is a tensor; below, it may be a shape.
MAX_STATIC = 1 << 12
# What a few numbers in a file may blow up to: eight gigabytes in float32.
MAX_ELEMENTS = 1 << 31
# Loops inside loops could keep a small file busy for ever.
MAX_STEPS = 5_000_000
MAX_CALLS = 64
_FAILURES = (
    RuntimeError, LookupError, ValueError, TypeError, AttributeError, ArithmeticError, MemoryError, AssertionError,
)  # fmt: skip


def runtime_inputs(graph: Graph) -> list[Input]:
    """The inputs that a caller gives: those that are no initialisers."""
    return [value for value in graph.inputs if value.name not in graph.initializers]


def unknown_operator(node: Node) -> CheckpointError:
    """What to say of an operator without a rule."""
    return CheckpointError(
        f"the ONNX operator {node} has no rule here, so the graph cannot be run",
        hint="export the model with standard operators (a lower opset, no contributed domains), or name a Python "
        "factory with factory=",
    )


class _Scope:
    """The values of one graph while it runs, inside those of the graph around it."""

    __slots__ = ("attributes", "constants", "parent", "values")

    def __init__(
        self,
        values: dict[str, Any],
        constants: Mapping[str, Constant],
        parent: _Scope | None,
        attributes: Mapping[str, Any],
    ) -> None:
        self.values, self.constants, self.parent = values, constants, parent
        # Those of the call, inside a function that the file defines.
        self.attributes = attributes


class Run:
    """One pass through the graph: what the rules ask for."""

    def __init__(self, module: OnnxModule) -> None:
        self.module = module
        self.plan = module.plan
        self.opset = module.plan.model.opsets.get("", 1)
        self.scope: _Scope | None = None
        self.steps = self.depth = 0
        # Somebody may have called `.double()`: then float in the file means double now.
        self.now: dict[torch.dtype, torch.dtype] = {}
        for constant in self.plan.stored:
            if constant.dtype.is_floating_point:
                self.now.setdefault(constant.dtype, module.tensor(constant).dtype)

    def file_dtype(self, kind: int, node: Node) -> torch.dtype:
        """The torch type of a type number in the file."""
        if kind not in DTYPES:
            raise CheckpointError(f"{node} asks for element type {kind}", hint="export it with numbers of 8 to 64 bits")
        return DTYPES[kind]

    def dtype(self, kind: int, node: Node) -> torch.dtype:
        """The same, or what the module was converted to since."""
        found = self.file_dtype(kind, node)
        return self.now.get(found, found)

    def as_tensor(self, value: Any) -> Tensor:
        """A value as a tensor; known floats take the type that the module has now."""
        if isinstance(value, Tensor):
            return value
        made = torch.tensor(value)
        return made.to(self.now.get(made.dtype, made.dtype)) if made.is_floating_point() else made

    def wanted(self, value: Any, node: Node) -> np.ndarray[Any, Any]:
        """A value as known numbers."""
        if isinstance(value, np.ndarray):
            return value
        if type(value) not in (Tensor, nn.Parameter):
            # A tensor without values: torch is tracing.
            raise CheckpointError(
                f"{node} takes a shape or axis that depends on the input's values",
                hint="export the model with fixed sizes",
            )
        return np.asarray(value.detach().cpu().numpy())

    def number(self, value: Any, node: Node) -> int | float:
        """A value as one number."""
        found: int | float = self.wanted(value, node).reshape(-1)[0].item()
        return found

    def truth(self, value: Any, node: Node) -> bool:
        """A value as a condition; a tensor decides while running, and cannot while exporting."""
        return bool(value.reshape(-1)[0]) if isinstance(value, Tensor) else bool(np.asarray(value).reshape(-1)[0])

    def attribute_tensor(self, node: Node, name: str) -> np.ndarray[Any, Any] | None:
        """A tensor among a node's attributes, as known numbers."""
        return node.attributes.get(name)

    def check_size(self, sizes: Sequence[int], node: Node) -> None:
        """Refuse what a few numbers in a file would blow up beyond any honest size."""
        if min(sizes, default=0) < 0 or math.prod(sizes) > MAX_ELEMENTS:
            raise CheckpointError(
                f"{node} makes a tensor of shape {clean(list(sizes), 60)}", hint="do not trust the file"
            )

    def static_full(self, sizes: tuple[int, ...], value: np.ndarray[Any, Any], node: Node) -> Any:
        """One number in every place."""
        self.check_size(sizes, node)
        if math.prod(sizes) <= MAX_STATIC:
            return np.full(sizes, value.reshape(-1)[0], value.dtype)
        number = value.reshape(-1)[0]
        return torch.full(sizes, number.item(), dtype=self.as_tensor(number).dtype)

    def static_range(self, start: Any, limit: Any, step: Any, kind: Any, node: Node) -> Any:
        """Numbers in equal steps."""
        count = max(math.ceil((limit - start) / step), 0) if step else 0
        self.check_size([count], node)
        return (start + step * np.arange(count)).astype(kind)

    def static_cast(self, x: np.ndarray[Any, Any], kind: torch.dtype) -> Any:
        """Known numbers in another type; one that NumPy does not have stays float32."""
        name = str(kind).removeprefix("torch.")
        return x.astype(name if hasattr(np, name) or name == "bool" else np.float32)

    def graph_of(self, node: Node, name: str) -> Graph:
        """A graph among a node's attributes."""
        found = node.attributes.get(name)
        if not isinstance(found, Graph):
            raise CheckpointError(f"{node} has no graph '{name}'", hint="export the model again")
        return found

    def subgraph(self, node: Node, name: str, given: dict[str, Any]) -> list[Any]:
        """Run a graph among a node's attributes; it sees the values around it."""
        return self.graph(self.graph_of(node, name), given)

    def graph(self, graph: Graph, given: dict[str, Any]) -> list[Any]:
        """Run a graph."""
        around = self.scope
        attributes = {} if around is None else around.attributes
        self.scope = _Scope(dict(given), self.plan.constants_of(graph), around, attributes)
        try:
            for node in graph.nodes:
                self.node(node, self.scope)
            return [self.value(output.name, "the outputs") for output in graph.outputs]
        finally:
            self.scope = around

    def function(self, node: Node, function: Function, inputs: list[Any]) -> Any:
        """Run an operator that the file defines itself: a graph that sees nothing but its inputs and attributes."""
        around = self.scope
        self.depth += 1
        if self.depth > MAX_CALLS:
            raise CheckpointError(f"{node} calls itself", hint="export the model with functions inlined")
        given = dict.fromkeys((value.name for value in function.graph.inputs), None)
        given.update(zip(given, inputs, strict=False))
        self.scope = _Scope({}, {}, None, {**function.defaults, **node.attributes})
        try:
            return tuple(self.graph(function.graph, given))
        finally:
            self.scope = around
            self.depth -= 1

    def value(self, name: str, where: object) -> Any:
        """The value of a name, here or around."""
        scope = self.scope
        while scope is not None:
            if name in scope.values:
                return scope.values[name]
            if name in scope.constants:
                constant = scope.constants[name]
                return self.module.tensor(constant) if constant.path else constant.value
            scope = scope.parent
        raise CheckpointError(f"{where} read '{clean(name, 80)}', which nothing gives", hint="export the model again")

    def node(self, node: Node, scope: _Scope) -> None:
        """Run one node and keep what it gives."""
        self.steps += 1
        if self.steps > MAX_STEPS:
            raise CheckpointError(f"its loops take more than {MAX_STEPS} steps", hint="give shorter inputs")
        function = self.plan.model.functions.get((node.domain, node.operator))
        rule = rule_for(node.domain, node.operator)
        if rule is None and function is None:
            raise unknown_operator(node)
        if any(isinstance(value, Reference) for value in node.attributes.values()):
            node = replace(node, attributes=_resolved(node, scope.attributes))
        inputs = [self.value(name, node) if name else None for name in node.inputs]
        while inputs and inputs[-1] is None:
            inputs.pop()
        try:
            if rule is None or function is not None:
                result = self.function(node, function, inputs) if function else None
            else:
                result = self.apply(node, rule, inputs)
        except CheckpointError:
            raise
        except _FAILURES as error:
            if torch.compiler.is_compiling() or torch.compiler.is_exporting():
                raise
            shapes = ", ".join(str(list(getattr(value, "shape", []))) for value in inputs)
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise CheckpointError(
                f"{node} failed on inputs of shape {clean(shapes, 120)}: {clean(reason, 160)}",
                hint="give inputs of the shapes that the model expects",
            ) from error
        results = result if isinstance(result, tuple) else (result,)
        for name, value in zip(node.outputs, results, strict=False):
            if name:
                scope.values[name] = value

    def apply(self, node: Node, rule: Rule, inputs: list[Any]) -> Any:
        known = all(value is None or isinstance(value, np.ndarray) for value in inputs)
        if known and inputs and node.operator in STATIC:
            result = STATIC[node.operator](self, node, *inputs)
            if result is not None:
                return result
        if rule.either:
            return rule.function(self, node, *inputs)
        given: list[Any] = []
        widest = max((value.ndim for value in inputs if isinstance(value, Tensor)), default=-1)
        for i, value in enumerate(inputs):
            if value is None or isinstance(value, list):
                given.append(value)
            elif i in rule.static:
                given.append(self.wanted(value, node))
            elif isinstance(value, np.ndarray):
                # A bare number leaves the graph simpler than a tensor of one element.
                bare = rule.pointwise and value.size == 1 and value.ndim <= widest and value.dtype.kind in "fiu"
                given.append(value.item() if bare else self.as_tensor(value))
            else:
                given.append(value)
        return rule.function(self, node, *given)


def _resolved(node: Node, given: Mapping[str, Any]) -> dict[str, Any]:
    """A node's attributes with those of the call in place of references; what the call leaves out is left out."""
    pairs = ((k, given.get(v.name) if isinstance(v, Reference) else v) for k, v in node.attributes.items())
    return {key: value for key, value in pairs if value is not None}


class _Folder(nn.Module):
    """Holds parameters whose names have dots."""


class OnnxModule(nn.Module):
    """The network in an ONNX file.

    Args:
        plan: the graph, with its constants sorted out.
        fixed: inputs that are given once and for all, such as a sampling rate that chooses a branch.
        seed: of the initial parameters; load the file's own with ``load_state_dict``.

    Shapes:
        as the file says for its inputs and outputs, see :attr:`input_names`; one output is returned bare.
    """

    def __init__(self, plan: Plan, fixed: Mapping[str, np.ndarray[Any, Any]], seed: int = 0) -> None:
        super().__init__()
        self.plan, self.fixed = plan, dict(fixed)
        generator = torch.Generator().manual_seed(seed)
        for constant in plan.stored:
            owner = nn.Module.get_submodule(self, "")
            for part in constant.path[:-1]:
                if part not in owner._modules:
                    owner.add_module(part, _Folder())
                owner = owner.get_submodule(part)
            value = _initial(constant, generator)
            if constant.role == PARAMETER:
                owner.register_parameter(constant.path[-1], nn.Parameter(value, value.is_floating_point()))
            else:
                owner.register_buffer(constant.path[-1], value)

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of the inputs of ``forward``, in order."""
        return tuple(value.name for value in runtime_inputs(self.plan.model.graph) if value.name not in self.fixed)

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the outputs."""
        return tuple(value.name for value in self.plan.model.graph.outputs)

    def tensor(self, constant: Constant) -> Tensor:
        """The parameter or buffer of a constant."""
        found: Tensor = functools.reduce(getattr, constant.path, cast(Any, self))
        return found

    def forward(self, *inputs: Any) -> Any:
        """Run the graph.

        Args:
            inputs: one for each of :attr:`input_names`.
        """
        names = self.input_names
        if len(inputs) != len(names):
            raise CheckpointError(
                f"{len(inputs)} inputs, expected {len(names)}: {clean(', '.join(names), 120)}",
                hint="give them in this order",
            )
        run = Run(self)
        results = run.graph(self.plan.model.graph, {**self.fixed, **dict(zip(names, inputs, strict=True))})
        outputs = tuple(value if isinstance(value, list) else run.as_tensor(value) for value in results)
        return outputs[0] if len(outputs) == 1 else outputs

    def extra_repr(self) -> str:
        return f"{len(self.plan.model.graph.nodes)} nodes, inputs {', '.join(self.input_names)}"


def _initial(constant: Constant, generator: torch.Generator) -> Tensor:
    shape = constant.shape
    if not constant.dtype.is_floating_point:
        return torch.zeros(shape, dtype=constant.dtype)
    if constant.role != PARAMETER:
        return torch.ones(shape, dtype=constant.dtype)
    scale = max(math.prod(shape[1:]), 1) ** -0.5
    return (scale * torch.randn(shape, generator=generator)).to(constant.dtype)
