"""What plans cost is measured as the rest of the program measures it, learned, and the same in every gauge."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import symmetry
from metanet import morph
from metanet.checkpoint import Architecture
from metanet.checkpoint.save import save_checkpoint
from metanet.cli import main
from metanet.errors import ConfigError, PlanError, TaskError
from metanet.nn.rich_inputs import probe_inputs
from metanet.score import compare_many
from metanet.tasks.plan_score import Answers, PlanScoreTask
from metanet.tasks.plan_score_data import NetworkStack, plan_score_data
from metanet.tasks.plan_score_evaluate import evaluate_plan_scores
from metanet.tasks.plan_score_model import PlanScoreReader
from metanet.tasks.plan_score_plans import WAYS, drawn_variants, run_stack
from metanet.tasks.plan_score_predict import PlanScoreModel, predicted_score
from metanet.train import TrainerSettings, train

MLP = Architecture("mlp", {"inputs": 16, "widths": [10, 8], "outputs": 4, "activation": "relu"})
TRANSFORMER = Architecture(
    "transformer",
    {
        "channels": 1,
        "size": 4,
        "patch": [2, 2],
        "width": 8,
        "heads": 2,
        "hidden": [6, 6],
        "outputs": 4,
        "activation": "gelu",
    },
)
MODEL = {"name": "plan_score", "inputs": 24, "hidden": 12}
SETTINGS = TrainerSettings(
    epochs=20, learning_rate=4e-3, weight_decay=0.01, warmup=0.05, patience=0, average=0.9, progress=False
)


def stack_of(architecture, count, seed=0, scale=2.0):
    """Untrained networks that answer differently, and inputs that are no smooth noise: mostly zeros."""
    generator = torch.Generator().manual_seed(seed)
    states = [architecture.build(seed=100 * seed + number).state_dict() for number in range(count)]
    sizes = scale * (1 + torch.rand(count, generator=generator))
    stacked = {
        name: torch.stack([s[name] * (float(z) if s[name].ndim > 1 else 1) for s, z in zip(states, sizes, strict=True)])
        for name in states[0]
    }
    module, example = architecture.build().eval(), architecture.example_inputs()
    inputs = torch.randn(400, *example[0].shape[1:], generator=generator)
    inputs = 3 * inputs * (torch.rand(inputs.shape, generator=generator) < 0.2)
    names = tuple(f"net{number}" for number in range(count))
    return NetworkStack(
        module, symmetry.trace(module, example), stacked, names, (None,) * count, names, inputs[:64], inputs[64:]
    )


def module_of(stack, row):
    made = copy.deepcopy(stack.module)
    made.load_state_dict({name: value[row] for name, value in stack.states.items()})
    return made


@pytest.fixture(scope="module")
def perceptrons():
    return stack_of(MLP, 120)


@pytest.fixture(scope="module")
def data(perceptrons):
    return plan_score_data([perceptrons], 10, seed=1)


@pytest.fixture(scope="module")
def folder(data, tmp_path_factory):
    place = tmp_path_factory.mktemp("predictor") / "model"
    train(PlanScoreTask(plans=10, images=272, fitting=64), data, MODEL, SETTINGS, place)
    return place


@pytest.fixture(scope="module")
def predictor(folder):
    return PlanScoreModel.open(folder)


@pytest.mark.parametrize("way", ["l2", "obs, refitted in turn", "l2, refitted on data"])
def test_stacks_are_edited_as_single_networks_are(perceptrons, data, way):
    variant = data.stacks[0].variants[WAYS.index(way)]
    smooth = probe_inputs((16,), 32).float()
    batches = [(perceptrons.fitting,)] if way.endswith("on data") else [(smooth,)]
    edited = run_stack(perceptrons.module, {**perceptrons.states, **variant.changed}, perceptrons.inputs)
    for row in (1,):
        edits = []
        for space, reader in (("layers.0", "layers.1.weight"), ("layers.1", "layers.2.weight")):
            if reader in variant.changed:
                read = variant.changed[reader][row].abs().amax(0) > 0
                edits.append(morph.Keep(space, read.nonzero().flatten().tolist()))
        compensation = None if "," not in way else morph.Compensation(batches, sequential="in turn" in way)
        single = morph.apply(edits, module_of(perceptrons, row), (smooth[:2],), compensation=compensation).model
        with torch.no_grad():
            wanted = single(perceptrons.inputs)
        torch.testing.assert_close(edited[row], wanted, rtol=2e-3, atol=2e-3)
        # The control: it is not the network as it was.
        assert (
            edited[row] - run_stack(perceptrons.module, perceptrons.states, perceptrons.inputs)[row]
        ).abs().max() > 0.1


def test_blocks_and_heads_are_dropped_as_in_single_networks():
    stack = stack_of(TRANSFORMER, 2, scale=1.0)
    smooth = probe_inputs((1, 4, 4), 8).float()
    generator = torch.Generator().manual_seed(3)
    variants = drawn_variants(stack.module, stack.spec, stack.states, smooth, stack.fitting, 1, generator)
    assert [one.kind for one in variants] == ["random", "drop blocks.0", "drop blocks.1", "heads"]
    network, inputs = module_of(stack, 0), stack.inputs[:50]
    block, heads = variants[1], variants[3]
    dropped = morph.apply(morph.Drop("blocks.0"), network, (smooth[:2],)).model
    torch.testing.assert_close(run_stack(block.module, stack.states, inputs)[0], dropped(inputs), rtol=1e-4, atol=1e-5)
    kept = []
    for number in (0, 1):
        weight = heads.changed.get(
            f"blocks.{number}.attention.out.weight", stack.states[f"blocks.{number}.attention.out.weight"]
        )
        read = weight[0].abs().amax(0).unflatten(0, (2, -1)).amax(1) > 0
        kept.append(morph.Keep(f"blocks.{number}.attention.query", read.nonzero().flatten().tolist()))
    assert any(len(one.units) == 1 for one in kept)
    single = morph.apply(kept, network, (smooth[:2],)).model
    edited = run_stack(stack.module, {**stack.states, **heads.changed}, inputs)
    torch.testing.assert_close(edited[0], single(inputs), rtol=1e-4, atol=1e-5)
    assert (edited[0] - network(inputs)).abs().max() > 1e-2


def test_costs_are_those_that_scores_measure(data):
    stack = data.stacks[0]
    pairs = []
    for row in range(3):
        before = {name: value[row] for name, value in stack.networks.states.items()}
        for one in stack.variants[:3]:
            after = {**before, **{name: value[row] for name, value in one.changed.items()}}
            pairs.append(((stack.networks.module, before), (stack.networks.module, after)))
    scores = compare_many(pairs, stack.networks.inputs[: stack.measured], kind="classes")
    torch.testing.assert_close(stack.kl[:3, :3].flatten(), scores["kl"], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(
        stack.agreement[:3, :3].flatten(), scores["agreement"], rtol=0, atol=1.1 / stack.measured
    )


def test_data_repeat_themselves_and_leave_out_what_is_not_finite(perceptrons, data):
    broken = {name: value.clone() for name, value in perceptrons.states.items()}
    broken["layers.0.bias"][7] = torch.nan
    found = plan_score_data([replace(perceptrons, states=broken)], 2, seed=1)
    assert found.dropped == (("net7", "not finite"),)
    assert len(found) == 119
    few = [plan_score_data([perceptrons], 2, seed=seed).describe()["fingerprint"] for seed in (1, 1, 2)]
    assert few[0] == few[1] != few[2]
    with pytest.raises(TaskError, match="no usable network"):
        plan_score_data([replace(perceptrons, states={k: v * torch.nan for k, v in broken.items()})], 2)


def test_networks_with_running_statistics_and_dead_units_are_scored():
    normed = stack_of(Architecture("mlp", {**MLP.options, "norm": "batch"}), 4)
    for name in ("norms.0.weight", "norms.0.bias"):
        normed.states[name][1] = 0  # nothing leaves the first layer of the second network
    found = plan_score_data([normed], 10, resplit=True)
    assert not found.dropped
    assert bool((found.stacks[0].kl[1] < found.stacks[0].kl[0]).any())


def test_training_lifts_the_order_above_the_baselines_and_the_control(predictor, data):
    evaluation = evaluate_plan_scores(predictor, data)
    ours, noise, control = (evaluation.score(name).values for name in ("metanet", "smooth noise", "control"))
    assert ours["tau"] > noise["tau"] + 0.1
    assert ours["tau_kind"] > noise["tau_kind"] + 0.03
    # With the networks exchanged, what is told of networks is worth nothing; what is told of plans stays.
    assert abs(control["tau_kind"]) < 0.3 < ours["tau_kind"]
    assert 0.6 < ours["coverage"] < 0.95
    assert len(evaluation.names) == len(evaluation.true) == len(evaluation.predicted)


def test_predictions_are_the_same_in_every_gauge(predictor, perceptrons):
    network = module_of(perceptrons, 3).double()
    example = (torch.zeros(2, 16, dtype=torch.float64),)
    plan = morph.narrow(perceptrons.spec, network.state_dict(), {"layers.0": 5, "layers.1": 4})
    edited = morph.apply(plan, network, example).model
    reader = copy.deepcopy(predictor.model).double()
    told = PlanScoreModel.__new__(PlanScoreModel)
    told.__dict__ |= {**vars(predictor), "model": reader}
    found = told.between(network, edited, (16,))
    element = perceptrons.spec.sample(torch.Generator().manual_seed(5))
    small = symmetry.trace(edited, example)
    other = small.sample(torch.Generator().manual_seed(6))
    one, two = copy.deepcopy(network), copy.deepcopy(edited)
    one.load_state_dict(perceptrons.spec.act(element, network.state_dict()))
    two.load_state_dict(small.act(other, edited.state_dict()))
    moved = told.between(one, two, (16,))
    assert (one.layers[0].weight - network.layers[0].weight).abs().max() > 0.1
    spread = abs(np.log(found.kl) - np.log(told.between(module_of(perceptrons, 4).double(), edited, (16,)).kl))
    assert abs(np.log(moved.kl) - np.log(found.kl)) / spread < 1e-9
    with torch.no_grad():
        two.layers[1].weight[0] *= 1.5
    assert abs(np.log(told.between(one, two, (16,)).kl) - np.log(found.kl)) / spread > 1e-4


def test_a_plan_is_predicted_without_touching_the_network(predictor, perceptrons):
    network = module_of(perceptrons, 0).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    example = (torch.zeros(2, 16),)
    costs = [predicted_score(predictor, network, morph.Keep("layers.0", list(range(size))), example) for size in (9, 2)]
    assert costs[0].kl < costs[1].kl
    assert all(low < one.kl < high for one in costs for low, high in [one.kl_interval])
    assert all(0 <= low <= one.agreement <= high <= 1 for one in costs for low, high in [one.agreement_interval])
    assert network.training
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert costs[0].to_json()["kl"] == costs[0].kl
    assert "80% intervals" in str(costs[0])


def test_the_command_tells_what_a_stored_plan_would_cost(folder, predictor, perceptrons, tmp_path, capsys):
    network = module_of(perceptrons, 2)
    plan = morph.narrow(perceptrons.spec, network.state_dict(), {"layers.0": 4})
    save_checkpoint(tmp_path / "weights.safetensors", network.state_dict(), MLP)
    (tmp_path / "plan.json").write_text(json.dumps(plan.to_json()))
    words = ["predict", str(folder), str(tmp_path / "weights.safetensors")]
    assert main([*words, "--plan", str(tmp_path / "plan.json"), "--no-compensation", "--json"]) == 0
    (told,) = json.loads(capsys.readouterr().out)
    assert told["kl"] == pytest.approx(predicted_score(predictor, network, plan, (torch.zeros(2, 16),)).kl, rel=1e-4)
    assert main([*words, str(tmp_path / "none.safetensors"), "--plan", str(tmp_path / "plan.json")]) == 2
    shown = capsys.readouterr()
    assert "agreement" in shown.out
    assert "refused" in shown.err
    assert main(words) == 2
    assert "no plan is named" in capsys.readouterr().err


def test_what_does_not_fit_is_refused(predictor, perceptrons):
    network, example = module_of(perceptrons, 0), (torch.zeros(2, 16),)
    other = Architecture("mlp", {"inputs": 16, "widths": [12, 9], "outputs": 4, "activation": "relu"}).build()
    foreign = morph.narrow(symmetry.trace(other, example), other.state_dict(), {"layers.0": 3})
    with pytest.raises(PlanError, match="architecture"):
        predicted_score(predictor, network, foreign, example)
    with pytest.raises(PlanError, match="range"):
        predicted_score(predictor, network, morph.Keep("layers.0", [0, 99]), example)
    tanh = nn.Sequential(nn.Linear(16, 10), nn.Tanh(), nn.Linear(10, 8), nn.Tanh(), nn.Linear(8, 4))
    with pytest.raises(TaskError, match="tanh"):
        predicted_score(predictor, tanh, morph.Keep("0", [0, 1]), example)
    assert "tanh" in predicted_score(predictor, tanh, morph.Keep("0", [0, 1]), example, anyway=True).warning
    with pytest.raises(TaskError, match="9 numbers"):
        predictor.between(nn.Linear(9, 4), nn.Linear(9, 4), (9,))
    with pytest.raises(TaskError, match="logits"):
        predictor.between(nn.Linear(16, 1), nn.Linear(16, 1), (16,))
    with pytest.raises(TaskError, match="as many classes"):
        predictor.between(nn.Linear(16, 4), nn.Linear(16, 3), (16,))
    with pytest.raises(ConfigError, match="inputs"):
        PlanScoreTask().reader({"name": "plan_score", "inputs": 0}, 16, torch.Generator())
    with pytest.raises(ConfigError, match="no such option"):
        PlanScoreTask().reader({"name": "plan_score", "depth": 3}, 16, torch.Generator())


def test_intervals_are_calibrated_whatever_spread_is_claimed():
    generator = torch.Generator().manual_seed(0)
    task = PlanScoreTask()

    def drawn():
        true = torch.randn(200, 10, 2, generator=generator)
        said = torch.zeros(200, 10, 2, 2)
        said[..., 1] = -1.5  # claims a spread of .22 where it is 1
        return [Answers(said, true, ("l2",) * 10, np.arange(200))]

    widths = task.widths(drawn())
    assert task.measure(drawn(), widths)["coverage"] == pytest.approx(0.8, abs=0.04)
    assert task.measure(drawn())["coverage"] < 0.4


def test_a_reader_starts_as_the_score_on_smooth_noise():
    reader = PlanScoreReader(16, inputs=20, generator=torch.Generator().manual_seed(0))
    assert reader.inputs((1, 4, 4)).shape == (20, 1, 4, 4)
    before, after = torch.randn(2, 5, 20, 3, generator=torch.Generator().manual_seed(1)).unbind(0)
    one, two = before.log_softmax(-1), after.log_softmax(-1)
    kl = (one.exp() * (one - two)).sum(-1).mean(-1)
    torch.testing.assert_close(reader(before, after)[:, 0, 0], (kl + 1e-5).log(), rtol=1e-4, atol=1e-5)
    # Gradients stay finite where nothing changed.
    before.requires_grad_()
    reader(before, before.detach().clone()).sum().backward()
    assert bool(before.grad.isfinite().all())
