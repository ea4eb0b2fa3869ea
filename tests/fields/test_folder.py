"""Does a folder give the field back, what does 8-bit storage lose, and what is refused?"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import metanet
import symmetry
from metanet.errors import FieldError, MetanetError
from metanet.fields import KnotsField, MlpField, Sampling, StoredField, materialise, open_field, quantised, save_field
from metanet.fields.folder import packed
from tests.cli.command import within

ARCHITECTURE = metanet.Architecture("mlp", {"inputs": 64, "widths": [12, 8], "outputs": 10, "activation": "relu"})


def stored(kind: str = "knots", **options: object) -> StoredField:
    model, example = ARCHITECTURE.build(1).eval(), ARCHITECTURE.example_inputs()
    spec = symmetry.trace(model, example)
    made = {"knots": KnotsField, "mlp": MlpField}[kind]
    generator = torch.Generator().manual_seed(0)
    field = made(spec, model.state_dict(), Sampling("cut", "copies"), generator=generator, **options)
    return StoredField(field, (0.25, 1.0), tuple(space.name for space in spec.spaces), ARCHITECTURE, {"seed": 0})


@pytest.mark.parametrize(
    ("kind", "options"),
    [("knots", {"rank": 3, "width_knots": 3}), ("knots", {"knots": 5}), ("mlp", {"hidden": 4})],
)
def test_round_trip(kind: str, options: dict[str, object], tmp_path: Path) -> None:
    given = stored(kind, **options)
    opened = open_field(save_field(tmp_path / "field", given))
    sizes = {"layers.0": 7}
    before, after = given.field(None, sizes), opened.field(None, sizes)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert (opened.widths, opened.spaces, opened.architecture) == (given.widths, given.spaces, ARCHITECTURE)
    told = json.loads((tmp_path / "field" / "field.json").read_text())
    assert told["stored"] == given.field.stored == sum(t.numel() for t in packed(given.field, 32).values())


def test_eight_bits_lose_a_little_and_say_how_much(tmp_path: Path) -> None:
    given = stored()
    exact, coarse = given.field(), quantised(given).field()
    opened = open_field(save_field(tmp_path / "field", given, bits=8)).field()
    for name, tensor in exact.items():
        assert torch.equal(coarse[name], opened[name])
        # Half a step of 1/127 of the largest number in each row.
        assert float((coarse[name] - tensor).detach().abs().max()) <= float(tensor.detach().abs().max()) / 253
    assert any(not torch.equal(coarse[name], exact[name]) for name in exact)
    sizes = {bits: sum(t.numel() * t.element_size() for t in packed(given.field, bits).values()) for bits in (8, 32)}
    assert sizes[8] < 0.4 * sizes[32]


def test_what_is_refused(tmp_path: Path) -> None:
    given = stored()
    folder = save_field(tmp_path / "field", given)
    with pytest.raises(FieldError, match="exists already"):
        save_field(folder, given)
    with pytest.raises(FieldError, match="cannot be read"):
        open_field(tmp_path)
    weights = (folder / "weights.safetensors").read_bytes()
    (folder / "weights.safetensors").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    with pytest.raises(FieldError, match=r"'weights.safetensors' is missing or has changed"):
        open_field(folder)
    (folder / "manifest.json").unlink()
    with pytest.raises(FieldError, match=r"manifest.json cannot be read"):
        open_field(folder)
    other = metanet.Architecture("mlp", {"inputs": 64, "widths": [12, 9], "outputs": 10, "activation": "relu"})
    with pytest.raises(FieldError, match=r"layers.1.weight, axis 0: the module has shape \[9, 12\]"):
        materialise(given.field, other.build(0), {}, other.example_inputs())


@pytest.mark.parametrize("damage", [{"kind": "magic"}, {"options": {"knots": -1}}, {"options": 3}, {"spec": {}}])
def test_a_forged_field_is_refused(damage: dict[str, object], tmp_path: Path) -> None:
    from metanet.fields.folder import FIELD, MANIFEST, _facts

    folder = save_field(tmp_path / "field", stored())
    told = json.loads((folder / FIELD).read_text()) | damage
    (folder / FIELD).write_text(json.dumps(told))
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["files"][FIELD] = _facts(folder / FIELD)
    (folder / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(MetanetError):
        open_field(folder)


def test_the_commands(tmp_path: Path) -> None:
    file, field, half = tmp_path / "network.safetensors", tmp_path / "field", tmp_path / "half"
    metanet.checkpoint.save_checkpoint(file, ARCHITECTURE.build(1).state_dict(), ARCHITECTURE)
    words = [
        "field",
        "fit",
        str(file),
        "--data",
        "digits",
        "--steps",
        "4",
        "--bits",
        "8",
        "--out",
        str(field),
        "--json",
    ]
    told = within(*words).works().json
    assert set(told["certificates"]) >= {"0.25", "0.5", "1"}
    told = within("field", "sample", str(field), "--width", "0.5", "--out", str(half), "--json").works().json
    read = metanet.load(half)
    assert list(read.architecture.options["widths"]) == [6, 4]
    sampled = open_field(field).field(None, told["sizes"])
    assert all(torch.equal(read.state[name], value) for name, value in sampled.items())
    for extra, message in (
        (["--width", "0"], "width 0.0; expected a positive number"),
        (["--width", "2"], "--extrapolate"),
        (["--sizes", "nowhere=3"], "no space 'nowhere'"),
    ):
        within("field", "sample", str(field), *extra, "--out", str(tmp_path / "none")).refuses(message)
        assert not (tmp_path / "none").exists()
