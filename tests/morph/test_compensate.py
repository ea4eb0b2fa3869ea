"""Does compensation rebuild what was dropped as well as least squares can, for every kind of reader?"""

from __future__ import annotations

import copy
import itertools
from functools import cache

import pytest
import torch
from torch import Tensor, nn

from metanet import morph
from metanet.errors import PlanError
from metanet.morph import Compensation, Keep, Plan
from metanet.morph.compensate import _Work, readers
from metanet.morph.function import Function, outputs
from metanet.morph.moments import joint_moments, reader_inputs, watched
from metanet.morph.refit import steps_of
from symmetry import SymmetrySpec
from tests.morph.subjects import network, same

# A space whose readers are of each kind.
KINDS = [
    ("mlp relu", "0"),
    ("conv, batch norm", "0"),
    ("conv, batch norm", "3"),  # flattened maps
    ("lstm", "cell.l0"),
    ("gru", "cell.l0"),
    ("encoder layer", "layer.linear1"),
    ("encoder layer", "layer.self_attn.in_proj_weight.0"),
    ("u-net", "a"),  # one part of a concatenation
]


@cache
def redundant(name: str, space: str) -> tuple[nn.Module, tuple[Tensor, ...], SymmetrySpec, Keep]:
    """A network whose second half of a space's units are nearly copies of the first, and an edit that drops those."""
    model, inputs, spec = network(name)
    size = spec.sizes[space]
    wide = morph.apply(morph.Widen(space, list(range(size)) * 2), model, inputs, spec=spec)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in wide.model.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_(0.05 * noise * parameter.square().mean().sqrt())
    return wide.model, inputs, wide.spec, Keep(space, range(size))


def batches(name: str, count: int = 3) -> list[tuple[Tensor, ...]]:
    _, inputs, _ = network(name)
    generator = torch.Generator().manual_seed(5)
    rows = 40
    return [
        tuple(torch.randn(rows, *item.shape[1:], generator=generator, dtype=torch.float64) for item in inputs)
        for _ in range(count)
    ]


@pytest.mark.parametrize("sequential", [True, False])
@pytest.mark.parametrize(("name", "space"), KINDS)
def test_units_that_are_nearly_copies_are_made_up_for(name: str, space: str, sequential: bool) -> None:
    model, inputs, spec, keep = redundant(name, space)
    data = batches(name)

    def distance(made: nn.Module) -> float:
        return float((outputs(made, data) - outputs(model, data)).square().mean())

    plain = morph.apply(keep, model, inputs, spec=spec)
    compensation = Compensation(data, sequential=sequential)
    refitted = morph.apply(keep, model, inputs, spec=spec, compensation=compensation)
    assert refitted.uncompensated == ()
    assert distance(refitted.model) < 0.2 * distance(plain.model)
    assert same(morph.undo(refitted), model)


@pytest.mark.parametrize("sequential", [True, False])
@pytest.mark.parametrize(
    ("name", "space", "wide"), [("mlp relu", "0", [0, 1, 2, 3, 1, 0]), ("conv, batch norm", "3", [0, 1, 2, 3, 4, 2])]
)
def test_copies_are_rebuilt_exactly(name: str, space: str, wide: list[int], sequential: bool) -> None:
    """An oracle: where a dropped unit is a copy of one that is kept, nothing is lost."""
    model, inputs, spec = network(name)
    twins = morph.apply(morph.Widen(space, wide), model, inputs, spec=spec)
    keep = Keep(space, range(spec.sizes[space]))
    compensation = Compensation(batches(name), ridge=1e-12, sequential=sequential)
    function = Function(twins.model, inputs, twins.spec)
    back = morph.apply(keep, twins.model, inputs, spec=twins.spec, compensation=compensation)
    assert back.error < 1e-7
    assert morph.apply(keep, twins.model, inputs, spec=twins.spec).error > 1e-3
    assert function.error(model) < 1e-10


def test_moments_in_place_of_data() -> None:
    """Moments that were measured give what the measurement gives."""
    model, inputs, spec, keep = redundant("mlp relu", "0")
    data = batches("mlp relu")
    axis = spec.axes["2.weight"][1]
    measured = joint_moments(model, model, data, {"2.weight": (axis, axis)})["2.weight"]
    # Wrong moments do harm: the negative control.
    wrong = (torch.zeros_like(measured.mean), torch.eye(len(measured.mean)))
    results = [
        morph.apply(keep, model, inputs, spec=spec, compensation=compensation).model
        for compensation in (
            Compensation(data, sequential=False),
            Compensation(moments={"0": (measured.mean, measured.within)}),
            Compensation(moments={"0": wrong}),
        )
    ]
    for one, other in zip(results[0].parameters(), results[1].parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-9)
    losses = [float((outputs(made, data) - outputs(model, data)).square().mean()) for made in results]
    assert losses[2] > 4 * losses[0]


def test_the_ridge_shrinks_to_dropping() -> None:
    model, inputs, spec = network("mlp relu")
    plain = morph.apply(Keep("0", [0, 3]), model, inputs, spec=spec).model
    shrunk = Compensation(batches("mlp relu"), ridge=1e12)
    made = morph.apply(Keep("0", [0, 3]), model, inputs, spec=spec, compensation=shrunk).model
    assert torch.allclose(made[2].weight, plain[2].weight, atol=1e-9)
    assert not torch.allclose(made[2].bias, plain[2].bias)  # means are always made up for


def test_both_layers_of_one_plan() -> None:
    model, inputs, spec, keep = redundant("mlp relu", "0")
    data = batches("mlp relu")
    plan = Plan([keep, Keep("2", [0, 1, 2])])
    distances = [
        float(
            (
                outputs(morph.apply(plan, model, inputs, spec=spec, compensation=c).model, data) - outputs(model, data)
            ).norm()
        )
        for c in (None, Compensation(data, sequential=False), Compensation(data))
    ]
    assert distances[2] <= distances[1] < distances[0]


@pytest.mark.parametrize(
    "name",
    [
        "lstm",
        "gru",
        "lstm, two layers, both directions",
        "gru, two layers, both directions",
        "relu rnn",
        "tanh rnn, two layers",
        "encoder layer",
        "translator",
        "cross-attention",
    ],
)
def test_watched_layers_compute_the_same(name: str) -> None:
    model, inputs, _ = network(name)
    made = watched(model)
    assert torch.allclose(outputs(made, [inputs]), outputs(model, [inputs]), atol=1e-12)
    seen = reader_inputs(made, inputs)
    assert {key for key, value in made.state_dict().items() if value.ndim == 2 and "norm" not in key} <= set(seen) | {
        # Fused projections are read in three parts.
        key
        for key in made.state_dict()
        if "proj_weight" in key
    }


def test_obs_order_is_that_of_brute_force() -> None:
    """For each step the unit is dropped whose loss, everything refitted, grows least."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(500, 5, generator=generator, dtype=torch.float64) @ torch.randn(5, 5, generator=generator).double()
    w = torch.randn(3, 5, generator=generator, dtype=torch.float64)
    covariance = x.mT @ x / len(x)
    order = morph.obs_order(covariance, w.mT @ w, ridge=0.0)

    def loss(kept: list[int]) -> float:
        fit = torch.linalg.lstsq(x[:, kept], x @ w.mT).solution
        return float((x[:, kept] @ fit - x @ w.mT).square().sum())

    left = list(range(5))
    for unit in order[:-1]:
        best = min(left, key=lambda one: loss([other for other in left if other != one]))
        assert unit == best
        left.remove(unit)
    assert sorted(order) == list(range(5))
    # The greedy order is no worse at two units than nine in ten of all pairs.
    pairs = sorted(loss(list(pair)) for pair in itertools.combinations(range(5), 2))
    assert loss(order[3:]) <= pairs[1]


def test_bad_compensation() -> None:
    model, inputs, spec = network("mlp relu")
    data = batches("mlp relu")
    for options, message in (
        ({}, "batches or moments"),
        ({"batches": data, "moments": {}}, "batches or moments"),
        ({"batches": []}, "no batches"),
        ({"batches": data, "ridge": -1.0}, "ridge -1.0"),
    ):
        with pytest.raises(PlanError, match=message):
            Compensation(**options)  # type: ignore[arg-type]
    before = copy.deepcopy(model)
    for compensation, message in (
        (Compensation(moments={}), "moments of '0', read by 2.weight: nothing"),
        (Compensation(moments={"0": (torch.zeros(3), torch.eye(3))}), "shapes"),
        (Compensation([(torch.full((5, 3), float("nan")),)]), "not finite"),
    ):
        with pytest.raises(PlanError, match=message):
            morph.apply(Keep("0", [0, 1]), model, inputs, spec=spec, compensation=compensation)
    assert same(before, model)


@pytest.mark.parametrize("name", ["mlp relu", "conv, batch norm"])
def test_what_is_kept_does_not_depend_on_the_basis(name: str) -> None:
    """Networks that differ by an element of the group are narrowed to networks of the same function."""
    model, inputs, spec = network(name)
    data = batches(name)
    sizes = {space.name: space.size - 1 for space in spec.spaces}
    g = spec.sample(torch.Generator().manual_seed(2), kinds=("permutation", "scale"))
    twin = copy.deepcopy(model)
    twin.load_state_dict(spec.act(g, model.state_dict()))
    made = [
        morph.apply(
            morph.narrow_by_obs(one, spec, sizes, data), one, inputs, spec=spec, compensation=Compensation(data)
        ).model
        for one in (model, twin)
    ]
    plain = morph.apply(morph.narrow(spec, model.state_dict(), sizes, "first"), model, inputs, spec=spec).model
    results = [outputs(one, data) for one in (*made, plain, model)]
    spread = float((results[2] - results[3]).abs().max())
    assert float((results[0] - results[1]).abs().max()) < 1e-9 * spread


def test_a_reader_is_refitted_from_what_it_was_however_often() -> None:
    """Weights in loops are refitted twice: what their bias gains must not be added twice."""
    model, inputs, spec = network("mlp relu")
    steps = steps_of(spec, [Keep("0", [0, 3])])
    made = morph.apply(Keep("0", [0, 3]), model, inputs, spec=spec).model
    plain = copy.deepcopy(made)
    work = _Work(model, made, spec, steps, readers(spec, "0"))
    work.refit("2.weight", Compensation(batches("mlp relu"), sequential=False))
    once = copy.deepcopy(made)
    work.refit("2.weight", Compensation(batches("mlp relu"), sequential=False))
    assert torch.allclose(made[2].bias, once[2].bias, atol=1e-12)
    assert torch.allclose(made[2].weight, once[2].weight, atol=1e-12)
    assert not torch.allclose(once[2].bias, plain[2].bias)
