"""Is there one canonical form for every orbit, and is it reached by an element of the group?"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import symmetry
from symmetry import GroupElement, SpecError, SymmetrySpec
from symmetry.verify import generic_state

from .families import FACTS, LoRALinear, Stages, SwiGLU
from .models import SUBJECTS, draw, mlp, seeded
from .test_elements import wreath

NAMES = (
    "mlp relu",
    "mlp tanh",
    "conv, batch norm",
    "resnet",
    "shared weights, tanh",
    "group norm, depthwise",
    "u-net",
    "encoder layer",
    "lstm",
    "gru",
    "swiglu",
    "deep linear without bias",
    "lora",
    "prelu",
    "tied linear autoencoder",
    "siren",
    "sine before a relu",
    "gains folded",
)
EXTRA: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "siren": (lambda: mlp([2, 5, 4, 2], torch.sin), (7, 2)),
    "sine before a relu": (lambda: Stages(nn.Linear(2, 4), torch.sin, torch.relu, nn.Linear(4, 1)), (7, 2)),
    "gains folded": (SwiGLU, (7, 3)),
}
KINDS = ("permutation", "scale", "sign", "linear", "orthogonal", "shift")
State = dict[str, Tensor]


@cache
def case(name: str) -> tuple[nn.Module, SymmetrySpec, State, tuple[int, ...]]:
    """A model in float64, its spec, a state in general position, and the shape of its inputs."""
    known = {subject.name: (subject.build, subject.shape) for subject in (*SUBJECTS, *FACTS)}
    build, shape = (known | EXTRA)[name]
    model = seeded(build).eval()
    spec = symmetry.trace(model, (draw(*shape),), fold_gains=name == "gains folded")
    state = generic_state(spec, model.state_dict(), torch.Generator().manual_seed(0))
    if spec.shifts:
        state = {key: 5 * value if key.endswith("bias") else value for key, value in state.items()}
    return model.to(torch.float64), spec, state, shape


def form(spec: SymmetrySpec, state: State, gauge: str = "unit") -> State:
    return spec.act(symmetry.canonicalize(spec, state, gauge), state)


@cache
def canonical_form(name: str, gauge: str) -> State:
    _, spec, state, _ = case(name)
    return form(spec, state, gauge)


def apart(one: State, other: State) -> float:
    """Largest difference of any tensor, relative to its largest entry."""
    return max(
        float((one[name] - other[name]).abs().max() / one[name].abs().max().clamp_min(1e-30))
        for name in one
        if one[name].is_floating_point() and one[name].numel()
    )


def element_of(spec: SymmetrySpec, seed: int, kinds: tuple[str, ...] = KINDS, spread: float = 0.7) -> GroupElement:
    return spec.sample(torch.Generator().manual_seed(seed), kinds, spread)


def gauges(spec: SymmetrySpec) -> tuple[str, ...]:
    return ("unit", "balanced") if spec.scale_dimension or spec.linear else ("unit",)


@pytest.mark.parametrize("name", NAMES)
def test_one_form_for_each_orbit(name: str) -> None:
    _, spec, state, _ = case(name)
    for gauge in gauges(spec):
        canonical = canonical_form(name, gauge)
        for seed, kinds in enumerate(((kind,) for kind in KINDS if gauge == "unit"), start=1):
            element = element_of(spec, seed, kinds)
            if element != spec.identity():
                moved = spec.act(element, state)
                assert apart(state, moved) > 1e-3
                assert apart(canonical, form(spec, moved, gauge)) < 1e-10, (gauge, kinds)
        moved = spec.act(element_of(spec, 6), state)
        assert apart(canonical, form(spec, moved, gauge)) < 1e-10, gauge
    other = generic_state(spec, state, torch.Generator().manual_seed(9), fresh=True)
    assert apart(canonical_form(name, "unit"), form(spec, other)) > 1e-2


@pytest.mark.parametrize("name", NAMES)
def test_the_form_is_the_same_function_and_its_own_form(name: str) -> None:
    model, spec, state, shape = case(name)
    inputs = draw(*shape, seed=4, dtype=torch.float64)
    with torch.no_grad():
        expected = torch.func.functional_call(model, state, inputs)
        spread = float((expected - expected.mean(0)).square().mean().sqrt())
        for gauge in gauges(spec):
            canonical = canonical_form(name, gauge)
            found = torch.func.functional_call(model, canonical, inputs)
            assert float((found - expected).abs().max()) < 1e-10 * spread
            assert apart(canonical, form(spec, canonical, gauge)) < 1e-10
            assert apart(canonical, state) > 1e-3


@pytest.mark.parametrize("name", ["mlp relu", "conv, batch norm", "encoder layer", "gru"])
def test_single_precision(name: str) -> None:
    _, spec, state, _ = case(name)
    state = {key: value.float() if value.is_floating_point() else value for key, value in state.items()}
    for gauge in gauges(spec):
        canonical = form(spec, state, gauge)
        assert all(value.dtype == state[key].dtype for key, value in canonical.items())
        for seed in (1, 2):
            moved = spec.act(element_of(spec, seed), state)
            assert apart(state, moved) > 1e-2
            assert apart(canonical, form(spec, moved, gauge)) < 1e-4


def test_unit_gauge_of_a_chain() -> None:
    _, spec, state, _ = case("mlp relu")
    canonical = form(spec, state)
    for name in ("0.weight", "2.weight"):
        assert torch.allclose(canonical[name].norm(dim=1), torch.ones(4, dtype=torch.float64), atol=1e-12, rtol=0)
    assert not torch.allclose(state["0.weight"].norm(dim=1), torch.ones(4, dtype=torch.float64), atol=0.1)


def test_unit_gauge_of_batch_norm() -> None:
    _, spec, state, _ = case("conv, batch norm")
    canonical, one = form(spec, state), torch.tensor(1.0, dtype=torch.float64)
    for conv, norm in (("0", "1"), ("3", "4")):
        assert torch.allclose(canonical[f"{conv}.weight"].flatten(1).norm(dim=1), one, atol=1e-10)
        assert torch.allclose(canonical[f"{norm}.running_var"] + 1e-5, one, atol=1e-10)
        assert torch.allclose(canonical[f"{norm}.weight"].abs(), one, atol=1e-10)


def test_balanced_gauge_has_equal_norms_and_the_least_weights() -> None:
    _, spec, state, _ = case("mlp relu")
    canonical = form(spec, state, "balanced")
    for layer, after in (("0", "2"), ("2", "4")):
        incoming = canonical[f"{layer}.weight"].square().sum(1) + canonical[f"{layer}.bias"].square()
        assert torch.allclose(incoming, canonical[f"{after}.weight"].square().sum(0), rtol=1e-10)
    least = sum(float(value.square().sum()) for value in canonical.values())
    for seed in range(5):
        for spread in (0.01, 0.3):
            moved = spec.act(element_of(spec, seed, ("scale",), spread), canonical)
            assert sum(float(value.square().sum()) for value in moved.values()) > least


def test_balanced_gauge_of_batch_norm_keeps_variances_at_one() -> None:
    _, spec, state, _ = case("conv, batch norm")
    canonical = form(spec, state, "balanced")
    assert torch.allclose(canonical["1.running_var"] + 1e-5, torch.tensor(1.0, dtype=torch.float64), atol=1e-10)
    gain, shift, reader = (canonical[name] for name in ("1.weight", "1.bias", "3.weight"))
    weight, bias = canonical["0.weight"], canonical["0.bias"]
    incoming = weight.square().sum((1, 2, 3)) + bias.square()
    outgoing = reader.square().sum((0, 2, 3))
    assert torch.allclose(incoming, gain.square(), rtol=1e-9)
    assert torch.allclose(gain.square() + shift.square(), outgoing, rtol=1e-9)


def test_sines_are_moved_to_the_period_around_zero() -> None:
    _, spec, state, _ = case("siren")
    canonical = form(spec, state)
    for name in ("0.bias", "2.bias"):
        assert float(canonical[name].abs().max()) <= torch.pi / 2 + 1e-12
        assert float(state[name].abs().max()) > torch.pi / 2


def test_folded_gains_become_one() -> None:
    _, spec, state, _ = case("gains folded")
    assert torch.allclose(form(spec, state)["n.weight"], torch.tensor(1.0, dtype=torch.float64), atol=1e-10)
    assert spec.orthogonal_dimension == 6


def test_gauges_of_thin_matrices() -> None:
    _, spec, state, _ = case("lora")
    unit, balanced = form(spec, state), form(spec, state, "balanced")
    eye = torch.eye(2, dtype=torch.float64)
    for number in range(2):
        a, b = f"layers.{number}.a", f"layers.{number}.b"
        assert torch.allclose(unit[a] @ unit[a].T, eye, atol=1e-10)
        gram = balanced[a] @ balanced[a].T
        assert torch.allclose(gram, balanced[b].T @ balanced[b], atol=1e-10)
        assert torch.allclose(gram, gram.diagonal().diag(), atol=1e-10)
        assert not torch.allclose(state[a] @ state[a].T, eye, atol=0.1)


def test_products_of_heads_are_kept() -> None:
    _, spec, state, _ = case("encoder layer")
    only = GroupElement(
        spec,
        spec.identity().permutations,
        spec.identity().log_scales,
        spec.identity().flips,
        symmetry.canonicalize(spec, state).matrices,
    )
    moved = spec.act(only, state)
    for head in range(2):
        rows = slice(2 * head, 2 * head + 2)

        def product(given: State, rows: slice = rows) -> Tensor:
            weight = given["layer.self_attn.in_proj_weight"]
            return weight[:4][rows].T @ weight[4:8][rows]

        assert torch.allclose(product(moved), product(state), atol=1e-10)
    assert apart(moved, state) > 1e-2


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), zeros=st.floats(0.0, 0.9), name=st.sampled_from(["mlp relu", "mlp tanh", "prelu"]))
@example(seed=200, zeros=0.8203125, name="prelu")  # units without a minimum of their own that only reach each other
@example(seed=3004, zeros=0.82, name="prelu")
@example(seed=203, zeros=0.7, name="mlp relu")
def test_states_with_many_zeros(seed: int, zeros: float, name: str) -> None:
    """Dead units, isolated units and empty layers included."""
    _, spec, state, _ = case(name)
    generator = torch.Generator().manual_seed(seed)
    state = {
        key: value * (torch.rand(value.shape, generator=generator, dtype=value.dtype) >= zeros)
        for key, value in generic_state(spec, state, generator, fresh=True).items()
    }
    for gauge in gauges(spec):
        canonical = form(spec, state, gauge)
        assert all(bool(value.isfinite().all()) for value in canonical.values())
        moved = spec.act(element_of(spec, seed), state)
        assert apart(canonical, form(spec, moved, gauge)) < 1e-10


@pytest.mark.parametrize("name", ["mlp relu", "mlp tanh", "conv, batch norm", "encoder layer", "lora", "gru"])
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_constant_states(name: str, value: float) -> None:
    _, spec, state, _ = case(name)
    state = {
        key: torch.full_like(tensor, value) if tensor.is_floating_point() else tensor for key, tensor in state.items()
    }
    for gauge in gauges(spec):
        canonical = form(spec, state, gauge)
        assert all(bool(tensor.isfinite().all()) for tensor in canonical.values())
        moved = spec.act(element_of(spec, 1, ("permutation", "scale", "sign")), state)
        assert apart(canonical, form(spec, moved, gauge)) < 1e-9


def test_ties_are_broken_together() -> None:
    """Every unit of both layers looks alike; which ones belong together shows only when one is singled out."""
    model = mlp([2, 6, 6, 1], torch.relu)
    spec = symmetry.trace(model, (draw(7, 2),))
    ring = torch.eye(6, dtype=torch.float64) + 0.5 * torch.eye(6, dtype=torch.float64).roll(1, 0)
    state = {
        "0.weight": torch.ones(6, 2, dtype=torch.float64),
        "0.bias": torch.ones(6, dtype=torch.float64),
        "2.weight": ring,
        "2.bias": torch.ones(6, dtype=torch.float64),
        "4.weight": torch.ones(1, 6, dtype=torch.float64),
        "4.bias": torch.ones(1, dtype=torch.float64),
    }
    canonical = form(spec, state)
    for seed in range(5):
        moved = spec.act(element_of(spec, seed), state)
        assert apart(canonical, form(spec, moved)) < 1e-10


def test_twins_cost_nothing() -> None:
    model = mlp([3, 200, 2], torch.tanh)
    spec = symmetry.trace(model, (draw(7, 3),))
    state = {key: value.double() for key, value in seeded(lambda: mlp([3, 200, 2], torch.tanh)).state_dict().items()}
    state["0.weight"][50:] = state["0.weight"][50]
    state["0.bias"][50:] = 0.3
    state["2.weight"][:, 50:] = 0.1
    assert apart(form(spec, state), form(spec, spec.act(element_of(spec, 1), state))) < 1e-10


def test_wreath_products() -> None:
    spec = wreath()
    generator = torch.Generator().manual_seed(0)
    for seed in range(4):
        state = {
            name: torch.randn(info.shape, generator=generator, dtype=torch.float64)
            for name, info in spec.tensors.items()
        }
        canonical = form(spec, state)
        moved = spec.act(element_of(spec, seed), state)
        assert apart(state, moved) > 1e-2
        assert apart(canonical, form(spec, moved)) < 1e-10


def test_wide_layers() -> None:
    model = seeded(lambda: mlp([20, 512, 512, 10], torch.relu))
    spec = symmetry.trace(model, (draw(7, 20),))
    state = {key: value.double() for key, value in model.state_dict().items()}
    assert apart(form(spec, state), form(spec, spec.act(element_of(spec, 2), state))) < 1e-10


def test_fresh_thin_matrices_whose_product_is_zero() -> None:
    model = Stages(LoRALinear(6, 8), torch.relu, LoRALinear(8, 3)).to(torch.float64)
    spec = symmetry.trace(model, (draw(7, 6, dtype=torch.float64),))
    state = {key: torch.zeros_like(v) if key.endswith(".b") else v for key, v in model.state_dict().items()}
    for gauge in ("unit", "balanced"):
        assert apart(form(spec, state, gauge), form(spec, spec.act(element_of(spec, 2), state), gauge)) < 1e-10


def test_gauge_distance() -> None:
    for name in ("conv, batch norm", "encoder layer", "siren", "mlp tanh"):
        _, spec, state, _ = case(name)
        far = symmetry.gauge_distance(spec, state)
        near = symmetry.gauge_distance(spec, form(spec, state))
        assert far.keys() == near.keys()
        kinds = {key.split(" ", 1)[0] for key in far}
        assert {"permutation", "sign"} <= kinds
        assert len(far) == len(spec.permuted) + len(spec.factors) + len(spec.linear) + len(spec.shifts)
        for kind in kinds:
            assert max(value for key, value in far.items() if key.startswith(kind)) > 1e-2, kind
        assert max(near.values()) < 1e-8
    scaled = spec.act(element_of(spec, 1, ("sign",)), form(spec, state))
    assert max(symmetry.gauge_distance(spec, scaled).values()) > 0.2


def test_refusals() -> None:
    _, spec, state, _ = case("mlp relu")
    with pytest.raises(SpecError, match="gauge='polar': unknown; expected one of unit, balanced"):
        symmetry.canonicalize(spec, state, "polar")
    with pytest.raises(SpecError, match=r"0\.bias: shape \(5,\), expected \(4,\)"):
        symmetry.canonicalize(spec, {**state, "0.bias": torch.zeros(5)})
    broken = {**state, "2.weight": torch.full_like(state["2.weight"], float("inf"))}
    with pytest.raises(SpecError, match=r"2\.weight \(\d+ of \d+\): values that are not finite"):
        symmetry.gauge_distance(spec, broken)
