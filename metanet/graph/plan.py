"""How are the operations of one exported module run for a stack of networks, step by step?"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.export.graph_signature import InputKind

from metanet.errors import GraphError
from metanet.graph.chain import POINTWISE_OPERATIONS, Chain, Mix, chain_of, leaves, run_chain

__all__ = ["Plan", "compile_plan"]

_aten = torch.ops.aten


@dataclass(frozen=True, slots=True)
class Step:
    """One operation: its function, its arguments with :class:`Slot` for values, and which values end with it."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    result: int
    last: tuple[int, ...]
    rank: int  # of the activation, or -1
    axis: int  # that the probes stand on after an activation, or -1


@dataclass(frozen=True, slots=True)
class Slot:
    """A value by its number."""

    number: int


@dataclass(frozen=True, eq=False)
class Plan:
    """The operations of a module for one number of probes, one dtype and one device.

    Args:
        probes: number of probes.
        inputs: shape behind the first axis and, for token ids, the size of the vocabulary, per input.
        tensors: number of a value -> name in the state.
        constants: number of a value -> value.
        steps: the operations in order.
        places: numbers of the values that are inputs; outputs: those that are returned.
        axes: the axis that the probes stand on, per output; -1 where there is none.
        depth: number of activations after which probes may be mixed.
        chain: the layers, where the network is a plain chain.
        fingerprint: hash of operations, arguments and shapes.
        size: number of values.
    """

    probes: int
    inputs: tuple[tuple[tuple[int, ...], int | None], ...]
    tensors: Mapping[int, str]
    constants: Mapping[int, Tensor]
    steps: tuple[Step, ...]
    places: tuple[int, ...]
    outputs: tuple[int, ...]
    axes: tuple[int, ...]
    depth: int
    chain: tuple[Chain, ...]
    fingerprint: str
    size: int

    def run(self, state: Mapping[str, Tensor], inputs: tuple[Tensor, ...], mix: Mix | None) -> tuple[Tensor, ...]:
        """See :meth:`metanet.graph.Program.run`.

        Shapes:
            state: ``(B, ...)``. inputs: ``(probes, ...)``. Returns ``(B, probes, ...)`` per output.
        """
        if self.chain:
            return (run_chain(self.chain, state, inputs[0], mix),)
        names = list(self.tensors.values())

        def one(values: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return self.answer(dict(zip(names, values, strict=True)), inputs, mix)

        answers: tuple[Tensor, ...] = torch.func.vmap(one)(tuple(state[name] for name in names))
        return answers

    def answer(self, state: Mapping[str, Tensor], inputs: tuple[Tensor, ...], mix: Mix | None) -> tuple[Tensor, ...]:
        """The outputs of one network, probes first.

        Shapes:
            inputs: ``(probes, ...)``. Returns ``(probes, ...)`` per output.
        """
        values = self._values(state, inputs, mix)
        return tuple(
            values[number] if axis < 0 else values[number].movedim(axis, 0)
            for number, axis in zip(self.outputs, self.axes, strict=True)
        )

    def _values(
        self, state: Mapping[str, Tensor], inputs: tuple[Tensor, ...], mix: Mix | None, keep: bool = False
    ) -> list[Any]:
        values: list[Any] = [None] * self.size
        for number, value in self.constants.items():
            values[number] = value
        for number, name in self.tensors.items():
            values[number] = state[name]
        for number, value in zip(self.places, inputs, strict=True):
            values[number] = value
        for step in self.steps:
            found = step.function(*_filled(step.args, values), **_filled(step.kwargs, values))
            if mix is not None and step.axis >= 0:
                found = mix(step.rank, found.movedim(step.axis, -1)).movedim(-1, step.axis)
            values[step.result] = found
            for number in () if keep else step.last:
                values[number] = None
        return values


def _filled(arguments: Any, values: list[Any]) -> Any:
    if isinstance(arguments, Slot):
        return values[arguments.number]
    if isinstance(arguments, tuple | list):
        return [_filled(item, values) for item in arguments]
    if isinstance(arguments, dict):
        return {key: _filled(item, values) for key, item in arguments.items()}
    return arguments


def compile_plan(program: torch.export.ExportedProgram, probes: int, device: torch.device) -> Plan:
    """The plan of an exported module whose inputs have ``probes`` examples along the first axis.

    Raises:
        GraphError: where token ids are used for anything but rows of a table.
    """
    numbers = {node: place for place, node in enumerate(program.graph.nodes)}
    tensors: dict[int, str] = {}
    constants: dict[int, Tensor] = {}
    places: list[int] = []
    inputs: list[tuple[tuple[int, ...], int | None]] = []
    words = _vocabularies(program)
    kinds = {getattr(spec.arg, "name", ""): spec for spec in program.graph_signature.input_specs}
    for node in (node for node in program.graph.nodes if node.op == "placeholder"):
        spec = kinds[node.name]
        if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER) and spec.persistent is not False:
            if node.users:
                tensors[numbers[node]] = str(spec.target)
        elif spec.kind in (InputKind.BUFFER, InputKind.CONSTANT_TENSOR):
            constants[numbers[node]] = program.constants[str(spec.target)].detach().to(device)
        elif spec.kind == InputKind.USER_INPUT and isinstance(node.meta.get("val"), Tensor):
            shape, vocabulary = tuple(node.meta["val"].shape[1:]), words.get(node)
            places.append(numbers[node])
            inputs.append((shape if vocabulary is None else (*shape, vocabulary), vocabulary))
    ids = set(words)
    last = {operand: node for node in program.graph.nodes for operand in node.all_input_nodes}
    steps, rank = [], 0
    outputs: tuple[torch.fx.Node, ...] = ()
    for node in program.graph.nodes:
        if node.op == "output":
            outputs = tuple(item for item in leaves(node.args) if isinstance(item, torch.fx.Node))
        if node.op != "call_function":
            continue
        function, args, kwargs = _step(node, ids, device)
        activation = rank if node.target in POINTWISE_OPERATIONS and isinstance(node.meta.get("val"), Tensor) else -1
        rank += activation >= 0
        ended = tuple(numbers[item] for item, user in last.items() if user is node and item not in outputs)
        slots = (_slots(args, numbers), _slots(kwargs, numbers))
        steps.append(Step(function, *slots, numbers[node], ended, activation, -1))
    plan = Plan(
        probes, tuple(inputs), tensors, constants, tuple(steps), tuple(places), tuple(numbers[n] for n in outputs),
        (-1,) * len(outputs), 0, chain_of(program, tensors, numbers) if len(inputs) == 1 else (), "", len(numbers),
    )  # fmt: skip
    return _with_axes(plan, program, device)


def _with_axes(plan: Plan, program: torch.export.ExportedProgram, device: torch.device) -> Plan:
    """Find out on which axis the probes stand: NaN in the last probe spreads over what depends on it, and no further.

    Activations of which this leaves any doubt are not mixed.
    """
    state = {name: program.state_dict[name].detach().to(device) for name in plan.tensors.values()}
    like = next((value.dtype for value in state.values() if value.is_floating_point()), torch.float32)
    inputs = []
    for shape, _ in plan.inputs:
        value = torch.zeros(plan.probes, *shape, dtype=like, device=device)
        value[-1] = float("nan")
        inputs.append(value)
    with torch.no_grad():
        values = plan._values(state, tuple(inputs), None, keep=True)
    steps, depth = [], 0
    for step in plan.steps:
        axis = _axis(values[step.result], plan.probes) if step.rank >= 0 else -1
        steps.append(
            Step(step.function, step.args, step.kwargs, step.result, step.last, depth if axis >= 0 else -1, axis)
        )
        depth += axis >= 0
    axes = tuple(_axis(values[number], plan.probes) for number in plan.outputs)
    chain = plan.chain if depth == sum(layer.activation is not None for layer in plan.chain) else ()
    if any(axis < 0 for axis in axes):
        raise GraphError(
            f"output {axes.index(-1)} of the network has no axis of the examples",
            hint="use a network whose outputs are one per example",
        )
    text = repr([(plan.inputs, sorted(plan.tensors.items()), plan.outputs)])
    text += repr([(_called(step.function), step.args, sorted(step.kwargs.items(), key=str)) for step in plan.steps])
    text += repr([(number, tuple(value.shape)) for number, value in plan.constants.items()])
    digest = hashlib.sha256(text.encode()).hexdigest()[:32]
    return Plan(
        plan.probes, plan.inputs, plan.tensors, plan.constants, tuple(steps), plan.places, plan.outputs, axes, depth,
        chain, digest, plan.size,
    )  # fmt: skip


def _called(function: Callable[..., Any]) -> str:
    """A name without a place in memory."""
    return str(function) if isinstance(function, torch._ops.OpOverload) else str(getattr(function, "__name__", ""))


def _axis(value: Any, probes: int) -> int:
    """The one axis along which only the last entry is NaN, or -1."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return -1
    spoilt = value.isnan()
    if not bool(spoilt.any()):
        return -1
    found = [
        axis
        for axis, size in enumerate(value.shape)
        if size == probes and not bool(spoilt.narrow(axis, 0, probes - 1).any())
    ]
    return found[0] if len(found) == 1 else -1


def _step(
    node: torch.fx.Node, ids: set[torch.fx.Node], device: torch.device
) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
    kwargs: dict[str, Any] = {str(key): device if key == "device" else value for key, value in node.kwargs.items()}
    if node.target is _aten.embedding.default and node.args[1] in ids:
        return _rows, (node.args[0], node.args[1]), {}
    # Torch has no batching rule for its own operator and would loop over networks.
    target: Any = _batch_norm if node.target is _aten._native_batch_norm_legit_no_training.default else node.target
    return target, tuple(node.args), kwargs


def _batch_norm(
    x: Tensor, gain: Tensor | None, offset: Tensor | None, mean: Tensor, variance: Tensor, _: float, eps: float
) -> tuple[Tensor]:
    """Batch norm by running statistics: ``(x - mean) / sqrt(variance + eps) * gain + offset``, channels on axis 1."""
    scale = (variance + eps).rsqrt() * (1.0 if gain is None else gain)
    shift = -mean * scale if offset is None else offset - mean * scale
    shape = (-1, *[1] * (x.ndim - 2))
    return (x * scale.view(shape) + shift.view(shape),)


def _rows(table: Tensor, weights: Tensor) -> Tensor:
    """Rows of a table mixed by weights over the vocabulary; for weights 0 and 1, a look-up."""
    return weights @ table


def _vocabularies(program: torch.export.ExportedProgram) -> dict[torch.fx.Node, int]:
    """The inputs that are token ids, and how many rows the table has that they look up.

    Raises:
        GraphError: for integer inputs that are used in another way.
    """
    found: dict[torch.fx.Node, int] = {}
    kinds = {getattr(spec.arg, "name", ""): spec.kind for spec in program.graph_signature.input_specs}
    for node in program.graph.nodes:
        value = node.meta.get("val")
        if node.op != "placeholder" or kinds[node.name] != InputKind.USER_INPUT or not isinstance(value, Tensor):
            continue
        if value.is_floating_point():
            continue
        for user in node.users:
            if user.target is not _aten.embedding.default or user.args[1] is not node:
                raise GraphError(
                    f"input {node.name!r} holds {value.dtype} and is used by {user.target}",
                    hint="only token ids that go straight into an embedding can be replaced by learned inputs",
                )
            found[node] = int(user.args[0].meta["val"].shape[0])  # type: ignore[union-attr]
        if node not in found:
            raise GraphError(f"input {node.name!r} holds {value.dtype} and is not used")
    return found


def _slots(arguments: Any, numbers: Mapping[torch.fx.Node, int]) -> Any:
    if isinstance(arguments, torch.fx.Node):
        return Slot(numbers[arguments])
    if isinstance(arguments, tuple | list):
        return tuple(_slots(item, numbers) for item in arguments)
    if isinstance(arguments, dict):
        return {key: _slots(item, numbers) for key, item in arguments.items()}
    return arguments
