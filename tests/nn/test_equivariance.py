"""Do answers follow every permutation of units? Error over the spread between networks, beside negative controls."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from metanet.graph import ParameterGraph, collate
from metanet.nn import Metanet, layer_statistics
from symmetry import GroupElement, SymmetrySpec
from symmetry.testing import EquivarianceTable, equivariance_error
from tests.graph.specs import SPECS, random_state

State = dict[str, Tensor]
LIMITS = {torch.float64: 1e-10, torch.float32: 1e-5}
CONTROL = 1e-4  # of the spread; errors above are 1e-10 and 1e-5


def graph_answer(net: Metanet, spec: SymmetrySpec, state: State) -> Tensor:
    return net(collate([ParameterGraph.build(spec, state)], dtype=next(net.parameters()).dtype))


def node_answer(net: Metanet, spec: SymmetrySpec, state: State) -> State:
    return net(collate([ParameterGraph.build(spec, state)], dtype=next(net.parameters()).dtype))[0]


def edge_answer(net: Metanet, spec: SymmetrySpec, state: State) -> State:
    found = node_answer(net, spec, state)
    return {name: found.get(name, torch.zeros_like(tensor)) for name, tensor in state.items()}


def carry_nodes(element: GroupElement, output: State) -> State:
    moved = {}
    for name, value in output.items():
        if " x " in name:  # units inside heads: the head first, then the unit by the head's new place
            head, unit = (element.permutations[space] for space in name.split(" x "))
            value = value.reshape(len(head), -1, value.shape[-1])[head]
            value = torch.take_along_dim(value, unit[..., None], dim=1).flatten(0, 1)
        else:
            value = value[element.permutations[name]]
        moved[name] = value
    return moved


def measure(
    answer: Callable[..., Tensor | State], net: Metanet, name: str, dtype: torch.dtype, **options
) -> EquivarianceTable:
    spec = SPECS[name]()
    state = random_state(spec, torch.Generator().manual_seed(0))
    return equivariance_error(
        partial(answer, net, spec), spec, state, trials=3, kinds=("permutation",), dtype=dtype, **options
    )


@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize(
    ("answer", "settings", "options"),
    [
        (graph_answer, {"level": "graph", "statistics": False}, {}),
        (graph_answer, {"level": "graph", "probes": 4}, {}),
        (node_answer, {"level": "node"}, {"carry": carry_nodes}),
        (edge_answer, {"level": "edge"}, {}),
    ],
    ids=["graph", "graph with statistics and probes", "node", "edge"],
)
def test_answers_follow_permutations(answer, settings, options, name, dtype):
    net = Metanet(outputs=1, hidden=8, layers=2, partial=True, seed=1, **settings).to(dtype)
    table = measure(answer, net, name, dtype, **options)
    assert table.max_error < LIMITS[dtype], table
    assert table.spread > 1e-3


@pytest.mark.parametrize("name", ["mlp", "cnn", "residual", "lstm"])
def test_the_measure_sees_a_permutation_that_leaves_one_tensor_out(name):
    """Negative control: the same networks, one touched tensor left as it was."""
    net = Metanet(outputs=1, hidden=8, layers=2, seed=1).double()
    table = measure(graph_answer, net, name, torch.float64)
    assert table.control_error > CONTROL, table


def test_the_measure_sees_a_weight_per_position():
    """Negative control: a metanetwork that knows the index of a hidden unit."""
    net = Metanet(outputs=1, hidden=8, layers=2, statistics=False, seed=1).double()

    def cheat(state: State) -> Tensor:
        bias = state["layers.0.bias"]
        place = torch.linspace(0.9, 1.1, len(bias), dtype=bias.dtype)
        return graph_answer(net, spec, {**state, "layers.0.bias": bias * place})

    spec = SPECS["mlp"]()
    state = random_state(spec, torch.Generator().manual_seed(0))
    assert equivariance_error(cheat, spec, state, trials=3, kinds=("permutation",)).max_error > CONTROL


@pytest.mark.parametrize("level", ["node", "edge"])
def test_the_measure_sees_answers_that_do_not_move(level):
    net = Metanet(outputs=1, level=level, hidden=8, layers=2, seed=1).double()
    answer = node_answer if level == "node" else edge_answer
    table = measure(answer, net, "mlp", torch.float64, carry=lambda element, output: output)
    assert table.max_error > CONTROL


def test_inputs_and_outputs_are_not_interchangeable():
    spec = SPECS["mlp"]()
    state = random_state(spec, torch.Generator().manual_seed(0))
    net = Metanet(hidden=8, layers=2, statistics=False, seed=1).double()
    same = graph_answer(net, spec, state)
    swapped = {**state, "layers.0.weight": state["layers.0.weight"].flip(1)}
    assert (graph_answer(net, spec, swapped) - same).abs() > CONTROL
    outputs = {
        **state,
        "layers.2.weight": state["layers.2.weight"].flip(0),
        "layers.2.bias": state["layers.2.bias"].flip(0),
    }
    assert (graph_answer(net, spec, outputs) - same).abs() > CONTROL


def test_the_gates_of_a_cell_are_not_interchangeable():
    spec = SPECS["lstm"]()
    state = random_state(spec, torch.Generator().manual_seed(0))
    rolled = {name: value.roll(4, 0) if name.startswith("cell") else value for name, value in state.items()}
    net = Metanet(hidden=8, layers=2, statistics=False, seed=1).double()
    assert (graph_answer(net, spec, state) - graph_answer(net, spec, rolled)).abs() > CONTROL


@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("name", SPECS)
def test_statistics_are_invariant(name, dtype):
    spec = SPECS[name]()
    state = random_state(spec, torch.Generator().manual_seed(0))

    def statistics(state: State) -> Tensor:
        return layer_statistics(collate([ParameterGraph.build(spec, state)], dtype=dtype))[0]

    table = equivariance_error(statistics, spec, state, trials=3, kinds=("permutation",), dtype=dtype)
    assert table.max_error < LIMITS[dtype], table
    if name in ("mlp", "cnn", "residual"):
        assert table.control_error > 1e-6
