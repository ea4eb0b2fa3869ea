"""Do torch_geometric's own layers run on a parameter graph?"""

from __future__ import annotations

import pytest
import torch
from torch_geometric.nn import GATv2Conv, GraphConv, HeteroConv, SAGEConv

from metanet.graph import ParameterGraph
from metanet.graph.pyg import to_pyg
from tests.graph.specs import SPECS, cnn, mlp, random_state


def graph_of(name: str) -> ParameterGraph:
    spec = SPECS[name]()
    return ParameterGraph.build(spec, random_state(spec, torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("conv", [GraphConv, SAGEConv])
def test_hetero_conv(name, conv):
    data = graph_of(name).to_pyg()
    data.validate(raise_on_error=True)
    width = data["layer"].x.shape[1]
    with torch.random.fork_rng():
        layer = HeteroConv({edge: conv(width, 8) for edge in data.edge_types})
    out = layer(data.x_dict, data.edge_index_dict)
    assert set(out) == set(data.node_types)  # both directions: every node hears something
    for kind, value in out.items():
        assert value.shape == (data[kind].num_nodes, 8)
        assert torch.isfinite(value).all()


@pytest.mark.parametrize("name", SPECS)
def test_homogeneous(name):
    data = graph_of(name).to_pyg()
    whole = data.to_homogeneous()
    assert whole.x.shape[0] == whole.num_nodes == sum(data[kind].num_nodes for kind in data.node_types)
    assert whole.edge_attr.shape[0] == whole.edge_index.shape[1]
    with torch.random.fork_rng():
        layer = GATv2Conv(whole.x.shape[1], 4, edge_dim=whole.edge_attr.shape[1])
    assert layer(whole.x, whole.edge_index, whole.edge_attr).shape == (whole.num_nodes, 4)


def test_edges_carry_the_weights_from_source_to_target():
    graph = ParameterGraph.build(mlp(3, 4, 2), random_state(mlp(3, 4, 2), torch.Generator().manual_seed(0)))
    data = graph.to_pyg()
    weight = graph.state()["layers.0.weight"].float()
    edge = data["input.0.1", "layers.0.weight", "h1"]
    source, target = edge.edge_index
    torch.testing.assert_close(edge.edge_attr[:, 0], weight[target, source], rtol=0, atol=0)
    back = data["h1", "rev_layers.0.weight", "input.0.1"]
    assert torch.equal(back.edge_index, edge.edge_index.flip(0))
    assert (edge.edge_attr[:, 1] == 1).all()


def test_nodes_carry_their_parameters_and_a_mask():
    graph = ParameterGraph.build(cnn(), random_state(cnn(), torch.Generator().manual_seed(0)))
    data, state = graph.to_pyg(), graph.state()
    columns = data["c1"].x.T
    for name in ("bn1.weight", "bn1.running_var"):
        assert any(torch.equal(column, state[name].float()) for column in columns), name
    assert data["c1"].x[:, :30].ne(data["c2"].x[:1, :30]).any()


def test_without_layers_and_reverse_edges():
    data = to_pyg(graph_of("mlp"), reverse=False, layers=False)
    assert "layer" not in data.node_types
    assert len(data.edge_types) == 3
