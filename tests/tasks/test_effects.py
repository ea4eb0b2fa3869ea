"""Is what a unit or a weight matters what a slow oracle measures, and do answers at places follow the units?"""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.func import functional_call

from metanet.checkpoint import Architecture
from metanet.errors import ConfigError, TaskError
from metanet.graph import ParameterGraph, collate
from metanet.nn import Metanet
from metanet.tasks import Coverage, EdgeTask, PlaceItem, PlaceModel, UnitTask, place_data
from metanet.tasks.effects import unit_effects, unit_norms, weight_changes, weight_saliency, weight_sizes
from metanet.tasks.place_task import mean_tau, place_answers, weight_units

from .conftest import spec_of

CNN = Architecture("cnn", {"channels": 1, "size": 6, "widths": [4, 5], "outputs": 3, "activation": "relu"})
LABELS = torch.arange(8) % 3


def prepared(seed=0):
    module = CNN.build(seed=seed).eval()
    state = {name: value.clone() for name, value in module.state_dict().items()}
    inputs = torch.randn(8, 1, 6, 6, generator=torch.Generator().manual_seed(1))

    def run(values):
        like = next(iter(values.values()))
        return functional_call(module, dict(values), (inputs.to(like.dtype),))

    return ParameterGraph.build(spec_of(CNN), state), run, module, inputs


def test_silencing_a_unit_is_what_a_hook_does_that_sets_its_channel_to_zero():
    graph, run, module, inputs = prepared()
    found = unit_effects(graph, run)
    with torch.no_grad():
        whole = module(inputs)
        convolutions = [m for m in module.modules() if isinstance(m, torch.nn.Conv2d)]
        assert sorted(len(v) for v in found.values()) == [m.out_channels for m in convolutions]
        for layer in convolutions:
            effects = []
            for unit in range(layer.out_channels):

                def silence(module, given, output, unit=unit):
                    # The activation that follows maps -inf of a relu to 0.
                    output = output.clone()
                    output[:, unit] = -1e9
                    return output

                handle = layer.register_forward_hook(silence)
                change = (module(inputs) - whole).double().square().mean().sqrt()
                handle.remove()
                effects.append(float((change / (whole - whole.mean(0)).double().square().mean().sqrt()).log10()))
            ours = next(v for v in found.values() if len(v) == layer.out_channels)
            torch.testing.assert_close(ours, torch.tensor(effects).clamp(min=-6), rtol=1e-3, atol=1e-3)
            assert float(ours.std()) > 0.01  # units do differ: an answer that is the same for all would be wrong


def test_the_loss_of_a_silenced_dead_unit_does_not_move():
    graph, run, *_ = prepared()
    state = graph.state()
    name = next(iter(state))
    state[name][0] = 0
    state[name.replace("weight", "bias")][0] = -1.0
    dead = ParameterGraph.build(graph.spec, state)
    first = next(v for v in unit_effects(dead, run, LABELS).values() if len(v) == 4)
    assert float(first[0]) == 0.0
    assert float(first[1:].abs().max()) > 1e-4
    assert float(next(v for v in unit_effects(dead, run).values() if len(v) == 4)[0]) == -6.0


def test_saliency_is_the_slope_of_the_loss_along_each_weight():
    graph, run, *_ = prepared()
    found = weight_saliency(graph, run, LABELS)
    state = {name: value.double() for name, value in graph.state().items()}

    def loss(name, index, factor):
        changed = {key: value.clone() for key, value in state.items()}
        changed[name].view(-1)[index] *= factor
        return float(torch.nn.functional.cross_entropy(run(changed), LABELS))

    slopes, ours = [], []
    for name in state:
        for index in range(0, state[name].numel(), 5):
            slopes.append(abs(loss(name, index, 1 + 1e-5) - loss(name, index, 1 - 1e-5)) / 2e-5)
            ours.append(10 ** float(found[name].view(-1)[index]))
    slopes, ours = np.array(slopes), np.array(ours)
    large = slopes > 1e-4
    ratio = ours[large] / slopes[large]  # the network's mean, the same for every weight
    assert large.sum() > 10
    assert ratio.std() / ratio.mean() < 1e-3


def test_saliency_is_invariant_to_rescaling_and_norms_times_readers_too():
    graph, run, *_ = prepared()
    spec = graph.spec
    element = spec.sample(torch.Generator().manual_seed(0), kinds=("scale",))
    there = ParameterGraph.build(spec, spec.act(element, graph.state()))
    for one, two in ((weight_saliency(graph, run, LABELS), weight_saliency(there, run, LABELS)),):
        for name in one:
            torch.testing.assert_close(one[name], two[name], rtol=1e-3, atol=1e-3)
    sizes, moved = weight_sizes(graph), weight_sizes(there)
    assert max(float((sizes[name] - moved[name]).abs().max()) for name in sizes) > 0.1  # the baseline is not


def test_changes_lead_to_the_later_state():
    graph, *_ = prepared(0)
    later = prepared(1)[0].state()
    changes = weight_changes(graph, later)
    for name, value in graph.state().items():
        unit = (value.double().square().mean() + 1e-4).sqrt()
        torch.testing.assert_close(value.double() + changes[name] * unit, later[name].double(), atol=1e-5, rtol=1e-5)


def items(level):
    found = []
    for seed in range(12):
        graph = prepared(seed)[0]
        # Known functions of the weights: what a unit of a space or a weight is can be told from them.
        targets = unit_norms(graph) if level == "node" else weight_sizes(graph)
        found.append(PlaceItem(graph, targets, targets, f"run{seed // 2}"))
    return found


@pytest.mark.parametrize(("level", "task"), [("node", UnitTask("removal")), ("edge", EdgeTask("saliency"))])
def test_answers_at_places_follow_permutations_and_the_loss_falls(level, task):
    data = place_data(items(level), level, task.column)
    generator = torch.Generator().manual_seed(0)
    options = {"hidden": 8, "layers": 1, "statistics": False}
    model = task.model(data, options, generator)
    before = task.metrics(model, data)["val_loss"]
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(30):
        for batch in task.batches(data, generator):
            optimiser.zero_grad()
            task.loss(model, data, batch, generator).backward()
            optimiser.step()
    assert task.metrics(model, data)["val_loss"] < 0.8 * before

    graph = data.graphs[0]
    element = graph.spec.sample(generator, kinds=("permutation",))
    there = ParameterGraph.build(graph.spec, graph.spec.act(element, graph.state()))
    with torch.no_grad():
        one, two = (place_answers(model, collate([g]), [g])[0] for g in (graph, there))
    if level == "edge":
        expected = graph.spec.act(element, one)
    else:
        expected = {name: value[element.permutations[name]] for name, value in one.items()}
    spread = max(float(value.std()) for value in one.values())
    assert max(float((two[name] - expected[name]).abs().max()) for name in one) / spread < 1e-4
    assert max(float((two[name] - one[name]).abs().max()) for name in one) / spread > 1e-2


def test_the_unit_of_an_answer_at_a_weight_is_that_of_the_head():
    """A head whose answers are all 1 before the unit comes in answers the unit itself."""
    graph = prepared()[0]
    net = Metanet(1, "edge", hidden=4, layers=0, seed=0)
    with torch.no_grad():
        net.head._values = lambda bucket, number, feature, effects: (
            torch.ones_like(bucket.value(number)).unsqueeze(1)
            * ((bucket.value(number).flatten(1).square().mean(1) + 1e-4).sqrt().reshape(-1, *[1] * (feature.ndim)))
        )
        ours = place_answers(net, collate([graph]), [graph])[0]
    units = weight_units(graph)
    assert set(ours) == set(units)
    for value in ours.values():
        torch.testing.assert_close(value, torch.ones_like(value))


def test_tau_is_taken_inside_each_space():
    true = [{"a": torch.tensor([1.0, 2.0, 3.0]), "b": torch.tensor([10.0, 11.0, 12.0]), "c": torch.ones(5)}]
    # Both spaces turned round, though the order between them is right.
    said = [{"a": torch.tensor([3.0, 2.0, 1.0]), "b": torch.tensor([12.0, 11.0, 10.0]), "c": torch.ones(5)}]
    assert mean_tau(true, said) == -1.0
    assert mean_tau(true, true) == 1.0


def test_bad_data_and_tasks_are_refused():
    graph = prepared()[0]
    targets = unit_norms(graph)
    broken = {name: value * float("nan") for name, value in targets.items()}
    data = place_data([PlaceItem(graph, targets, targets, "a", "train"), PlaceItem(graph, broken, targets, "b", "val")],
                      "node", "x")  # fmt: skip
    assert [reason for _, reason in data.dropped] == [f"the target of {next(iter(targets))} is not finite"]
    with pytest.raises(TaskError, match="validation part is empty"):
        task = UnitTask("removal")
        task.metrics(task.model(data, {"statistics": False, "hidden": 4}, torch.Generator()), data)
    with pytest.raises(TaskError, match="level"):
        place_data([], "graph", "x")
    for bad in ({"target": "colour"}, {"target": "loss", "batch": 0}, {"target": "loss", "inputs": "noise"}):
        with pytest.raises(ConfigError):
            UnitTask(**bad)


def test_a_model_that_runs_networks_refuses_what_cannot_be_run():
    graph = prepared()[0]
    model = PlaceModel.__new__(PlaceModel)  # what is asked before any weight of the model matters
    model.coverage, model.runs = Coverage.of([graph.spec]), True
    readable = SimpleNamespace(spec=graph.spec, state=graph.state())
    (answer,) = model.predict([("a", readable)])
    assert answer.refused == "its operations are not known, and the model runs the network"
    model.runs, asked = False, []
    model.values = lambda graphs: [asked.append(graph) or {} for graph in graphs]
    (answer,) = model.predict([("a", readable)])
    assert not answer.refused
    assert len(asked) == 1


def test_the_loss_within_layers_sees_what_the_whole_hides():
    """Of two answers at one distance the one that is wrong inside a layer costs more than the one that is all off."""
    found = items("node")
    data = place_data(found, "node", "x", seed=1)
    number = int(data.part("train")[0])
    target = data.targets[number]
    task, plain = UnitTask("removal"), UnitTask("removal", within=0.0)

    def cost(task, sign):
        class Said(torch.nn.Module):
            def forward(self, batch):
                scale = task.transform(data)
                turned = {name: value.mean() + sign * (value - value.mean()) for name, value in target.items()}
                off = 0.0 if sign < 0 else away
                return [{name: (value - scale.mean) / scale.deviation + off for name, value in turned.items()}]

        with torch.no_grad():
            module = Said()
            module.register_parameter("dummy", torch.nn.Parameter(torch.zeros(1)))
            return float(task.loss(module, data, torch.tensor([number]), torch.Generator()))

    inside = torch.cat([2 * (value - value.mean()) for value in target.values()]) / plain.transform(data).deviation
    away = float(inside.square().mean().sqrt())
    assert cost(plain, -1) == pytest.approx(cost(plain, 1), rel=0.2)
    assert cost(task, -1) > 1.5 * cost(task, 1)
