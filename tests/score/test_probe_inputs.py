"""Are made-up inputs what they are said to be, the same every time, and named for what they are?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import metanet
from metanet.checkpoint import Checkpoint, FactoryArchitecture, Source
from metanet.errors import ScoreError
from metanet.score import InputDescription, ProbeInputs, compare


def draw(description: InputDescription, count: int = 4000) -> torch.Tensor:
    return ProbeInputs((description,), count).tensors()[0]


def test_smooth_noise_has_the_spectrum_it_names() -> None:
    for exponent in (0.0, 1.0, 2.0):
        drawn = draw(InputDescription((2, 16, 16), "smooth", mean=(0.5, -1.0), deviation=(2.0, 0.5), exponent=exponent))
        assert drawn.shape == (4000, 2, 16, 16)
        assert drawn.mean((0, 2, 3)).tolist() == pytest.approx([0.5, -1.0], abs=0.08)
        assert drawn.std((2, 3, 0)).tolist() == pytest.approx([2.0, 0.5], rel=0.05)
        power = torch.fft.fft2(drawn[:, 0] - drawn[:, 0].mean(0)).abs().square().mean(0).sqrt()
        # Amplitudes at one and at four cycles a side.
        assert float(power[0, 1] / power[0, 4]) == pytest.approx(4**exponent, rel=0.1)


def test_other_kinds() -> None:
    square = ((2.0, 1.0, 0.0), (1.0, 1.0, 0.0), (0.0, 0.0, 0.0))
    normal = draw(InputDescription((3,), covariance=square, mean=(1.0, 0.0, 5.0)))
    assert torch.allclose(torch.cov(normal.T.double()), torch.tensor(square, dtype=torch.float64), atol=0.15)
    assert normal[:, 2].tolist() == pytest.approx([5.0] * 4000)
    cut = draw(InputDescription((3,), low=-0.5, high=1.0))
    assert (float(cut.min()), float(cut.max())) == (-0.5, 1.0)
    uniform = draw(InputDescription((2,), "uniform", -1, 1))
    assert -1 <= float(uniform.min()) < -0.99
    assert float(uniform.square().mean()) == pytest.approx(1 / 3, rel=0.05)
    tokens = draw(InputDescription((6,), "tokens", 0, 3, frequencies=(0.7, 0.0, 0.3)))
    assert tokens.dtype == torch.int64
    assert [float((tokens == k).double().mean()) for k in range(3)] == pytest.approx([0.7, 0.0, 0.3], abs=0.02)
    assert draw(InputDescription((), "normal")).shape == (4000,)


def test_the_same_for_the_same_seed() -> None:
    description = InputDescription((1, 8, 8), "smooth")
    one, again, other = (ProbeInputs((description,), 5, seed).tensors()[0] for seed in (0, 0, 1))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_described_from_samples() -> None:
    generator = torch.Generator().manual_seed(0)
    samples = torch.randn(500, 3, generator=generator) @ torch.randn(3, 3, generator=generator)
    described = InputDescription.of_data(samples)
    assert torch.allclose(torch.cov(draw(described).T), torch.cov(samples.T), atol=0.5)
    assert described.known_from == "500 samples"
    images = InputDescription.of_data(torch.rand(50, 1, 8, 8, generator=generator))
    assert images.kind == "smooth"
    assert float(draw(images).min()) >= 0
    assert float(draw(images).max()) <= 1
    words = InputDescription.of_data(torch.tensor([[0, 2, 2], [2, 0, 2]]))
    assert words.frequencies == pytest.approx((1 / 3, 0.0, 2 / 3))
    for described in (images, words):
        assert InputDescription.from_json(json.loads(json.dumps(described.to_json()))) == described


def network(family: str, options: dict[str, Any]) -> Checkpoint:
    architecture = metanet.Architecture(family, options)
    return Checkpoint(architecture.build().state_dict(), architecture, Source(Path("x"), "safetensors"))


def test_described_from_the_architecture() -> None:
    cnn = network("cnn", {"channels": 2, "size": 8, "widths": [4], "outputs": 3, "activation": "relu"})
    siren = network("siren", {"inputs": 2, "widths": [8], "outputs": 3})
    mlp = network("mlp", {"inputs": 5, "widths": [4], "outputs": 3, "activation": "relu"})
    told = {kind.origin for kind in map(ProbeInputs.of, (cnn, siren, mlp))}
    assert told == {
        "smooth noise (amplitude f^-1), 4,096 made-up inputs; not data",
        "uniform numbers from -1 to 1, 4,096 made-up inputs; not data",
        "normal numbers, 4,096 made-up inputs; not data",
    }
    found = compare(cnn, cnn, line=0)
    assert found.made_up
    assert found.inputs == 4096
    assert "smooth noise" in str(found)
    assert "not data" in found.to_json()["origin"]
    assert found.exact
    # The three numbers of a signal are no classes.
    assert compare(siren, siren, line=0).main.kind == "values"
    assert compare(mlp, mlp, line=0).main.kind == "classes"
    words = FactoryArchitecture(
        lambda: (
            nn.Sequential(nn.Embedding(50, 4), nn.Flatten(), nn.Linear(28, 2)),
            torch.zeros(7, 7, dtype=torch.long),
        )
    )
    described = InputDescription.of_network(words)[0]
    assert (described.kind, described.high, described.shape) == ("tokens", 50, (7,))


@pytest.mark.parametrize(
    "options",
    [
        {"kind": "pictures"},
        {"kind": "smooth", "shape": (5,)},
        {"kind": "uniform"},
        {"kind": "uniform", "low": 2, "high": 1},
        {"kind": "tokens", "high": 3, "frequencies": (0.5, 0.5)},
        {"mean": (1.0, 2.0)},
        {"covariance": ((1.0,),)},
        {"shape": (0,)},
    ],
    ids=str,
)
def test_contradictions_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ScoreError, match="of inputs"):
        InputDescription(**{"shape": (3, 4), **options})


def test_other_refusals() -> None:
    with pytest.raises(ScoreError, match="no inputs"):
        compare(nn.Linear(2, 2), nn.Linear(2, 2))
    with pytest.raises(ScoreError, match="no description"):
        InputDescription.from_json({"shape": [3], "colour": "red"})
    with pytest.raises(ScoreError, match="at least one"):
        ProbeInputs((), 3)
    with pytest.raises(ScoreError, match="cannot be made up"):
        InputDescription.of_example(torch.zeros(7, 3, dtype=torch.bool))
