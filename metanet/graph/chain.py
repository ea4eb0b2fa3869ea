"""Which networks are one linear layer after another, and how are they run by matrix products alone?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

__all__ = ["POINTWISE_OPERATIONS", "Chain", "Mix", "chain_of", "leaves", "run_chain"]

Mix: TypeAlias = Callable[[int, Tensor], Tensor]

_aten = torch.ops.aten
POINTWISE_OPERATIONS = frozenset({
    _aten.relu.default, _aten.tanh.default, _aten.sin.default, _aten.cos.default, _aten.sigmoid.default,
    _aten.gelu.default, _aten.silu.default, _aten.elu.default, _aten.leaky_relu.default, _aten.hardtanh.default,
    _aten.softplus.default, _aten.abs.default, _aten.hardswish.default, _aten.hardsigmoid.default, _aten.mish.default,
    _aten.selu.default, _aten.celu.default, _aten.relu6.default, _aten.prelu.default, _aten._prelu_kernel.default,
    _aten.log_sigmoid_forward.default,
})  # fmt: skip
"""Activations after which probes may be mixed."""


@dataclass(frozen=True, slots=True)
class Chain:
    """A network that is one linear layer after another, for which matrix products do without ``vmap``.

    Args:
        weight, bias: names in the state; no bias is "".
        factor: constant by which the layer's result is multiplied, as the frequency of a sine.
        activation: applied to it, or ``None``.
    """

    weight: str
    bias: str
    factor: float
    activation: Callable[[Tensor], Tensor] | None


def chain_of(
    program: torch.export.ExportedProgram, tensors: Mapping[int, str], numbers: Mapping[Any, int]
) -> tuple[Chain, ...]:
    """The layers of a plain chain ``x -> W x + b -> times a constant -> activation``, or none for any other network."""
    stored = {node: tensors[number] for node, number in numbers.items() if number in tensors}
    here = next(n for n in program.graph.nodes if n.op == "placeholder" and n not in stored and n.users)
    if here.meta["val"].ndim != 2 or not here.meta["val"].is_floating_point():
        return ()
    layers: list[Chain] = []
    while True:
        users = list(here.users)
        if len(users) != 1:
            return ()
        node, last = users[0], layers[-1] if layers else None
        if node.op == "output":
            return tuple(layers) if len(list(leaves(node.args))) == 1 else ()
        match node.target, node.args:
            case (_aten.addmm.default, (bias, x, moved)) if x is here and bias in stored and not node.kwargs:
                layers.append(Chain(_transposed(moved, stored), stored[bias], 1.0, None))
            case (_aten.mm.default, (x, moved)) if x is here:
                layers.append(Chain(_transposed(moved, stored), "", 1.0, None))
            case (_aten.mul.Tensor | _aten.mul.Scalar, (x, float() | int() as factor)) if (
                x is here and last is not None and last.activation is None
            ):
                layers[-1] = replace(last, factor=last.factor * factor)
            case (function, (x, *rest)) if (
                function in POINTWISE_OPERATIONS
                and x is here
                and last is not None
                and last.activation is None
                and not any(isinstance(item, torch.fx.Node) for item in rest)
            ):
                layers[-1] = replace(last, activation=_activation(function, tuple(rest), dict(node.kwargs)))
            case _:
                return ()
        if not layers or not layers[-1].weight:
            return ()
        here = node


def _transposed(node: Any, stored: Mapping[Any, str]) -> str:
    """The name of the parameter that a node is the transpose of, or ""."""
    if isinstance(node, torch.fx.Node) and node.target is _aten.permute.default and list(node.args[1]) == [1, 0]:  # type: ignore[arg-type]
        return stored.get(node.args[0], "")
    return ""


def _activation(function: Any, rest: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[[Tensor], Tensor]:
    return lambda x: function(x, *rest, **kwargs)


def run_chain(chain: tuple[Chain, ...], state: Mapping[str, Tensor], x: Tensor, mix: Mix | None) -> Tensor:
    """The outputs of a chain, with the probes behind the units: every layer is one product.

    Shapes:
        x: ``(probes, inputs)``. Returns ``(B, probes, outputs)``.
    """
    size = len(state[chain[0].weight])
    h, rank = x.t().expand(size, -1, -1), 0
    for layer in chain:
        if layer.bias:
            bias = state[layer.bias].unsqueeze(-1)
            h = torch.baddbmm(bias, state[layer.weight], h, beta=layer.factor, alpha=layer.factor)
        else:
            h = torch.bmm(state[layer.weight], h) * layer.factor
        if layer.activation is not None:
            h = layer.activation(h)
            if mix is not None:
                h = mix(rank, h)
            rank += 1
    return h.transpose(1, 2)


def leaves(value: Any) -> list[Any]:
    """What stands in nested tuples and lists, in order."""
    return [leaf for item in value for leaf in leaves(item)] if isinstance(value, tuple | list) else [value]
