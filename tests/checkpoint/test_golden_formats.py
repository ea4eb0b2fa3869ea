"""Do files of other formats that were written once still read as they did then?"""

from __future__ import annotations

from pathlib import Path

import pytest

import metanet
from metanet.io import read_json
from tests.golden.generate import digest

HERE = Path(__file__).resolve().parent / "golden"
EXPECTED = read_json(HERE / "expected.json")


def test_every_file_is_pinned() -> None:
    assert {p.name for p in HERE.iterdir()} - {"generate.py", "expected.json", "__pycache__", "__init__.py"} == set(
        EXPECTED
    )


@pytest.mark.parametrize("name", EXPECTED)
def test_reads_as_it_did(name: str) -> None:
    if name.endswith((".h5", ".keras")):
        pytest.importorskip("h5py", reason="Keras files need h5py (extra 'keras')")
    checkpoint = metanet.load(HERE / name, activation="tanh")
    found = digest(dict(checkpoint.state))
    assert list(found.items()) == list(EXPECTED[name]["tensors"].items())
    source = checkpoint.source
    described = [source.kind, source.key, list(source.skipped), list(source.files), len(source.config)]
    assert described == EXPECTED[name]["source"]
