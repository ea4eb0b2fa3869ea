"""Is the flow of features through the graph the network itself, where it should be?"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from metanet.graph import ParameterGraph, collate
from metanet.nn.flow import propagate
from metanet.nn.steps import schedule
from symmetry import Fixed, Product, SymmetrySpec
from tests.graph.specs import atom, conv, linear, lstm, make_spec, mlp, norm, random_state, residual


def answers(spec: SymmetrySpec, states: list[dict[str, Tensor]], x: Tensor, measure: str = "value") -> Tensor:
    bucket = collate([ParameterGraph.build(spec, state) for state in states], torch.float64).buckets[0]
    topology = bucket.topology
    ends = propagate(
        bucket, lambda group, size: x, lambda block: torch.ones(topology.blocks[block].features, x.shape[1]), measure
    )
    (output,) = [g for g, group in enumerate(topology.groups) if group.fixed and group.writes]
    return ends[output]


@pytest.mark.parametrize(("name", "function"), [("relu", torch.relu), ("tanh", torch.tanh), ("sin", torch.sin)])
def test_it_is_the_network_for_chains_of_linear_layers(name, function):
    spec = mlp(4, 5, 3, 2, activation=name)
    generator = torch.Generator().manual_seed(0)
    states = [random_state(spec, generator) for _ in range(3)]
    x = torch.randn(4, 6, generator=generator, dtype=torch.float64)
    for state, found in zip(states, answers(spec, states, x), strict=True):
        h = x.T
        for i in range(3):
            h = nn.functional.linear(h, state[f"layers.{i}.weight"], state[f"layers.{i}.bias"])
            h = function(h) if i < 2 else h
        torch.testing.assert_close(found, h.T)


@pytest.mark.parametrize("shortcut", [False, True])
def test_it_is_the_network_for_residual_convolutions_on_constant_images(shortcut):
    """Batch norms, a residual stream with or without a shortcut, 1x1 kernels (so that the border does not matter)."""
    first, inner, out = atom("a", 4), atom("b", 5), atom("c", 6)
    stream = out if shortcut else first
    entries = [
        *conv("stem", first, Fixed(2, "input"), 1), *norm("stem_norm", first),
        *conv("one", inner, first, 1), *norm("one_norm", inner),
        *conv("two", stream, inner, 1, bias=False), *norm("two_norm", stream),
    ]  # fmt: skip
    if shortcut:
        entries += [*conv("short", stream, first, 1, bias=False), *norm("short_norm", stream)]
    entries += linear("head", Fixed(3, "output"), stream)
    counters = {name: "int64" for name, *_ in entries if name.endswith("tracked")}
    spec = make_spec(entries, dtypes=counters)
    generator = torch.Generator().manual_seed(0)
    state = random_state(spec, generator)
    x = torch.randn(2, 6, generator=generator, dtype=torch.float64)

    def layer(name: str, h: Tensor) -> Tensor:
        h = nn.functional.conv2d(h, state[f"{name}.weight"], state.get(f"{name}.bias"))
        values = [state[f"{name}_norm.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
        return nn.functional.batch_norm(h, *values)

    h = layer("stem", x.T[:, :, None, None].expand(-1, -1, 3, 3)).relu()
    branch = layer("two", layer("one", h).relu())
    h = (branch + (layer("short", h) if shortcut else h)).relu()
    expected = nn.functional.linear(h.mean((2, 3)), state["head.weight"], state["head.bias"])
    torch.testing.assert_close(answers(spec, [state], x)[0], expected.T)


def test_pixels_behind_a_flatten_are_summed():
    spec = make_spec(
        [
            *conv("conv", atom("c", 3), Fixed(1, "input"), 1),
            *linear("head", Fixed(2, "output"), Product(atom("c", 3), Fixed(4))),
        ]
    )
    state = random_state(spec, torch.Generator().manual_seed(0))
    x = torch.ones(1, 1, dtype=torch.float64)
    h = nn.functional.conv2d(
        torch.ones(1, 1, 2, 2, dtype=torch.float64), state["conv.weight"], state["conv.bias"]
    ).relu()
    expected = nn.functional.linear(h.flatten(1), state["head.weight"], state["head.bias"])
    torch.testing.assert_close(answers(spec, [state], x)[0], expected.T)


def test_path_norms_do_not_change_under_the_scaling_of_a_relu_unit():
    spec = mlp(4, 5, 3, 2)
    state = random_state(spec, torch.Generator().manual_seed(0))
    scaled = {name: value.clone() for name, value in state.items()}
    scaled["layers.0.weight"][1] *= 7
    scaled["layers.0.bias"][1] *= 7
    scaled["layers.1.weight"][:, 1] /= 7
    ones = torch.ones(4, 1, dtype=torch.float64)
    for measure in ("absolute", "square"):
        first, second = answers(spec, [state, scaled], ones, measure)
        torch.testing.assert_close(first, second)
    weights = [state[f"layers.{i}.weight"].abs() for i in range(3)]
    torch.testing.assert_close(answers(spec, [state], ones, "absolute")[0], weights[2] @ weights[1] @ weights[0] @ ones)


def test_a_recurrent_state_that_nothing_has_written_is_zero():
    steps = schedule(
        collate([ParameterGraph.build(lstm(), random_state(lstm(), torch.Generator()))]).buckets[0].topology
    )
    assert [step.sort for step in steps].count("edge") == 9
    assert steps[-1].sort == "settle"


def test_every_written_group_settles():
    topology = (
        collate([ParameterGraph.build(residual(), random_state(residual(), torch.Generator()))]).buckets[0].topology
    )
    settled = {step.group for step in schedule(topology) if step.sort == "settle"}
    assert settled == {g for g, group in enumerate(topology.groups) if group.writes}
