"""Does `metanet score` say what was measured, check what is asked for, and refuse what it cannot read?"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import metanet
from metanet.score import Preservation
from tests.cli.command import metanet as command
from tests.cli.command import within


def large() -> tuple[nn.Module, torch.Tensor]:
    return nn.Sequential(nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 10)), torch.zeros(7, 64)


def small() -> tuple[nn.Module, torch.Tensor]:
    return nn.Sequential(nn.Linear(64, 10)), torch.zeros(7, 64)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Networks of several widths and kinds, one of them under an element of the group, and files of inputs."""
    folder = tmp_path_factory.mktemp("score")
    for name, widths, seed in (("wide", [16], 0), ("narrow", [8], 1), ("deep", [8, 8], 2)):
        options = {"inputs": 64, "widths": widths, "outputs": 10, "activation": "relu"}
        architecture = metanet.Architecture("mlp", options)
        metanet.save_checkpoint(folder / f"{name}.safetensors", architecture.build(seed).state_dict(), architecture)
    wide = metanet.load(folder / "wide.safetensors")
    moved = wide.spec.act(
        wide.spec.sample(torch.Generator().manual_seed(1)), {k: v.double() for k, v in wide.state.items()}
    )
    metanet.save_checkpoint(folder / "moved.safetensors", moved, wide.architecture)
    broken = {k: v * torch.nan for k, v in wide.state.items()}
    metanet.save_checkpoint(folder / "broken.safetensors", broken, wide.architecture)
    image = metanet.Architecture("cnn", {"channels": 1, "size": 8, "widths": [4], "outputs": 10, "activation": "relu"})
    metanet.save_checkpoint(folder / "cnn.safetensors", image.build().state_dict(), image)
    drawn = np.random.default_rng(0)
    x, y = drawn.normal(size=(60, 64)).astype(np.float32), np.arange(60) % 10
    np.savez(folder / "data.npz", x=x, y=y, other=x[:, :3])
    np.save(folder / "x.npy", x.reshape(60, 1, 8, 8))
    np.save(folder / "y.npy", y)
    np.save(folder / "grey.npy", (x > 0).astype(np.uint8))
    torch.save(large()[0].state_dict(), folder / "large.pt")
    torch.save(small()[0].state_dict(), folder / "small.pt")
    return folder


def test_a_page_with_both_networks(folder: Path) -> None:
    arguments = ("score", "wide.safetensors", "narrow.safetensors", "--data", "data.npz:x", "--labels", "data.npz:y")
    done = within(*arguments, "--min-agreement", "1", "--report", "both.html", "--json", cwd=folder)
    told, page = done.json, (folder / "both.html").read_text()
    assert done.code == 1
    assert told["report"] == "both.html"
    assert "wide.safetensors (A) and narrow.safetensors (B)" in page
    # The page shows what was measured, and the check that failed.
    assert f"{told['outputs'][0]['kl']['value']:.4g}" in page
    assert told["failed"][0] in page
    assert all(layer["a"] in page for layer in told["layers"])


def test_a_network_and_its_twin_are_exact(folder: Path) -> None:
    done = command("score", "wide.safetensors", "moved.safetensors", "--exact", cwd=folder).works()
    assert "exact: error / spread" in done.out
    assert "normal numbers, 4,096 made-up inputs; not data" in done.out
    assert "barrier" in done.out


def test_json_is_a_preservation(folder: Path) -> None:
    told = (
        within("score", "wide.safetensors", "narrow.safetensors", "--data", "digits", "--json", cwd=folder).works().json
    )
    found = Preservation.from_json(told)
    assert found.origin == "797 test images of digits, 8x8, laid out as [64]"
    assert found.inputs == 797
    assert found.main.accuracy is not None
    assert found.kl > 0.001  # type: ignore[operator]
    assert told["failed"] == []
    # A convolutional network reads the same images, laid out otherwise.
    other = within("score", "wide.safetensors", "cnn.safetensors", "--made-up", "50", cwd=folder)
    assert other.refuses("network b does not run on inputs")
    assert within("score", "cnn.safetensors", "cnn.safetensors", "--data", "digits", "--exact", cwd=folder).works()


def test_checks_set_the_exit_code(folder: Path) -> None:
    words = ("score", "wide.safetensors", "deep.safetensors", "--data", "data.npz")
    told = within(*words, "--json", cwd=folder).works().json
    agreement, divergence = told["outputs"][0]["agreement"]["value"], told["outputs"][0]["kl"]["value"]
    assert within(*words, "--min-agreement", str(agreement), "--max-kl", str(divergence), cwd=folder).works()
    for limit in (("--min-agreement", str(agreement + 0.01)), ("--max-kl", str(divergence * 0.99)), ("--exact",)):
        done = within(*words, *limit, cwd=folder)
        assert done.code == 1
        assert "FAILED" in done.out
    broken = within("score", "wide.safetensors", "broken.safetensors", "--data", "data.npz", "--json", cwd=folder)
    assert broken.code == 1
    assert json.loads(broken.out)["verdict"] == "not finite"
    assert "B on 60" in broken.json["failed"][0]


def test_files_of_data(folder: Path) -> None:
    expected = within("score", "wide.safetensors", "deep.safetensors", "--data", "data.npz", "--json", cwd=folder).json
    for words in (
        ("--data", "data.npz:x", "--labels", "data.npz"),
        ("--data", "x.npy", "--labels", "y.npy"),
    ):
        told = within("score", "wide.safetensors", "deep.safetensors", *words, "--json", cwd=folder).works().json
        assert told["outputs"] == expected["outputs"]
        assert told["origin"].startswith("60 inputs of ")
    few = within(
        "score", "wide.safetensors", "deep.safetensors", "--data", "data.npz", "--rows", "20", "--json", cwd=folder
    )
    assert few.json["inputs"] == 20
    assert few.json["origin"] == "the first 20 of 60 inputs of data.npz"
    plain = within(
        "score",
        "wide.safetensors",
        "deep.safetensors",
        "--data",
        "data.npz:x",
        "--features",
        "none",
        "--json",
        cwd=folder,
    )
    assert plain.json["layers"] == []
    assert plain.json["outputs"][0]["accuracy"] is None


def test_two_factories(folder: Path) -> None:
    here = "tests.cli.test_score"
    told = within(
        "score", "large.pt", "small.pt", "--factory", f"{here}:large", "--other-factory", f"{here}:small",
        "--data", "data.npz", "--dtype", "float32", "--json", cwd=folder,
    ).works().json  # fmt: skip
    assert told["dtype"] == "float32"
    assert told["outputs"][0]["shape"] == [10]


REFUSED = [
    (("wide.safetensors", "missing.safetensors"), "missing.safetensors"),
    (("wide.safetensors", "narrow.safetensors", "--data", "nothing"), "--data: nothing is no file and no set"),
    (
        ("wide.safetensors", "narrow.safetensors", "--data", "data.npz", "--labels", "no.npy"),
        "--labels: no.npy is no file",
    ),
    (("wide.safetensors", "narrow.safetensors", "--data", "data.npz:z"), "no array 'z'; there are x, y, other"),
    (("wide.safetensors", "narrow.safetensors", "--data", "data.npz:other"), "the network does not run"),
    (("wide.safetensors", "narrow.safetensors", "--data", "grey.npy"), "--data holds uint8, the network takes float32"),
    (("wide.safetensors", "narrow.safetensors", "--labels", "y.npy"), "--labels without --data"),
    (("wide.safetensors", "narrow.safetensors", "--data", "data.npz:x", "--kind", "values", "--max-kl", "1"), "--kind"),
    (("wide.safetensors", "narrow.safetensors", "--rows", "0"), "expected a whole number, 1 or more"),
    (("wide.safetensors", "narrow.safetensors", "--confidence", "1"), "between 0 and 1"),
]


@pytest.mark.parametrize(("words", "part"), REFUSED, ids=[part[:20] for _, part in REFUSED])
def test_bad_input_is_one_line(folder: Path, words: tuple[str, ...], part: str) -> None:
    assert within("score", *words, cwd=folder).refuses(
        part.replace("the network does not run", "does not run on inputs")
    )
