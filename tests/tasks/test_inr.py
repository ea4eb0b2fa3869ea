"""Are changes of pictures exact in weight space, and do the tasks on them learn what they are for?"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

import symmetry
from metanet.checkpoint import Architecture
from metanet.errors import ConfigError, TaskError
from metanet.graph import Bucket, ParameterGraph, collate, program_of
from metanet.nn import Metanet
from metanet.tasks import PropertyData, PropertyItem, property_data
from metanet.tasks.inr import InrClassificationTask
from metanet.tasks.inr_editing import InrEditingTask, dilated, editing_data, pixel_grid, rendered
from metanet.tasks.inr_editing_score import EditingModel, evaluate_editing
from metanet.tasks.inr_maps import CoordinateMaps, map_coordinates, mapped
from metanet.tasks.property import outputs_of
from metanet.train import TrainerSettings, fit, train
from symmetry import SymmetrySpec
from symmetry.testing import equivariance_error

SIDE = 6
SIREN = Architecture("siren", {"inputs": 2, "widths": [8, 7], "outputs": 1, "w0": 4.0})
SETTINGS = TrainerSettings(epochs=25, learning_rate=5e-3, patience=0, progress=False, weight_decay=0.0)


def draw(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def spec() -> SymmetrySpec:
    return symmetry.trace(SIREN.build().eval(), SIREN.example_inputs())


@pytest.fixture(scope="module")
def networks(spec: SymmetrySpec) -> PropertyData:
    """Random networks; the label says on which side of the picture its last bias puts the mean."""
    items = []
    for i in range(120):
        state = SIREN.build(seed=i).state_dict()
        state["layers.2.bias"] += 0.8 if i % 2 else -0.8
        part = "train" if i < 80 else "val" if i < 100 else "test"
        graph = ParameterGraph.build(spec, state, program_of(SIREN))
        items.append(PropertyItem(graph, "bright" if i % 2 else "dark", str(i), part))
    return property_data(items, "label")


def shown(bucket: Bucket, points: Tensor) -> Tensor:
    """What every network shows at its own points."""
    module = SIREN.build().double()
    rows = []
    for row in range(len(bucket)):
        state = {name: value[row] for name, value in bucket.state().items()}
        rows.append(torch.func.functional_call(module, state, (points[row],))[:, 0])
    return torch.stack(rows)


def test_a_mapped_network_shows_the_mapped_picture(networks):
    (bucket,) = networks.batch.select(range(3)).to(dtype=torch.float64).buckets
    maps = CoordinateMaps(0.5, 0.3, 0.4, 0.2)
    matrices, moves = (value.double() for value in maps.draw(3, draw(0)))
    grid = pixel_grid(SIDE).double()
    moved = map_coordinates(bucket, matrices, moves)
    seen = grid @ matrices.transpose(1, 2) + moves[:, None]
    torch.testing.assert_close(shown(moved, grid.expand(3, -1, -1)), shown(bucket, seen), rtol=0, atol=1e-12)
    assert (shown(moved, grid.expand(3, -1, -1)) - shown(bucket, grid.expand(3, -1, -1))).abs().max() > 1e-2
    torch.testing.assert_close(rendered(moved, moved.state(), grid), shown(moved, grid.expand(3, -1, -1)))


def test_maps_are_drawn_within_their_bounds_and_none_moves_nothing(networks):
    matrices, moves = CoordinateMaps(rotation=0.3, shift=0.1).draw(500, draw(1))
    torch.testing.assert_close(torch.linalg.det(matrices), torch.ones(500))
    assert moves.abs().max() <= 0.1
    assert 0.25 < torch.atan2(matrices[:, 1, 0], matrices[:, 0, 0]).abs().max() <= 0.3
    stretched = CoordinateMaps(scale=0.2).draw(500, draw(1))[0]
    assert stretched[:, 0, 1].abs().max() == 0
    assert stretched.diagonal(dim1=1, dim2=2).log().abs().max() <= 0.2
    assert mapped(networks.batch, CoordinateMaps(), draw(0)) is networks.batch


def test_networks_that_read_no_plane_are_refused():
    mlp = Architecture("mlp", {"inputs": 3, "widths": [4], "outputs": 2, "activation": "relu"})
    graph = ParameterGraph.build(symmetry.trace(mlp.build().eval(), mlp.example_inputs()), mlp.build().state_dict())
    (bucket,) = collate([graph]).buckets
    with pytest.raises(TaskError, match=r"layers.0.weight reads 3 inputs .* expected 2 coordinates"):
        map_coordinates(bucket, torch.eye(2)[None], torch.zeros(1, 2))


def test_classification_learns_labels_and_its_answers_do_not_move_along_orbits(spec, networks):
    task = InrClassificationTask(batch=40, chunk=40)
    options = {"layers": 0, "statistics": False, "responses": 16, "mixing": 2, "readout": 16, "hidden": 4}
    trained = fit(task, networks, options, SETTINGS)
    places = networks.part("test")
    scores = task.encoding(networks).scores(outputs_of(trained.model, networks.batch.select(places.tolist())))
    assert task.measure(networks, places, scores)["accuracy"] > 0.9
    model = trained.model.double()
    state = networks.graphs[0].state()
    graph = lambda given: ParameterGraph.build(spec, given, program_of(SIREN))  # noqa: E731
    table = equivariance_error(lambda given: model(collate([graph(given)], torch.float64)), spec, state, trials=2)
    assert table.max_error < 1e-10, table
    assert table.control_error > 1e-5, table


def test_dilation_takes_the_largest_neighbour():
    picture = torch.rand(2, SIDE * SIDE, generator=draw(0)) - 2  # negative: what lies outside must not count as zero
    square, found = picture.reshape(2, SIDE, SIDE), dilated(picture, 3).reshape(2, SIDE, SIDE)
    for y in range(SIDE):
        for x in range(SIDE):
            around = square[:, max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2]
            assert torch.equal(found[:, y, x], around.amax((1, 2)))


def test_editing_learns_to_change_pictures(spec, networks):
    task = InrEditingTask(side=SIDE, batch=20)
    data = editing_data(networks, task)
    identity = task.error(None, data, "test")
    trained = fit(task, data, {"hidden": 8, "layers": 1}, SETTINGS)
    assert task.error(trained.model, data, "test") < 0.8 * identity
    assert trained.extras.values["editing.json"]["validation"]["identity"] == pytest.approx(
        task.error(None, data, "val")
    )


def test_learned_steps_change_pictures_more_and_come_back_from_their_folder(networks, tmp_path):
    task = InrEditingTask(side=SIDE, batch=20)
    data, options = editing_data(networks, task), {"name": "steered", "steps": 2, "channels": 6}
    train(task, data, options, replace(SETTINGS, epochs=12), tmp_path / "model")
    model = EditingModel.open(tmp_path / "model")
    found = {score.name: score.values["mse"] for score in evaluate_editing(model, data).models}
    assert found["metanet"] < 0.5 * found["identity"]
    with pytest.raises(ConfigError, match="no such option: 'step'"):
        task.editor({"name": "steered", "step": 1}, draw(0))


def test_the_edit_follows_permutations(spec, networks):
    task = InrEditingTask(side=SIDE)
    model = Metanet(level="edge", hidden=8, layers=1, seed=1).double()

    def edit(given: dict[str, Tensor]) -> dict[str, Tensor]:
        (bucket,) = collate([ParameterGraph.build(spec, given)], torch.float64).buckets
        return {name: value[0] for name, value in task.edited(model, bucket).items()}

    state = networks.graphs[0].state()
    table = equivariance_error(edit, spec, state, trials=2, kinds=("permutation",))
    assert table.max_error < 1e-10, table
    still = equivariance_error(edit, spec, state, trials=2, kinds=("permutation",), carry=lambda _, output: output)
    assert still.max_error > 1e-2


@pytest.mark.parametrize(
    ("task", "options", "reason"),
    [
        (InrClassificationTask, {"shift": -0.1}, "task.shift: -0.1 given"),
        (InrClassificationTask, {"smoothing": 1.0}, "task.smoothing"),
        (InrClassificationTask, {"kind": "regression"}, "expected classification"),
        (InrEditingTask, {"window": 4}, "an odd number"),
        (InrEditingTask, {"sides": 14}, "no such setting"),
    ],
)
def test_impossible_settings_are_refused(task, options, reason):
    with pytest.raises(ConfigError, match=reason):
        task.from_mapping(options)


def test_pictures_of_another_size_are_refused(networks):
    with pytest.raises(TaskError, match="pictures of shape"):
        editing_data(networks, InrEditingTask(side=SIDE), torch.zeros(len(networks), 9))
