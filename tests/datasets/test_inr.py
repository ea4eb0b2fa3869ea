"""Is the hand-written backward pass the true gradient, and does a zoo of images come back as it was built?"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import symmetry
from metanet.checkpoint import Architecture
from metanet.commands._zoo_data import zoo_items
from metanet.datasets import InrConfig, SirenBatch, Zoo, build_zoo, coordinates, load_zoo_config, verify_zoo
from metanet.datasets.inr import fit, peak_signal_to_noise, siren_weights
from metanet.errors import ConfigError, ZooError
from metanet.tasks import property_data

CONFIG: dict[str, Any] = {
    **load_zoo_config("digits_inr").to_json(),
    "images": {"train": 6, "val": 2, "test": 2},
    "copies": 2,
    "group": 8,
    "network": {"widths": [8, 6], "w0": 6.0, "first_w0": 5.0},
    "training": {"steps": 20, "learning_rate": 5e-3},
}


def batch_of(architecture: Architecture, count: int) -> SirenBatch:
    generator = torch.Generator().manual_seed(0)
    rows = torch.stack([siren_weights(architecture, generator) for _ in range(count)])
    return SirenBatch(architecture, rows, coordinates(4, 5))


@pytest.mark.parametrize("widths", [[5], [6, 4], [4, 5, 3]])
def test_the_backward_pass_is_that_of_autograd(widths: list[int]) -> None:
    options = {"inputs": 2, "widths": widths, "outputs": 2, "w0": 7.0, "first_w0": 3.0}
    architecture = Architecture("siren", options)
    batch = batch_of(architecture, 3)
    targets = torch.rand(3, 2, 20, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    said = batch.forward().clone()
    batch.backward(targets)
    module = architecture.build().double()
    for i in range(3):
        module.load_state_dict({name: tensor[i] for name, tensor in batch.state().items()})
        module.zero_grad()
        rendered = module(coordinates(4, 5)).T
        torch.testing.assert_close(said[i], rendered.detach(), rtol=0, atol=1e-12)
        (rendered - targets[i]).square().mean().backward()
        true = torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])
        assert (true - batch.gradients[i]).abs().max() < 1e-10 * max(1.0, float(true.abs().max()))
        # Negative control: another network's gradient is another.
        assert (true - batch.gradients[i - 1]).abs().max() > 1e-3


def test_fitting_lowers_the_error_of_every_network() -> None:
    architecture = Architecture("siren", {"inputs": 2, "widths": [16, 16], "outputs": 1, "w0": 6.0})
    batch = batch_of(architecture, 4)
    targets = torch.rand(4, 1, 20, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    before = batch.losses(targets)
    after = fit(batch, targets, 100, 5e-3)
    assert (after < 0.05 * before).all()
    assert torch.equal(peak_signal_to_noise(torch.tensor([0.01])), torch.tensor([20.0]))


def test_a_siren_has_its_permutations_signs_and_shifts() -> None:
    module = Architecture("siren", {"inputs": 2, "widths": [4, 3], "outputs": 1, "w0": 7.0}).build()
    spec = symmetry.trace(module, (torch.zeros(5, 2),))
    assert len(spec.spaces) == 2
    assert len(spec.shifts) == 2
    assert symmetry.verify(module, (torch.zeros(5, 2),), spec, trials=2).passed


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("inr") / "zoo"
    build_zoo(CONFIG, path, threads=1)
    return path


def contents(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_split_is_by_image_and_everything_is_recorded(folder: Path) -> None:
    zoo = Zoo.open(folder)
    assert (len(zoo), zoo.kind, zoo.metrics) == (20, "inr", ("loss", "psnr"))
    images = {part: set(zoo.index["image"][zoo.split(part)].tolist()) for part in ("train", "val", "test")}
    assert [len(found) for found in images.values()] == [6, 2, 2]
    assert not images["train"] & images["val"]
    assert not (images["train"] | images["val"]) & images["test"]
    entry = zoo[0]
    assert entry.record["label"] == zoo.data.image(entry.record["image"])[1]
    module = entry.architecture.build()
    module.load_state_dict(entry.state)
    rendered = module(coordinates(8, 8).float()).detach().T.view(1, 8, 8)
    error = (rendered - zoo.image(0)).square().mean()
    assert float(-10 * torch.log10(error)) == pytest.approx(entry.metrics["psnr"], abs=1e-2)
    assert not torch.equal(zoo[0].state["layers.0.weight"], zoo[1].state["layers.0.weight"])
    with pytest.raises(ZooError, match="are images"):
        zoo.evaluate(entry.state, entry.architecture)


def test_a_build_that_was_stopped_ends_with_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop(state: Any) -> None:
        if state.groups_done == 1:
            raise Stop

    with pytest.raises(Stop):
        build_zoo(CONFIG, tmp_path / "zoo", threads=1, progress=stop)
    assert not (tmp_path / "zoo" / "manifest.json").exists()
    build_zoo(CONFIG, tmp_path / "zoo", threads=1)
    assert contents(tmp_path / "zoo") == contents(folder)


def test_networks_of_one_image_stay_on_one_side_of_any_split(folder: Path) -> None:
    zoo = Zoo.open(folder)
    items = list(zoo_items(zoo, "label"))
    images = zoo.index["image"].astype(str)
    for seed in range(3):
        parts = property_data(items, "label", seed=seed, resplit=True).split
        assert all(len(set(parts[images == image])) == 1 for image in images)
        assert set(parts) == {"train", "val", "test"}
    # By run, as zoos of classifiers are split, the two networks of some image would be on two sides.
    alone = [replace(item, group=str(run)) for item, run in zip(items, zoo.index["run"], strict=True)]
    parts = property_data(alone, "label", seed=0, resplit=True).split
    assert any(len(set(parts[images == image])) > 1 for image in images)


def test_verify_measures_again(folder: Path) -> None:
    report = verify_zoo(folder, sample=20)
    assert report.passed, report.text()
    assert report.sampled == 20


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": {"train": 1400, "val": 1, "test": 1}}, "1401 images for train and val, data.pool has 1400"),
        ({"network": {"widths": [0], "w0": 6.0}}, "network.widths"),
        ({"training": {"steps": 1, "learning_rate": 1e-3, "momentum": 0.9}}, "training.momentum: unknown setting"),
    ],
)
def test_impossible_configurations_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        InrConfig.from_mapping({**CONFIG, **changes})
