"""Do answers respect the whole group? Error over the spread between networks, beside negative controls."""

from __future__ import annotations

from functools import cache, partial

import pytest
import torch
from torch import Tensor

from metanet.errors import ModelError
from metanet.graph import GraphBatch, ParameterGraph, collate
from metanet.nn import Metanet
from metanet.nn.features import excess
from metanet.nn.frames import Motion, canonical, frame_of
from metanet.nn.frames.scales import Scales
from symmetry import GroupElement, SymmetrySpec
from symmetry.testing import equivariance_error
from symmetry.verify import generic_state
from tests.nn.cases import FAMILIES, State, batch_of, case
from tests.symmetry.models import draw

LIMIT, CONTROL = 1e-10, 1e-5
NAMES = tuple(name for name in FAMILIES if name != "folded gains")
LEVELS = ("graph", "node", "state")


def make(level: str = "graph", dtype: torch.dtype = torch.float64, **options) -> Metanet:
    settings = {"hidden": 8, "layers": 2, "statistics": False, "symmetry": "full", "partial": True, "seed": 1}
    return Metanet(1, level, **{**settings, **options}).to(dtype)


def answer(net: Metanet, spec: SymmetrySpec, state: State) -> Tensor | State:
    found = net(batch_of(spec, [state], next(net.parameters()).dtype))
    return found if isinstance(found, Tensor) else found[0]


def carry(element: GroupElement, output: Tensor | State) -> Tensor | State:
    """How an answer moves with a network: not at all, with the units, or as a change of the state."""
    if isinstance(output, Tensor):
        return output
    spec = element.spec
    if set(output) == set(spec.tensors):
        still = {name: torch.zeros_like(value) for name, value in output.items()}
        moved, origin = spec.act(element, output), spec.act(element, still)
        return {name: moved[name] - origin[name] for name in output}
    return {name: _permuted(element, name.split(" x "), value) for name, value in output.items()}


def _permuted(element: GroupElement, names: list[str], value: Tensor) -> Tensor:
    """Answers for the units of a space, or of spaces within each other: outer ones first."""
    spec = element.spec
    wide = value.reshape(*(spec.sizes[name] for name in names), -1)
    for dim, name in enumerate(names):
        if name not in element.permutations:  # matrices act: the units are told apart by the frame
            continue
        places = [*(names.index(outer) for outer in spec.within.get(name, ())), dim]
        shape = [wide.shape[k] if k in places else 1 for k in range(wide.ndim)]
        wide = torch.take_along_dim(wide, element.permutations[name].reshape(shape).expand_as(wide), dim=dim)
    return wide.reshape(value.shape)


@cache
def trained(name: str) -> tuple[State, ...]:
    """Two networks of a family, fitted to noise from different starts until their weights have a shape of their own."""
    one = case(name)
    inputs = draw(*one.shape, dtype=torch.float64)
    found = []
    for seed in (1, 2):
        model = one.module
        state = {
            key: value.detach().clone()
            for key, value in generic_state(
                one.spec, model.state_dict(), torch.Generator().manual_seed(seed), fresh=True
            ).items()
        }
        weights = [value for key, value in state.items() if value.is_floating_point() and "running" not in key]
        for value in weights:
            value.requires_grad_()
        targets = torch.randn(inputs.shape[0], 1, generator=torch.Generator().manual_seed(seed)).double()
        optimiser = torch.optim.Adam(weights, lr=0.02)
        losses = []
        for _ in range(25):
            loss = (torch.func.functional_call(model, state, inputs) - targets).square().mean()
            losses.append(loss.item())
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        assert losses[-1] < 0.9 * losses[0]
        found.append({key: value.detach() for key, value in state.items()})
    return tuple(found)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", NAMES)
def test_every_factor_is_respected(name, level):
    one = case(name)
    net = make(level)
    table = equivariance_error(partial(answer, net, one.spec), one.spec, one.state(0), trials=1, carry=carry)
    assert table.max_error < LIMIT, table
    assert table.spread > 1e-3
    if level == "graph":  # one tensor left as it was; a factor that the network hardly feels shows less
        assert table.control_error > CONTROL, table


def differences(net: Metanet, batches: list[tuple[SymmetrySpec, list[State]]], elements: list) -> tuple[float, float]:
    """Largest error of the answers to moved networks, and the spread between the networks."""
    dtype = next(net.parameters()).dtype
    graphs = [ParameterGraph.build(spec, state) for spec, states in batches for state in states]
    moved = [
        ParameterGraph.build(spec, spec.act(element, state))
        for (spec, states), mine in zip(batches, elements, strict=True)
        for state, element in zip(states, mine, strict=True)
    ]
    with torch.no_grad():
        before, after = net(collate(graphs, dtype)), net(collate(moved, dtype))
    return float((before - after).abs().max()), float(before.std(correction=0))


def drawn(spec: SymmetrySpec, count: int, seed: int = 3, **options) -> list[GroupElement]:
    generator = torch.Generator().manual_seed(seed)
    return [spec.sample(generator, **options) for _ in range(count)]


@pytest.mark.parametrize("gauge", ["rms", "unit", "balanced"])
def test_trained_networks_of_all_families_in_one_batch(gauge):
    batches = [(case(name).spec, list(trained(name))) for name in NAMES]
    elements = [drawn(spec, len(states), scale_spread=1.0) for spec, states in batches]
    net = make(gauge=gauge, statistics=True, probes=2)
    net.fit_statistics(collate([ParameterGraph.build(s, t) for s, states in batches for t in states], torch.float64))
    error, spread = differences(net, batches, elements)
    assert error < LIMIT * spread
    permuting = make(statistics=True, probes=2, symmetry="permutation")
    error, spread = differences(permuting, batches, elements)
    assert error > 1e-2 * spread  # negative control: without the frame the answers move


@pytest.mark.parametrize("name", ["mlp relu", "siren", "batch norm", "transformer"])
def test_changes_of_trained_networks_follow_the_whole_group(name):
    one, states = case(name), trained(name)
    for level, gauge in (("state", "rms"), ("edge", "balanced")):
        net = make(level, gauge=gauge)
        for state, element in zip(states, drawn(one.spec, 2), strict=True):
            with torch.no_grad():
                expected, found = answer(net, one.spec, state), answer(net, one.spec, one.spec.act(element, state))
            zeros = {key: torch.zeros_like(value) for key, value in state.items()}
            expected = carry(element, {**zeros, **expected})
            size = max(float(value.abs().max()) for value in expected.values())
            assert max(float((found[key] - expected[key]).abs().max()) for key in found) < LIMIT * size
            assert max(float((found[key] - expected[key] * 0.99).abs().max()) for key in found) > 1e-3 * size


def test_a_change_of_the_whole_state_can_be_added():
    """Edited networks of one orbit stay on one orbit: the same function."""
    for name in ("batch norm", "siren", "transformer", "folded gains"):
        one = case(name)
        state = one.state(0)
        inputs = draw(*one.shape, dtype=torch.float64)
        net = make("state")
        with torch.no_grad():
            outputs = []
            for here in (state, one.spec.act(drawn(one.spec, 1)[0], state)):
                change = answer(net, one.spec, here)
                assert set(change) == set(here)
                edited = {key: value + 0.2 * change[key] for key, value in here.items()}
                outputs.append(torch.func.functional_call(one.module, edited, inputs))
            before = torch.func.functional_call(one.module, state, inputs)
        assert (outputs[0] - outputs[1]).abs().max() < LIMIT * before.std(), name
        assert (outputs[0] - before).abs().max() > 1e-3 * before.std(), name


@pytest.mark.parametrize("name", ["mlp relu", "siren", "cnn", "residual"])
def test_single_precision(name):
    one = case(name)
    states = [one.state(seed) for seed in range(3)]
    net = make(dtype=torch.float32)
    error, spread = differences(net, [(one.spec, states)], [drawn(one.spec, 3)])
    assert error < 1e-5 * spread, (error, spread)


def test_a_wrong_exponent_is_seen(monkeypatch):
    """Negative control: a frame that multiplies by the norm instead of dividing by it."""
    one = case("mlp relu")
    state, element = one.state(0), drawn(one.spec, 1, kinds=("scale",))[0]
    right = Scales.log_norm
    monkeypatch.setattr(Scales, "log_norm", lambda self, group: (-right(self, group)[0], right(self, group)[1]))
    error, _ = differences(make(), [(one.spec, [state])], [[element]])
    assert error > CONTROL


def test_equal_units_are_no_difficulty():
    one = case("mlp relu")
    state = one.state(0)
    for key in ("0.weight", "0.bias"):
        state[key][1] = state[key][0]
    state["2.weight"][:, 1] = state["2.weight"][:, 0]
    error, _ = differences(make(), [(one.spec, [state])], [drawn(one.spec, 1)])
    assert error < LIMIT
    check_gradients(one.spec, [state])


@pytest.mark.parametrize("name", ["mlp relu", "mlp tanh", "siren", "batch norm"])
def test_dead_units_are_no_difficulty(name):
    """A unit without input, one without output, one without either; and zero gains and offsets of a norm."""
    one = case(name)
    state = one.state(0)
    first, second = ("0", "3") if name == "batch norm" else ("0", "2")
    for unit, into, out in ((0, True, False), (1, False, True), (2, True, True)):
        if into:
            state[f"{first}.weight"][unit] = state[f"{first}.bias"][unit] = 0
        if out:
            state[f"{second}.weight"][:, unit] = 0
    if name == "batch norm":
        state["1.weight"][2] = state["1.bias"][2] = state["4.weight"][1] = state["1.running_mean"][0] = 0
    error, _ = differences(make(), [(one.spec, [state])], [drawn(one.spec, 1)])
    assert error < LIMIT
    check_gradients(one.spec, [state])


def test_units_that_hold_each_other_are_settled_one_by_one():
    """Layer by layer zero on the outside: what is left is a product of two open scales."""
    one = case("mlp relu")
    state = one.state(0)
    state["0.weight"][0] = state["0.bias"][0] = 0
    state["2.weight"][0] = 0
    state["2.weight"][0, 0] = 0.7
    state["2.bias"][0] = 0
    state["4.weight"][:, 0] = 0
    state["2.weight"][1:, 0] = 0
    error, _ = differences(make(), [(one.spec, [state])], [drawn(one.spec, 1)])
    assert error < LIMIT


def test_where_every_odd_statistic_vanishes_the_sign_is_not_unique():
    """Documented: an antisymmetric unit keeps the sign it has, so answers hold up to that sign only."""
    one = case("mlp tanh")
    state = one.state(0)
    state["0.weight"][:] = 0
    state["0.bias"][:] = 0
    state["2.weight"][:, 1] = -state["2.weight"][:, 0]
    state["2.weight"][:, 2:] = 0
    state["2.bias"][:] = 0
    state["4.weight"][:] = 0
    found = frame_of(batch_of(one.spec, [state]).buckets[0])
    assert not bool(found.flips["0"].any())
    check_gradients(one.spec, [state])


@pytest.mark.parametrize(
    ("name", "scale"),
    [("mlp relu", 1e-15), ("batch norm", 1e-15), ("transformer", 1e-15), ("mlp relu", 1e12), ("batch norm", 1e12)],
)
def test_weights_of_any_size(name, scale):
    one = case(name)
    states = [
        {key: value * scale if value.is_floating_point() else value for key, value in one.state(seed).items()}
        for seed in (0, 1)
    ]
    for dtype in (torch.float32, torch.float64):
        check_gradients(one.spec, states, dtype)


def test_a_canonical_form_beyond_float32_loses_nothing():
    """Two batch norms times 1e12: behind them stands a weight of 1e47, of which float32 keeps ratios and size apart."""
    one = case("batch norm")
    states = [{key: value * 1e12 if value.is_floating_point() else value for key, value in one.state(0).items()}]
    wide, narrow = batch_of(one.spec, states), batch_of(one.spec, states, torch.float32)
    framed = canonical(narrow.buckets[0])[1]
    assert float(excess(framed).amax()) > 40
    assert not bool(excess(canonical(wide.buckets[0])[1]).any())
    expected, found = make("state")(wide)[0], make("state", torch.float32)(narrow)[0]
    other = make("state")(batch_of(one.spec, [one.state(1)]))[0]
    for name, value in expected.items():
        size = value.abs().max()
        if value.is_floating_point() and size < 1e20:  # changes that count in the biases are too large for float32
            assert (found[name] - value).abs().max() < 1e-4 * size, name
            assert (other[name] - value).abs().max() > 1e-2 * size


def check_gradients(spec: SymmetrySpec, states: list[State], dtype: torch.dtype = torch.float64) -> None:
    """Answers and gradients are finite, in the parameters and in the weights, and some are not zero."""
    for level, gauge in (("graph", "unit"), ("graph", "balanced"), ("state", "rms")):
        net = make(level, dtype, gauge=gauge)
        batch: GraphBatch = batch_of(spec, states, dtype)
        leaves = [value.requires_grad_() for bucket in batch for value in bucket.values if value is not None]
        found = net(batch)
        flat = found if isinstance(found, Tensor) else torch.cat([v.flatten() for row in found for v in row.values()])
        assert bool(flat.isfinite().all())
        (flat / flat.detach().abs().max().clamp(min=1e-30)).sum().backward()
        grads = [value.grad for value in (*leaves, *net.parameters()) if value.grad is not None]
        assert all(bool(grad.isfinite().all()) for grad in grads), (level, gauge, dtype)
        assert any(bool((value.grad != 0).any()) for value in leaves if value.grad is not None)


def test_the_frame_moves_with_the_network():
    """frame(h theta) = frame(theta) h^-1: what it does, element by element."""
    one = case("batch norm")
    states = [one.state(seed) for seed in (0, 1)]
    bucket = batch_of(one.spec, states).buckets[0]
    elements = drawn(one.spec, 2, kinds=("scale", "sign"))
    moved = batch_of(one.spec, [one.spec.act(e, s) for e, s in zip(elements, states, strict=True)]).buckets[0]
    expected = frame_of(bucket) @ ~Motion.of(bucket.topology, elements, torch.zeros((), dtype=torch.float64))
    found = frame_of(moved)
    for row in range(2):
        assert found.element(row) == expected.element(row)
        assert found.element(row) != frame_of(bucket).element(row)


def test_balanced_gauges_balance():
    one = case("mlp relu")
    bucket = batch_of(one.spec, [one.state(0)]).buckets[0]
    for gauge, near in (("balanced", True), ("unit", False)):
        state = one.spec.act(frame_of(bucket, gauge).element(0), one.state(0))
        into = state["0.weight"].square().sum(1) + state["0.bias"].square()
        out = state["2.weight"].square().sum(0)
        assert bool(((into / out).log().abs() < 1e-2).all()) == near
        if not near:
            torch.testing.assert_close(into, torch.ones_like(into))


def test_what_has_no_frame_is_refused_by_name():
    from tests.symmetry.models import mlp, seeded

    module = seeded(lambda: mlp([3, 4, 3, 2], None))
    import symmetry

    spec = symmetry.trace(module, (draw(7, 3),))
    batch = batch_of(spec, [{key: value.double() for key, value in module.state_dict().items()}])
    with pytest.raises(ModelError, match=r"space '0' of linear matrices is not determined"):
        make()(batch)
    make(symmetry="permutation")(batch)


@pytest.mark.parametrize("level", LEVELS)
def test_weights_that_are_not_finite_are_listed(level):
    one = case("batch norm")
    states = [one.state(seed) for seed in range(5)]
    for row in (1, 2, 3, 4):
        states[row]["0.bias"][0] = float("nan")
    states[1]["4.weight"][2] = float("inf")
    with pytest.raises(ModelError) as caught:
        make(level)(batch_of(one.spec, states))
    reason = caught.value.reason
    assert "graph 1: tensors '0.bias', '4.weight' hold NaN" in reason
    assert "graph 3: tensor '0.bias' holds NaN" in reason
    assert "1 more graphs" in reason
