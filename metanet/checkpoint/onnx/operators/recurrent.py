"""LSTM, GRU and RNN as loops over time: one product for all inputs at once, one for the state at each step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from metanet.checkpoint.onnx.proto import Node
from metanet.checkpoint.onnx.registry import operator
from metanet.errors import CheckpointError

Pointwise = Callable[[Tensor], Tensor]
ACTIVATIONS: dict[str, Callable[..., Tensor]] = {
    "Sigmoid": torch.sigmoid,
    "Tanh": torch.tanh,
    "Relu": torch.relu,
    "Affine": lambda x, alpha=1.0, beta=0.0: alpha * x + beta,
    "LeakyRelu": lambda x, alpha=0.01: functional.leaky_relu(x, alpha),
    "ThresholdedRelu": lambda x, alpha=1.0: torch.where(x > alpha, x, torch.zeros_like(x)),
    "ScaledTanh": lambda x, alpha=1.0, beta=1.0: alpha * torch.tanh(beta * x),
    "HardSigmoid": lambda x, alpha=0.2, beta=0.5: (alpha * x + beta).clamp(0, 1),
    "Elu": lambda x, alpha=1.0: functional.elu(x, alpha),
    "Softsign": functional.softsign,
    "Softplus": functional.softplus,
}
# How many of alpha and beta each takes from the node's lists.
TAKES = {"Affine": 2, "LeakyRelu": 1, "ThresholdedRelu": 1, "ScaledTanh": 2, "HardSigmoid": 2, "Elu": 1}


def _activations(node: Node, defaults: tuple[str, ...], directions: int) -> list[list[Pointwise]]:
    """For each direction its functions, with alpha and beta bound."""
    names = [name.decode() for name in node.attributes.get("activations") or []] or list(defaults) * directions
    alphas = list(node.attributes.get("activation_alpha") or [])
    betas = list(node.attributes.get("activation_beta") or [])
    found: list[Pointwise] = []
    for name in names:
        known = next((key for key in ACTIVATIONS if key.lower() == name.lower()), None)
        if known is None:
            raise CheckpointError(
                f"{node} has the activation '{name[:40]}'", hint="known are " + ", ".join(ACTIVATIONS)
            )
        bound: dict[str, float] = {}
        if TAKES.get(known, 0) >= 1 and alphas:
            bound["alpha"] = alphas.pop(0)
        if TAKES.get(known, 0) >= 2 and betas:
            bound["beta"] = betas.pop(0)
        found.append(lambda x, function=ACTIVATIONS[known], bound=bound: function(x, **bound))  # type: ignore[misc]
    count = len(defaults)
    return [found[i * count : (i + 1) * count] for i in range(directions)]


def _lengths(run: Any, node: Node, given: Any, time: int, batch: int) -> Tensor | None:
    if given is None:
        return None
    if isinstance(given, np.ndarray):
        return None if (given == time).all() else torch.tensor(given).to(torch.int64)
    lengths: Tensor = given.to(torch.int64)
    return lengths


class _Cell:
    """What one direction of one kind of recurrent operator does at each step."""

    gates: int
    defaults: tuple[str, ...]

    def __init__(
        self,
        node: Node,
        hidden: int,
        weight: Tensor,
        recurrent: Tensor,
        bias: Tensor | None,
        functions: list[Pointwise],
    ) -> None:
        self.node, self.hidden, self.functions = node, hidden, functions
        self.weight, self.recurrent = weight, recurrent
        self.input_bias = None if bias is None else bias[: self.gates * hidden]
        self.state_bias = None if bias is None else bias[self.gates * hidden :]

    def inputs(self, x: Tensor) -> Tensor:
        """All steps at once: (time, batch, gates * hidden)."""
        return functional.linear(x, self.weight, self.input_bias)

    def step(self, x: Tensor, states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        raise NotImplementedError


class _Rnn(_Cell):
    gates = 1
    defaults = ("Tanh",)

    def step(self, x: Tensor, states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (self.functions[0](x + functional.linear(states[0], self.recurrent, self.state_bias)),)


class _Lstm(_Cell):
    gates = 4
    defaults = ("Sigmoid", "Tanh", "Tanh")
    peephole: Tensor | None = None

    def step(self, x: Tensor, states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        h, c = states
        f, g, after = self.functions
        i, o, forget, candidate = torch.chunk(x + functional.linear(h, self.recurrent, self.state_bias), 4, -1)
        if self.peephole is not None:
            to_i, to_o, to_f = torch.chunk(self.peephole, 3, -1)
            i, forget = i + to_i * c, forget + to_f * c
            c = f(forget) * c + f(i) * g(candidate)
            o = o + to_o * c
        else:
            c = f(forget) * c + f(i) * g(candidate)
        return f(o) * after(c), c


class _Gru(_Cell):
    gates = 3
    defaults = ("Sigmoid", "Tanh")

    def step(self, x: Tensor, states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        (h,) = states
        f, g = self.functions
        x_z, x_r, x_h = torch.chunk(x, 3, -1)
        if self.node.attributes.get("linear_before_reset", 0):
            h_z, h_r, h_h = torch.chunk(functional.linear(h, self.recurrent, self.state_bias), 3, -1)
            z, r = f(x_z + h_z), f(x_r + h_r)
            candidate = g(x_h + r * h_h)
        else:
            n = self.hidden
            bias = self.state_bias
            gates = functional.linear(h, self.recurrent[: 2 * n], None if bias is None else bias[: 2 * n])
            h_z, h_r = torch.chunk(gates, 2, -1)
            z, r = f(x_z + h_z), f(x_r + h_r)
            candidate = g(
                x_h + functional.linear(r * h, self.recurrent[2 * n :], None if bias is None else bias[2 * n :])
            )
        return ((1 - z) * candidate + z * h,)


def _unsupported(node: Node) -> None:
    if node.attributes.get("clip") or node.attributes.get("input_forget"):
        raise CheckpointError(
            f"{node} clips its state or couples its gates", hint="export it without clip and input_forget"
        )


def _run(
    run: Any, node: Node, kind: type[_Cell], x: Tensor, w: Tensor, r: Tensor, b: Tensor | None, lengths: Any,
    starts: list[Tensor | None], peephole: Tensor | None = None,
) -> tuple[Tensor, ...]:  # fmt: skip
    _unsupported(node)
    batchwise = bool(node.attributes.get("layout", 0))
    if batchwise:
        x = x.transpose(0, 1)
        starts = [None if s is None else s.transpose(0, 1) for s in starts]
    time, batch = x.shape[0], x.shape[1]
    hidden = r.shape[-1]
    directions = w.shape[0]
    for start in starts:
        if start is not None and tuple(start.shape) != (directions, batch, hidden):
            raise CheckpointError(
                f"{node} starts from a state of shape {list(start.shape)}, expected {[directions, batch, hidden]}",
                hint="give inputs of the shapes that the model expects",
            )
    functions = _activations(node, kind.defaults, directions)
    limit = _lengths(run, node, lengths, time, batch)
    backward = [node.attributes.get("direction", b"forward") == b"reverse", True]
    outputs, finals = [], []
    for d in range(directions):
        cell = kind(node, hidden, w[d], r[d], None if b is None else b[d], functions[d])
        if isinstance(cell, _Lstm) and peephole is not None:
            cell.peephole = peephole[d]
        states = tuple(x.new_zeros(batch, hidden) if start is None else start[d] for start in starts)
        steps = cell.inputs(x)
        order = list(range(time))[:: -1 if backward[d] else 1]
        found: list[Tensor] = [states[0]] * time
        for t in order:
            new = cell.step(steps[t], states)
            if limit is not None:
                # Beyond its length a sequence keeps its state and gives zeros.
                inside = (t < limit)[:, None]
                new = tuple(torch.where(inside, a, s) for a, s in zip(new, states, strict=True))
                found[t] = torch.where(inside, new[0], torch.zeros_like(new[0]))
            else:
                found[t] = new[0]
            states = new
        outputs.append(torch.stack(found))
        finals.append(states)
    y = torch.stack(outputs, 1)
    last = tuple(torch.stack([states[i] for states in finals]) for i in range(len(starts)))
    if batchwise:
        return (y.permute(2, 0, 1, 3), *(value.transpose(0, 1) for value in last))
    return (y, *last)


@operator("LSTM", static=(4,))
def lstm(
    run: Any, node: Node, x: Tensor, w: Tensor, r: Tensor, b: Tensor | None = None, lengths: Any = None,
    h: Tensor | None = None, c: Tensor | None = None, p: Tensor | None = None,
) -> tuple[Tensor, ...]:  # fmt: skip
    return _run(run, node, _Lstm, x, w, r, b, lengths, [h, c], p)


@operator("GRU", static=(4,))
def gru(
    run: Any, node: Node, x: Tensor, w: Tensor, r: Tensor, b: Tensor | None = None, lengths: Any = None,
    h: Tensor | None = None,
) -> tuple[Tensor, ...]:  # fmt: skip
    return _run(run, node, _Gru, x, w, r, b, lengths, [h])


@operator("RNN", static=(4,))
def rnn(
    run: Any, node: Node, x: Tensor, w: Tensor, r: Tensor, b: Tensor | None = None, lengths: Any = None,
    h: Tensor | None = None,
) -> tuple[Tensor, ...]:  # fmt: skip
    return _run(run, node, _Rnn, x, w, r, b, lengths, [h])
