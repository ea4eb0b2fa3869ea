"""Do the baselines learn, and is a trained model measured fairly beside them?"""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from metanet.errors import TaskError
from metanet.tasks import (
    BoostingOptions,
    ConstantMethod,
    FlatMethod,
    LinearMethod,
    MetanetMethod,
    OuterFold,
    Plan,
    PropertyModel,
    PropertyTask,
    TreesMethod,
    average,
    balanced_accuracy,
    evaluate,
    flat_weights,
    measure_all,
    nested_cross_validation,
    property_data,
    training_curves,
)
from metanet.tasks.flat import FlatData
from metanet.tasks.nested import collect
from metanet.train import TrainerSettings, train

from .conftest import ARCHITECTURES, make_items

TASK = PropertyTask("score", batch=16, chunk=8, boosting=BoostingOptions(trees=40))
CLASSES = replace(TASK, column="size", balanced=True)
QUICK = TrainerSettings(epochs=6, learning_rate=8e-3, patience=0, progress=False, threads=1)
MODEL = {"hidden": 8, "layers": 1, "readout": 16}


def test_every_method_scores_every_network(number_data, label_data):
    for task, data in ((TASK, number_data), (CLASSES, label_data)):
        methods = [MetanetMethod(MODEL, QUICK), FlatMethod(), TreesMethod(), LinearMethod(), ConstantMethod()]
        results = [method.run(task, data, 0) for method in methods]
        results.append(average(task, data, results[0], results[2]))
        shape = (len(data), task.encoding(data).outputs)
        for result in results:
            assert result.scores.shape == shape
            assert np.isfinite(result.scores).all()
        found = measure_all(task, data, results)
        metric = "balanced_accuracy" if data.labelled else "r2"
        for name in ("metanet", "trees", "linear", "average"):
            assert found[name][metric] > found["constant"][metric] + 0.15, name
        again = FlatMethod().run(task, data, 0)
        assert np.array_equal(again.scores, results[1].scores)


def test_constant_is_what_is_known_without_looking(number_data, label_data):
    number = ConstantMethod().run(TASK, number_data, 0)
    assert measure_all(TASK, number_data, [number])["constant"]["r2"] <= 0
    label = ConstantMethod().run(CLASSES, label_data, 0)
    assert measure_all(CLASSES, label_data, [label])["constant"]["balanced_accuracy"] == pytest.approx(1 / 3)


def test_flat_weights_are_padded_cut_and_in_the_order_of_the_state(number_data):
    graphs = number_data.graphs[:3]
    flat = flat_weights(graphs)
    for row, graph in zip(flat, graphs, strict=True):
        values = torch.cat([t.reshape(-1).float() for t in graph.state().values() if t.is_floating_point()]).numpy()
        assert np.array_equal(row[: len(values)], values)
        assert not row[len(values) :].any()
    assert flat_weights(graphs, width=10).shape == (3, 10)


def test_flat_inputs_are_standardised_by_the_training_part_alone(number_data):
    inputs = FlatData.of(number_data).inputs.numpy()
    train = inputs[number_data.part("train")]
    used = train.std(axis=0) > 0
    assert np.allclose(train[:, used].mean(axis=0), 0, atol=0.2)
    other = number_data.with_split(number_data.split)
    scaled = [replace(g, values=tuple(v * 100 for v in g.values)) for g in number_data.graphs]
    mixed = tuple(s if part == "test" else g for s, g, part in zip(scaled, other.graphs, other.split, strict=True))
    again = FlatData.of(replace(other, graphs=mixed)).inputs.numpy()
    assert np.array_equal(again[number_data.part("train")], train)
    assert not np.array_equal(again[number_data.part("test")], inputs[number_data.part("test")])


def test_evaluation_of_a_trained_model(tmp_path, number_data):
    trained = train(TASK, number_data, MODEL, QUICK, tmp_path / "model")
    model = PropertyModel.open(tmp_path / "model")
    found = evaluate(model, TASK, number_data, draws=50)
    test = number_data.part("test")
    assert [score.name for score in found.models] == ["average", "metanet", "trees", "flat", "constant"]
    assert [score.kind for score in found.models] == ["model", "part", "baseline", "baseline", "baseline"]
    assert found.true == tuple(number_data.targets[test])
    assert found.groups == tuple(number_data.groups[test])
    expected = TASK.measure(number_data, test, model.scores([number_data.graphs[i] for i in test]))
    assert found.chosen.values == pytest.approx(expected, abs=1e-5)
    interval = found.chosen.intervals["tau"]
    assert interval.low <= found.chosen.values["tau"] <= interval.high
    assert interval.groups == len(set(found.groups))
    assert np.isnan(found.score("constant").values["tau"])
    assert "Kendall's tau of the model (average)" in found.verdict
    json.dumps(found.to_json(), allow_nan=False)
    curves = training_curves(trained.history)
    assert set(curves) == {"loss", "validation", "learning rate"}
    assert set(curves["loss"]) == {"training", "validation"}
    assert all(len(line) == 6 for panel in curves.values() for line in panel.values())
    with pytest.raises(TaskError, match="trained on other targets"):
        evaluate(model, TASK, replace(number_data, targets=number_data.targets / 2))


def test_the_verdict_says_plainly_when_the_model_is_below(number_data, tmp_path):
    train(replace(TASK, share=1.0), number_data, {**MODEL, "layers": 0}, replace(QUICK, epochs=1), tmp_path / "poor")
    found = evaluate(PropertyModel.open(tmp_path / "poor"), TASK, number_data, baselines=(LinearMethod(),), draws=5)
    below = found.chosen.values["tau"] < max(found.score(name).values["tau"] for name in ("trees", "linear"))
    assert ("below the best baseline" in found.verdict) == below


FAMILIES = {
    "trees": [TreesMethod(BoostingOptions(trees=n), name=f"{n} trees") for n in (2, 40)],
    "constant": [ConstantMethod()],
}


def test_nested_cross_validation_tests_every_example_once_and_leaks_nothing(label_data, monkeypatch):
    seen = []
    run = TreesMethod.run

    def watch(self, task, data, seed):
        seen.append(data)
        return run(self, task, data, seed)

    monkeypatch.setattr(TreesMethod, "run", watch)
    folds = nested_cross_validation(CLASSES, label_data, FAMILIES, Plan(outer=3, inner=2, repeats=2))
    assert len(folds) == 3 * 2 * 2
    for repeat in (0, 1):
        places = sorted(p for fold in folds if fold.family == "trees" and fold.repeat == repeat for p in fold.places)
        assert places == list(range(len(label_data)))
    assert {fold.places for fold in folds if fold.repeat == 0} != {fold.places for fold in folds if fold.repeat == 1}
    for data in seen:
        parts = [set(data.groups[data.part(part)]) for part in ("train", "val", "test")]
        assert not parts[0] & parts[1]
        assert not parts[0] & parts[2]
        assert not parts[1] & parts[2]
        assert all(parts)
    classes = np.unique(label_data.targets)
    for family, low, high in (("trees", 0.5, 1.0), ("constant", 0.3, 0.36)):
        predicted = classes[collect(CLASSES, label_data, folds, family, 0).argmax(axis=1)]
        assert low <= balanced_accuracy(predicted, label_data.targets) <= high
    assert all(fold.chosen == "40 trees" for fold in folds if fold.family == "trees")


def test_nested_cross_validation_of_shuffled_labels_is_chance(label_data):
    """The negative control: if anything leaked, shuffled labels would be predicted too."""
    generator = np.random.default_rng(0)
    names = np.unique(label_data.groups)
    of_group = dict(zip(names, generator.choice(["a", "b", "c"], len(names)), strict=True))
    shuffled = replace(label_data, targets=np.array([of_group[group] for group in label_data.groups]))
    folds = nested_cross_validation(CLASSES, shuffled, {"trees": FAMILIES["trees"]}, Plan(outer=3, inner=2))
    predicted = np.unique(shuffled.targets)[collect(CLASSES, shuffled, folds, "trees", 0).argmax(axis=1)]
    assert balanced_accuracy(predicted, shuffled.targets) < 0.55


def test_nested_cross_validation_goes_on_where_it_stopped(label_data):
    plan, kept = Plan(outer=3, inner=2), []

    class Stop(Exception):
        pass

    def stop(fold):
        kept.append(json.loads(json.dumps(fold.to_json())))
        if len(kept) == 3:
            raise Stop

    with pytest.raises(Stop):
        nested_cross_validation(CLASSES, label_data, FAMILIES, plan, on_fold=stop)
    done, new = [OuterFold.from_json(value) for value in kept], []
    resumed = nested_cross_validation(CLASSES, label_data, FAMILIES, plan, done=done, on_fold=new.append)
    assert len(new) == 3
    assert resumed == nested_cross_validation(CLASSES, label_data, FAMILIES, plan)


def test_nested_cross_validation_wants_classes(number_data):
    with pytest.raises(TaskError, match="is for classes"):
        nested_cross_validation(TASK, number_data, FAMILIES, Plan())


def test_subset_keeps_what_was_computed(number_data):
    part = number_data.subset(number_data.part("test"))
    assert np.array_equal(part.statistics, number_data.statistics[number_data.part("test")])
    fresh = property_data([item for item in make_items() if item.name in part.names], "score")
    assert np.allclose(fresh.statistics, part.statistics, atol=1e-5)
    assert len(ARCHITECTURES) == len({graph.topology.fingerprint for graph in part.graphs})
