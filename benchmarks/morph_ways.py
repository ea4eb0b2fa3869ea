"""By which ways does `morph.py` narrow networks? Each is a function of a stack of networks and what it may look at.

A way looks once and answers with a function of the share of units that stays and of the ridge, so that what it saw is
used for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from morph_merging import merged
from morph_subjects import CHUNK, Images, State, Subject
from torch import Tensor
from torch.nn.functional import cross_entropy

from metanet.morph import importance
from metanet.morph.batched_refine import refined
from metanet.morph.batched_refit import input_moments, masked_only, narrowed_in_turn
from metanet.morph.orders import kept_of, obs_orders, reader_grams
from metanet.score import InputDescription

MADE_UP = 4096  # a quarter of it where each position of a map is a sample
TAYLOR_BATCHES, TAYLOR_BATCH = 32, 32
ORACLE_IMAGES = 256
IN_TURN_IMAGES = 4096
REFINED_INPUTS = 1024  # the most that rounds look at
AT_ONCE = 10  # networks whose derivatives are held at once

Moments = Mapping[str, tuple[Tensor, Tensor]]
Edit = Callable[[float, float], State]  # share of the units that stays, ridge


@dataclass(frozen=True)
class Noise:
    """What made-up inputs look like.

    Args:
        exponent: of smooth noise; see :class:`metanet.score.InputDescription`.
        clipped: whether they are clipped to the range of images.
    """

    exponent: float = 1.0
    clipped: bool = False


Way = Callable[[Subject, Images, torch.Generator], Edit]


@dataclass(frozen=True)
class Choice:
    """A way in its variants, of which one is chosen on networks and images for validation.

    Args:
        ways: the variants, by what tells them apart.
        ridges: of the least squares, in units of each unit's variance; one of them is chosen too.
    """

    ways: Mapping[str, Way]
    ridges: Sequence[float] = (1e-5, 1e-4, 1e-3, 1e-2, 3e-2, 1e-1, 3e-1)


def fixed(way: Way) -> Choice:
    """Nothing to choose."""
    return Choice({"": way}, (0.0,))


def masks_of(subject: Subject, orders: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """What stays if units are dropped in an order. Shapes: orders (networks, units) -> the same, by space."""
    keeps = subject.keeps(share)
    return {space: kept_of(order, order.shape[1], keeps[space]) for space, order in orders.items()}


def doubled(states: State) -> State:
    """In float64, where least squares are solved."""
    return {name: value.double() if value.is_floating_point() else value for name, value in states.items()}


def single(states: Mapping[str, Tensor]) -> State:
    """In float32, in which networks are measured."""
    return {name: value.float() if value.is_floating_point() else value for name, value in states.items()}


def by_moments(subject: Subject, moments: Moments) -> Edit:
    """Optimal brain surgeon and ridge least squares from what the weights are said to read.

    Shapes:
        moments (networks, units) and (networks, units, units) by weight
    """
    given = {name: (mean.double(), covariance.double()) for name, (mean, covariance) in moments.items()}

    def edit(share: float, ridge: float) -> State:
        masks = masks_of(subject, surgeon_orders(subject, given, ridge), share)
        return single(subject.masked.narrowed(doubled(subject.states), given, masks, ridge))

    return edit


def by_inputs(subject: Subject, inputs: Tensor, own: bool = False) -> Edit:
    """The same from inputs that the networks are run on.

    Shapes:
        inputs (n, ...), or with inputs of each network's own (networks, n, ...)
    """
    with torch.no_grad():
        return by_moments(subject, input_moments(subject.masked, subject.states, (inputs,), CHUNK, own))


def surgeon_orders(subject: Subject, moments: Moments, ridge: float) -> dict[str, Tensor]:
    """By space, which unit goes first. Shapes: -> (networks, units)."""
    found = {}
    for space, readings in subject.masked.readings.items():
        seen = []
        for reading in readings:
            mean, covariance = moments[reading.weight]
            # Where no bias takes a constant, a mean is lost with its unit.
            seen.append(covariance if reading.bias else covariance + mean.unsqueeze(2) * mean.unsqueeze(1))
        covariance = torch.stack(seen).mean(0)
        found[space] = obs_orders(covariance, reader_grams(subject.states, readings, covariance.shape[-1]), ridge=ridge)
    return found


def by_rounds(subject: Subject, inputs: Tensor, rounds: int, own: bool = False, seen: Tensor | None = None) -> Edit:
    """Refitted in turn, and then all that is left moves, down the KL on the same inputs, or on others that are given.

    Shapes:
        inputs and seen (n, ...), or with inputs of each network's own (networks, n, ...)
    """
    looked = inputs if seen is None else seen
    with torch.no_grad():
        moments = input_moments(subject.masked, subject.states, (inputs,), CHUNK, own)

    def edit(share: float, ridge: float) -> State:
        masks = masks_of(subject, surgeon_orders(subject, moments, ridge), share)
        parts = []
        for rows in torch.arange(subject.count).split(AT_ONCE):
            whole = {name: value[rows] for name, value in subject.states.items()}
            mine = {space: mask[rows] for space, mask in masks.items()}
            fitted, shown = ((each[rows] if own else each,) for each in (inputs, looked))
            with torch.no_grad():
                made = narrowed_in_turn(subject.masked, whole, fitted, mine, ridge, CHUNK, own)
            parts.append(refined(subject.masked, whole, made, shown, mine, rounds, own=own))
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    return edit


def _many(subject: Subject, count: int) -> int:
    return count // 4 if subject.architecture.family == "cnn" else count


# --- without data ---------------------------------------------------------------------------------------------------


def _plain(subject: Subject, orders: Mapping[str, Tensor]) -> Edit:
    return lambda share, ridge: masked_only(subject.masked, subject.states, masks_of(subject, orders, share))


def random(subject: Subject, images: Images, generator: torch.Generator) -> Edit:
    """Units drawn by lot; nothing makes up for them."""
    sizes = {space: subject.spec.sizes[space] for space in subject.masked.spaces}
    drawn = {s: torch.rand(subject.count, n, generator=generator).argsort(1) for s, n in sizes.items()}
    return _plain(subject, drawn)


def magnitude(criterion: str) -> Way:
    """The units whose weights are smallest go; see :func:`metanet.morph.importance`. Nothing makes up for them."""

    def way(subject: Subject, images: Images, generator: torch.Generator) -> Edit:
        orders = {}
        for space in subject.masked.spaces:
            scores = [
                importance(subject.spec, {n: v[k] for n, v in subject.states.items()}, space, criterion)
                for k in range(subject.count)
            ]
            orders[space] = torch.stack(scores).argsort(1)
        return _plain(subject, orders)

    return way


def merging(subject: Subject, images: Images, generator: torch.Generator) -> Edit:
    """Units nearest to others in their weights go, and the others take over what was read of them."""
    return lambda share, ridge: merged(subject, subject.keeps(share))


def made_up(kind: str, noise: Noise, rounds: int = 0) -> Way:
    """Least squares on noise, smooth or white, with the mean and variance that images were scaled to; then rounds."""

    def way(subject: Subject, images: Images, generator: torch.Generator) -> Edit:
        low, high = (images.low, images.high) if noise.clipped else (None, None)
        shape = tuple(images.fit.shape[1:])
        description = InputDescription(shape, kind, low, high, exponent=noise.exponent)
        if rounds:
            return by_rounds(subject, subject.shaped(description.draw(REFINED_INPUTS, generator)), rounds)
        return by_inputs(subject, subject.shaped(description.draw(_many(subject, MADE_UP), generator)))

    return way


# --- with data ------------------------------------------------------------------------------------------------------


def taylor(subject: Subject, images: Images, generator: torch.Generator) -> Edit:
    """The units whose gates the loss depends on least go; nothing makes up for them.

    Source: Molchanov et al., Importance Estimation for Neural Network Pruning, 2019, equation 8: squared gradients of
    gates, mean over batches.
    """
    readings = [reading for found in subject.masked.readings.values() for reading in found]
    scores = {s: torch.zeros(subject.count, subject.spec.sizes[s]) for s in subject.masked.spaces}
    inputs, labels = subject.shaped(images.fit), images.fit_labels
    for k in range(TAYLOR_BATCHES):
        rows = (torch.arange(TAYLOR_BATCH) + k * TAYLOR_BATCH) % len(inputs)
        leaves = {reading.weight: subject.states[reading.weight].clone().requires_grad_() for reading in readings}
        logits = subject.masked.outputs({**subject.states, **leaves}, (inputs[rows],))
        loss = cross_entropy(logits.flatten(0, 1), labels[rows].repeat(subject.count), reduction="sum") / len(rows)
        slopes = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))
        for space, found in subject.masked.readings.items():
            # A gate in front of all that read a unit: its gradient is the sum of w dL/dw over what they read of it.
            gate = torch.zeros_like(scores[space])
            for reading in found:
                product = (leaves[reading.weight] * slopes[reading.weight]).detach().movedim(reading.dim + 1, 1)
                gate += product.unflatten(1, (gate.shape[1], -1)).flatten(2).sum(2)
            scores[space] += gate.square()
    return _plain(subject, {space: score.argsort(1) for space, score in scores.items()})


def least_squares(count: int, rounds: int = 0) -> Way:
    """Optimal brain surgeon and least squares from images; then rounds."""

    def way(subject: Subject, images: Images, generator: torch.Generator) -> Edit:
        if rounds:
            return by_rounds(subject, subject.shaped(images.fit[:count]), rounds)
        return by_inputs(subject, subject.shaped(images.fit[:count]))

    return way


def in_turn(subject: Subject, images: Images, generator: torch.Generator) -> Edit:
    """The order of least squares, and readers refitted one after the other in the networks edited so far."""
    inputs = subject.shaped(images.fit[: _many(subject, IN_TURN_IMAGES)])
    with torch.no_grad():
        moments = input_moments(subject.masked, subject.states, (inputs,), CHUNK)

    def edit(share: float, ridge: float) -> State:
        masks = masks_of(subject, surgeon_orders(subject, moments, ridge), share)
        with torch.no_grad():
            return narrowed_in_turn(subject.masked, subject.states, (inputs,), masks, ridge, CHUNK)

    return edit


def unit_costs(subject: Subject, images: Images) -> dict[str, Tensor]:
    """What dropping each unit alone costs, KL on images. Shapes: -> (networks, units) by space."""
    inputs = images.fit[:ORACLE_IMAGES]
    before = subject.answers(subject.states, inputs).log_softmax(-1)
    found = {}
    for space in subject.masked.spaces:
        size, costs = subject.spec.sizes[space], []
        for unit in range(size):
            mask = torch.ones(subject.count, size)
            mask[:, unit] = 0
            states = masked_only(subject.masked, subject.states, {space: mask})
            after = subject.answers(states, inputs).log_softmax(-1)
            costs.append((before.exp() * (before - after)).sum(-1).mean(-1))
        found[space] = torch.stack(costs, 1)
    return found


def oracle(refit: bool) -> Way:
    """The units whose loss alone costs least go, measured one by one; with or without least squares on all images."""

    def way(subject: Subject, images: Images, generator: torch.Generator) -> Edit:
        orders = {space: cost.argsort(1) for space, cost in unit_costs(subject, images).items()}
        if not refit:
            return _plain(subject, orders)
        with torch.no_grad():
            moments = input_moments(subject.masked, subject.states, (subject.shaped(images.fit),), CHUNK)

        def edit(share: float, ridge: float) -> State:
            masks = masks_of(subject, orders, share)
            return single(subject.masked.narrowed(doubled(subject.states), moments, masks))

        return edit

    return way


def _noises(kind: str, exponents: Sequence[float]) -> dict[str, Way]:
    found = [Noise(exponent, clipped) for exponent in exponents for clipped in (False, True)]
    return {f"exponent {n.exponent:g}, {'clipped' if n.clipped else 'not clipped'}": made_up(kind, n) for n in found}


FEW_RIDGES = (1e-4, 1e-2)
ROUNDS = {"2 rounds": 2, "8 rounds": 8}

WITHOUT_DATA = {
    "random": fixed(random),
    "l1": fixed(magnitude("l1")),
    "l2": fixed(magnitude("l2")),
    "merging": fixed(merging),
    "noise": Choice(_noises("normal", (0.0,))),
    "smooth_noise": Choice(_noises("smooth", (0.5, 1.0, 1.5, 2.0))),
    "smooth_noise_rounds": Choice({n: made_up("smooth", Noise(1.0, False), k) for n, k in ROUNDS.items()}, FEW_RIDGES),
}
WITH_DATA = {
    "taylor": fixed(taylor),
    "oracle": fixed(oracle(refit=False)),
    "oracle_ls4096": Choice({"": oracle(refit=True)}),
    "ls64": Choice({"": least_squares(64)}),
    "ls256": Choice({"": least_squares(256)}),
    "ls4096": Choice({"": least_squares(4096)}),
    "sequential": Choice({"": in_turn}, (1e-4, 1e-3, 1e-2)),
    "ls256_rounds": Choice({n: least_squares(256, k) for n, k in ROUNDS.items()}, FEW_RIDGES),
    "ls1024_rounds": Choice({n: least_squares(1024, k) for n, k in ROUNDS.items()}, FEW_RIDGES),
}
WAYS = {**WITHOUT_DATA, **WITH_DATA}
