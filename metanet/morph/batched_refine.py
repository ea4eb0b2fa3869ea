"""How do stacks of narrowed networks come closer to the whole ones, on the inputs that they were refitted on?

Rounds of damped Gauss-Newton on all weights that are left, down KL(whole || narrowed): what is left of a layer moves to
serve what was dropped, which refitting readers alone cannot do. No labels, and no inputs but those that are given; data
or made-up ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from metanet.morph.batched import Masked, Stacked, State

__all__ = ["descended", "may_move", "refined"]

_SIZES = (1.0, 0.5, 0.25, 0.1)
Direction = dict[str, Tensor]


def refined(
    masked: Masked,
    whole: State,
    narrowed: State,
    inputs: Sequence[Tensor],
    masks: Mapping[str, Tensor],
    rounds: int = 8,
    products: int = 12,
    damping: float = 1e-2,
    own: bool = False,
) -> dict[str, Tensor]:
    """The narrowed stacks after some rounds; no network's divergence on the inputs grows.

    Each round solves ``(J^T F J + l I) d = g`` by conjugate gradients, J the derivative of the logits, F the Fisher
    metric of the classes; l is in units of the curvature along the gradient. Of some step sizes each network takes the
    best, or none.

    Source: Martens, Deep learning via Hessian-free optimization, 2010, section 4; the matrix as in Schraudolph, Fast
    curvature matrix-vector products, 2002.

    Args:
        masked: the architecture.
        whole: the networks whose function is kept.
        narrowed: the networks to start from, as :meth:`metanet.morph.batched.Masked.narrowed` makes them.
        inputs: arguments of ``forward``.
        masks: by space, 1 for units that stay.
        rounds: how many.
        products: conjugate gradients per round, at most.
        damping: share of the curvature along the gradient.
        own: whether each network has inputs of its own, along a first axis.

    Shapes:
        states (B, ...), masks (B, units)
    """
    free = may_move(masked, narrowed, masks)
    with torch.no_grad():
        target = masked.outputs(whole, inputs, own).log_softmax(-1)
    return descended(masked, narrowed, target, inputs, free, rounds, products, damping, own)


def descended(
    stacked: Stacked,
    states: State,
    target: Tensor,
    inputs: Sequence[Tensor],
    free: Mapping[str, Tensor],
    rounds: int = 8,
    products: int = 12,
    damping: float = 1e-2,
    own: bool = False,
) -> dict[str, Tensor]:
    """Stacks of networks after some rounds of Gauss-Newton towards given answers; see :func:`refined`.

    Args:
        stacked: the architecture.
        states: the networks to start from.
        target: logarithms of the class probabilities that are wanted.
        inputs: arguments of ``forward``.
        free: by name, 1 where a weight may move; weights without an entry move everywhere.
        rounds: how many.
        products: conjugate gradients per round, at most.
        damping: share of the curvature along the gradient.
        own: whether each network has inputs of its own, along a first axis.

    Shapes:
        states (B, ...), target (B, n, classes)
    """
    names = [name for name, _ in stacked.module.named_parameters() if name in states]
    made = {name: value.detach() for name, value in states.items()}
    for _ in range(rounds):
        step = _step(stacked, made, names, free, inputs, target, products, damping, own)
        with torch.no_grad():
            best = _divergence(target, stacked.outputs(made, inputs, own))
            start, moved = dict(made), torch.zeros(len(best), dtype=torch.bool, device=best.device)
            for size in _SIZES:
                tried = {**start, **{name: start[name] - size * step[name] for name in names}}
                found = _divergence(target, stacked.outputs(tried, inputs, own))
                better = found < best
                best, moved = torch.where(better, found, best), moved | better
                for name in names:
                    made[name] = torch.where(_along(better, made[name]), tried[name], made[name])
        if not bool(moved.any()):
            break
    return made


def _step(
    masked: Stacked,
    made: State,
    names: Sequence[str],
    free: Mapping[str, Tensor],
    inputs: Sequence[Tensor],
    target: Tensor,
    products: int,
    damping: float,
    own: bool,
) -> Direction:
    leaves = {name: made[name].detach().requires_grad_() for name in names}
    with torch.enable_grad():
        logits = masked.outputs({**made, **leaves}, inputs, own)
        # Derivatives by this give products with J, those by the weights products with its transpose.
        along = torch.zeros_like(logits, requires_grad=True)
        back = torch.autograd.grad(logits, list(leaves.values()), along, create_graph=True, materialize_grads=True)
    chance, count = logits.detach().softmax(-1), logits.shape[1]

    def transposed(change: Tensor) -> Direction:
        found = torch.autograd.grad(logits, list(leaves.values()), change, retain_graph=True, materialize_grads=True)
        return {n: value * free[n] if n in free else value for n, value in zip(names, found, strict=True)}

    def curved(direction: Direction) -> Direction:
        (change,) = torch.autograd.grad(back, along, [direction[name] for name in names], retain_graph=True)
        weighed = chance * change
        return transposed((weighed - chance * weighed.sum(-1, keepdim=True)) / count)

    gradient = transposed((chance - target.exp()) / count)
    size = _dot(gradient, gradient)
    level = damping * _dot(gradient, curved(gradient)) / size.clamp_min(1e-30)
    # Conjugate gradients for all networks at once; one that is done stands still.
    solution = {name: torch.zeros_like(value) for name, value in gradient.items()}
    rest, direction = dict(gradient), dict(gradient)
    seen: list[Direction] = []
    for _ in range(products):
        root = size.sqrt().clamp_min(1e-30)
        seen.append({n: value / _wide(root, value) for n, value in rest.items()})
        product = {n: value + _wide(level, value) * direction[n] for n, value in curved(direction).items()}
        length = size / _dot(direction, product).clamp_min(1e-30)
        solution = {n: value + _wide(length, value) * direction[n] for n, value in solution.items()}
        rest = {n: value - _wide(length, value) * product[n] for n, value in rest.items()}
        # Rounding grows from product to product, by many orders, unless residuals are kept at right angles.
        for one in seen:
            share = _dot(rest, one)
            rest = {n: value - _wide(share, value) * one[n] for n, value in rest.items()}
        after = _dot(rest, rest)
        ratio = after / size.clamp_min(1e-30)
        direction = {n: value + _wide(ratio, value) * direction[n] for n, value in rest.items()}
        size = after
    return solution


def may_move(masked: Masked, states: State, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What of each reading may move: nothing is ever read of units that are gone."""
    found: dict[str, Tensor] = {}
    for space, mask in masks.items():
        for reading in masked.readings[space]:
            weight = states[reading.weight]
            each = weight.shape[reading.dim + 1] // mask.shape[1]
            kept = mask.to(weight.dtype).repeat_interleave(each, 1)
            shape = [1] * weight.ndim
            shape[0], shape[reading.dim + 1] = kept.shape
            found[reading.weight] = kept.reshape(shape)
    return found


def _divergence(target: Tensor, logits: Tensor) -> Tensor:
    found = (target.exp() * (target - logits.log_softmax(-1))).sum(-1).mean(-1)
    return torch.where(found.isfinite(), found, torch.inf)


def _dot(one: Direction, two: Direction) -> Tensor:
    return torch.stack([(one[name] * two[name]).flatten(1).sum(1) for name in one]).sum(0)


def _wide(values: Tensor, like: Tensor) -> Tensor:
    return values.reshape(-1, *(1,) * (like.ndim - 1))


def _along(choice: Tensor, like: Tensor) -> Tensor:
    return choice.reshape(-1, *(1,) * (like.ndim - 1))
