"""Is a planted element found again, exactly; and does alignment not care how its two networks happen to stand?"""

from __future__ import annotations

import math
from functools import lru_cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import symmetry
from symmetry import GroupElement, SpecError, SymmetrySpec
from symmetry.verify import generic_state

from .families import FACTS, SEQUENCE, Encoder, Recurrent
from .models import SUBJECTS, Subject, draw, mlp, resnet, seeded

NAMES = ("mlp relu", "mlp tanh", "mlp sin", "mlp gelu", "conv, batch norm", "resnet", "shared weights, tanh")
NAMES += ("residual stream", "actor and critic", "width one")
BY_NAME = {subject.name: subject for subject in (*SUBJECTS, *FACTS) if subject.name in NAMES or subject in FACTS}


def wide_mlp(width: int, function: object = torch.relu) -> Subject:
    return Subject(f"mlp {width}", lambda: mlp([8, width, width, 4], function), (7, 8), 0, 0, 0)  # type: ignore[arg-type]


WIDE = (
    wide_mlp(16),
    wide_mlp(128),
    wide_mlp(512),
    wide_mlp(64, torch.tanh),
    Subject("encoder 32", lambda: Encoder(32, 4, 48, dropout=0.0), SEQUENCE, 0, 0, 0),
    Subject("gru 32", lambda: Recurrent(nn.GRU, 32), SEQUENCE, 0, 0, 0),
)
PLANTED = {subject.name: subject for subject in (*BY_NAME.values(), *WIDE)}
# Fewer inputs than units and no bias: the matrix is not determined by the network, see docs/align.md.
UNDETERMINED = {"deep linear without bias"}


@lru_cache(maxsize=64)
def traced(name: str) -> SymmetrySpec:
    subject = PLANTED[name]
    return symmetry.trace(seeded(subject.build).eval(), (draw(*subject.shape),))


def network(name: str, seed: int, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """Independent random weights of the scales of an initialised network."""
    state = seeded(PLANTED[name].build).state_dict()
    drawn = generic_state(traced(name), state, torch.Generator().manual_seed(seed), fresh=True)
    return {key: value.to(dtype) if value.is_floating_point() else value for key, value in drawn.items()}


def distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """Largest difference of an entry, over the largest entry of its tensor."""
    pairs = [(a[key].double(), b[key].double()) for key in a if a[key].numel()]
    return max(float((x - y).abs().max() / y.abs().max().clamp_min(1e-12)) for x, y in pairs)


def same_permutations(a: GroupElement, b: GroupElement) -> bool:
    return all(torch.equal(value, b.permutations[name]) for name, value in a.permutations.items())


FLOAT32 = ("mlp relu", "mlp 128", "mlp 512", "resnet", "encoder 32", "gru 32")
CASES = [(name, torch.float64) for name in sorted(PLANTED.keys() - UNDETERMINED)] + [
    (n, torch.float32) for n in FLOAT32
]


@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_a_planted_element_is_found(name: str, dtype: torch.dtype) -> None:
    spec, state = traced(name), network(name, 3, dtype)
    planted = spec.sample(torch.Generator().manual_seed(5))
    target = spec.act(planted, state)
    found = symmetry.align(spec, target, state, starts=1)
    assert same_permutations(found, planted)
    assert distance(spec.act(found, state), target) < (1e-9 if dtype == torch.float64 else 1e-4)
    if dtype == torch.float64:
        assert found == planted
    # Negative control: the network that was not carried over is nowhere near.
    assert distance(state, target) > 0.02


@pytest.mark.parametrize("method", ["weights", "frank_wolfe"])
@pytest.mark.parametrize("name", ["mlp relu", "mlp tanh", "resnet", "encoder layer", "gru", "mlp 128"])
def test_and_through_noise(name: str, method: str) -> None:
    spec, state = traced(name), network(name, 4)
    planted = spec.sample(torch.Generator().manual_seed(6), kinds=("permutation", "sign"))
    generator = torch.Generator().manual_seed(7)
    target = {
        key: value * (1 + 0.02 * torch.randn(value.shape, generator=generator, dtype=value.dtype))
        if value.is_floating_point()
        else value
        for key, value in spec.act(planted, state).items()
    }
    found = symmetry.align(spec, target, state, method)
    assert same_permutations(found, planted)
    assert all(torch.equal(value, found.flips[key]) for key, value in planted.flips.items())
    assert 1e-4 < distance(spec.act(found, state), target) < 0.2


@pytest.mark.parametrize("name", ["mlp tanh", "resnet", "encoder layer", "group norm, depthwise"])
def test_activations_find_it_too(name: str) -> None:
    subject, spec = PLANTED[name], traced(name)
    model = seeded(subject.build).eval()
    state = generic_state(spec, model.state_dict(), torch.Generator().manual_seed(3))
    planted = spec.sample(torch.Generator().manual_seed(5))
    target = spec.act(planted, state)
    inputs = (draw(64, *subject.shape[1:]),)
    assert symmetry.align(spec, target, state, "activations", model=model, inputs=inputs) == planted


@settings(max_examples=12, deadline=None)
@given(
    name=st.sampled_from(["mlp relu", "mlp tanh", "conv, batch norm", "shared weights, tanh", "gru", "swiglu"]),
    seed=st.integers(0, 2**31),
    method=st.sampled_from(["weights", "frank_wolfe"]),
)
def test_how_the_networks_stand_does_not_matter(name: str, seed: int, method: str) -> None:
    """``align(h A, k B) = h align(A, B) k^-1`` for unrelated networks A and B: only what they are decides."""
    spec = traced(name)
    a, b = network(name, seed % 1000), network(name, 1000 + seed % 1000)
    generator = torch.Generator().manual_seed(seed)
    h, k = spec.sample(generator), spec.sample(generator)
    plain = symmetry.align(spec, a, b, method, starts=1)
    moved = symmetry.align(spec, spec.act(h, a), spec.act(k, b), method, starts=1)
    reached, expected = spec.act(moved, spec.act(k, b)), spec.act(h, spec.act(plain, b))
    assert distance(reached, expected) < 1e-7


@settings(max_examples=8, deadline=None)
@given(name=st.sampled_from(["mlp gelu", "mlp tanh", "gru"]), seed=st.integers(0, 2**31))
def test_unrelated_networks_come_closer_but_not_close(name: str, seed: int) -> None:
    spec = traced(name)
    a, b = network(name, seed % 1000), network(name, 1000 + seed % 1000)

    def apart(x: dict[str, Tensor]) -> float:
        return math.sqrt(sum(float((a[key] - x[key]).square().sum()) for key in a))

    one, more = (apart(spec.act(symmetry.align(spec, a, b, starts=starts), b)) for starts in (1, 6))
    # These groups only permute and flip, so the most similar element is the closest one.
    assert more <= one + 1e-9
    random = [
        apart(spec.act(spec.sample(torch.Generator().manual_seed(k), ("permutation", "sign")), b)) for k in range(3)
    ]
    assert 0.01 * apart({key: torch.zeros_like(value) for key, value in a.items()}) < more < sum(random) / 3


def test_heads_then_units_against_brute_force() -> None:
    """Groups of units inside a norm: every wreath element of a small one, tried."""
    spec, a, b = traced("group norm, depthwise"), *(network("group norm, depthwise", seed) for seed in (1, 2))
    found = symmetry.align(spec, a, a, starts=1)
    assert found == spec.identity()
    assert same_permutations(found, spec.identity())
    # Not the identity for another network: it is not simply returned.
    assert not same_permutations(symmetry.align(spec, a, b, starts=1), spec.identity())


def test_one_space_is_solved_exactly() -> None:
    """With one space of four units, all 24 permutations and 16 signs can be tried."""
    import itertools

    model = mlp([3, 4, 2], torch.tanh)
    spec = symmetry.trace(model, (draw(7, 3),))
    for seed in range(5):
        a, b = (
            generic_state(spec, model.state_dict(), torch.Generator().manual_seed(s), fresh=True)
            for s in (seed, seed + 100)
        )
        best = math.inf
        neutral = spec.identity()
        for order in itertools.permutations(range(4)):
            for signs in itertools.product([False, True], repeat=4):
                element = GroupElement(
                    spec, {"0": torch.tensor(order)}, {}, {**neutral.flips, "0": torch.tensor(signs)}
                )
                best = min(best, sum(float((a[k] - v).square().sum()) for k, v in spec.act(element, b).items()))
        reached = spec.act(symmetry.align(spec, a, b), b)
        assert sum(float((a[k] - v).square().sum()) for k, v in reached.items()) == pytest.approx(best, rel=1e-12)


def test_dead_and_constant_units_are_no_trouble() -> None:
    spec, state = traced("mlp relu"), network("mlp relu", 1)
    for key in ("0.weight", "0.bias"):
        state[key][:2] = 0.0
    planted = spec.sample(torch.Generator().manual_seed(1))
    target = spec.act(planted, state)
    assert distance(spec.act(symmetry.align(spec, target, state), state), target) < 1e-9


def test_buffers_and_dtypes_survive() -> None:
    spec, state = traced("resnet"), network("resnet", 1, torch.float32)
    element = symmetry.align(spec, state, network("resnet", 2, torch.float32))
    moved = spec.act(element, state)
    assert {key: value.dtype for key, value in moved.items()} == {key: value.dtype for key, value in state.items()}


def test_refusals() -> None:
    spec, state = traced("mlp relu"), network("mlp relu", 1)
    with pytest.raises(SpecError, match=r"method='git'.*weights, activations, frank_wolfe"):
        symmetry.align(spec, state, state, "git")
    with pytest.raises(SpecError, match="needs model and inputs"):
        symmetry.align(spec, state, state, "activations")
    with pytest.raises(SpecError, match=r"0\.bias"):
        symmetry.align(spec, state, {**state, "0.bias": torch.zeros(5)})
    with pytest.raises(SpecError, match="write \\(tensor,\\)"):
        symmetry.align(
            spec,
            state,
            state,
            "activations",
            model=seeded(BY_NAME["mlp relu"].build),
            inputs=draw(7, 3),  # type: ignore[arg-type]
        )


def test_a_network_that_was_never_trained() -> None:
    """All gains one, all biases and running means zero: only the convolutions tell units apart."""
    spec, state = traced("resnet"), seeded(resnet).state_dict()
    planted = spec.sample(torch.Generator().manual_seed(2), kinds=("permutation",))
    assert same_permutations(symmetry.align(spec, spec.act(planted, state), state), planted)
