"""Are layer statistics what their names say, of one length for all architectures, and kept where they were computed?"""

from __future__ import annotations

import pytest
import torch

from metanet.errors import ModelError
from metanet.graph import ParameterGraph, collate
from metanet.nn import STATISTICS, layer_statistics
from metanet.nn.spectra import _singular_values
from symmetry import Fixed
from tests.graph.specs import SPECS, linear, make_spec, mlp, norm, random_state


def graphs() -> list[ParameterGraph]:
    generator = torch.Generator().manual_seed(0)
    specs = [make() for make in SPECS.values()]
    return [ParameterGraph.build(spec, random_state(spec, generator)) for spec in specs]


def one(spec, state) -> dict[str, float]:
    values, names = layer_statistics(collate([ParameterGraph.build(spec, state)], torch.float64))
    return dict(zip(names, values[0].tolist(), strict=True))


def test_one_length_for_all_architectures_in_the_order_of_the_batch():
    mixed = graphs()
    values, names = layer_statistics(mixed)
    assert names == STATISTICS
    assert len(set(names)) == len(names)
    assert values.shape == (len(mixed), len(names))
    assert torch.isfinite(values).all()
    for row, graph in zip(values, mixed, strict=True):
        torch.testing.assert_close(layer_statistics(graph)[0][0], row, rtol=1e-6, atol=1e-6)


def test_known_values():
    spec = mlp(4, 5, 3, 2)
    state = random_state(spec, torch.Generator().manual_seed(0))
    told = one(spec, state)
    weight = state["layers.2.weight"]
    assert told["last: log norm"] == pytest.approx(float(weight.norm().log()))
    assert told["last: log spectral norm"] == pytest.approx(float(torch.linalg.matrix_norm(weight, 2).log()))
    assert told["last: log row norm"] == pytest.approx(float(weight.norm(dim=1).mean().log()))
    assert told["last: log bias rms"] == pytest.approx(float(state["layers.2.bias"].square().mean().sqrt().log()))
    assert told["last: has norm"] == 0
    assert told["layers"] == 3
    assert told["activation relu"] == 1
    assert told["activation tanh"] == 0
    first, second = state["layers.0.weight"], state["layers.1.weight"]
    pair = torch.stack([first.norm(dim=1).log(), second.norm(dim=0).log()])
    assert told["first: in-out correlation"] == pytest.approx(float(torch.corrcoef(pair)[0, 1]), abs=1e-4)
    paths = state["layers.2.weight"].abs() @ second.abs() @ first.abs()
    assert told["path norm"] == pytest.approx(float(paths.sum(1).mean().log()))


def test_normalisation_belongs_to_the_layer_before_it():
    spec = SPECS["cnn"]()
    state = random_state(spec, torch.Generator().manual_seed(0))
    told = one(spec, state)
    assert told["first: has norm"] == 1
    assert told["first: gain mean"] == pytest.approx(float(state["bn1.weight"].mean()))
    assert told["second last: gain mean"] == pytest.approx(float(state["bn2.weight"].mean()))
    assert told["first: has bias"] == 0
    assert told["second last: has bias"] == 1


def test_values_without_a_unit_axis_count():
    spec = SPECS["chains"]()
    state = random_state(spec, torch.Generator().manual_seed(0))
    told = one(spec, state)
    loose = torch.cat([state["log_std"], state["temperature"][None]])
    assert told["has loose values"] == 1
    assert told["loose mean"] == pytest.approx(float(loose.mean().asinh()))
    assert one(mlp(3, 4, 2), random_state(mlp(3, 4, 2), torch.Generator()))["has loose values"] == 0


def test_dead_units_show_in_the_responses():
    spec = mlp(6, 8, 3)
    state = random_state(spec, torch.Generator().manual_seed(0))
    state["layers.0.bias"][:4] = -1e3
    assert one(spec, state)["response: hidden dead"] == pytest.approx(0.5)


def test_statistics_are_kept_with_the_batch():
    batch = collate(graphs())
    first = layer_statistics(batch)[0]
    assert all("statistics" in bucket.cache for bucket in batch)
    torch.testing.assert_close(layer_statistics(batch.select([3, 1]))[0], first[[3, 1]], rtol=0, atol=0)


def test_a_network_of_one_layer_and_one_without_weights():
    single = make_spec(linear("only", Fixed(2, "output"), Fixed(3, "input")))
    told = one(single, random_state(single, torch.Generator().manual_seed(0)))
    assert told["first: exists"] == told["last: exists"] == 1
    assert told["second last: exists"] == 0
    assert told["first: log norm"] == told["last: log norm"]
    none = make_spec(norm("bn", Fixed(3, "input")), dtypes={"bn.num_batches_tracked": "int64"})
    told = one(none, random_state(none, torch.Generator().manual_seed(0)))
    assert told["first: exists"] == told["layers"] == 0


def test_a_network_that_is_not_finite_does_not_stop_its_companions():
    spec = mlp(3, 4, 2)
    states = [random_state(spec, torch.Generator().manual_seed(seed)) for seed in (0, 1)]
    states[1]["layers.0.weight"][0] = float("nan")
    batch = collate([ParameterGraph.build(spec, state) for state in states])
    assert torch.isfinite(layer_statistics(batch.select([0]))[0]).all()
    with pytest.raises(ModelError, match="graph 0"):
        layer_statistics(batch.select([1]))


def test_weights_that_are_not_finite_are_refused():
    spec = mlp(3, 4, 2)
    state = random_state(spec, torch.Generator().manual_seed(0))
    state["layers.0.bias"][0] = float("nan")
    with pytest.raises(ModelError, match=r"graph 0: tensor 'layers\.0\.bias'"):
        layer_statistics(ParameterGraph.build(spec, state))


@pytest.mark.parametrize("shape", [(2, 130, 200), (1, 200, 129)])
def test_singular_values_of_large_matrices(shape: tuple[int, ...]) -> None:
    """They take another way, which must give the same numbers, those of rank-deficient matrices included."""
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    matrix[..., :40] = matrix[..., 40:80]
    expected = torch.linalg.svdvals(matrix)
    assert torch.allclose(_singular_values(matrix), expected, rtol=1e-6, atol=3e-8 * float(expected.max()))
