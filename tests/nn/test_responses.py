"""Are responses the networks' own answers at the start, and the same along every orbit after training moved them?"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import symmetry
from metanet.checkpoint import Architecture
from metanet.checkpoint.families_inr import Siren
from metanet.errors import ModelError
from metanet.graph import ParameterGraph, Program, collate, program_of
from metanet.nn import Metanet, Responses
from metanet.nn.dense import make_generator
from symmetry import SymmetrySpec
from symmetry.testing import equivariance_error
from tests.symmetry.families import Encoder, Recurrent
from tests.symmetry.models import conv_bn, draw, mlp, resnet, seeded
from tests.symmetry.transformers import GPT

LIMIT, CONTROL, PROBES = 1e-10, 1e-4, 6
SUBJECTS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (lambda: mlp([3, 4, 5, 2], torch.relu), (7, 3)),
    "tanh": (lambda: mlp([3, 4, 5, 2], torch.tanh), (7, 3)),
    "siren": (lambda: Siren(2, (6, 5), 1, 5.0, 5.0), (7, 2)),
    "batch norm": (conv_bn, (7, 2, 4, 4)),
    "residual": (resnet, (7, 3, 8, 8)),
    "transformer": (lambda: Encoder(dropout=0.0), (7, 5, 3)),
    "gru": (lambda: Recurrent(nn.GRU), (7, 3, 3)),
    "words": (GPT, (7, 5)),
}


class Subject:
    """A kind of network with its spec and its program, both made once."""

    def __init__(self, name: str) -> None:
        build, shape = SUBJECTS[name]
        self.build = build
        generator = torch.Generator().manual_seed(0)
        inputs = torch.randint(6, shape, generator=generator) if name == "words" else draw(*shape)
        module = seeded(build).eval()
        self.spec: SymmetrySpec = symmetry.trace(module, (inputs,))
        self.program = Program.of(module, (inputs,))

    def modules(self, count: int = 3) -> list[nn.Module]:
        return [seeded(self.build, seed).double().eval() for seed in range(count)]

    def graph(self, state: dict[str, Tensor]) -> ParameterGraph:
        # A control leaves one tensor out; where it is tied, so is its partner.
        tied = {name: info.tied_to for name, info in self.spec.tensors.items() if info.tied_to is not None}
        return ParameterGraph.build(self.spec, {n: state[tied.get(n, n)] for n in state}, self.program)


@pytest.fixture(scope="module", params=SUBJECTS)
def subject(request: pytest.FixtureRequest) -> Subject:
    return Subject(request.param)


def responses_for(graphs: list[ParameterGraph], moved: bool) -> Responses:
    found = Responses(PROBES, 8, rank=3)
    found.reset_parameters(make_generator(0))
    found.prepare(collate(graphs))
    if moved:
        with torch.no_grad():
            found.write.weight.normal_(generator=make_generator(1))
    return found.double()


def test_at_the_start_answers_are_those_of_the_modules_run_one_by_one(subject):
    modules = subject.modules()
    graphs = [subject.graph(module.state_dict()) for module in modules]
    responses = responses_for(graphs, moved=False)
    (bucket,) = collate(graphs, torch.float64).buckets
    with torch.no_grad():
        answers = responses.answers(bucket)
        (form,) = subject.program.inputs
        probes = next(iter(responses.tables.values())).reshape(PROBES, *form.shape)
        if form.vocabulary is not None:
            probes = probes.argmax(-1)  # at the start every probe is a sentence
        wanted = torch.stack([module(probes).flatten(1) for module in modules])
    torch.testing.assert_close(answers.flatten(2), wanted.unflatten(1, (PROBES, -1)).flatten(2), rtol=0, atol=1e-10)
    assert (answers[0] - answers[1]).abs().max() > 1e-3


def test_after_the_mix_has_moved_answers_are_the_same_along_every_orbit(subject):
    state = subject.modules(1)[0].state_dict()
    graph = subject.graph(state)
    still, moved = responses_for([graph], moved=False), responses_for([graph], moved=True)

    def answers(responses: Responses, given: dict[str, Tensor]) -> Tensor:
        (bucket,) = collate([subject.graph(given)], torch.float64).buckets
        with torch.no_grad():
            return responses.answers(bucket)

    assert (answers(moved, state) - answers(still, state)).abs().max() > 1e-3
    table = equivariance_error(lambda given: answers(moved, given), subject.spec, state, trials=2)
    assert table.max_error < LIMIT, table
    assert table.control_error > CONTROL, table


def test_a_bias_in_the_mix_would_break_signs(monkeypatch):
    """Negative control: what is not linear over the probes does not commute with the group."""
    subject = Subject("siren")
    state = subject.modules(1)[0].state_dict()
    responses = responses_for([subject.graph(state)], moved=True)
    linear = responses._mixed
    monkeypatch.setattr(responses, "_mixed", lambda rank, x: linear(rank, x) + 0.1)

    def answers(given: dict[str, Tensor]) -> Tensor:
        return responses.answers(collate([subject.graph(given)], torch.float64).buckets[0]).detach()

    assert equivariance_error(answers, subject.spec, state, trials=2, kinds=("permutation",)).max_error < LIMIT
    assert equivariance_error(answers, subject.spec, state, trials=2, kinds=("sign",)).max_error > CONTROL


def test_a_mixed_batch_is_answered_as_its_networks_are_alone():
    subjects = [Subject(name) for name in ("mlp", "siren", "residual", "gru")]
    graphs = [subject.graph(module.state_dict()) for subject in subjects for module in subject.modules(2)]
    net = Metanet(hidden=8, layers=1, responses=PROBES, mixing=2, readout=8, seed=1)
    net.fit_statistics(collate(graphs))
    net = net.double()
    with torch.no_grad():
        net.responses.write.weight.normal_(generator=make_generator(1))
        order = torch.randperm(len(graphs), generator=make_generator(2)).tolist()
        together = net(collate([graphs[i] for i in order], torch.float64))
        alone = torch.cat([net(collate([graphs[i]], torch.float64)) for i in order])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-10)
    assert together.std() > 1e-4


def test_networks_of_one_topology_and_two_programs_stay_apart():
    def build(stride: int) -> Architecture:
        options = {"channels": 1, "size": 8, "widths": [3, 4], "outputs": 2, "activation": "relu"}
        return Architecture("cnn", {**options, "strides": [1, stride]})

    one, two = build(1), build(2)
    spec = symmetry.trace(one.build().eval(), one.example_inputs())
    assert spec.fingerprint == symmetry.trace(two.build().eval(), two.example_inputs()).fingerprint
    state = one.build(seed=3).state_dict()
    graphs = [ParameterGraph.build(spec, state, program_of(of)) for of in (one, two, one)]
    batch = collate(graphs)
    assert [len(bucket) for bucket in batch] == [2, 1]
    responses = responses_for(graphs, moved=False).float()
    answers = [responses.answers(bucket) for bucket in batch]
    assert (answers[0][0] - answers[1][0]).abs().max() > 1e-4
    assert len(collate([ParameterGraph.build(spec, state) for _ in graphs]).buckets) == 1


def test_a_trained_model_brings_its_probes_and_refuses_other_inputs():
    subject, other = Subject("mlp"), Subject("siren")
    graphs = [subject.graph(module.float().state_dict()) for module in subject.modules()]
    net = Metanet(hidden=8, layers=0, statistics=False, responses=PROBES, readout=8)
    net.fit_statistics(collate(graphs))
    copy = Metanet(**net.config)
    with pytest.raises(ModelError, match="no probes for inputs of shape 3, only for none"):
        copy(collate(graphs))
    copy.load_state_dict(net.state_dict())
    torch.testing.assert_close(copy(collate(graphs)), net(collate(graphs)), rtol=0, atol=0)
    with pytest.raises(ModelError, match="no probes for inputs of shape 2, only for 3 values"):
        net(collate([other.graph(other.modules(1)[0].state_dict())]))
    with pytest.raises(ModelError, match="graphs hold none"):
        net(collate([ParameterGraph.build(subject.spec, graphs[0].state())]))


@pytest.mark.parametrize("options", [{"responses": 1}, {"mixing": 2}, {"responses": 4, "level": "node"}])
def test_impossible_options_are_refused(options):
    with pytest.raises(ModelError, match="responses"):
        Metanet(**options)
