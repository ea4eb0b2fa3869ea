"""Do made-up inputs move a narrowed network as images would, on its way back to the function of the whole one?

Rounds (:mod:`metanet.morph.batched_refine`) follow the gradient of the divergence on the inputs that they are given.
Where it is that of the images, they end where images would have led. Matching gradients is how training sets are
distilled; here there are no labels, and the path is that of the rounds.

Source: Zhao, Mopuri and Bilen, Dataset condensation with gradient matching, 2021, equation 5.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from metanet.morph.batched import Masked, Stacked
from metanet.morph.batched_refine import descended, may_move
from metanet.morph.batched_refit import narrowed_in_turn

__all__ = ["gradient_gap"]

_DEPTH = 4  # rounds of the longest path
_PRODUCTS, _SEEN = 6, 256  # of a round on the path: conjugate gradients, inputs
_FLOOR = 1e-12

State = Mapping[str, Tensor]


def gradient_gap(
    masked: Masked,
    states: State,
    inputs: Tensor,
    images: Tensor,
    masks: Mapping[str, Tensor],
    ridge: Tensor,
    generator: torch.Generator,
    own: bool = False,
) -> Tensor:
    """How far the gradient on inputs is from that on images, somewhere on the path: the logarithm of a ratio.

    It is the squared distance over the squared size of the gradient on images, of weights in units of their own size
    (the root mean square of each tensor), mean logarithm over the networks.

    Args:
        masked: the architecture.
        states: of the whole networks.
        inputs: that are made up; gradients flow to them.
        images: true ones.
        masks: by space, 1 for units that stay.
        ridge: of the refit with which the path begins.
        generator: draws how far on the path, and the inputs of its rounds.
        own: whether each network has inputs of its own, along a first axis.

    Shapes:
        states (B, ...), inputs (n, ...) or (B, n, ...), images (m, ...), masks (B, units) -> ()
    """
    made = _on_the_path(masked, states, inputs.detach(), masks, float(ridge.detach()), generator, own)
    free = may_move(masked, made, masks)
    names = [name for name, _ in masked.module.named_parameters() if name in made]
    true = _gradient(masked, states, made, names, images, False, create=False)
    told = _gradient(masked, states, made, names, inputs, own, create=True)
    gap = size = torch.zeros(len(next(iter(made.values()))), dtype=inputs.dtype, device=inputs.device)
    for name, one, other in zip(names, true, told, strict=True):
        scale = made[name].flatten(1).square().mean(1).sqrt().clamp_min(1e-3).reshape(-1, *(1,) * (one.ndim - 1))
        scale = scale * free.get(name, torch.ones_like(scale))
        gap = gap + ((one - other) * scale).flatten(1).square().sum(1)
        size = size + (one * scale).flatten(1).square().sum(1)
    return ((gap + _FLOOR) / (size + _FLOOR)).log().mean()


@torch.no_grad()
def _on_the_path(
    masked: Masked,
    states: State,
    inputs: Tensor,
    masks: Mapping[str, Tensor],
    ridge: float,
    generator: torch.Generator,
    own: bool,
) -> dict[str, Tensor]:
    """The narrowed networks after a drawn number of rounds."""
    made = narrowed_in_turn(masked, states, (inputs,), masks, ridge, own=own)
    free = may_move(masked, made, masks)
    axis = 1 if own else 0
    for _ in range(int(torch.randint(_DEPTH + 1, (), generator=generator))):
        drawn = torch.randperm(inputs.shape[axis], generator=generator)[:_SEEN].to(inputs.device)
        some = (inputs.index_select(axis, drawn),)
        target = masked.outputs(states, some, own).log_softmax(-1)
        made = descended(masked, made, target, some, free, 1, _PRODUCTS, own=own)
    return made


def _gradient(
    stacked: Stacked, whole: State, made: State, names: Sequence[str], inputs: Tensor, own: bool, create: bool
) -> tuple[Tensor, ...]:
    """Of KL(whole || narrowed) by the weights of each narrowed network."""
    leaves = {name: made[name].detach().requires_grad_() for name in names}
    target = stacked.outputs(whole, (inputs,), own).log_softmax(-1)
    answers = stacked.outputs({**made, **leaves}, (inputs,), own).log_softmax(-1)
    loss = (target.exp() * (target - answers)).sum(-1).mean(-1).sum()
    return torch.autograd.grad(loss, list(leaves.values()), create_graph=create, materialize_grads=True)
