"""Does a trained ensemble on every kind of features come back from its folder with the same answers?"""

import numpy as np
import pytest
import torch

from metanet.errors import ConfigError
from metanet.graph import ParameterGraph, program_of
from metanet.tasks import PropertyItem, PropertyModel, PropertyTask, evaluate, property_data
from metanet.tasks.boosting import BoostingOptions
from metanet.tasks.property_trees import FEATURES
from metanet.train import TrainerSettings, train

from .conftest import ARCHITECTURES, network, spec_of


@pytest.fixture(scope="module")
def data():
    items = []
    for seed in range(24):
        state, size = network(ARCHITECTURES[0], seed)
        graph = ParameterGraph.build(spec_of(ARCHITECTURES[0]), state, program_of(ARCHITECTURES[0]))
        items.append(PropertyItem(graph, 1 / (1 + np.exp(-2 * size)), f"run{seed // 2}"))
    return property_data(items, "score")


@pytest.mark.parametrize("features", FEATURES)
def test_an_ensemble_answers_the_same_from_its_folder(features, data, tmp_path, monkeypatch):
    monkeypatch.setattr("metanet.tasks.inverted.InversionOptions.__init__.__defaults__", (3, 4, 0.3, 0.05, 0.2, 1, 0.1))
    task = PropertyTask("score", features=features, share=0.5, boosting=BoostingOptions(trees=20))
    settings = TrainerSettings(epochs=1, progress=False)
    train(task, data, {"hidden": 4, "layers": 0}, settings, tmp_path / "model")
    model = PropertyModel.open(tmp_path / "model")
    parts = model.parts(data)
    assert model.features == features
    assert (model.inverted is not None) == (features == "inverted")
    np.testing.assert_allclose(parts["average"], (parts["metanet"] + parts["trees"]) / 2)
    assert parts["trees"].std() > 0.1
    np.testing.assert_allclose(model.scores(data.graphs), parts["average"], atol=1e-6)
    if features != "statistics":
        graph = data.graphs[0]
        element = graph.spec.sample(torch.Generator().manual_seed(0))
        state = {name: value.double() for name, value in graph.state().items()}
        there = {name: value.float() for name, value in graph.spec.act(element, state).items()}
        moved = ParameterGraph.build(graph.spec, there, graph.program)
        pair = property_data([PropertyItem(g, 0.5, str(i), "train") for i, g in enumerate((graph, moved))], "score")
        one, two = model.parts(pair)["trees"][:, 0]
        assert one == pytest.approx(two, abs=1e-6)
    assert "statistics" in evaluate(model, task, data, (), draws=2).score("trees").description


def test_unknown_features_are_refused():
    with pytest.raises(ConfigError, match="statistics, rich, responses, inverted"):
        PropertyTask("score", features="colour")
