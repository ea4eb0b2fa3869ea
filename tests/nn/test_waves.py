"""Do answers from the weights of sine networks stay along every orbit, and do they tell networks apart?"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import symmetry
from metanet.checkpoint import Architecture
from metanet.errors import ModelError
from metanet.graph import ParameterGraph, collate
from metanet.nn import Metanet, Waves, waves
from metanet.nn.dense import make_generator
from symmetry import SymmetrySpec
from symmetry.testing import equivariance_error

LIMIT, CONTROL = 1e-10, 1e-4
OPTIONS = {"waves": 12, "layers": 0, "statistics": False, "readout": 8, "hidden": 4}
SIRENS = {
    "one layer": {"inputs": 2, "widths": [6], "outputs": 1, "w0": 5.0},
    "two layers": {"inputs": 2, "widths": [6, 5], "outputs": 1, "w0": 10.0},
    "volume, colours": {"inputs": 3, "widths": [4, 5, 4], "outputs": 3, "w0": 3.0, "first_w0": 7.0},
    "deeper than told apart": {"inputs": 1, "widths": [3] * 6, "outputs": 2, "w0": 2.0},
}


class Subject:
    """An architecture with its group; its graphs hold no operations, so nothing could be run."""

    def __init__(self, architecture: Architecture) -> None:
        self.architecture = architecture
        self.spec: SymmetrySpec = symmetry.trace(architecture.build().eval(), architecture.example_inputs())

    def graphs(self, count: int) -> list[ParameterGraph]:
        return [self.graph(self.architecture.build(seed=seed).state_dict()) for seed in range(count)]

    def graph(self, state: dict[str, Tensor]) -> ParameterGraph:
        return ParameterGraph.build(self.spec, state)


@pytest.fixture(scope="module", params=SIRENS)
def subject(request: pytest.FixtureRequest) -> Subject:
    return Subject(Architecture("siren", SIRENS[request.param]))


@pytest.fixture(scope="module")
def small() -> Subject:
    return Subject(Architecture("siren", SIRENS["two layers"]))


def metanet(subject: Subject, **options: object) -> Metanet:
    found = Metanet(3, seed=1, **{**OPTIONS, **options})
    found.fit_statistics(collate(subject.graphs(6)))
    return found.double()


def table(subject: Subject, model: Metanet) -> object:
    def answer(state: dict[str, Tensor]) -> Tensor:
        answers: Tensor = model(collate([subject.graph(state)], torch.float64))
        return answers

    return equivariance_error(answer, subject.spec, subject.architecture.build().state_dict(), trials=4)


def test_answers_stay_along_orbits_of_permutations_signs_and_phases(subject):
    found = table(subject, metanet(subject))
    assert {row.kind for row in found.rows} >= {"permutation", "sign", "shift"}, found
    assert found.max_error < LIMIT, found
    assert found.control_error > CONTROL, found


@pytest.mark.parametrize("wrong", ["sine and cosine exchanged", "half the phase", "functions that are not odd"])
def test_an_error_in_the_rule_is_noticed(small, monkeypatch, wrong):
    right = waves._met

    def met(one: Tensor, two: Tensor, phase: Tensor) -> Tensor:
        if wrong == "half the phase":
            return right(one, two, phase / 2)
        if wrong == "functions that are not odd":
            return right(one, 0.9 * two, phase)
        return right(one, two, torch.pi / 2 - phase)

    monkeypatch.setattr(waves, "_met", met)
    assert table(small, metanet(small)).max_error > 1e-3


def test_what_units_pass_on_turns_its_sign_with_them():
    a, t, c, w, p = (
        torch.randn(*shape, generator=make_generator(0)).double()
        for shape in ((2, 5, 7), (2, 5), (7,), (2, 5, 3), (7, 3))
    )
    for bumps in (lambda s: waves._bumps(s * a, c), lambda s: waves._bumps_at(s * w, p, c)):
        h = waves._met(*bumps(1), t)
        one, two = bumps(1)
        expected = t.cos()[..., None] * (one - two) + t.sin()[..., None] * (one + two)
        torch.testing.assert_close(h, expected)
        torch.testing.assert_close(waves._met(*bumps(-1), -t), -h)
        torch.testing.assert_close(waves._met(*bumps(1), t + torch.pi), -h)
        assert (waves._met(*bumps(-1), t) + h).abs().max() > 0.1
    distances = (w[:, :, None] + p).square().sum(-1)
    torch.testing.assert_close(waves._bumps_at(w, p, c)[0], torch.exp(-distances * c.exp()))


def test_channels_have_order_one_whatever_the_size_of_the_weights(small):
    sizes = []
    for factor in (1.0, 30.0):
        graphs = [small.graph({n: v * factor for n, v in graph.state().items()}) for graph in small.graphs(20)]
        found = Waves(12, 8)
        found.reset_parameters(make_generator(0))
        found.prepare(collate(graphs))
        (bucket,) = collate(graphs).buckets
        with torch.no_grad():
            reached = found._sweep(bucket)[1]
        sizes += [
            float((value / size).square().mean().sqrt()) for value, size in zip(reached, found.sizes, strict=False)
        ]
    assert sizes == pytest.approx([1.0] * 4, rel=1e-4)


def test_a_trained_model_comes_back_with_its_maps(small):
    model, other = metanet(small), Metanet(3, seed=2, **OPTIONS).double()
    other.load_state_dict(model.state_dict())
    batch = collate(small.graphs(4), torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(other(batch), model(batch), rtol=0, atol=0)
        assert (model(batch)[0] - model(batch)[1]).abs().max() > 1e-3


def test_gradients_reach_every_weight(small):
    model = metanet(small)
    model(collate(small.graphs(4), torch.float64)).square().sum().backward()
    used = {name: p.grad for name, p in model.named_parameters() if name.startswith(("waves", "head"))}
    missing = [name for name, grad in used.items() if grad is None or not bool(grad.abs().max() > 0)]
    assert not missing, missing


def test_networks_that_are_no_chain_of_sines_are_refused(small):
    tanh = Subject(Architecture("mlp", {"inputs": 2, "widths": [4], "outputs": 1, "activation": "tanh"}))
    with pytest.raises(ModelError, match=r"layers.0.weight is no layer of a chain"):
        metanet(tanh)
    with pytest.raises(ModelError, match="networks with 3 inputs, this model has learned to read 2"):
        metanet(small)(collate(Subject(Architecture("siren", SIRENS["volume, colours"])).graphs(1), torch.float64))
    with pytest.raises(ModelError, match=r"waves=4 with level='node'"):
        Metanet(level="node", waves=4)
