"""What becomes a node, an edge, a feature?"""

from __future__ import annotations

import torch

from metanet.graph import ParameterGraph, topology_of
from symmetry import Fixed, SymmetrySpec
from tests.graph.specs import SPECS, atom, attention, chains, cnn, linear, lstm, make_spec, mlp, random_state, residual


def graph_of(spec: SymmetrySpec) -> ParameterGraph:
    return ParameterGraph.build(spec, random_state(spec, torch.Generator().manual_seed(0)))


def blocks(spec: SymmetrySpec) -> dict[str, tuple]:
    topology = topology_of(spec)
    found = {}
    for block in topology.blocks:
        found[block.label] = (block.level, *(topology.groups[g].name for g in block.groups), block.positions)
    return found


def test_mlp():
    found = blocks(mlp(4, 5, 3, 2))
    assert found["layers.0.weight"] == ("edge", "h1", "input.0.1", ())
    assert found["layers.2.weight"] == ("edge", "output.0.1", "h2", ())
    assert found["layers.1.bias"] == ("node", "h2", ())
    graph = graph_of(mlp(4, 5, 3, 2))
    assert (graph.num_nodes, graph.num_edges) == (4 + 5 + 3 + 2, 4 * 5 + 5 * 3 + 3 * 2)
    groups = {group.name: group for group in graph.topology.groups}
    assert groups["input.0.1"].fixed
    assert groups["output.0.1"].fixed
    assert not groups["h1"].fixed
    assert (groups["input.0.1"].writes, groups["output.0.1"].reads) == (False, False)
    assert groups["h1"].activations == ("relu",)


def test_kernels_pixels_and_depthwise_kernels_are_features():
    found = blocks(cnn(widths=(4, 5), pixels=4))
    assert found["conv2.weight"] == ("edge", "c2", "c1", (3, 3))
    assert found["head.weight"] == ("edge", "output.0.1", "c2", (4,))
    assert found["depth.weight"] == ("node", "c1", (3, 3))
    assert found["bn1.running_var"] == ("node", "c1", ())
    graph = graph_of(cnn())
    assert graph.raw() == {
        "bn1.num_batches_tracked": "dtype int64 is not floating point",
        "bn2.num_batches_tracked": "dtype int64 is not floating point",
    }
    assert graph.topology.unseen == ()
    assert "raw" in repr(graph)


def test_residual_adds_cost_no_edges_and_square_weights_connect_a_space_to_itself():
    spec = residual(4)
    assert blocks(spec)["square.weight"] == ("edge", "stream", "stream", ())
    graph = graph_of(spec)
    assert graph.num_edges == sum(tensor.numel() for name, tensor in graph.state().items() if name.endswith("weight"))


def test_concatenations_give_one_block_per_part():
    found = blocks(lstm())
    assert [label for label in found if label.startswith("cell.weight_hh")] == [
        f"cell.weight_hh_l0[{gate}.0]" for gate in range(4)
    ]
    graph = graph_of(lstm(inputs=3, width=4))
    state = graph.state()
    third = next(i for i, block in enumerate(graph.topology.blocks) if block.label == "cell.weight_ih_l0[2.0]")
    torch.testing.assert_close(graph.values[third][..., 0], state["cell.weight_ih_l0"][8:12], rtol=0, atol=0)


def test_chains_share_their_input_and_tied_tensors_are_stored_once():
    topology = topology_of(chains())
    assert [group.name for group in topology.groups].count("obs") == 1
    assert topology.owners["again.weight"] == "policy.0.weight"
    assert "again.weight" not in {block.tensor for block in topology.blocks}
    found = blocks(chains())
    assert found["log_std"] == ("layer", (2,))
    assert found["temperature"] == ("layer", ())
    assert "again.weight" in topology.report()


def test_units_inside_heads_are_one_group_and_three_unit_axes_are_raw():
    found = blocks(attention())
    assert found["qkv.weight[1.0]"] == ("edge", "heads x units", "stream", ())
    assert found["odd"][0] == "raw"
    topology = topology_of(attention())
    assert topology.unseen == ("odd",)
    assert "3 unit axes" in topology.report()


def test_the_layout_of_heads_does_not_depend_on_how_a_tensor_writes_them():
    from symmetry import Product

    head, unit = atom("heads", 2), atom("units", 3)
    entries = [
        ("a", "bias", (Product(head, unit),), ("out",)),
        ("b", "bias", (Product(unit, head),), ("out",)),
        ("c", "parameter", (unit, head), ("unit", "unit")),
    ]
    spec = make_spec(entries, within={"units": ("heads",)})
    values = torch.arange(6.0).reshape(2, 3)
    graph = ParameterGraph.build(spec, {"a": values.reshape(6), "b": values.T.reshape(6), "c": values.T})
    for block in graph.values:
        torch.testing.assert_close(block, torch.arange(6.0)[:, None], rtol=0, atol=0)
    assert {block.level for block in graph.topology.blocks} == {"node"}


def test_zero_weights_stay_edges():
    spec = mlp(3, 4, 2)
    state = {name: torch.zeros_like(value) for name, value in random_state(spec, torch.Generator()).items()}
    assert ParameterGraph.build(spec, state).num_edges == 3 * 4 + 4 * 2


def test_topology_is_built_once_per_fingerprint():
    for make in SPECS.values():
        assert topology_of(make()) is topology_of(make())
    assert topology_of(mlp(3, 4, 2)) is not topology_of(mlp(3, 5, 2))


def test_layers_follow_the_data_flow():
    topology = topology_of(mlp(4, 5, 3, 2))
    edges = [topology.blocks[i].tensor for i in topology.edges]
    assert edges == ["layers.0.weight", "layers.1.weight", "layers.2.weight"]
    assert [layer.order for layer in topology.layers] == list(range(6))


def test_a_fixed_axis_without_a_name_is_its_own_group():
    spec = make_spec([*linear("a", Fixed(3), Fixed(2)), *linear("b", Fixed(3), Fixed(2))])
    names = [group.name for group in topology_of(spec).groups]
    assert len(set(names)) == len(names)
    assert "a.weight:0" in names
