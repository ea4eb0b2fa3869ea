"""What can be done in closed form, without data? The rivals of `quasi.py`: gauges, matchings, rounding, pruning."""

from __future__ import annotations

import numpy as np
import torch
from quasi_zoo import State
from scipy.optimize import linear_sum_assignment
from torch import Tensor


def scaled(state: State, first: Tensor, second: Tensor) -> State:
    """Both hidden layers scaled by ``exp``, with the reciprocals on what reads them."""
    w1, b1, w2, b2, w3, b3 = state
    a, b = first.exp(), second.exp()
    return (w1 * a[..., None], b1 * a, w2 * b[..., None] / a[:, None], b2 * b, w3 / b[:, None], b3)


def unit_gauge(state: State) -> State:
    """Incoming weights of norm 1."""
    first = -state[0].norm(dim=-1).clamp_min(1e-8).log()
    state = scaled(state, first, torch.zeros_like(first))
    second = -state[2].norm(dim=-1).clamp_min(1e-8).log()
    return scaled(state, torch.zeros_like(second), second)


def equalised(state: State, rounds: int = 20) -> State:
    """Cross-layer equalisation (Nagel et al. 2019, equation 11): largest weight in = largest weight out."""
    nothing = torch.zeros_like(state[1])
    for _ in range(rounds):
        for layer in (0, 1):
            into = state[2 * layer].abs().amax(-1).clamp_min(1e-8).log()
            out = state[2 * layer + 2].abs().amax(1).clamp_min(1e-8).log()
            step = (out - into) / 2
            state = scaled(state, *((step, nothing) if layer == 0 else (nothing, step)))
    return state


def permuted(state: State, first: Tensor, second: Tensor) -> State:
    """The units of both hidden layers in another order."""
    w1, b1, w2, b2, w3, b3 = state
    n = torch.arange(len(w1))[:, None]
    w2 = w2[n, second].gather(2, first[:, None].expand_as(w2))
    return (w1[n, first], b1[n, first], w2, b2[n, second], w3.gather(2, second[:, None].expand_as(w3)), b3)


def assignments(scores: Tensor) -> Tensor:
    """For every network the order of the second one's units that makes the sum of the scores largest."""
    return torch.from_numpy(np.stack([linear_sum_assignment(s, maximize=True)[1] for s in scores.detach().numpy()]))


def match_weights(a: State, b: State, starts: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Weight matching by coordinate descent (Ainsworth et al. 2023, algorithm 1), the best of several starts."""
    n, width = a[1].shape
    best: tuple[Tensor, Tensor, Tensor] | None = None
    for start in range(starts):
        drawn = torch.rand(n, width, generator=generator).argsort(-1)
        second = torch.arange(width).expand(n, -1) if start == 0 else drawn
        first = second
        for _ in range(20):
            other = permuted(b, torch.arange(width).expand(n, -1), second)
            first = assignments(a[0] @ b[0].mT + a[1][:, :, None] * b[1][:, None] + a[2].mT @ other[2])
            other = permuted(b, first, torch.arange(width).expand(n, -1))
            found = assignments(a[2] @ other[2].mT + a[3][:, :, None] * b[3][:, None] + a[4].mT @ b[4])
            if torch.equal(found, second):
                break
            second = found
        score = sum((x * y).flatten(1).sum(1) for x, y in zip(a, permuted(b, first, second), strict=True))
        if best is None:
            best = (score, first, second)
        else:
            better = score > best[0]
            best = (
                torch.where(better, score, best[0]),
                torch.where(better[:, None], first, best[1]),
                torch.where(better[:, None], second, best[2]),
            )
    if best is None:
        raise ValueError("match_weights needs at least one start")
    return best[1], best[2]


def contributions(state: State, answers: list[Tensor]) -> list[Tensor]:
    """What every hidden unit adds to the outputs, to first order: its answer times how the outputs answer to it.

    No scaling of units changes it. ``(n, inputs, 10, units)`` for both layers; outputs up to a common constant.
    """
    reader = state[4] - state[4].mean(1, keepdim=True)
    gate = (answers[1] > 0).to(reader)
    first = torch.einsum("noj,nij,njh->nioh", reader, gate, state[2])
    return [answers[0][:, :, None] * first, answers[1][:, :, None] * reader[:, None]]


def match_answers(a: State, b: State, answers_a: list[Tensor], answers_b: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Units that answer alike to the same inputs and add alike to the outputs."""
    found = []
    pairs = zip(contributions(a, answers_a), contributions(b, answers_b), strict=True)
    for layer, (u, v) in enumerate(pairs):
        x, y = (h[layer] - h[layer].mean(1, keepdim=True) for h in (answers_a, answers_b))
        parts = [torch.einsum("nioh,niok->nhk", u, v), x.mT @ y]
        scores = sum(part / part.square().mean((1, 2), keepdim=True).sqrt().clamp_min(1e-12) for part in parts)
        found.append(assignments(scores))
    return found[0], found[1]


def averaged(a: State, b: State) -> State:
    """Halfway between two networks."""
    return tuple((x + y) / 2 for x, y in zip(a, b, strict=True))


def quantised(state: State, bits: int) -> State:
    """Every weight matrix rounded to signed whole numbers times one step (biases stay); straight-through gradient.

    Per tensor, symmetric, the step from the largest weight.
    """
    found = list(state)
    for number in (0, 2, 4):
        weight = state[number]
        step = weight.abs().amax((1, 2), keepdim=True).clamp_min(1e-12) / (2 ** (bits - 1) - 1)
        ratio = weight / step
        found[number] = step * (ratio + (ratio.round() - ratio).detach())
    return tuple(found)


def pruned(state: State, scores: list[Tensor], share: float = 0.5, sharpness: float | None = None) -> State:
    """Without the given share of all weights, those of the lowest score over the whole network; biases stay.

    Args:
        state: the networks.
        scores: one per weight matrix, not negative.
        share: of weights that go.
        sharpness: for training, give the mask the gradient of a sigmoid of that many times the score's logarithm above
            the threshold.
    """
    logs = [score.clamp_min(1e-12).log() for score in scores]
    whole = torch.cat([log.flatten(1) for log in logs], dim=1)
    count = max(int(share * whole.shape[1]), 1)
    threshold = whole.detach().kthvalue(count, dim=1, keepdim=True).values
    if sharpness is not None:
        # The threshold moves with the scores, so that the share stays: without that, all scores would want to grow.
        soft = torch.sigmoid(sharpness * (whole - threshold)).detach()
        weights = soft * (1 - soft)
        threshold = threshold + (weights * (whole - whole.detach())).sum(1, keepdim=True) / weights.sum(1, keepdim=True)
    threshold = threshold[..., None]
    found = list(state)
    for number, log in zip((0, 2, 4), logs, strict=True):
        above = log - threshold
        mask = (above > 0).to(log)
        if sharpness is not None:
            soft = torch.sigmoid(sharpness * above)
            mask = mask + soft - soft.detach()
        found[number] = state[number] * mask
    return tuple(found)


def sensitivities(state: State, answers: list[Tensor]) -> list[Tensor]:
    """Root mean square of how the outputs answer to what comes into every hidden unit: ``(n, units)``, both layers."""
    reader = state[4] - state[4].mean(1, keepdim=True)
    gates = [(h > 0).to(reader) for h in answers[:2]]
    first = torch.einsum("noj,nij,njh->nioh", reader, gates[1], state[2]) * gates[0][:, :, None]
    second = reader[:, None] * gates[1][:, :, None]
    return [(g.square().sum(2).mean(1) + 1e-8).sqrt() for g in (first, second)]


def saliencies(state: State, answers: list[Tensor], inputs: Tensor) -> list[Tensor]:
    """Of every weight: its size, times the root mean square of what it reads, times how the outputs answer to the unit.

    No scaling of units changes it. The outputs' own sensitivity is one.
    """
    out = sensitivities(state, answers)
    into = [inputs.square().mean(0).sqrt().expand(len(out[0]), -1), *(h.square().mean(1).sqrt() for h in answers[:2])]
    return [
        state[0].abs() * into[0][:, None] * out[0][..., None],
        state[2].abs() * into[1][:, None] * out[1][..., None],
        state[4].abs() * into[2][:, None],
    ]
