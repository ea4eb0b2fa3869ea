"""Does a property predictor learn, keep itself, come back as the same function, and refuse what it cannot read?"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

import symmetry
from metanet.checkpoint import Architecture
from metanet.errors import CheckpointError, ConfigError, TaskError, TrainError
from metanet.graph import ParameterGraph
from metanet.nn import Metanet
from metanet.tasks import (
    PropertyItem,
    PropertyModel,
    PropertyTask,
    build_model,
    predict,
    property_data,
    statistics_of,
)
from metanet.tasks.boosting import BoostingOptions
from metanet.tasks.property import jittered, outputs_of
from metanet.tasks.property_trees import choose_share
from metanet.train import TrainerSettings, fit, train

from .conftest import ARCHITECTURES, make_items, network, spec_of

MODEL = {"hidden": 8, "layers": 1, "readout": 16, "statistics": True}
SETTINGS = TrainerSettings(epochs=16, learning_rate=8e-3, patience=0, progress=False, threads=1)
BOOSTING = BoostingOptions(trees=40)


@dataclass
class Loaded:
    """What prediction needs of a checkpoint."""

    spec: symmetry.SymmetrySpec
    state: dict


def unseen(architecture, seed):
    return Loaded(spec_of(architecture), network(architecture, seed)[0])


@pytest.fixture(scope="module")
def regression(tmp_path_factory, number_data):
    folder = tmp_path_factory.mktemp("regression") / "model"
    task = PropertyTask("score", batch=16, chunk=8, boosting=BOOSTING)
    return folder, task, train(task, number_data, MODEL, SETTINGS, folder)


@pytest.fixture(scope="module")
def classification(tmp_path_factory, label_data):
    folder = tmp_path_factory.mktemp("classification") / "model"
    task = PropertyTask("size", batch=16, chunk=8, balanced=True, boosting=BOOSTING)
    return folder, task, train(task, label_data, MODEL, SETTINGS, folder)


def test_learns_numbers(regression, number_data):
    _, task, trained = regression
    test = number_data.part("test")
    with torch.no_grad():
        scores = task.encoding(number_data).scores(outputs_of(trained.model, number_data.batch))
    found = task.measure(number_data, test, scores[test])
    assert found["tau"] > 0.6
    assert found["r2"] > 0.6
    shuffled = np.random.default_rng(0).permutation(scores[test])
    assert task.measure(number_data, test, shuffled)["tau"] < 0.4


def test_learns_classes(classification, label_data):
    _, task, trained = classification
    with torch.no_grad():
        scores = task.encoding(label_data).scores(outputs_of(trained.model, label_data.batch))
    found = task.measure(label_data, label_data.part("test"), scores[label_data.part("test")])
    assert found["balanced_accuracy"] > 0.6
    assert np.allclose(scores.sum(axis=1), 1)


@pytest.mark.parametrize("which", ["regression", "classification"])
def test_read_back_it_is_the_same_function(which, request, number_data, label_data):
    folder, task, trained = request.getfixturevalue(which)
    data = number_data if which == "regression" else label_data
    model = PropertyModel.open(folder)
    with torch.no_grad():
        ours = task.encoding(data).scores(outputs_of(trained.model, data.batch))
    assert np.array_equal(task.encoding(data).scores(outputs_of(model.model, data.batch)), ours)
    expected = model.share * ours
    theirs = (
        model.trees.probabilities(data.statistics) if which == "classification" else model.trees.raw(data.statistics)
    )
    assert np.allclose(model.scores(list(data.graphs)), expected + (1 - model.share) * theirs, atol=1e-6)
    measured = task.measure(data, data.part("val"), model.scores(list(data.graphs))[data.part("val")])
    assert measured == pytest.approx(model.validation["average"], abs=1e-5)


def test_predictions_come_in_order_in_the_users_unit(regression):
    folder, _, _ = regression
    files = [(f"file{i}", unseen(ARCHITECTURES[i % 3], 5000 + i)) for i in range(12)]
    together = predict(folder, files)
    assert [row.name for row in together] == [name for name, _ in files]
    assert all(0 <= row.value <= 1 and not row.refused and not row.warning for row in together)
    alone = [predict(folder, [file])[0].value for file in files]
    assert np.allclose([row.value for row in together], alone, atol=1e-5), "the batch has a say"
    truth = [1 / (1 + np.exp(-2 * network(ARCHITECTURES[i % 3], 5000 + i)[1])) for i in range(12)]
    assert np.corrcoef([row.value for row in together], truth)[0, 1] > 0.7
    assert json.loads(json.dumps(together[0].to_json()))["value"] == together[0].value


def test_the_order_of_units_has_no_say(regression):
    folder, _, _ = regression
    before = unseen(ARCHITECTURES[1], 7000)
    generator = torch.Generator().manual_seed(0)
    element = before.spec.sample(generator, kinds=("permutation",))
    after = Loaded(before.spec, before.spec.act(element, before.state))
    assert not torch.equal(before.state["layers.0.weight"], after.state["layers.0.weight"])
    one, two = (predict(folder, [("x", loaded)])[0].value for loaded in (before, after))
    assert one == pytest.approx(two, abs=1e-5)
    rolled = {**before.state, "layers.0.weight": before.state["layers.0.weight"].roll(1, 0) * 1.3}
    assert predict(folder, [("x", Loaded(before.spec, rolled))])[0].value != pytest.approx(one, abs=1e-4)


def test_classes_come_with_probabilities(classification):
    folder, _, _ = classification
    rows = predict(folder, [(str(i), unseen(ARCHITECTURES[0], 6000 + i)) for i in range(5)])
    for row in rows:
        assert row.value in ("large", "middle", "small")
        assert row.value == max(row.probabilities, key=row.probabilities.get)
        assert sum(row.probabilities.values()) == pytest.approx(1)


@pytest.mark.parametrize(
    ("family", "options", "reason"),
    [
        ("mlp", {"inputs": 6, "widths": [8], "outputs": 3, "activation": "gelu"}, "activation 'gelu'"),
        ("mlp", {"inputs": 6, "widths": [8, 8, 8, 8], "outputs": 3, "activation": "relu"}, "5 weight layers"),
        ("mlp", {"inputs": 9, "widths": [8], "outputs": 3, "activation": "relu"}, "9 inputs"),
        ("mlp", {"inputs": 6, "widths": [8], "outputs": 4, "activation": "relu"}, "4 outputs"),
        ("mlp", {"inputs": 6, "widths": [200], "outputs": 3, "activation": "relu"}, "width 200"),
    ],
)
def test_what_it_has_not_seen_the_like_of_is_refused(regression, family, options, reason):
    folder, _, _ = regression
    stranger = Architecture(family, options)
    files = [
        ("good", unseen(ARCHITECTURES[0], 1)),
        ("stranger", unseen(stranger, 2)),
        ("fine", unseen(ARCHITECTURES[2], 3)),
    ]
    rows = predict(folder, files)
    assert [bool(row.refused) for row in rows] == [False, True, False]
    assert reason in rows[1].refused
    assert rows[1].value is None
    anyway = predict(folder, files, anyway=True)[1]
    assert reason in anyway.warning
    assert anyway.value is not None


def test_unreadable_and_broken_files_are_rows_with_a_reason(regression):
    folder, _, _ = regression
    broken = unseen(ARCHITECTURES[0], 1)
    broken.state["layers.0.weight"] = torch.full_like(broken.state["layers.0.weight"], float("nan"))
    short = unseen(ARCHITECTURES[0], 1)
    del short.state["layers.0.bias"]
    rows = predict(
        folder,
        [
            ("a", CheckpointError("not a checkpoint", file="a.bin")),
            ("b", broken),
            ("c", short),
            ("d", unseen(ARCHITECTURES[0], 1)),
        ],
    )
    assert "a.bin: not a checkpoint" in rows[0].refused
    assert rows[1].refused == "NaN or infinities in layers.0.weight (48 of 48 values)"
    assert "layers.0.bias" in rows[2].refused
    assert rows[3].value is not None


def test_thousands_of_files_go_by_in_batches(regression):
    folder, _, _ = regression
    model, alive = PropertyModel.open(folder), []
    loaded = unseen(ARCHITECTURES[0], 1)

    def files():
        for i in range(600):
            alive.append(i)
            yield str(i), loaded

    stream = model.predict(files())
    next(stream)
    assert len(alive) <= 256, "all files were read before the first answer"
    assert len(list(stream)) == 599


def test_data_leave_out_and_record_what_is_not_finite():
    items = make_items(12)
    state = {name: tensor.clone() for name, tensor in items[0].graph.state().items()}
    state["layers.0.weight"][0, 0] = float("inf")
    items[0] = replace(items[0], graph=ParameterGraph.build(spec_of(ARCHITECTURES[0]), state))
    items[1] = replace(items[1], target=float("nan"))
    data = property_data(items, "score")
    assert len(data) == 10
    assert dict(data.dropped) == {
        "net0": f"NaN or infinities in layers.0.weight (1 of {state['layers.0.weight'].numel()} values)",
        "net1": "score is nan",
    }
    assert data.describe()["dropped"] == 2
    items[2] = replace(items[2], target=None)
    assert dict(property_data(items, "score").dropped)["net2"] == "score is not known"
    switches = [replace(item, target=i % 2 == 0) for i, item in enumerate(items)]
    assert set(property_data(switches, "residual").targets) == {"True", "False"}


def test_data_keep_the_parts_they_are_given():
    items = [replace(item, part="train" if i < 9 else "val") for i, item in enumerate(make_items(15))]
    assert property_data(items, "score").part("train").tolist() == list(range(9))
    assert len(property_data(items, "score", resplit=True).part("test"))
    with pytest.raises(TaskError, match="1 of 15 networks have no part"):
        property_data([replace(items[0], part=None), *items[1:]], "score")
    with pytest.raises(TaskError, match="in both"):
        property_data([replace(item, group="one") for item in items], "score")


def test_fingerprint_sees_every_weight(number_data):
    items = make_items()
    assert property_data(items, "score").fingerprint == number_data.fingerprint
    state = {name: tensor.clone() for name, tensor in items[5].graph.state().items()}
    state["head.bias"][0] += 1e-6
    items[5] = replace(items[5], graph=ParameterGraph.build(spec_of(ARCHITECTURES[2]), state))
    assert property_data(items, "score").fingerprint != number_data.fingerprint


def test_nothing_of_test_or_validation_targets_reaches_the_model(number_data):
    """Leakage control: other targets outside the training part change neither weights nor trees."""
    task = PropertyTask("score", batch=16, boosting=BOOSTING, share=0.5)
    settings = replace(SETTINGS, epochs=2)
    one = fit(task, number_data, MODEL, settings)
    targets = number_data.targets.copy()
    targets[number_data.part("test")] = 0.123
    two = fit(task, replace(number_data, targets=targets), MODEL, settings)
    for name, tensor in one.model.state_dict().items():
        assert torch.equal(tensor, two.model.state_dict()[name])
    for name, tensor in one.extras.tensors["trees.safetensors"].items():
        assert torch.equal(tensor, two.extras.tensors["trees.safetensors"][name])
    targets[number_data.part("train")[:5]] = 0.9
    three = fit(task, replace(number_data, targets=targets), MODEL, settings)
    assert not torch.equal(one.model.state_dict()["head.out.weight"], three.model.state_dict()["head.out.weight"])


def test_every_network_is_in_one_batch_of_an_epoch(number_data, generator):
    task = PropertyTask("score", batch=16, chunk=4)
    batches = task.batches(number_data, generator)
    assert sorted(torch.cat(list(batches)).tolist()) == number_data.part("train").tolist()
    assert all(len(batch) >= 4 for batch in batches)
    again = task.batches(number_data, generator)
    assert torch.cat(list(batches)).tolist() != torch.cat(list(again)).tolist()


def test_ranking_loss_wants_the_right_order():
    task = PropertyTask("score", rank=1.0)
    true = torch.tensor([0.0, 1.0, 2.0])
    right = task.loss_of(torch.tensor([[0.0], [1.0], [2.0]]), true)
    wrong = task.loss_of(torch.tensor([[2.0], [1.0], [0.0]]), true)
    assert right < wrong
    assert torch.isfinite(task.loss_of(torch.zeros(3, 1), torch.zeros(3)))


def test_jitter_shakes_weights_and_nothing_else(number_data, generator):
    assert len(number_data.statistics) == len(number_data)
    batch = number_data.batch.select(range(12))
    shaken = jittered(batch, 0.3, generator)
    assert jittered(batch, 0.0, generator) is batch
    for before, after in zip(batch, shaken, strict=True):
        assert torch.equal(before.index, after.index)
        for one, two in zip(before.values, after.values, strict=True):
            if one is not None:
                assert torch.equal(one.sign(), two.sign())
                assert (one == 0).all() or not torch.equal(one, two)
    assert np.array_equal(statistics_of(batch), statistics_of(shaken)), "the statistics were shaken too"
    factors = torch.cat([(b.values[0] / a.values[0]).reshape(-1) for a, b in zip(batch, shaken, strict=True)])
    assert 0.25 < float(factors.std()) < 0.35


def test_share_is_that_of_the_better_model(number_data):
    task = PropertyTask("score")
    encoding = task.encoding(number_data)
    true = encoding.encode(number_data.targets)[:, None].astype(float)
    noise = np.random.default_rng(0).normal(size=true.shape)
    assert choose_share(encoding, true, true + noise, number_data.targets) > 0.7
    assert choose_share(encoding, true + noise, true, number_data.targets) < 0.3
    assert choose_share(encoding, true, true, number_data.targets) == 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"column": "x", "kind": "ranking"}, "task.kind: 'ranking' given"),
        ({"column": "x", "batch": 0}, "task.batch"),
        ({"column": "x", "batch": "many"}, "task.batch: 'many' given, expected a whole number"),
        ({"column": "x", "colour": 1}, "no such setting: 'colour'"),
        ({"column": "x", "boosting": {"trees": 1.5}}, "task.boosting.trees"),
        ({"column": "x", "boosting": {"rate": 0}}, "task.boosting.rate: 0.0 given, expected above 0"),
    ],
)
def test_task_options_are_checked(options, message):
    with pytest.raises(ConfigError, match=message):
        PropertyTask.from_mapping(options)


def test_task_survives_its_configuration():
    task = PropertyTask("score", batch=7, boosting=BoostingOptions(trees=5))
    assert PropertyTask.from_mapping(task.describe()) == task


def test_model_options_are_checked(generator):
    assert isinstance(build_model({"name": "metanet", "hidden": 4}, 2, generator), Metanet)
    for options, message in (
        ({"name": "resnet"}, "model.name: 'resnet' given"),
        ({"width": 3}, "no such option: 'width'"),
        ({"hidden": "big"}, "hidden='big'"),
        ({"mode": "quasi"}, "answers with whole networks"),
    ):
        with pytest.raises(ConfigError, match=message):
            build_model(options, 2, generator)


def test_targets_that_do_not_fit_the_task_are_refused(label_data, number_data):
    with pytest.raises(TaskError, match=r"set task.kind=classification"):
        PropertyTask("size", kind="regression").encoding(label_data)
    with pytest.raises(TaskError, match=r"set task.kind=regression"):
        PropertyTask("score", kind="classification").encoding(number_data)
    lonely = replace(label_data, targets=np.where(label_data.split == "test", "odd", label_data.targets))
    with pytest.raises(TaskError, match="class 'odd' of size has no training example"):
        PropertyTask("size").encoding(lonely)


def test_folders_of_other_things_are_refused(tmp_path, regression):
    with pytest.raises(TrainError, match="no such folder"):
        PropertyModel.open(tmp_path / "nowhere")
    with pytest.raises(TrainError, match="no trained model"):
        PropertyModel.open(tmp_path)
    from metanet.train import Extras

    class Other(PropertyTask):
        def describe(self):
            return {**super().describe(), "task": "other"}

        def complete(self, model, data, generator):
            return Extras()

    train(
        Other("score"), property_data(make_items(30), "score"), MODEL, replace(SETTINGS, epochs=1), tmp_path / "other"
    )
    with pytest.raises(TaskError, match="holds no property predictor"):
        PropertyModel.open(tmp_path / "other")


def test_items_default_to_their_number():
    items = [replace(item, name="") for item in make_items(9)]
    assert property_data(items, "score").names[4] == "4"
    assert isinstance(items[0], PropertyItem)


def test_a_crashed_training_ends_with_the_same_model(tmp_path, monkeypatch, number_data):
    """Buffers, moving averages and the order of the batches of the real model all come back."""
    from metanet.train.state import LoopState

    settings = replace(SETTINGS, epochs=6, average=0.9)
    task = PropertyTask("score", batch=16, chunk=8, boosting=BOOSTING)
    train(task, number_data, {**MODEL, "probes": 4}, settings, tmp_path / "whole")
    save = LoopState.save

    def save_then_crash(self, path, identity):
        save(self, path, identity)
        if self.epoch == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(LoopState, "save", save_then_crash)
        with pytest.raises(KeyboardInterrupt):
            train(task, number_data, {**MODEL, "probes": 4}, settings, tmp_path / "crashed")
    # Equal data made anew, as in a new process.
    train(task, property_data(make_items(), "score"), {**MODEL, "probes": 4}, settings, tmp_path / "crashed")
    for name in ("weights.safetensors", "trees.safetensors", "property.json"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "crashed" / name).read_bytes()
    with pytest.raises(TrainError, match=r"differs in data\.fingerprint"):
        train(task, property_data(make_items(seed=1), "score"), {**MODEL, "probes": 4}, settings, tmp_path / "whole")
