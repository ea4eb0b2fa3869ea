"""Do files that were written once still read as they did then?

A failure here means that a released format changed: people's files would no longer open, or mean something else.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import metanet
from metanet.checkpoint import Architecture
from metanet.io import read_json

from .generate import ARCHITECTURES, digest

HERE = Path(__file__).resolve().parent
EXPECTED = read_json(HERE / "expected.json")


def test_every_file_is_pinned() -> None:
    files = {path.name for path in HERE.iterdir() if path.suffix in (".safetensors", ".pt", ".zip")}
    assert files == set(EXPECTED)
    assert len(files) == 6


@pytest.mark.parametrize("name", EXPECTED)
def test_reads_as_it_did(name: str) -> None:
    checkpoint = metanet.load(HERE / name, activation="relu" if name.endswith(".pt") else None)
    expected = EXPECTED[name]
    found = digest(dict(checkpoint.state))
    assert list(found.items()) == list(expected["tensors"].items())
    assert checkpoint.architecture == Architecture.from_json(expected["architecture"])
    assert checkpoint.architecture.fingerprint == expected["fingerprint"]
    assert checkpoint.architecture.provenance == expected["architecture"]["provenance"]
    assert dict(checkpoint.metrics) == ({"accuracy": 0.5} if name.endswith(".safetensors") else {})


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_architecture_files(family: str) -> None:
    stored = read_json(HERE / f"{family}.architecture.json")
    architecture = Architecture.from_json(stored)
    assert json.loads(json.dumps(architecture.to_json())) == {**stored, "provenance": "given by the user"}
    assert architecture == Architecture(family, ARCHITECTURES[family])
    assert architecture.fingerprint == EXPECTED[f"{family}.safetensors"]["fingerprint"]


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_initialisation_is_unchanged(family: str) -> None:
    """Names and shapes are pinned, and so are the bits that a seed gives, as far as torch keeps them."""
    stored = metanet.load(HERE / f"{family}.safetensors")
    assert digest(stored.architecture.build(seed=5).state_dict()).keys() == digest(dict(stored.state)).keys()
    assert stored.architecture.shapes() == {name: tuple(tensor.shape) for name, tensor in stored.state.items()}
