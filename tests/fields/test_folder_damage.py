"""Is a folder of a field whole or not there, checked file by file, and never run?"""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from metanet.checkpoint.factory import FactoryArchitecture
from metanet.errors import FieldError, MetanetError
from metanet.fields import StoredField, certify, open_field, quantised, save_field
from metanet.fields.folder import ARCHITECTURE, CERTIFICATES, FIELD, MANIFEST, WEIGHTS, _facts, packed
from metanet.io import umask
from tests.fields.test_folder import ARCHITECTURE as NETWORK
from tests.fields.test_folder import stored


@pytest.fixture(scope="module")
def whole() -> StoredField:
    """A field with everything that a folder can hold."""
    given = stored("knots", rank=3, width_knots=3)
    inputs = torch.randn(16, 64, generator=torch.Generator().manual_seed(1))
    found = certify(given, NETWORK.build(1).eval(), NETWORK.example_inputs(), inputs, None, [0.5, 1.0], "made up")
    return StoredField(given.field, given.widths, given.spaces, NETWORK, {"seed": 7}, found)


@pytest.fixture(scope="module")
def saved(whole: StoredField, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_field(tmp_path_factory.mktemp("whole") / "field", whole, bits=8)


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "field"))


def forge(folder: Path, name: str, content: bytes) -> None:
    """Put other content into a file, and its facts into the manifest."""
    (folder / name).write_bytes(content)
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["files"][name] = _facts(folder / name)
    (folder / MANIFEST).write_text(json.dumps(manifest))


def one_line(folder: Path, *parts: str) -> None:
    with pytest.raises(MetanetError) as caught:
        open_field(folder)
    told = str(caught.value)
    assert "\n" not in told
    assert all(part in told for part in parts), told


def test_everything_comes_back(whole: StoredField, saved: Path) -> None:
    opened = open_field(saved)
    assert (opened.widths, opened.spaces, opened.architecture) == (whole.widths, whole.spaces, NETWORK)
    assert opened.record == {"seed": 7}
    assert opened.certificates == dict(whole.certificates)
    coarse = quantised(whole)
    assert (coarse.widths, coarse.spaces, coarse.record) == (whole.widths, whole.spaces, whole.record)
    assert coarse.certificates == whole.certificates
    tensors = packed(whole.field, 8)
    told = json.loads((saved / FIELD).read_text())
    # Factors are numbers too: what is said to be stored is what the file holds.
    assert told["stored"] == sum(tensor.numel() for tensor in tensors.values()) > whole.field.stored
    assert told["bits"] == 8
    exact, read = whole.field(None, {"layers.0": 5}), opened.field(None, {"layers.0": 5})
    assert all(float((exact[name] - read[name]).detach().abs().max()) < 0.02 for name in exact)


def test_each_row_has_its_own_factor(whole: StoredField) -> None:
    given = stored("knots")
    table = next(part.table for part in given.field.parts.values() if part.table.ndim == 2)
    with torch.no_grad():
        table[0].mul_(1e-3)
    coarse = next(part.table for part in quantised(given).field.parts.values() if part.table.ndim == 2)
    given.field.fold()
    error = (coarse - table).detach().abs().amax(1)
    assert bool((error <= table.detach().abs().amax(1) / 253).all())
    for tensor in packed(given.field, 8).values():
        assert tensor.dtype != torch.int8 or int(tensor.abs().max()) == 127


def test_the_manifest_is_the_last_file_and_the_folder_all_or_nothing(
    whole: StoredField, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from metanet.fields import folder as module

    written: list[str] = []
    write = module.write_json_atomic

    def watched(path: Path, value: Any) -> None:
        assert not (tmp_path / "field").exists()
        write(path, value)
        written.append(path.name)

    monkeypatch.setattr(module, "write_json_atomic", watched)
    folder = save_field(tmp_path / "field", whole)
    assert written[-1] == MANIFEST
    assert set(json.loads((folder / MANIFEST).read_text())["files"]) == {WEIGHTS, FIELD, ARCHITECTURE, CERTIFICATES}
    assert {path.name for path in folder.iterdir()} == {WEIGHTS, FIELD, ARCHITECTURE, CERTIFICATES, MANIFEST}

    def full(path: Path, value: Any) -> None:
        if path.name == MANIFEST:
            raise OSError(28, "No space left on device")
        write(path, value)

    monkeypatch.setattr(module, "write_json_atomic", full)
    with pytest.raises(FieldError, match=r"cannot be written \(No space left on device\)"):
        save_field(tmp_path / "other", whole)

    def stuck(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(module, "write_json_atomic", write)
    monkeypatch.setattr(module.os, "rename", stuck)
    with pytest.raises(FieldError, match="cannot be written"):
        save_field(tmp_path / "other", whole)
    assert {path.name for path in tmp_path.iterdir()} == {"field"}


def test_others_may_read_it_and_no_file_names_code(whole: StoredField, tmp_path: Path) -> None:
    user = FactoryArchitecture(lambda: (NETWORK.build(1), NETWORK.example_inputs()))
    own = dataclasses.replace(whole, architecture=user)
    folder = save_field(tmp_path / "field", own)
    assert folder.stat().st_mode & 0o777 == 0o777 & ~umask()
    assert not (folder / ARCHITECTURE).exists()
    assert open_field(folder).architecture is None


def test_kinds_and_sizes_are_bounded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metanet.fields.folder.MAX_PARAMETERS", 500)
    one_line(folder, "a network of 974 numbers; expected at most 500")
    monkeypatch.undo()
    told = json.loads((folder / FIELD).read_text())
    forge(folder, FIELD, json.dumps(told | {"kind": "magic"}).encode())
    one_line(folder, "unknown kind of field 'magic'; there are knots, mlp")


def test_what_cannot_be_saved(whole: StoredField, tmp_path: Path) -> None:
    with pytest.raises(FieldError, match="4 bits; expected 32 or 8"):
        save_field(tmp_path / "field", whole, bits=4)
    with pytest.raises(FieldError, match="cannot be made"):
        save_field(tmp_path / "nowhere" / "field", whole)
    wide = stored("mlp", hidden=4)
    wide.field.hidden = 5000  # type: ignore[assignment]
    with pytest.raises(FieldError, match="option 'hidden' is 5000"):
        save_field(tmp_path / "field", wide)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", [WEIGHTS, FIELD, ARCHITECTURE, CERTIFICATES])
def test_a_changed_missing_or_cut_file_is_named(name: str, folder: Path) -> None:
    content = (folder / name).read_bytes()
    for other in (content[:-1], content[:-1] + bytes([content[-1] ^ 1]), b""):
        (folder / name).write_bytes(other)
        one_line(folder, f"'{name}' is missing or has changed", "fit the field again")
    (folder / name).unlink()
    one_line(folder, f"'{name}' is missing or has changed")


@pytest.mark.parametrize(
    ("files", "parts"),
    [
        ({FIELD: {}}, "names no weights or field"),
        (3, "names no weights or field"),
        ({WEIGHTS: {}, FIELD: {}}, "'weights.safetensors' is missing or has changed"),
    ],
)
def test_a_manifest_must_name_the_files(files: Any, parts: str, folder: Path) -> None:
    manifest = json.loads((folder / MANIFEST).read_text()) | {"files": files}
    (folder / MANIFEST).write_text(json.dumps(manifest))
    one_line(folder, parts)


def test_a_manifest_reaches_no_file_outside(folder: Path) -> None:
    (folder.parent / "outside").write_text("1")
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["files"]["../outside"] = _facts(folder.parent / "outside")
    (folder / MANIFEST).write_text(json.dumps(manifest))
    one_line(folder, "'../outside' is missing or has changed")


def test_a_folder_of_another_kind_is_refused(folder: Path, tmp_path: Path) -> None:
    manifest = json.loads((folder / MANIFEST).read_text()) | {"format": "metanet.morph/1"}
    (folder / MANIFEST).write_text(json.dumps(manifest))
    one_line(folder, "is no folder of a field")
    for text, parts in (("{", "is not JSON"), ("[]", "holds a list")):
        (folder / MANIFEST).write_text(text)
        one_line(folder, MANIFEST, parts)


@pytest.mark.parametrize(
    "damage",
    [
        {"widths": [0.0, 1.0]},
        {"widths": [1.0, 0.5]},
        {"widths": [0.25, float("inf")]},
        {"widths": [0.25]},
        {"spaces": ["nowhere"]},
        {"spaces": 3},
        {"record": 3},
        {"sampling": {"way": "sideways", "beyond": "copies"}},
        {"options": {"width_knots": 10**6}},
        {"options": {"rank": -1}},
        {"options": {"surprise": 1}},
        {"kind": "mlp", "options": {"hidden": 10**6}},
        {"kind": "mlp", "options": {"hidden": 3}},
    ],
)
def test_a_field_that_makes_no_sense_is_refused(damage: dict[str, Any], folder: Path) -> None:
    told = json.loads((folder / FIELD).read_text())
    forge(folder, FIELD, json.dumps(told | damage).encode())
    one_line(folder, str(folder))


def test_files_that_do_not_belong_to_the_field(folder: Path, tmp_path: Path) -> None:
    for name in (ARCHITECTURE, CERTIFICATES):
        content = (folder / name).read_bytes()
        forge(folder, name, b'{"family": "os:system", "options": {}, "0.5": {}}')
        one_line(folder, name)
        forge(folder, name, content)
    other = save_field(tmp_path / "other", stored("knots", rank=2, width_knots=3))
    forge(folder, WEIGHTS, (other / WEIGHTS).read_bytes())
    one_line(folder, f"{WEIGHTS} does not fit {FIELD}")
    forge(folder, WEIGHTS, b"{}")
    one_line(folder, WEIGHTS)


def test_opening_runs_nothing(saved: Path, tmp_path: Path) -> None:
    seen: list[str] = []
    watching = False

    def hook(event: str, _: Any) -> None:
        if watching:
            seen.append(event)

    open_field(saved)  # so that all modules are there
    sys.addaudithook(hook)
    watching = True
    open_field(saved)
    watching = False
    assert set(seen) == {"open"}
    # The control: a pickle of a module looks up classes, and the hook sees it.
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pt")
    watching = True
    torch.load(tmp_path / "module.pt", weights_only=False)
    watching = False
    assert "pickle.find_class" in seen
    forged = Path(shutil.copytree(saved, tmp_path / "forged"))
    forge(forged, WEIGHTS, (tmp_path / "module.pt").read_bytes())
    seen.clear()
    watching = True
    one_line(forged, WEIGHTS)
    watching = False
    assert "pickle.find_class" not in seen
