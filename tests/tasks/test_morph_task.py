"""Inputs made from weights: do they narrow better than made-up ones, and are they the same in every gauge?"""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn

import symmetry
from metanet import morph
from metanet.checkpoint import Architecture
from metanet.errors import ConfigError, TaskError
from metanet.morph.batched import Masked, Stacked
from metanet.tasks.first_weights import first_weight
from metanet.tasks.morph_data import MorphItem, morph_data
from metanet.tasks.morph_model import MorphModel
from metanet.tasks.morph_score import GivenInputs, evaluate_morph
from metanet.tasks.morph_task import MorphTask, divergence, masks_for, measured
from metanet.tasks.virtual import VirtualInputs, VirtualOptions
from metanet.train import TrainerSettings, train

SHAPE = (1, 4, 4)
MLP = Architecture("mlp", {"inputs": 16, "widths": [12, 10], "outputs": 4, "activation": "relu"})
CNN = Architecture(
    "cnn",
    {
        "channels": 1,
        "size": 4,
        "widths": [6, 5],
        "kernel": 3,
        "strides": [1, 1],
        "outputs": 4,
        "activation": "tanh",
        "norm": "none",
        "residual": False,
    },
)
SETTINGS = TrainerSettings(
    epochs=3, learning_rate=2e-3, weight_decay=0.0, warmup=0.05, patience=0, average=0.0, progress=False
)
MADE = {"name": "virtual", "inputs": 0, "fields": 40, "used": 60, "steps": 2, "hidden": 8}
LEARNED = {"name": "virtual", "inputs": 48}


def images(count: int, seed: int) -> torch.Tensor:
    """Data that are no smooth noise: a few directions only, far from the origin, and some values always zero."""
    generator = torch.Generator().manual_seed(99)
    directions = torch.randn(4, 16, generator=generator) * (torch.rand(16, generator=generator) < 0.6)
    drawn = torch.randn(count, 4, generator=torch.Generator().manual_seed(seed)).abs()
    return drawn @ directions + 0.5 * directions.sum(0)


def item_of(architecture: Architecture, count: int, name: str = "zoo: net", seed: int = 0) -> MorphItem:
    states = [architecture.build(seed=1000 * seed + number).state_dict() for number in range(count)]
    stacked = {key: torch.stack([2 * state[key] for state in states]) for key in states[0]}
    module, example = architecture.build().eval(), architecture.example_inputs()
    shape = example[0].shape[1:]
    return MorphItem(
        name,
        module,
        symmetry.trace(module, example),
        stacked,
        SHAPE,
        images(300, 1).reshape(-1, *shape),
        images(200, 2).reshape(-1, *shape),
        torch.zeros(200, dtype=torch.long),
        np.array([f"run {number}" for number in range(count)]),
        np.array(["train", "train", "val", "test"] * count)[:count],
        tuple(f"net {number}" for number in range(count)),
    )


@pytest.fixture(scope="module")
def data():
    return morph_data([item_of(MLP, 32)])


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("morph") / "model"
    task = MorphTask(batch=8, images=64, steps=12, moments=0.1)
    train(task, data, LEARNED, SETTINGS, folder, True)
    return folder


def test_what_is_learned_beats_made_up_inputs_on_networks_held_out(trained, data) -> None:
    found = evaluate_morph(MorphModel.open(trained), data)
    ours, smooth, own = (found.score(name).values["closeness"] for name in ("metanet", "smooth", "images"))
    assert ours > smooth + 0.2
    assert ours > own - 0.3
    assert len(found.true) == len(found.names) == 8


def test_training_moves_the_inputs_downhill(data) -> None:
    task = MorphTask(batch=16, images=128, steps=1)
    model = task.model(data, MADE, torch.Generator().manual_seed(0))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    places = torch.from_numpy(data.groups[0].part("train"))
    losses = []
    for _ in range(40):
        loss = task.loss(model, data, (0, places), torch.Generator().manual_seed(1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-5:]) / 5 < sum(losses[:5]) / 5 - 0.2
    moved = [name for name, parameter in model.named_parameters() if parameter.grad is not None]
    assert {"base", "smooth", "log_ridge", "sizes.weight"} <= set(moved)


@pytest.mark.parametrize("architecture", [MLP, CNN], ids=["mlp", "cnn"])
@torch.no_grad()
def test_inputs_are_the_same_in_every_gauge(architecture) -> None:
    item = item_of(architecture, 6)
    spec = item.spec
    generator = torch.Generator().manual_seed(4)
    model = VirtualInputs(VirtualOptions(2, 12, 30, 2, 8), SHAPE, 3, generator).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    states = {name: value.double() for name, value in item.states.items()}
    shape = item.images.shape[1:]
    stacked = Stacked(item.model.double())
    plain = model(stacked, spec, states, shape).inputs
    moved = []
    for row in range(6):
        one = spec.act(spec.sample(generator), {name: value[row] for name, value in states.items()})
        moved.append(model(stacked, spec, {name: value[None] for name, value in one.items()}, shape).inputs[0])
    spread = (plain - plain.mean(0)).abs().max()
    assert float((torch.stack(moved) - plain).abs().max()) < 1e-10 * float(spread)
    # Other networks get other inputs: what is invariant is not constant.
    assert float(spread) > 1e-3


def test_the_first_weight_is_the_one_that_reads_the_image() -> None:
    assert first_weight(item_of(MLP, 4).spec, SHAPE) == ("layers.0.weight", "layers.0")
    name, space = first_weight(item_of(CNN, 4).spec, SHAPE) or ("", "")
    assert name.endswith("weight")
    assert item_of(CNN, 4).spec.sizes[space] == 6
    assert first_weight(item_of(MLP, 4).spec, (1, 5, 5)) is None


def test_the_kind_of_data_is_told_from_weights_and_answers() -> None:
    one, two = item_of(MLP, 32, "one: net"), item_of(MLP, 32, "two: net", seed=1)
    # The second kind: other images, and first weights that have learned where they vary.
    where = torch.linspace(0, 2, 16)
    states = {**two.states, "layers.0.weight": two.states["layers.0.weight"] * where}
    two = replace(two, states=states, images=two.images * where, test_images=two.test_images * where)
    data = morph_data([one, two])
    assert data.kinds == ("one", "two")
    task = MorphTask(batch=16, images=32, steps=1)
    model = task.model(data, {"name": "virtual", "inputs": 40}, torch.Generator().manual_seed(0))
    first = model.learned.detach().clone()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(1)
    for step in range(60):
        number = step % 2
        places = torch.from_numpy(data.groups[number].part("train"))
        loss = task.loss(model, data, (number, places), generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    # The inputs of each kind are moved by its own networks.
    assert ((model.learned - first).abs().flatten(1).amax(1) > 0.01).all()
    right = []
    for number, group in enumerate(data.groups):
        states = group.rows(group.part("test"))
        told = model.told(group.masked, group.item.spec, states, (16,)).argmax(1)
        right += (told == number).tolist()
        given = model(group.masked, group.item.spec, states, (16,))
        assert given.own
        assert torch.equal(given.inputs[0], 20 * model.learned[told[0]].flatten(1))
    assert sum(right) / len(right) > 0.85
    # Made inputs are made for each network; there is nothing to choose.
    made = task.model(data, MADE, torch.Generator().manual_seed(0))
    assert made.kinds == 1
    assert torch.isfinite(task.loss(made, data, (1, places), generator))


def test_a_stack_is_measured_as_one_network_is_morphed(data) -> None:
    group = data.groups[0]
    maker = GivenInputs(group.item.images[:128])
    place = int(group.part("test")[0])
    stacked = measured(maker, group, torch.tensor([place]))[0.5]
    model = MLP.build().double()
    model.load_state_dict({name: value[place].double() for name, value in group.item.states.items()})
    batches = [(group.item.images[:128].double(),)]
    plan = morph.narrow_by_obs(model, group.item.spec, {"layers.0": 6, "layers.1": 5}, batches)
    compensation = morph.Compensation(batches, sequential=False)
    made = morph.apply(plan, model, (batches[0][0][:7],), spec=group.item.spec, compensation=compensation).model
    with torch.no_grad():
        x = group.item.test_images.double()
        expected = divergence(model(x)[None], made(x)[None])
    assert float(stacked["kl"][0]) == pytest.approx(float(expected), rel=2e-3)


def test_the_gradients_of_rounds_are_a_part_of_the_loss(data) -> None:
    model = MorphTask().model(data, LEARNED, torch.Generator().manual_seed(0))
    batch = (0, torch.arange(6))
    plain, half, whole = (
        MorphTask(images=64, gradients=weight).loss(model, data, batch, torch.Generator().manual_seed(1)).detach()
        for weight in (0.0, 0.5, 1.0)
    )
    assert abs(float(half - plain)) > 1e-3
    assert float(whole - plain) == pytest.approx(2 * float(half - plain), rel=1e-4)
    with pytest.raises(ConfigError, match="gradients"):
        MorphTask(gradients=-1.0)


def test_a_predictor_conditions_a_field(trained, data) -> None:
    predictor, group = MorphModel.open(trained), data.groups[0]
    place = int(group.part("test")[0])
    model = MLP.build().double()
    model.load_state_dict({name: value[place].double() for name, value in group.item.states.items()})
    spec, example = group.item.spec, group.item.test_images[:7].double()
    inputs = predictor.inputs(model, spec, example).inputs
    # Made in float64: rounding to float32 on the way would tell networks of one orbit apart.
    assert not torch.equal(inputs, inputs.float().double())
    joined = predictor.joined(inputs)
    assert joined is not None
    assert joined.shape == inputs.shape
    assert not torch.equal(joined, inputs)
    assert torch.equal(joined, predictor.joined(inputs))
    field = predictor.field(model, spec, example, rounds=3)
    made, wide = field.network({"layers.0": 6, "layers.1": 5}), field.network({"layers.0": 30})
    compensation = predictor.compensation(model, spec, example, rounds=3)
    assert torch.equal(compensation.more[0][0], joined)
    plan = morph.narrow_by_obs(model, spec, {"layers.0": 6, "layers.1": 5}, [(inputs,)], compensation.ridge)
    with torch.no_grad():
        x = group.item.test_images.double()
        assert torch.allclose(wide(x), model(x), atol=1e-9)
        plain = predictor.compensation(model, spec, example)
        still = morph.apply(plan, model, (example,), spec=spec, compensation=plain).model
        seen = torch.cat([inputs, joined])
        far = [float(divergence(model(seen)[None], each(seen)[None])) for each in (made, still)]
    assert far[0] < 0.9 * far[1]
    # What rounds see beside the inputs is what they move on.
    assert field.more
    assert not predictor.field(model, spec, example, rounds=0).more
    predictor.task = replace(predictor.task, gradients=0.3)
    assert not predictor.field(model, spec, example, rounds=3).more


def test_a_predictor_narrows_a_network_from_its_weights(trained, data) -> None:
    predictor = MorphModel.open(trained)
    group = data.groups[0]
    place = int(group.part("test")[0])
    model = MLP.build().double()
    model.load_state_dict({name: value[place].double() for name, value in group.item.states.items()})
    before = copy.deepcopy(model.state_dict())
    example = group.item.test_images[:7].double()
    compensation = predictor.compensation(model, group.item.spec, example)
    assert compensation.batches is not None
    plan = morph.narrow_by_obs(model, group.item.spec, {"layers.0": 6, "layers.1": 5}, compensation.batches)
    with torch.no_grad():
        x = group.item.test_images.double()
        far = [
            float(divergence(model(x)[None], made.model(x)[None]))
            for made in (
                morph.apply(plan, model, (example,), spec=group.item.spec, compensation=compensation),
                morph.apply(plan, model, (example,), spec=group.item.spec),
            )
        ]
    assert far[0] < far[1]
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_random_masks_and_chosen_ones_keep_as_many_units(data) -> None:
    group = data.groups[0]
    states = group.rows(np.arange(3))
    size = {"layers.0": 12, "layers.1": 10}
    moments = {
        reading.weight: (torch.zeros(3, size[space]), torch.eye(size[space]).expand(3, -1, -1))
        for space, readings in group.masked.readings.items()
        for reading in readings
    }
    masks = masks_for(group.masked, states, moments, {"layers.0": 0.5, "layers.1": 0.25}, 1e-3)
    assert {space: mask.sum(1).tolist() for space, mask in masks.items()} == {
        "layers.0": [6.0] * 3,
        "layers.1": [2.0] * 3,
    }


def test_moments_far_from_those_on_images_cost(data) -> None:
    places = torch.from_numpy(data.groups[0].part("train"))
    losses = []
    for size in (0.0, 1.0, 2.0):
        task = MorphTask(batch=8, images=64, moments=size)
        model = task.model(data, MADE, torch.Generator().manual_seed(0))
        losses.append(float(task.loss(model, data, (0, places), torch.Generator().manual_seed(1)).detach()))
    assert losses[1] - losses[0] > 0.1
    assert losses[2] - losses[1] == pytest.approx(losses[1] - losses[0], rel=1e-4)


@pytest.mark.parametrize("bias", [False, True])
def test_a_unit_that_hardly_varies_goes_only_where_a_bias_takes_its_mean(bias) -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3, bias=bias)).eval()
    nn.init.ones_(model[2].weight)
    spec = symmetry.trace(model, (torch.zeros(2, 4),))
    masked = Masked(model, spec)
    states = {name: value[None] for name, value in model.state_dict().items()}
    mean, covariance = torch.zeros(1, 6), torch.eye(6)[None].clone()
    mean[0, 0], covariance[0, 0, 0] = 10.0, 0.01
    mask = masks_for(masked, states, {"2.weight": (mean, covariance)}, {"0": 0.5}, 1e-3)["0"]
    assert mask.sum() == 3
    assert bool(mask[0, 0]) is not bias


def test_refusals(trained, data, tmp_path) -> None:
    predictor = MorphModel.open(trained)
    other = Architecture("mlp", {"inputs": 9, "widths": [5], "outputs": 4, "activation": "relu"})
    with pytest.raises(TaskError, match=r"reads inputs of shape \[9\], the predictor makes images of \[1, 4, 4\]"):
        predictor.inputs(other.build(), symmetry.trace(other.build(), other.example_inputs()), torch.zeros(2, 9))
    generator = torch.Generator()
    for options, words in (
        ({"name": "metanet"}, "takes 'virtual'"),
        ({"name": "virtual", "inputs": 0}, "no inputs and no fields"),
        ({"name": "virtual", "size": 3}, "no such setting: 'size'"),
        ({"name": "virtual", "steps": -1}, "expected 0 or more"),
    ):
        with pytest.raises(ConfigError, match=words):
            VirtualInputs.from_mapping(options, SHAPE, 1, generator)
    with pytest.raises(ConfigError, match=r"task\.least"):
        MorphTask(least=0.95)
    with pytest.raises(TaskError, match="no network can be narrowed; 1 left out"):
        linear = nn.Linear(16, 4)
        item = item_of(MLP, 4)
        spec = symmetry.trace(linear, (torch.zeros(2, 16),))
        morph_data([MorphItem(**{**vars(item), "model": linear, "spec": spec, "states": {}})])


class Described:
    """A finished folder whose description says something else."""

    folder = Path("runs/morph")
    config: ClassVar = {"task": {"task": "morph"}, "model": LEARNED}

    def __init__(self, record: dict[str, object]) -> None:
        self.record = {"format": "metanet.morph-predictor/1", **record}

    def holds(self, name: str) -> bool:
        return name == "morph.json"

    def values(self, name: str) -> dict[str, object]:
        return self.record


@pytest.mark.parametrize(
    "record", [{}, {"input": [1, 4, 4]}, {"input": "x", "kinds": ["a"]}, {"input": [1, 0], "kinds": 3}]
)
def test_a_folder_that_does_not_say_what_it_is_for_is_refused(record) -> None:
    with pytest.raises(TaskError, match=r"runs/morph: morph\.json does not say what it is for"):
        MorphModel(Described(record))
