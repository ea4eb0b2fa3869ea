"""How do messages along all edges of a block cost little more than their matrix products?

One block of a bucket has an edge between every unit of one group and every unit of another. Its message passes through
memory several times (ends, product, activation, two sums, update); here that happens on pieces small enough for a
processor's second-level cache, so that main memory sees each edge feature once in and once out. The backward pass
makes the messages anew, piece by piece, instead of keeping them (Chen et al. 2016, "Training deep nets with sublinear
memory cost"): all that is kept of a block is its input.

Large products in float32 go to oneDNN, which adds in the same pass and uses all vector instructions of any maker's
processors, where torch's default library may not. ``torch.backends.mkldnn.flags(enabled=False)`` keeps it out.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["PIECE_BYTES", "Messages", "edge_messages", "plain_messages", "uses_onednn"]

PIECE_BYTES = 1 << 19
"""Size of the edge features worked on at a time: with their messages they fit a second-level cache of 1 MiB."""


_LEAST = 1 << 21
"""Multiply-adds of a product below which a call of oneDNN costs more than it saves."""


class Messages(NamedTuple):
    """What a round of messages on one block gives.

    Args:
        edges: the edge features after the update, or ``None`` where there is none.
        rows: sum of the messages at every target.
        columns: sum of the messages at every source.
    """

    edges: Tensor | None
    rows: Tensor
    columns: Tensor


def plain_messages(
    edges: Tensor, target: Tensor, source: Tensor, first: Tensor, second: Tensor | None, bias: Tensor | None
) -> Messages:
    """The same as :func:`edge_messages` in the plainest form; every step is differentiable as often as wanted."""
    message = torch.relu(edges @ first.T + target.unsqueeze(2) + source.unsqueeze(1))
    updated = None if second is None or bias is None else edges + message @ second.T + bias
    return Messages(updated, message.sum(2), message.sum(1))


def edge_messages(
    edges: Tensor, target: Tensor, source: Tensor, first: Tensor, second: Tensor | None, bias: Tensor | None
) -> Messages:
    """``m = relu(e A^T + t + s)``; ``e + m D^T + d``, and the sums of ``m`` over sources and over targets.

    Under autocast all of it is in the lower precision, the sums and the gradients of the weights in float32.

    Args:
        edges: features e of the edges of one block.
        target: what every target adds to the messages of its edges, t.
        source: what every source adds, s.
        first: A.
        second: D, or ``None`` for no update.
        bias: d, present where ``second`` is.

    Shapes:
        edges: ``(B, targets, sources, hidden)``. target: ``(B, targets, hidden)``. source: ``(B, sources, hidden)``.
        first, second: ``(hidden, hidden)``. bias: ``(hidden,)``.
    """
    kind = edges.device.type
    if torch.is_autocast_enabled(kind):
        low = torch.get_autocast_dtype(kind)
        edges, target, source, first = (x.to(low) for x in (edges, target, source, first))
        second, bias = (None if x is None else x.to(low) for x in (second, bias))
    with torch.autocast(kind, enabled=False):
        found: tuple[Tensor | None, Tensor, Tensor] = _Messages.apply(
            edges.contiguous(), target, source, first, second, bias
        )
    return Messages(*found)


def _pieces(edges: Tensor) -> Iterator[tuple[slice, slice]]:
    """Networks and targets of each piece: whole networks where they fit, else some targets of one network."""
    batch, targets, sources, hidden = edges.shape
    row = max(sources * hidden * edges.element_size(), 1)
    if row * targets <= PIECE_BYTES:
        step = max(PIECE_BYTES // max(row * targets, 1), 1)
        for start in range(0, batch, step):
            yield slice(start, min(start + step, batch)), slice(0, targets)
        return
    step = max(PIECE_BYTES // row, 1)
    for network in range(batch):
        for start in range(0, targets, step):
            yield slice(network, network + 1), slice(start, min(start + step, targets))


class _Buffer:
    """Memory for one piece, used for all of them."""

    def __init__(self, edges: Tensor) -> None:
        batch, targets, sources, hidden = edges.shape
        network = targets * sources * hidden * edges.element_size()
        if network <= PIECE_BYTES:
            rows = min(batch, PIECE_BYTES // max(network, 1)) * targets * sources
        else:
            rows = min(targets, max(PIECE_BYTES // (sources * hidden * edges.element_size()), 1)) * sources
        self.memory = edges.new_empty(rows, hidden)

    def take(self, like: Tensor) -> Tensor:
        return self.memory[: like.shape[0] * like.shape[1] * like.shape[2]].view(like.shape)


class _Messages(torch.autograd.Function):
    """See :func:`edge_messages`."""

    @staticmethod
    def forward(
        ctx: Any,
        edges: Tensor,
        target: Tensor,
        source: Tensor,
        first: Tensor,
        second: Tensor | None,
        bias: Tensor | None,
    ) -> tuple[Tensor | None, Tensor, Tensor]:
        ctx.save_for_backward(edges, target, source, first, second, bias)
        ctx.set_materialize_grads(False)
        exact = torch.promote_types(edges.dtype, torch.float32)
        updated = None if second is None else torch.empty_like(edges)
        rows = torch.zeros_like(target, dtype=exact, memory_format=torch.contiguous_format)
        columns = torch.zeros_like(source, dtype=exact, memory_format=torch.contiguous_format)
        buffer = _Buffer(edges)
        for networks, targets in _pieces(edges):
            piece = edges[networks, targets]
            message = _message(piece, target[networks, targets], source[networks], first, buffer)
            torch.sum(message, 2, dtype=exact, out=rows[networks, targets])
            columns[networks] += message.sum(1, dtype=exact)
            if updated is None or second is None or bias is None:
                continue
            into = updated[networks, targets]
            if uses_onednn(_flat(message), second):
                into.copy_(_fused(_flat(message), second, bias, _flat(piece)).view(into.shape))
            else:
                _flat(torch.add(piece, bias, out=into)).addmm_(_flat(message), second.T)
        return updated, rows, columns

    @staticmethod
    def backward(  # type: ignore[override]
        ctx: Any, grad_edges: Tensor | None, grad_rows: Tensor | None, grad_columns: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        given = [grad_edges, grad_rows, grad_columns]
        if torch.is_grad_enabled():  # a gradient of the gradient is wanted
            return _again(saved, given, ctx.needs_input_grad)
        edges, target, source, first, second, bias = saved
        exact = torch.promote_types(edges.dtype, torch.float32)
        to_edges = torch.empty_like(edges) if ctx.needs_input_grad[0] else None
        to_target = torch.zeros_like(target, dtype=exact, memory_format=torch.contiguous_format)
        to_source = torch.zeros_like(source, dtype=exact, memory_format=torch.contiguous_format)
        to_first = torch.zeros_like(first, dtype=exact)
        to_second = None if second is None else torch.zeros_like(second, dtype=exact)
        to_bias = None if bias is None else torch.zeros_like(bias, dtype=exact)
        rows = torch.zeros_like(target) if grad_rows is None else grad_rows.to(edges.dtype)
        columns = torch.zeros_like(source) if grad_columns is None else grad_columns.to(edges.dtype)
        if grad_edges is not None:
            grad_edges = grad_edges.contiguous()
        messages, gradients = _Buffer(edges), _Buffer(edges)
        first_turned, second_turned = first.T.contiguous(), None if second is None else second.T.contiguous()
        for networks, targets in _pieces(edges):
            piece = edges[networks, targets]
            message = _message(piece, target[networks, targets], source[networks], first, messages)
            slope = gradients.take(piece)
            torch.add(rows[networks, targets].unsqueeze(2), columns[networks].unsqueeze(1), out=slope)
            after = None if grad_edges is None else grad_edges[networks, targets]
            if after is not None and second_turned is not None and to_second is not None and to_bias is not None:
                slope = _plus(slope, _flat(after), second_turned)
                _accumulate(to_second, _flat(after), _flat(message))
                to_bias += _flat(after).sum(0, dtype=exact)
            torch.ops.aten.threshold_backward.grad_input(slope, message, 0, grad_input=slope)
            _accumulate(to_first, _flat(slope), _flat(piece))
            torch.sum(slope, 2, dtype=exact, out=to_target[networks, targets])
            to_source[networks] += slope.sum(1, dtype=exact)
            if to_edges is not None:
                into = _flat(to_edges[networks, targets])
                if after is None:
                    torch.mm(_flat(slope), first, out=into)
                elif uses_onednn(_flat(slope), first):
                    into.copy_(_fused(_flat(slope), first_turned, None, _flat(after)))
                else:
                    torch.addmm(_flat(after), _flat(slope), first, out=into)
        found = (to_edges, to_target, to_source, to_first, to_second, to_bias)
        return tuple(None if x is None else x.to(edges.dtype) for x in found)


def _flat(x: Tensor) -> Tensor:
    return x.view(-1, x.shape[-1])


def _message(piece: Tensor, target: Tensor, source: Tensor, first: Tensor, buffer: _Buffer) -> Tensor:
    message = buffer.take(piece)
    torch.add(target.unsqueeze(2), source.unsqueeze(1), out=message)
    return _plus(message, _flat(piece), first).relu_()


def _plus(total: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """``total + x W^T``, in the memory of the total or in new one."""
    if uses_onednn(x, weight):
        return _fused(x, weight, None, _flat(total)).view(total.shape)
    _flat(total).addmm_(x, weight.T)
    return total


def uses_onednn(x: Tensor, weight: Tensor) -> bool:
    """Whether a product ``x W^T`` goes to oneDNN: where that is there and faster."""
    return (
        x.dtype == torch.float32
        and x.device.type == "cpu"
        and x.shape[0] * weight.numel() >= _LEAST
        and _ONEDNN
        and bool(torch.backends.mkldnn.enabled)
    )


def _fused(x: Tensor, weight: Tensor, bias: Tensor | None, plus: Tensor) -> Tensor:
    """``plus + x W^T + b`` in new memory, by oneDNN."""
    found: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, plus, weight, bias, "add")
    return found


_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _accumulate(total: Tensor, left: Tensor, right: Tensor) -> None:
    """``total += left^T right``, in the precision of the total."""
    if total.dtype == left.dtype:
        total.addmm_(left.T, right)
    else:
        total += left.T @ right


def _again(
    saved: tuple[Tensor | None, ...], given: list[Tensor | None], needed: tuple[bool, ...]
) -> tuple[Tensor | None, ...]:
    edges, target, source, first, second, bias = saved
    if edges is None or target is None or source is None or first is None:
        return (None,) * len(saved)
    outputs = plain_messages(edges, target, source, first, second, bias)
    pairs = [(out, grad) for out, grad in zip(outputs, given, strict=True) if out is not None and grad is not None]
    wanted = [x for x, need in zip(saved, needed, strict=True) if need and x is not None]
    found = iter(
        torch.autograd.grad(
            [out for out, _ in pairs], wanted, [grad for _, grad in pairs], create_graph=True, allow_unused=True
        )
    )
    return tuple(next(found) if need and x is not None else None for x, need in zip(saved, needed, strict=True))
