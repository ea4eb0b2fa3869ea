"""Do metanetworks respect the whole group of transformers and recurrent networks that a zoo's builder has trained?"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import symmetry
from metanet.checkpoint import Architecture
from metanet.datasets import Zoo, build_zoo, load_zoo_config
from metanet.graph import ParameterGraph, collate, program_of
from metanet.nn import Metanet, rich_statistics
from metanet.nn.dense import make_generator
from symmetry import GroupElement, SymmetrySpec
from symmetry.testing import equivariance_error
from symmetry.verify import generic_state

LIMIT, CONTROL = 1e-10, 1e-4
State = dict[str, Tensor]


class Subject:
    """One architecture of the zoo with two networks that were trained and two in general position."""

    def __init__(self, zoo: Zoo, number: int) -> None:
        self.architecture: Architecture = zoo.architectures[number]
        module = self.architecture.build().eval()
        self.spec: SymmetrySpec = symmetry.trace(module, self.architecture.example_inputs())
        rows = [i for i in range(len(zoo)) if zoo.index["architecture"][i] == number]
        self.trained: list[State] = [{k: v.double() for k, v in zoo[row].state.items()} for row in rows[-2:]]
        self.random: list[State] = [
            {k: v.double() for k, v in generic_state(self.spec, module.state_dict(), make_generator(s)).items()}
            for s in (1, 2)
        ]

    def graph(self, state: State) -> ParameterGraph:
        return ParameterGraph.build(self.spec, state, program_of(self.architecture))


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    """Two transformers and a recurrent network, two of each, trained for a few steps."""
    raw = load_zoo_config("mixed").to_json()
    raw["families"] = {name: raw["families"][name] for name in ("transformer", "gru")}
    raw["families"]["transformer"] |= {"width": 4, "hidden": 5, "depth": 1, "patch": {"choice": [[4, 4]]}}
    raw["families"]["gru"] |= {"width": 4, "depth": 1}
    raw["training"]["steps"] = 40
    raw["training"]["initial_scale"] = 1.0
    raw |= {"runs": 6, "architectures": 3, "children": 0.0, "seed": 3}
    return build_zoo(raw, tmp_path_factory.mktemp("zoo") / "small", threads=1)


@pytest.fixture(scope="module")
def subjects(zoo: Zoo) -> list[Subject]:
    found = [Subject(zoo, number) for number in range(3)]
    assert {subject.architecture.family for subject in found} == {"transformer", "gru"}
    return found


def test_the_exact_sweep_runs_networks_of_the_zoo(zoo: Zoo, subjects: list[Subject]) -> None:
    images = zoo.data.test_images[:4].double()
    for subject in subjects:
        states = subject.trained + subject.random
        stacked = {name: torch.stack([state[name] for state in states]) for name in states[0]}
        (answers,) = program_of(subject.architecture).run(stacked, (images,))
        for state, answer in zip(states, answers, strict=True):
            module = subject.architecture.build().double().eval()
            module.load_state_dict(state)
            with torch.no_grad():
                torch.testing.assert_close(answer, module(images), rtol=0, atol=1e-10)
        assert (answers[0] - answers[1]).abs().max() > 1e-2


def make(**options: object) -> Metanet:
    settings = {"hidden": 8, "layers": 1, "statistics": False, "symmetry": "full", "seed": 1}
    return Metanet(1, **{**settings, **options})  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["trained", "random"])
@pytest.mark.parametrize(
    "options",
    [{"messages": "edge"}, {"messages": "sweep"}, {"layers": 0, "responses": 4, "mixing": 2, "readout": 8}],
    ids=["edge", "sweep", "responses"],
)
def test_every_factor_is_respected(subjects: list[Subject], options: dict[str, object], kind: str) -> None:
    states = [getattr(subject, kind) for subject in subjects]
    graphs = [subject.graph(state) for subject, mine in zip(subjects, states, strict=True) for state in mine]
    net = make(**options)
    net.fit_statistics(collate(graphs))
    net = net.double()
    if "responses" in options:
        with torch.no_grad():
            net.responses.write.weight.normal_(generator=make_generator(1))
    with torch.no_grad():
        spread = float(net(collate(graphs, torch.float64)).std(correction=0))
    assert spread > 1e-3
    for subject, mine in zip(subjects, states, strict=True):

        def answer(state: State, subject: Subject = subject) -> Tensor:
            with torch.no_grad():
                return net(collate([subject.graph(state)], torch.float64))

        table = equivariance_error(answer, subject.spec, mine[0], trials=1)
        assert table.max_error * table.spread < LIMIT * min(spread, table.spread), table
        assert table.control_error > CONTROL, table


def test_one_batch_of_all_of_them(subjects: list[Subject]) -> None:
    """The answers of a trained batch stay where they are, and without the frame they move."""
    states = [(subject, state) for subject in subjects for state in subject.trained]
    generator = make_generator(3)
    elements: list[GroupElement] = [subject.spec.sample(generator, scale_spread=1.0) for subject, _ in states]
    before = collate([subject.graph(state) for subject, state in states], torch.float64)
    after = collate(
        [s.graph(s.spec.act(g, state)) for (s, state), g in zip(states, elements, strict=True)], torch.float64
    )
    for symmetric, moves in (("full", False), ("permutation", True)):
        net = make(symmetry=symmetric, messages="sweep").double()
        with torch.no_grad():
            first, second = net(before), net(after)
        change, spread = float((first - second).abs().max()), float(first.std(correction=0))
        assert change > 1e-2 * spread if moves else change < LIMIT * spread


def test_rich_statistics_read_them(subjects: list[Subject]) -> None:
    graphs = [subject.graph(state) for subject in subjects for state in subject.trained]
    values, names = rich_statistics(graphs)
    assert values.shape == (len(graphs), len(names))
    assert bool(torch.isfinite(values).all())
    assert (values.std(0) > 0).sum() > 50
