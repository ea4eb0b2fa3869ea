"""Are units put in an order along which weights vary little: never worse, optimal where that can be known?"""

from __future__ import annotations

import importlib.util
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import symmetry
from symmetry import SpecError, order

from .models import SUBJECTS, draw, mlp, seeded
from .test_elements import wreath


def points(count: int, seed: int, dims: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, dims))


def distances(of: np.ndarray) -> np.ndarray:
    found: np.ndarray = np.linalg.norm(of[:, None] - of[None], axis=-1)
    return found


def curve(count: int) -> np.ndarray:
    """Points along a smooth line that does not cross itself."""
    t = np.linspace(0, 1, count)[:, None]
    return np.concatenate([3 * t, np.sin(5 * t), np.cos(3 * t)], axis=1)


def smooth_network(width: int) -> tuple[symmetry.SymmetrySpec, dict[str, Tensor]]:
    model = mlp([3, width, width, 2], torch.relu)
    spec = symmetry.trace(model, (draw(7, 3),))
    t = torch.linspace(0, 1, width, dtype=torch.float64)[:, None]

    def waves(rows: int, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.cat([t, (t * torch.rand(1, rows - 1, generator=generator, dtype=torch.float64) * 4).sin()], 1)

    state = {
        "0.weight": waves(3, 1),
        "0.bias": waves(2, 2)[:, 1],
        "2.weight": waves(4, 3) @ waves(4, 4).T,
        "2.bias": waves(2, 5)[:, 1],
        "4.weight": waves(2, 6).T.contiguous(),
        "4.bias": torch.zeros(2, dtype=torch.float64),
    }
    return spec, state


@settings(max_examples=25, deadline=None)
@given(count=st.integers(1, 7), seed=st.integers(0, 10_000))
def test_tiny_paths_are_optimal(count: int, seed: int) -> None:
    table = distances(points(count, seed))
    best = min(order.path_length(table, np.array(p)) for p in itertools.permutations(range(count)))
    assert order.path_length(table, order.shortest_path(table)) == pytest.approx(best, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("seed", range(6))
def test_local_search_reaches_the_optimum_or_nearly(seed: int) -> None:
    table = distances(points(9, seed))
    exact = order.path_length(table, order.shortest_path(table))
    improved = order.path_length(table, order._improve(table, np.arange(9)))
    assert exact <= improved * (1 + 1e-12)
    assert improved <= 1.1 * exact
    assert order.path_length(table, np.arange(9)) > 1.1 * exact


@settings(max_examples=15, deadline=None)
@given(count=st.integers(10, 40), seed=st.integers(0, 10_000))
def test_larger_paths_are_orders_and_never_longer(count: int, seed: int) -> None:
    table = distances(points(count, seed))
    found = order.shortest_path(table)
    assert sorted(found) == list(range(count))
    assert order.path_length(table, found) <= order.path_length(table, np.arange(count))
    assert np.array_equal(found, order.shortest_path(table))


def test_a_given_order_that_is_best_stays() -> None:
    table = distances(curve(50))
    assert np.array_equal(order.shortest_path(table), np.arange(50))


@pytest.mark.parametrize("count", [12, 120, 400])
def test_shuffled_curve_is_recovered(count: int) -> None:
    line = curve(count)
    shuffle = np.random.default_rng(0).permutation(count)
    table = distances(line[shuffle])
    found = order.path_length(table, order.shortest_path(table))
    right = float(np.linalg.norm(np.diff(line, axis=0), axis=1).sum())
    assert found <= right * (1 + 1e-9)
    assert order.path_length(table, np.arange(count)) > 2 * right


def test_shuffled_smooth_network_is_recovered() -> None:
    spec, state = smooth_network(40)
    before = symmetry.total_variation(spec, state)
    shuffled = spec.act(spec.sample(torch.Generator().manual_seed(3), ("permutation",)), state)
    element = symmetry.smooth(spec, shuffled)
    after = symmetry.total_variation(spec, spec.act(element, shuffled))
    assert after <= before * (1 + 1e-9)
    assert symmetry.total_variation(spec, shuffled) > 2 * before
    assert symmetry.smooth(spec, shuffled) == element


def test_variation_by_hand() -> None:
    spec = symmetry.trace(mlp([1, 3, 1], torch.relu), (draw(7, 1),))
    state = {
        "0.weight": torch.tensor([[0.0], [3.0], [1.0]]),
        "0.bias": torch.tensor([0.0, 4.0, 4.0]),
        "2.weight": torch.tensor([[1.0, 1.0, 1.0]]),
        "2.bias": torch.zeros(1),
    }
    assert symmetry.total_variation(spec, state) == pytest.approx(5 + 2)
    assert symmetry.total_variation(spec, state, spec.spaces[0].name) == pytest.approx(5 + 2)
    assert symmetry.smooth(spec, state).permutations[spec.spaces[0].name].tolist() == [0, 2, 1]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", ["mlp relu", "resnet", "shared weights, tanh", "actor and critic"])
def test_never_worse_and_only_permutes(name: str, dtype: torch.dtype) -> None:
    subject = next(subject for subject in SUBJECTS if subject.name == name)
    model = seeded(subject.build).to(dtype).eval()
    spec = symmetry.trace(model, (draw(*subject.shape, dtype=dtype),))
    state = model.state_dict()
    element = symmetry.smooth(spec, state)
    moved = spec.act(element, state)
    assert symmetry.total_variation(spec, moved) <= symmetry.total_variation(spec, state)
    assert not any(bool(value.any()) for value in (*element.log_scales.values(), *element.flips.values()))
    inputs = draw(*subject.shape, seed=5, dtype=dtype)
    with torch.no_grad():
        expected, found = model(inputs), torch.func.functional_call(model, moved, inputs)
    for one, other in zip(
        expected if isinstance(expected, tuple) else (expected,),
        found if isinstance(found, tuple) else (found,),
        strict=True,
    ):
        assert torch.allclose(one, other, atol=1e-10 if dtype == torch.float64 else 1e-4)


def test_units_inside_heads() -> None:
    spec = wreath()
    generator = torch.Generator().manual_seed(0)
    state = {
        name: torch.randn(info.shape, generator=generator, dtype=torch.float64) for name, info in spec.tensors.items()
    }
    for seed in range(3):
        given_state = spec.act(spec.sample(torch.Generator().manual_seed(seed)), state)
        element = symmetry.smooth(spec, given_state)
        after, before = (symmetry.total_variation(spec, s) for s in (spec.act(element, given_state), given_state))
        assert after < before
    one_order = [torch.equal(p, element.permutations["units"][0]) for p in element.permutations["units"]]
    assert not all(one_order)


def test_spaces_do_not_disturb_each_other() -> None:
    spec, state = smooth_network(12)
    state = spec.act(spec.sample(torch.Generator().manual_seed(1), ("permutation",)), state)
    first, second = (space.name for space in spec.spaces)
    element = symmetry.smooth(spec, state)
    alone = symmetry.GroupElement(
        spec, {**spec.identity().permutations, first: element.permutations[first]}, element.log_scales, element.flips
    )
    half = spec.act(alone, state)
    assert symmetry.total_variation(spec, half, second) == pytest.approx(symmetry.total_variation(spec, state, second))
    assert symmetry.total_variation(spec, half, first) < symmetry.total_variation(spec, state, first)


def test_nothing_to_order() -> None:
    model = nn.Linear(3, 2)
    spec = symmetry.trace(model, (draw(7, 3),))
    assert symmetry.smooth(spec, model.state_dict()) == spec.identity()
    assert symmetry.total_variation(spec, model.state_dict()) == 0.0


def test_refusals() -> None:
    spec, state = smooth_network(4)
    with pytest.raises(SpecError, match="solver='concorde': unknown; expected one of numpy, fast-tsp"):
        symmetry.smooth(spec, state, solver="concorde")
    with pytest.raises(SpecError, match="space='nowhere': not permuted"):
        symmetry.total_variation(spec, state, "nowhere")
    with pytest.raises(SpecError, match=r"0\.bias: shape"):
        symmetry.smooth(spec, {**state, "0.bias": torch.zeros(5)})
    broken = {**state, "2.weight": torch.full_like(state["2.weight"], float("nan"))}
    with pytest.raises(SpecError, match=r"2\.weight: holds values that are not finite"):
        symmetry.smooth(spec, broken)


@pytest.mark.skipif(importlib.util.find_spec("fast_tsp") is None, reason="needs the optional package fast-tsp")
def test_the_optional_package_is_used_and_not_worse() -> None:
    table = distances(points(60, 0))
    ours = order.path_length(table, order.shortest_path(table))
    theirs = order.path_length(table, order.shortest_path(table, "fast-tsp"))
    assert sorted(order._fast_tsp(table, 0.05)) == list(range(60))
    assert theirs <= ours * (1 + 1e-12)


@pytest.mark.skipif(importlib.util.find_spec("fast_tsp") is not None, reason="needs fast-tsp to be missing")
def test_the_optional_package_is_asked_for_by_name() -> None:
    with pytest.raises(SpecError, match="fast-tsp': the package is not installed; expected `pip install fast-tsp`"):
        order.shortest_path(distances(points(12, 0)), "fast-tsp")
