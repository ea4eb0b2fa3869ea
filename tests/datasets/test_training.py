"""Does training many networks at once give what training each alone with torch.optim gives?"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from metanet.checkpoint import Architecture
from metanet.datasets import load_digits_dataset, load_zoo_config
from metanet.datasets.alone import train_alone
from metanet.datasets.draw import RunSettings, draw_zoo
from metanet.datasets.images import ImageData, load_images
from metanet.datasets.measure import measure_many, measure_one
from metanet.datasets.stacked import Networks
from metanet.datasets.trainer import first_state, train_group

BATCH = 16
MLP: dict[str, Any] = {"inputs": 64, "outputs": 10}
CNN: dict[str, Any] = {"channels": 1, "size": 8, "outputs": 10}
ARCHITECTURES = {
    "mlp-relu": Architecture("mlp", {**MLP, "widths": [12, 8], "activation": "relu"}),
    "mlp-norm-residual-gelu": Architecture(
        "mlp", {**MLP, "widths": [8, 8], "activation": "gelu", "norm": "batch", "residual": True}
    ),
    "mlp-linear": Architecture("mlp", {**MLP, "widths": [], "activation": "relu"}),
    "cnn-sin": Architecture("cnn", {**CNN, "widths": [4, 8], "strides": [1, 2], "activation": "sin"}),
    "cnn-norm-tanh": Architecture(
        "cnn", {**CNN, "widths": [8, 6], "strides": [2, 1], "activation": "tanh", "norm": "batch"}
    ),
    "cnn-norm-residual": Architecture(
        "cnn",
        {**CNN, "widths": [4, 8], "strides": [2, 1], "activation": "gelu", "norm": "batch", "residual": True},
    ),
    "transformer": Architecture(
        "transformer", {**CNN, "patch": [4, 4], "width": 8, "heads": 2, "hidden": [6], "activation": "gelu"}
    ),
    "gru": Architecture("gru", {**CNN, "widths": [6], "norm": "layer"}),
}


def settings(run: int, **changes: Any) -> RunSettings:
    """Four runs that differ in everything that a group vectorises."""
    optimiser = ("sgd", "adam", "adamw", "sgd")[run % 4]
    base = RunSettings(
        run=run,
        seed=1000 + run,
        architecture=0,
        parent=None,
        split="train",
        steps=(9, 14, 6, 14)[run % 4],
        snapshot_steps=((3, 9), (7, 14), (6,), (2, 14))[run % 4],
        data_share=(0.05, 0.3, 1.0, 0.6)[run % 4],
        label_noise=(0.0, 0.3, 0.1, 0.0)[run % 4],
        initial_scale=(0.5, 1.0, 1.4, 2.0)[run % 4],
        optimiser=optimiser,
        learning_rate=(0.1, 0.01, 0.02, 0.03)[run % 4],
        momentum=(0.9, 0.8, 0.9, 0.0)[run % 4],
        weight_decay=(0.01, 0.1, 0.5, 0.0)[run % 4],
    )
    return replace(base, **changes)


def difference(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """Largest difference over the spread of each tensor."""
    assert list(a) == list(b)
    return max(
        float((x.double() - y.double()).abs().max() / y.double().abs().max().clamp_min(1e-3))
        for x, y in zip(a.values(), b.values(), strict=True)
    )


# A bias in front of batch norm, or of keys under a softmax, has gradient 0 up to rounding, and Adam divides by the size
# of that: what it makes of the bias is noise. In float64 it is small; in float32 these are compared with SGD only.
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-7), (torch.float32, 1e-3)])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_at_once_equals_one_after_another(name: str, dtype: torch.dtype, tolerance: float) -> None:
    data, architecture = load_digits_dataset(), ARCHITECTURES[name]
    runs = [settings(run) for run in range(4)]
    if name.startswith(("mlp-norm", "transformer")) and dtype == torch.float32:
        runs = [replace(run, optimiser="sgd") for run in runs]
    snapshots, failures = train_group(architecture, runs, data, BATCH, dtype=dtype)
    assert not failures
    assert [(s.run, s.step) for s in snapshots] == [(r.run, step) for r in runs for step in r.snapshot_steps]
    alone = {run.run: train_alone(architecture, run, data, BATCH, dtype=dtype) for run in runs}
    for snapshot in snapshots:
        reference = alone[snapshot.run][snapshot.step]
        assert difference(dict(snapshot.state), reference) < tolerance
        assert all(tensor.dtype == reference[key].dtype for key, tensor in snapshot.state.items())
    # Negative control: another run's weights, and the same run with one setting changed, are far away.
    assert difference(dict(snapshots[-1].state), alone[1][14]) > 1e-2
    changed = train_alone(architecture, replace(runs[3], learning_rate=0.06), data, BATCH, dtype=dtype)
    assert difference(dict(snapshots[-1].state), changed[14]) > 1e-2


def test_the_company_does_not_matter() -> None:
    data, architecture = load_digits_dataset(), ARCHITECTURES["cnn-norm-tanh"]
    together, _ = train_group(architecture, [settings(run) for run in range(4)], data, BATCH, dtype=torch.float64)
    single, _ = train_group(architecture, [settings(1)], data, BATCH, dtype=torch.float64)
    ours = [s for s in together if s.run == 1]
    for a, b in zip(ours, single, strict=True):
        assert difference(dict(a.state), dict(b.state)) < 1e-10


def test_a_run_that_diverges_is_told_and_leaves_the_others_alone() -> None:
    data, architecture = load_digits_dataset(), ARCHITECTURES["mlp-relu"]
    wild = settings(3, learning_rate=1e30, snapshot_steps=(1, 2, 14))
    runs = [settings(0), settings(1), settings(2), wild]
    snapshots, failures = train_group(architecture, runs, data, BATCH)
    assert [failure.run for failure in failures] == [3]
    assert 1 <= failures[0].step <= 3
    assert any(word in failures[0].reason for word in ("nan", "inf"))
    assert all(s.step < failures[0].step for s in snapshots if s.run == 3)
    calm, none = train_group(architecture, [*runs[:3], settings(3)], data, BATCH)
    assert not none
    for run in range(3):
        for a, b in zip([s for s in snapshots if s.run == run], [s for s in calm if s.run == run], strict=True):
            assert difference(dict(a.state), dict(b.state)) < 1e-5


def test_metrics_are_those_of_the_plain_module() -> None:
    data, architecture = load_digits_dataset(), ARCHITECTURES["cnn-norm-residual"]
    snapshots, _ = train_group(architecture, [settings(run) for run in range(4)], data, BATCH, dtype=torch.float64)
    for snapshot in snapshots:
        state = {k: v.float() if v.is_floating_point() else v for k, v in snapshot.state.items()}
        loss, accuracy = measure_one(state, architecture, data.test_images, data.test_labels)
        assert loss == pytest.approx(snapshot.metrics["test_loss"], rel=1e-4)
        assert accuracy == pytest.approx(snapshot.metrics["test_accuracy"], abs=1.5 / 797)
    assert len({s.metrics["test_loss"] for s in snapshots}) == len(snapshots)


def test_a_mask_counts_only_what_it_marks() -> None:
    data: ImageData = load_digits_dataset()
    architecture = ARCHITECTURES["mlp-relu"]
    states = [first_state(settings(run), architecture) for run in range(2)]
    networks = Networks(architecture, states, torch.float32)
    mask = torch.zeros(2, 1000, dtype=torch.bool)
    mask[0, :10], mask[1, 500:] = True, True
    loss, accuracy = measure_many(networks, data.pool_images, data.pool_labels, mask)
    for row, part in enumerate((slice(0, 10), slice(500, None))):
        expected = measure_one(states[row], architecture, data.pool_images[part], data.pool_labels[part])
        assert (float(loss[row]), float(accuracy[row])) == pytest.approx(expected, rel=1e-5)


def test_first_weights_have_the_stated_scale() -> None:
    wide = Architecture("mlp", {**MLP, "widths": [400], "activation": "relu", "norm": "batch"})
    state = first_state(settings(0, initial_scale=1.7), wide)
    assert float(state["layers.0.weight"].std()) == pytest.approx(1.7 / 8, rel=0.02)
    assert float(state["layers.1.weight"].std()) == pytest.approx(1.7 / 20, rel=0.04)
    assert (state["norms.0.weight"] == 1).all()


def test_drawing_leaves_the_global_generators_alone() -> None:
    config = load_zoo_config("digits_tiny")
    data = load_images(config.data)
    before = torch.random.get_rng_state()
    draw = draw_zoo(config, data)
    train_group(draw.architectures[0], [draw.runs[0]], data, BATCH)
    assert torch.equal(before, torch.random.get_rng_state())
