"""Do steps and searches make alpha better at its job without leaving the group?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import symmetry
from metanet.errors import ModelError
from metanet.graph import Bucket, ParameterGraph, collate
from metanet.nn.frames import Motion
from metanet.nn.quasi import Moved, learnable, move
from metanet.nn.quasi_check import check_orbit
from metanet.nn.quasi_refine import GaugeDescent, GaugeSearch

Refine = Callable[[Sequence[Motion], Callable[[Sequence[Motion]], Tensor]], list[Motion]]


class Heads(nn.Module):
    """A ReLU layer, then attention beside a plain line: scales, and matrices of three spaces."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.hidden, self.last = nn.Linear(3, 5), nn.Linear(5, 4), nn.Linear(4, 2)
        self.q, self.k, self.v, self.o = (nn.Linear(4, 4) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.hidden(self.first(x).relu())
        q, k, v = self.q(x), self.k(x), self.v(x)
        return self.last(x + self.o(torch.softmax(q @ k.mT / 2, -1) @ v))


class Case:
    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.module = Heads().double().eval()
        self.inputs = (torch.randn(6, 5, 3, generator=generator, dtype=torch.float64),)
        self.spec = symmetry.trace(self.module, self.inputs)
        self.state = {
            name: torch.randn(value.shape, generator=generator, dtype=torch.float64) * 0.5
            for name, value in self.module.state_dict().items()
        }

    def bucket(self) -> Bucket:
        return collate([ParameterGraph.build(self.spec, self.state)], torch.float64).buckets[0]


@pytest.fixture(scope="module")
def case() -> Case:
    return Case()


def neutral(bucket: Bucket) -> Motion:
    """The identity, with all numbers that may be learned."""
    scales, linear = learnable(bucket.topology)
    spec, like = bucket.topology.spec, torch.zeros(1, dtype=torch.float64)
    logs = {f.name: like.new_zeros(len(bucket), *spec.array_shape(f.space)) for f in scales}
    eye = {f.space: torch.eye(f.size, dtype=like.dtype) for f in linear}
    matrices = {name: value.expand(len(bucket), *spec.array_shape(name), -1) for name, value in eye.items()}
    return Motion(bucket.topology, len(bucket), logs, {}, matrices, {})


def size_of(bucket: Bucket) -> Callable[[Sequence[Motion]], Tensor]:
    """Sum of the fourth powers of all weights: no gauge in sight is its minimum."""

    def loss(alphas: Sequence[Motion]) -> Tensor:
        moved = move(bucket, bucket.values, alphas).values
        return torch.stack([v.flatten(1).pow(4).sum(1) for v in moved if v is not None]).sum(0)

    return loss


def layer_of(refine: Refine) -> Callable[[Bucket], Moved]:
    return lambda bucket: move(bucket, bucket.values, refine([neutral(bucket)], size_of(bucket)))


REFINEMENTS = {
    "descent": GaugeDescent(3, 0.05).double(),
    "search": GaugeSearch(20, 0.1),
}


@pytest.mark.parametrize("name", REFINEMENTS)
def test_the_answer_stays_in_the_orbit_and_is_better(case, name):
    layer = layer_of(REFINEMENTS[name])
    found = check_orbit(layer, case.spec, case.module, case.state, case.inputs)
    assert found.passed, found
    assert found.moved > 1e-2
    bucket = case.bucket()
    loss, start = size_of(bucket), [neutral(bucket)]
    assert float(loss(layer(bucket).alphas).detach()) < 0.95 * float(loss(start))
    assert len(start[0].matrices) == 3
    moved = layer(bucket).alpha.matrices
    assert all(torch.equal(m, start[0].matrices[k]) for k, m in moved.items()) == (name == "search")


def test_a_step_that_leaves_the_group_is_caught(case):
    def wrong(bucket: Bucket) -> Moved:
        moved = layer_of(REFINEMENTS["descent"])(bucket)
        values = list(moved.values)
        values[bucket.topology.edges[0]] = values[bucket.topology.edges[0]] * 1.01
        return replace(moved, values=tuple(values))

    assert not check_orbit(wrong, case.spec, case.module, case.state, case.inputs).passed


def test_steps_are_trained_through(case):
    bucket = case.bucket()
    start = neutral(bucket)
    logs = {name: value.clone().requires_grad_() for name, value in start.log_scales.items()}
    descent = GaugeDescent(3, 0.02).double()
    loss = size_of(bucket)

    def after() -> Tensor:
        return loss(descent([replace(start, log_scales=logs)], loss)).sum()

    told = torch.autograd.grad(after(), [descent.log_sizes, *logs.values()])
    assert all(bool((part != 0).any()) for part in told)
    # The gradient of a step size, against a difference of values without gradients.
    with torch.no_grad():
        values = []
        for shift in (1e-5, -1e-5):
            descent.log_sizes[1] += shift
            values.append(float(after()))
            descent.log_sizes[1] -= shift
    assert (values[0] - values[1]) / 2e-5 == pytest.approx(float(told[0][1]), rel=1e-5)


def test_matrices_stay_invertible_however_large_the_steps(case):
    bucket = case.bucket()
    with torch.no_grad():
        start = [replace(neutral(bucket), log_scales={})]
        (far,) = GaugeDescent(6, 1e3).double()(start, lambda m: -size_of(bucket)(m).log())
    for value in far.matrices.values():
        # Each step keeps at least 1 - .95 of every direction.
        assert torch.linalg.svdvals(value).min() >= 0.05**6 * 0.99


def test_a_search_never_ends_worse_and_says_the_same_twice(case):
    bucket = case.bucket()
    loss = size_of(bucket)
    start = [neutral(bucket)]
    told = [float(loss(GaugeSearch(rounds, 0.5)(start, loss))) for rounds in (0, 5, 30)]
    assert told[0] == float(loss(start))
    assert told == sorted(told, reverse=True)
    first, second = (GaugeSearch(5, 0.5)(start, loss)[0].log_scales for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_draws_from_features_are_carried_along_by_permutations(case):
    bucket = case.bucket()
    loss = size_of(bucket)
    ((name, value),) = neutral(bucket).log_scales.items()
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(*value.shape, 7, generator=generator, dtype=torch.float64)
    order = torch.randperm(value.shape[1], generator=generator)
    (factor,) = [f for f in case.spec.factors if f.name == name]
    neutral_element = symmetry.GroupElement.identity(case.spec)
    permutations = {**neutral_element.permutations, factor.space: order}
    permuted = case.spec.act(replace(neutral_element, permutations=permutations), case.state)
    other = collate([ParameterGraph.build(case.spec, permuted)], torch.float64).buckets[0]
    plain, along = [], []
    for rows, state, found in ((slice(None), bucket, loss), (order, other, size_of(other))):
        search = GaugeSearch(20, 0.2)
        along.append(search([neutral(state)], found, {name: features[:, rows]})[0].log_scales[name])
        plain.append(search([neutral(state)], found)[0].log_scales[name])
    spread = float(along[0].std())
    assert spread > 1e-2
    assert float((along[1] - along[0][:, order]).abs().max()) < 1e-10 * spread
    assert float((plain[1] - plain[0][:, order]).abs().max()) > 0.1 * spread


def test_refusals():
    with pytest.raises(ModelError, match="steps=0"):
        GaugeDescent(0)
    with pytest.raises(ModelError, match="size=-1"):
        GaugeSearch(5, -1)
