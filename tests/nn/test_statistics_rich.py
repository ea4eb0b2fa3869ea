"""Do rich statistics say what was computed by hand, and does no element of the group change them?"""

import math

import pytest
import torch

import symmetry
from metanet.checkpoint import Architecture
from metanet.errors import TaskError
from metanet.graph import ParameterGraph, collate, program_of
from metanet.nn import Metanet, layer_statistics
from metanet.nn.rich import RICH, RICH_WEIGHTS, rich_statistics
from metanet.nn.rich_inputs import KINDS_OF_INPUT, grid_of, moved, probe_inputs, smooth_inputs
from metanet.nn.rich_responses import EACH, RESPONSES, SUMMARY, summary
from metanet.tasks.inverted import INVERTED, InversionOptions, Inverted, invert

MLP = Architecture("mlp", {"inputs": 9, "widths": [6, 5], "outputs": 3, "activation": "relu"})
TANH = Architecture("mlp", {"inputs": 9, "widths": [6], "outputs": 3, "activation": "tanh"})
CNN = Architecture(
    "cnn", {"channels": 1, "size": 3, "widths": [4], "outputs": 3, "activation": "relu", "norm": "batch"}
)
SUBJECTS = {"mlp": MLP, "tanh": TANH, "cnn": CNN}


def build(architecture, seeds):
    spec = symmetry.trace(architecture.build().eval(), architecture.example_inputs())
    states = [architecture.build(seed=seed).state_dict() for seed in seeds]
    return [ParameterGraph.build(spec, state, program_of(architecture)) for state in states]


@pytest.fixture(scope="module")
def graphs():
    return {name: build(architecture, range(3)) for name, architecture in SUBJECTS.items()}


@pytest.fixture(scope="module")
def made(graphs):
    batch = collate([graph for several in graphs.values() for graph in several])
    return invert(batch, None, 0, InversionOptions(steps=4, networks=4))


def orbit(graph, seed=0):
    element = graph.spec.sample(torch.Generator().manual_seed(seed))
    state = {name: value.double() if value.is_floating_point() else value for name, value in graph.state().items()}
    return ParameterGraph.build(graph.spec, graph.spec.act(element, state), graph.program)


@pytest.mark.parametrize("name", SUBJECTS)
def test_no_element_of_the_group_changes_them(name, graphs, made):
    some = graphs[name]
    there = [orbit(graph, seed) for seed, graph in enumerate(some)]
    here, moved_on = collate(some, torch.float64), collate(there, torch.float64)
    for one, two in (
        (rich_statistics(here)[0], rich_statistics(moved_on)[0]),
        (torch.from_numpy(made.features(here)), torch.from_numpy(made.features(moved_on))),
    ):
        # Between networks, not against zero; rounding to five decimals may turn by one unit.
        spread = one.std(0).clamp(min=1e-2)
        assert float(((one - two).abs() / spread).max()) < 5e-3
        assert float(one.std(0).max()) > 0.05
    plain = (layer_statistics(here)[0] - layer_statistics(moved_on)[0]).abs()
    assert float(plain.max()) > 0.05  # what is taken in the network's own gauge does change


def test_path_norms_by_output_are_products_of_matrices(graphs):
    graph = graphs["mlp"][0]
    names = [name for name in graph.state() if name.endswith("weight")]
    matrices = [graph.state()[name].double() for name in names]
    found = dict(zip(RICH, rich_statistics(graph)[0][0].tolist(), strict=True))
    for path, of in (("absolute", torch.abs), ("square", torch.square)):
        sums = torch.ones(9, dtype=torch.float64)
        for matrix in matrices:
            sums = of(matrix) @ sums
        logs = sums.log()
        told = {"mean": logs.mean(), "variation": logs.std(correction=0), "smallest": logs.min(), "largest": logs.max()}
        for name, value in told.items():
            assert found[f"{path} path norm over outputs: {name}"] == pytest.approx(float(value), abs=2e-5)


def test_the_canonical_first_layer_has_the_singular_values_of_the_balanced_gauge(graphs):
    graph = graphs["mlp"][0]
    state = {name: value.double() for name, value in graph.state().items()}
    settled = graph.spec.act(symmetry.canonicalize(graph.spec, state, "balanced"), state)
    singular = torch.linalg.svdvals(settled["layers.0.weight"])
    found = dict(zip(RICH, rich_statistics(graph)[0][0].tolist(), strict=True))
    expected = math.log(float(singular[1] / singular[0]) + 1e-4)
    assert found["canonical first: log singular value 2 to 1"] == pytest.approx(expected, abs=1e-4)
    own = torch.linalg.svdvals(state["layers.0.weight"])
    assert abs(math.log(float(own[1] / own[0]) + 1e-4) - expected) > 1e-3  # the network's own gauge says another thing


def test_a_summary_of_answers_by_hand():
    x = torch.zeros(1, 4, 3, dtype=torch.float64)
    x[0, :2, 0], x[0, 2:, 1] = 4.0, 2.0
    found = dict(zip(SUMMARY, summary(x)[0].tolist(), strict=True))
    assert found["classes answered"] == pytest.approx(2 / 3)
    assert found["entropy of answers"] == pytest.approx(math.log(2))
    assert found["margin 50"] == pytest.approx(math.log(3.0 + 1e-6))
    shares = torch.tensor([math.exp(4) / (math.exp(4) + 2), math.exp(2) / (math.exp(2) + 2)])
    assert found["largest share"] == pytest.approx(float(shares.mean()))
    assert found["singular value 1"] == pytest.approx(math.log(1 + 1e-6))  # all answers lie on one line
    assert found["singular value 2"] < -13


def test_without_a_program_nothing_is_run_and_the_mask_says_so(graphs):
    graph = graphs["mlp"][0]
    alone = ParameterGraph.build(graph.spec, graph.state())
    found = rich_statistics([graph, alone])[0]
    assert found[0, len(RICH_WEIGHTS)] == 1
    assert not found[1, len(RICH_WEIGHTS) :].any()
    assert torch.equal(found[0, : len(RICH_WEIGHTS)], found[1, : len(RICH_WEIGHTS)])
    assert len(RICH) == len(RICH_WEIGHTS) + len(RESPONSES) == found.shape[1]


def test_inputs_are_smooth_and_the_same_in_every_shape():
    flat, image = smooth_inputs((196,), 8), smooth_inputs((1, 14, 14), 8)
    assert torch.equal(flat, image.reshape(8, 196))
    torch.testing.assert_close(flat.square().mean(1), torch.ones(8, dtype=torch.float64))
    rough = (image[..., 1:] - image[..., :-1]).square().mean()
    white = torch.randn(8, 1, 14, 14, generator=torch.Generator().manual_seed(0))
    assert float(rough) < 0.5 < float((white[..., 1:] - white[..., :-1]).square().mean())
    assert torch.equal(moved(image, 1), torch.roll(image, 1, 3))
    assert not torch.equal(moved(image, 0), moved(image, 1))
    assert len(probe_inputs((5,), 4)) == 4 * len(KINDS_OF_INPUT)
    assert grid_of((7, 1)) == (7,)


def test_made_up_inputs_are_what_the_asked_networks_call_them(graphs):
    # Large weights and no biases: a network that tells inputs apart, as an untrained one hardly does.
    state = {n: 4 * value if value.ndim > 1 else 0 * value for n, value in graphs["mlp"][0].state().items()}
    batch = collate([ParameterGraph.build(graphs["mlp"][0].spec, state, graphs["mlp"][0].program)])
    made = invert(batch, None, 0, InversionOptions(steps=60, networks=3, noise=0.0, move=0))
    features = dict(zip(INVERTED, made.features(batch).T, strict=True))
    start = invert(batch, None, 0, InversionOptions(steps=1, networks=3, noise=0.0, move=0))
    before = dict(zip(INVERTED, start.features(batch).T, strict=True))
    assert features["as made: right"].mean() > before["as made: right"].mean() + 0.2
    assert features["as made: loss"].mean() < 0.8 * before["as made: loss"].mean()
    assert len(made.inputs["9x3"]) == EACH * len(KINDS_OF_INPUT)
    again = Inverted.from_tensors(made.tensors())
    assert (again.features(batch) == made.features(batch)).all()
    with pytest.raises(TaskError, match="made-up inputs"):
        Inverted.from_tensors({"8x3": made.inputs["9x3"]})


def test_a_network_with_other_inputs_is_not_asked(graphs, made):
    other = Architecture("mlp", {"inputs": 4, "widths": [6], "outputs": 3, "activation": "relu"})
    assert not made.features(collate(build(other, [0]))).any()
    assert made.features(collate(graphs["cnn"]))[:, 0].all()  # the same nine values, as an image


def test_a_readout_of_rich_statistics_does_not_move_along_an_orbit(graphs):
    some = graphs["mlp"]
    here, there = collate(some), collate([orbit(graph, 7) for graph in some])
    net = Metanet(statistics="rich", layers=0, hidden=4, seed=0)
    plain = Metanet(statistics=True, layers=0, hidden=4, seed=0)
    changes = {}
    for name, model in (("rich", net), ("plain", plain)):
        model.fit_statistics(here)
        # Only the statistics: the embedding of the raw weights is another matter.
        with torch.no_grad():
            one, two = (
                model.statistics(batch.gather(model._told(bucket) for bucket in batch)) for batch in (here, there)
            )
        changes[name] = float((one - two).abs().mean() / one.std())
    assert changes["rich"] < 1e-2 < changes["plain"]
