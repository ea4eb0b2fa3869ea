"""Do answers respect every kind of factor on trained networks, alone and mixed, at every level and in every gauge?"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import pytest
import torch
from torch import Tensor

import metanet
from metanet.graph import GraphBatch, ParameterGraph, collate
from metanet.nn import Metanet
from metanet.nn.frames import canonical, frame_of
from symmetry import GroupElement, SymmetrySpec
from tests.nn.cases import State
from tests.nn.test_full import LIMIT, carry
from tests.nn.trained import BUILDERS, trained

GAUGES = ("rms", "unit", "balanced")
KINDS = {
    "mlp relu": {"permutation", "scale"},
    "mlp tanh": {"permutation", "sign"},
    "cnn": {"permutation", "scale"},
    "residual": {"permutation", "scale", "sign"},
    "transformer": {"permutation", "scale", "sign", "linear"},
    "gru": {"permutation", "sign"},
    "lstm": {"permutation", "sign"},
    "siren": {"permutation", "sign", "shift"},
}
Answers = Tensor | list[State]


@cache
def make(level: str, symmetry: str, gauge: str, messages: str, dtype: torch.dtype = torch.float64) -> Metanet:
    return Metanet(
        1, level, hidden=8, layers=2, statistics=False, partial=True, seed=1,
        symmetry=symmetry, gauge=gauge, messages=messages,
    ).to(dtype)  # fmt: skip


def ask(net: Metanet, spec: SymmetrySpec, states: Sequence[State]) -> Answers:
    dtype = next(net.parameters()).dtype
    with torch.no_grad():
        return net(collate([ParameterGraph.build(spec, state) for state in states], dtype))


def distance(found: Answers, expected: Answers) -> tuple[float, float]:
    """Largest difference, and the spread: between networks, or of what is answered for one."""
    if isinstance(found, Tensor) and isinstance(expected, Tensor):
        return float((found - expected).abs().max()), float(expected.std(correction=0))
    pairs = [(a[key].double(), b[key].double()) for a, b in zip(found, expected, strict=True) for key in b]
    error = max(float((a - b).abs().max()) for a, b in pairs if a.numel())
    return error, float(torch.cat([b.flatten() for _, b in pairs]).std())


def compare(
    net: Metanet, spec: SymmetrySpec, states: Sequence[State], elements: Sequence[GroupElement]
) -> tuple[float, float]:
    moved = [spec.act(element, state) for element, state in zip(elements, states, strict=True)]
    before, after = ask(net, spec, states), ask(net, spec, moved)
    if not isinstance(before, Tensor):
        still = [{key: torch.zeros_like(value) for key, value in state.items()} for state in states]
        before = [{**zero, **row} if net.level != "node" else row for zero, row in zip(still, before, strict=True)]
        before = [carry(element, row) for element, row in zip(elements, before, strict=True)]
        after = [{**zero, **row} if net.level != "node" else row for zero, row in zip(still, after, strict=True)]
    return distance(after, before)


def drawn(spec: SymmetrySpec, count: int, kinds: Sequence[str]) -> list[GroupElement]:
    generator = torch.Generator().manual_seed(5)
    return [spec.sample(generator, kinds) for _ in range(count)]


@pytest.mark.parametrize("name", BUILDERS)
def test_every_kind_of_factor_alone(name):
    """With frames no kind moves an answer; without them each but permutations does."""
    one = trained(name)
    seen = {"permutation"} if one.spec.permutation_order > 1 else set()
    seen |= {factor.kind for factor in one.spec.factors} | {factor.kind for factor in one.spec.linear}
    seen |= {"shift"} if one.spec.shifts else set()
    assert seen == KINDS[name]
    for kind in sorted(seen):
        elements = drawn(one.spec, 2, (kind,))
        error, spread = compare(make("graph", "full", "rms", "edge"), one.spec, one.states, elements)
        assert error <= LIMIT * spread, kind
        error, spread = compare(make("graph", "permutation", "rms", "edge"), one.spec, one.states, elements)
        assert (error <= LIMIT * spread) == (kind == "permutation"), kind
        assert kind == "permutation" or error > 1e-4 * spread, kind


@pytest.mark.parametrize("name", BUILDERS)
def test_every_level_under_the_whole_group(name):
    one = trained(name)
    elements = drawn(one.spec, 2, tuple(KINDS[name]))
    turns = zip(("node", "edge", "state", "state"), (*GAUGES, "rms"), ("edge", "sweep", "edge", "sweep"), strict=True)
    for level, gauge, messages in turns:
        error, spread = compare(make(level, "full", gauge, messages), one.spec, one.states, elements)
        assert error <= LIMIT * spread, (level, gauge, messages)
    error, spread = compare(make("state", "permutation", "rms", "edge"), one.spec, one.states, elements)
    assert error > 1e-3 * spread  # without the frame, changes do not transform


def rounded(state: State, dtype: torch.dtype) -> State:
    return {key: value.to(dtype) if value.is_floating_point() else value for key, value in state.items()}


def both(dtype: torch.dtype = torch.float64) -> tuple[GraphBatch, GraphBatch]:
    """All trained networks in one batch, and all of them elsewhere on their orbits."""
    given, moved = [], []
    for name in BUILDERS:
        one = trained(name)
        for state, element in zip(one.states, drawn(one.spec, 2, tuple(KINDS[name])), strict=True):
            there = one.spec.act(element, state)
            given.append(ParameterGraph.build(one.spec, rounded(state, dtype)))
            moved.append(ParameterGraph.build(one.spec, rounded(there, dtype)))
    return collate(given, dtype), collate(moved, dtype)


@pytest.mark.parametrize("messages", ["edge", "sweep"])
def test_all_families_in_one_batch(messages):
    given, moved = both()
    for gauge in GAUGES:
        with torch.no_grad():
            before, after = (make("graph", "full", gauge, messages)(batch) for batch in (given, moved))
        assert float((before - after).abs().max()) <= LIMIT * float(before.std()), gauge
    with torch.no_grad():
        before, after = (make("graph", "permutation", "rms", messages)(batch) for batch in (given, moved))
    assert float((before - after).abs().max()) > 1e-2 * float(before.std())


@pytest.mark.parametrize("messages", ["edge", "sweep"])
def test_single_precision(messages):
    """Moved weights are rounded to float32 as well: a network of sines answers that rounding itself."""
    given, moved = both(torch.float32)
    for gauge in GAUGES:
        with torch.no_grad():
            before, after = (make("graph", "full", gauge, messages, torch.float32)(batch) for batch in (given, moved))
        assert float((before - after).abs().max()) <= 1e-5 * float(before.std()), gauge


def test_the_frame_is_that_of_double_precision():
    """Whatever the dtype of the networks, so that nothing is lost to differences of large logarithms."""
    one = trained("residual")
    state = rounded(one.states[0], torch.float32)
    graph = ParameterGraph.build(one.spec, state)
    narrow, wide = (collate([graph], dtype).buckets[0] for dtype in (torch.float32, torch.float64))
    assert frame_of(narrow, "balanced").element(0) == frame_of(wide, "balanced").element(0)
    form = canonical(narrow, "balanced")[1]
    for found, expected in zip(form.values, canonical(wide, "balanced")[1].values, strict=True):
        if found is not None and expected is not None:
            assert found.dtype == torch.float32
            assert torch.equal(found, expected.float())


def spoil(state: State, name: str) -> State:
    """A dead unit, two equal ones, and one whose weights are 1e-15."""
    found = {key: value.clone() for key, value in state.items()}
    weights = [key for key, value in found.items() if "weight" in key and value.ndim >= 2]
    first, second = (found[key] for key in weights[:2])
    first[0] = 0
    first[2] = first[1]
    first[3] *= 1e-15
    if second.shape[1] == len(first):
        second[:, 2] = second[:, 1]
        second[:, 3] *= 1e-15
    for key, value in found.items():
        if value.ndim == 1 and len(value) == len(first) and value.is_floating_point() and "running" not in key:
            value[0] = 0
            value[2] = value[1]
    return found


@pytest.mark.parametrize(("gauge", "messages"), [("rms", "edge"), ("unit", "sweep"), ("balanced", "sweep")])
@pytest.mark.parametrize("name", BUILDERS)
def test_gradients_are_finite(name, gauge, messages):
    """In parameters and in weights: networks as trained, all of 1e-15, with units that are dead, equal or tiny."""
    one = trained(name)
    tiny = {key: value * 1e-15 if value.is_floating_point() else value for key, value in one.states[0].items()}
    states = [*one.states, tiny, spoil(one.states[0], name)]
    for dtype in (torch.float64, torch.float32):
        net = make("graph", "full", gauge, messages, dtype)
        batch = collate([ParameterGraph.build(one.spec, state) for state in states], dtype)
        leaves = [value.requires_grad_() for bucket in batch for value in bucket.values if value is not None]
        answers = net(batch).flatten()
        assert bool(answers.isfinite().all())
        sizes = []
        for rows in ((0, 1), (2,), (3,)):
            wanted = [*net.parameters(), *leaves]
            slopes = torch.autograd.grad(answers[list(rows)].sum(), wanted, retain_graph=True, allow_unused=True)
            found = [slope for slope in slopes if slope is not None]
            assert all(bool(slope.isfinite().all()) for slope in found), (dtype, rows)
            learned = [slope for slope in slopes[: -len(leaves)] if slope is not None]
            sizes.append(float(torch.cat([slope.flatten() for slope in learned]).double().norm()))
            assert any(bool((slope != 0).any()) for slope in slopes[-len(leaves) :] if slope is not None)
        # Sweeps divide by the sizes of gradients, which are small in a network of small weights.
        assert max(sizes) < (10 if messages == "edge" else 1e5) * sizes[0]


def test_agents(real_agents):
    """Trained policies and value networks of other people, in one batch."""
    given, moved = [], []
    generator = torch.Generator().manual_seed(0)
    for file in sorted(real_agents.glob("*.zip"))[::16]:
        checkpoint = metanet.load(file)
        state = rounded(checkpoint.state, torch.float64)
        there = checkpoint.spec.act(checkpoint.spec.sample(generator), state)
        given.append(ParameterGraph.build(checkpoint.spec, state))
        moved.append(ParameterGraph.build(checkpoint.spec, there))
    for symmetry in ("full", "permutation"):
        net = make("graph", symmetry, "balanced" if symmetry == "full" else "rms", "sweep")
        with torch.no_grad():
            before, after = (net(collate(graphs, torch.float64)) for graphs in (given, moved))
        share = float((before - after).abs().max() / before.std())
        assert share <= LIMIT if symmetry == "full" else share > 1e-2
