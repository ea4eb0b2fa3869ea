"""Do elements come back from files as they were, and is everything else refused?"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch
from torch import nn

import symmetry
from symmetry import GroupElement, SpecError, SymmetrySpec, storage

from .families import Encoder, Stages
from .models import draw, mlp, seeded
from .test_elements import wreath


@cache
def specs() -> dict[str, SymmetrySpec]:
    return {
        "chain": symmetry.trace(mlp([3, 4, 5, 2], torch.relu), (draw(7, 3),)),
        "encoder": symmetry.trace(seeded(lambda: Encoder(dropout=0.0)).eval(), (draw(7, 5, 3),)),
        "sines": symmetry.trace(mlp([2, 4, 2], torch.sin), (draw(7, 2),)),
        "wreath": wreath(),
        "nothing": symmetry.trace(Stages(nn.Linear(2, 2)), (draw(7, 2),)),
    }


NAMES = ("chain", "encoder", "sines", "wreath", "nothing")
ENDINGS = (".json", ".safetensors")


def element_of(name: str, seed: int = 1) -> GroupElement:
    return specs()[name].sample(torch.Generator().manual_seed(seed))


def same(one: GroupElement, other: GroupElement) -> bool:
    """Bit for bit, which ``==`` is not."""
    first, second = storage._sections(one), storage._sections(other)
    return first.keys() == second.keys() and all(
        torch.equal(first[key], second[key]) and first[key].dtype == second[key].dtype for key in first
    )


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("name", NAMES)
def test_round_trip_is_exact(name: str, ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"element{ending}"
    for seed in range(3):
        element = element_of(name, seed)
        symmetry.save_element(element, path)
        assert same(symmetry.load_element(specs()[name], path), element)
    assert os.listdir(tmp_path) == [path.name]
    if name != "nothing":
        assert not same(symmetry.load_element(specs()[name], path), element_of(name, 7))


@pytest.mark.parametrize("name", NAMES)
def test_the_public_package_reads_and_writes_the_same_files(name: str, tmp_path: Path) -> None:
    path, element = tmp_path / "element.safetensors", element_of(name)
    symmetry.save_element(element, path)
    arrays = safetensors.torch.load_file(path)
    assert arrays.keys() == storage._sections(element).keys()
    assert all(torch.equal(arrays[key], value) for key, value in storage._sections(element).items())
    with safetensors.safe_open(path, "pt") as file:
        metadata = file.metadata()
    assert metadata == {"format": "symmetry.element/1", "spec": specs()[name].fingerprint}
    other = tmp_path / "other.safetensors"
    safetensors.torch.save_file(arrays, other, metadata)
    assert same(symmetry.load_element(specs()[name], other), element)


def parts(data: bytes) -> tuple[dict[str, Any], bytes]:
    length = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def joined(header: Any, body: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def changed(key: str, **entries: Any) -> Callable[[dict[str, Any], bytes], bytes]:
    return lambda header, body: joined({**header, key: {**header[key], **entries}}, body)


def without_last(header: dict[str, Any], body: bytes) -> bytes:
    return joined({key: header[key] for key in list(header)[:-1]}, body)


def overwritten(key: str, value: bytes) -> Callable[[dict[str, Any], bytes], bytes]:
    def change(header: dict[str, Any], body: bytes) -> bytes:
        start = header[key]["data_offsets"][0]
        return joined(header, body[:start] + value + body[start + len(value) :])

    return change


UNITS = "permutations/0"
ATTACKS: dict[str, tuple[str, Callable[[dict[str, Any], bytes], bytes]]] = {
    "empty": ("0 bytes, expected a safetensors", lambda header, body: b""),
    "short": ("3 bytes, expected", lambda header, body: b"abc"),
    "huge header": (
        r"a header of 1,152,921,504,606,846,976 bytes",
        lambda header, body: struct.pack("<Q", 1 << 60) + b"{}",
    ),
    "header beyond the end": (
        "a header of 100 bytes in a file of 10",
        lambda header, body: struct.pack("<Q", 100) + b"{}",
    ),
    "no JSON": ("not JSON", lambda header, body: joined(b"\xff\xfe{", body)),
    "deep JSON": ("not JSON", lambda header, body: joined(b"[" * 200_000, body)),
    "a list": ("JSON of a list, expected an object", lambda header, body: joined([], body)),
    "key twice": ("a key occurs twice", lambda header, body: joined(b'{"a": 1, "a": 2}', body)),
    "no metadata": ("format 'None', expected", lambda header, body: joined({}, b"")),
    "other format": (
        "format 'else', expected",
        lambda header, body: joined({**header, "__metadata__": {"format": "else"}}, body),
    ),
    "other spec": (
        r"element of the spec 0000\.\.\., expected .*use the spec that it was made with",
        lambda header, body: joined({**header, "__metadata__": {"format": storage.FORMAT, "spec": "0000"}}, body),
    ),
    "missing array": ("is missing", without_last),
    "unknown array": (
        "'zzz' is unknown to the spec",
        lambda header, body: joined({**header, "zzz": header[UNITS]}, body),
    ),
    "entry is no object": ("expected the entries dtype", lambda header, body: joined({**header, UNITS: 3}, body)),
    "dtype": (r"expected dtype I64 and shape \[4\]", changed(UNITS, dtype="F64")),
    "shape": (r"expected dtype I64 and shape \[4\]", changed(UNITS, shape=[2, 2])),
    "shape of booleans": ("expected dtype", changed(UNITS, shape=[4.0])),
    "negative offset": ("starts at byte -8 of the data, expected 0", changed(UNITS, data_offsets=[-8, 24])),
    "offsets too far": ("starts at byte", changed(UNITS, data_offsets=[800, 832])),
    "offsets turned": (r"offsets \[32, 0\], expected 32 bytes", changed(UNITS, data_offsets=[32, 0])),
    "offsets of floats": ("expected 32 bytes", changed(UNITS, data_offsets=[0.0, 32.0])),
    "overlap": ("starts at byte 0 of the data, expected 32", changed("permutations/2", data_offsets=[0, 40])),
    "data too long": ("bytes of data, expected", lambda header, body: joined(header, body + b"x")),
    "data too short": ("bytes of data, expected", lambda header, body: joined(header, body[:-1])),
    "no permutation": ("is no permutation", overwritten(UNITS, struct.pack("<q", 77))),
    "not finite": (
        "log_scales/0: holds values that are not finite",
        overwritten("log_scales/0", struct.pack("<d", float("nan"))),
    ),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_damaged_and_hostile_files(name: str, tmp_path: Path) -> None:
    message, change = ATTACKS[name]
    path = tmp_path / "element.safetensors"
    symmetry.save_element(element_of("chain"), path)
    path.write_bytes(change(*parts(path.read_bytes())))
    with pytest.raises(SpecError, match=message) as caught:
        symmetry.load_element(specs()["chain"], path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_untouched_parts_join_to_the_same_element(tmp_path: Path) -> None:
    """The control of the attacks: taking a file apart and joining it is not what makes it unreadable."""
    path = tmp_path / "element.safetensors"
    symmetry.save_element(element_of("chain"), path)
    path.write_bytes(joined(*parts(path.read_bytes())))
    assert same(symmetry.load_element(specs()["chain"], path), element_of("chain"))


def test_booleans_and_matrices_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "element.safetensors"
    symmetry.save_element(element_of("encoder"), path)
    good = path.read_bytes()
    header, body = parts(good)
    flips, matrices = (next(key for key in header if key.startswith(section)) for section in ("flips/", "matrices/"))
    path.write_bytes(overwritten(flips, b"\x02")(header, body))
    with pytest.raises(SpecError, match="a boolean that is neither 0 nor 1"):
        symmetry.load_element(specs()["encoder"], path)
    path.write_bytes(overwritten(matrices, bytes(32))(header, body))
    with pytest.raises(SpecError, match="a matrix without an inverse"):
        symmetry.load_element(specs()["encoder"], path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not JSON"),
        ("[1]", "JSON of a list, expected an object"),
        ('{"format": "symmetry.element/1"}', "element of the spec None"),
        ('{"format": NaN}', "the constant NaN"),
    ],
)
def test_json_files_that_are_something_else(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "element.json"
    path.write_text(text)
    with pytest.raises(SpecError, match=message):
        symmetry.load_element(specs()["chain"], path)


def test_json_with_a_missing_array(tmp_path: Path) -> None:
    path = tmp_path / "element.json"
    symmetry.save_element(element_of("chain"), path)
    value = json.loads(path.read_text())
    del value["log_scales"]["0"]
    path.write_text(json.dumps(value))
    with pytest.raises(SpecError, match="'0' is missing for the spec"):
        symmetry.load_element(specs()["chain"], path)


def test_refusals(tmp_path: Path) -> None:
    for ending in ENDINGS:
        path = tmp_path / f"element{ending}"
        symmetry.save_element(element_of("chain"), path)
        with pytest.raises(SpecError, match="use the spec that it was made with"):
            symmetry.load_element(specs()["encoder"], path)
        with pytest.raises(SpecError, match="cannot be read: No such file"):
            symmetry.load_element(specs()["chain"], tmp_path / f"missing{ending}")
    with pytest.raises(SpecError, match=r"ending '.pt', expected .json or .safetensors"):
        symmetry.save_element(element_of("chain"), tmp_path / "element.pt")
    with pytest.raises(SpecError, match=r"ending '.pkl', expected .json or .safetensors"):
        symmetry.load_element(specs()["chain"], tmp_path / "element.pkl")


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "element.safetensors"
    symmetry.save_element(element_of("chain", 1), path)

    def fail(_: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        symmetry.save_element(element_of("chain", 2), path)
    assert same(symmetry.load_element(specs()["chain"], path), element_of("chain", 1))
    assert os.listdir(tmp_path) == [path.name]
