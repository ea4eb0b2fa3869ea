"""How much worse does a network get on the straight line between two networks of the same shapes?"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

import symmetry
from metanet.score.inputs import Inputs
from metanet.score.measures import Reading, divergences, laid_out, log_probabilities, numbers, rows_first
from metanet.score.subjects import Subject, tensor_leaves
from metanet.score.values import Line

__all__ = ["measure_line", "same_shapes"]

# Two programs that compute the same differ by rounding only.
SAME = 1e-4


def same_shapes(a: Subject, b: Subject) -> bool:
    """Whether both networks have the same tensors, in name and shape, and at least one parameter."""
    one, two = a.model.state_dict(), b.model.state_dict()
    shapes = [{key: getattr(value, "shape", None) for key, value in state.items()} for state in (one, two)]
    return shapes[0] == shapes[1] and a.device == b.device and any(True for _ in a.model.parameters())


def _losses(value: Tensor, ends: tuple[Tensor, Tensor], reading: Reading, labels: Tensor | None) -> Tensor:
    """The loss of every input.

    With labels: cross entropy or squared error. Without: the mean distance from the answers of both ends, so that it is
    the same from either side.
    """
    found = laid_out(value, reading)
    if reading.distribution:
        found = log_probabilities(found, reading)
        if labels is not None:
            target = labels.to(found.device, torch.int64).reshape(1, len(labels), -1)
            return -found.gather(0, target)[0].mean(-1)
        distances = [
            divergences(log_probabilities(laid_out(end, reading), reading), found, 0)[0].mean(-1) for end in ends
        ]
    else:
        if labels is not None:
            return (found[..., 0] - numbers(labels.to(found.device)).reshape(len(value), -1).T).square().mean(0)
        distances = [(found - laid_out(end, reading)).square().mean((0, -1)) for end in ends]
    return (distances[0] + distances[1]) / 2.0


def measure_line(
    a: Subject, b: Subject, inputs: Inputs, place: tuple[int, int], reading: Reading, points: int, batch: int, seed: int
) -> Line | None:
    """Losses at ``points`` places, both ends included, of the output at ``place`` (its number and axis of inputs).

    Returns:
        ``None`` if the first module, given the weights of the second, does not compute what the second computes: then
        there is no line between the two functions.
    """
    # With `keep_vars`, tied tensors are one object, and stay one.
    states: list[Mapping[str, Tensor]] = []
    one, two = (
        {key: value for key, value in subject.model.state_dict(keep_vars=True).items() if isinstance(value, Tensor)}
        for subject in (a, b)
    )
    weights = tuple(k / (points - 1) for k in range(points))
    states = [symmetry.interpolate(one, two, weight) for weight in weights]
    # What is no number is not interpolated, and at its own end each network is itself.
    states[-1] = symmetry.interpolate(two, two, 1.0)
    number, axis = place
    totals = torch.zeros(points, dtype=torch.float64)
    for given in inputs.batches(batch, seed):
        rows = len(given.rows)

        def answer(subject: Subject, state: Mapping[str, Tensor] | None = None) -> Tensor:
            made = tensor_leaves(subject.run(given.positional, given.keywords, state))  # noqa: B023
            return rows_first(made[number][1], axis, rows)  # noqa: B023

        ends = answer(a), answer(b)
        for i, state in enumerate(states):
            value = answer(a, state)
            if i == points - 1:
                scale = float(ends[1].abs().amax()) or 1.0
                if not float((numbers(value) - numbers(ends[1])).abs().amax()) <= SAME * scale:
                    return None
            totals[i] += _losses(value, ends, reading, given.labels).sum().cpu()
    if inputs.labels is None:
        name = "divergence from both ends" if reading.distribution else "squared distance from both ends"
    else:
        name = "cross entropy" if reading.distribution else "squared error"
    return Line(name, weights, tuple((totals / inputs.count).tolist()))
