"""How is a field kept in a folder, and opened again without running anything in it?

A folder holds ``weights.safetensors`` (every number that the field stores), ``field.json`` (its kind and options, the
layout of the architecture, how it was trained), ``certificates.json`` where some were made, ``architecture.json`` where
a family has the network of full width, and ``manifest.json``, written last, with the size and SHA-256 of every other.

With 8 bits a table is stored as whole numbers from -127 to 127, with one factor in float32 for each row (its first
axis); these factors are stored numbers like all others.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metanet.checkpoint import Architecture, save_checkpoint
from metanet.checkpoint.architecture import FAMILIES
from metanet.checkpoint.options import MAX_PARAMETERS
from metanet.checkpoint.safetensors_file import read_safetensors
from metanet.errors import CheckpointError, FieldError, ScoreError, clean
from metanet.fields.descriptor import DescriptorField
from metanet.fields.field import Field
from metanet.fields.fitting import varying
from metanet.fields.knots import KnotsField
from metanet.fields.mlp import MlpField
from metanet.fields.places import Sampling
from metanet.io import read_json, umask, write_json_atomic
from metanet.score.certificate import Certificate
from symmetry import SymmetrySpec
from symmetry.errors import SpecError

__all__ = ["FORMAT", "KINDS", "StoredField", "open_field", "quantised", "save_field"]

FORMAT = "metanet.field/1"
KINDS: Mapping[str, Callable[..., Field]] = {"knots": KnotsField, "mlp": MlpField, "descriptor": DescriptorField}
MANIFEST, WEIGHTS, FIELD, CERTIFICATES, ARCHITECTURE = (
    "manifest.json",
    "weights.safetensors",
    "field.json",
    "certificates.json",
    "architecture.json",
)
MAX_JSON = 256 * 1024 * 1024
FACTOR = "/factor"
AGAIN = "fit the field again"
# Numbers grow with these options, whatever the file holds; others than these are bounded by the network itself.
LARGEST: Mapping[str, int] = {"hidden": 4096, "blocks": 64, "frequencies": 64, "width_knots": 4096}


@dataclass(frozen=True, eq=False)
class StoredField:
    """A field and what is known about it.

    Args:
        field: itself.
        widths: the lowest and the highest share of the full width that it was trained for.
        spaces: whose size it varies.
        architecture: of full width, if a family has it.
        record: how it was made: JSON values.
        certificates: what was measured, by width.
    """

    field: Field
    widths: tuple[float, float]
    spaces: tuple[str, ...]
    architecture: Architecture | None = None
    record: Mapping[str, Any] = field(default_factory=dict)
    certificates: Mapping[str, Certificate] = field(default_factory=dict)


def save_field(folder: str | os.PathLike[str], stored: StoredField, bits: int = 32) -> Path:
    """Write a field into a new folder, whole or not at all.

    Args:
        folder: which must not exist; the one above it must.
        stored: what to write.
        bits: 32, or 8 for tables of whole numbers.

    Raises:
        FieldError: if the folder exists or cannot be written, for other bits, or options that it could not be opened
            with.
    """
    target = Path(folder)
    if bits not in (8, 32):
        raise FieldError(f"{bits} bits", hint="expected 32 or 8")
    _check_options(stored.field.options())
    if target.exists():
        raise FieldError("exists already", where=target, hint="give a new name")
    try:
        made = Path(tempfile.mkdtemp(prefix=f".{target.name[:80]}.", dir=target.parent))
    except OSError as error:
        raise FieldError(f"cannot be made ({error.strerror})", where=target, hint="check the folder above it") from None
    try:
        _fill(made, stored, bits)
        made.chmod(0o777 & ~umask())
        os.rename(made, target)
    except OSError as error:
        raise FieldError(f"cannot be written ({error.strerror})", where=target, hint="check the disk") from None
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return target


def _fill(folder: Path, stored: StoredField, bits: int) -> None:
    tensors = packed(stored.field, bits)
    save_checkpoint(folder / WEIGHTS, tensors)
    sampling = stored.field.sampling
    told = {
        "format": FORMAT,
        "kind": stored.field.kind,
        "options": stored.field.options(),
        "sampling": {"way": sampling.way, "beyond": sampling.beyond},
        "widths": list(stored.widths),
        "spaces": list(stored.spaces),
        "bits": bits,
        "stored": sum(tensor.numel() for tensor in tensors.values()),
        "record": dict(stored.record),
        "spec": stored.field.spec.to_json(),
    }
    write_json_atomic(folder / FIELD, told)
    # A network that the user's own code builds can only be built by that code again: no file may name it.
    if stored.architecture is not None and stored.architecture.family in FAMILIES:
        write_json_atomic(folder / ARCHITECTURE, stored.architecture.to_json())
    if stored.certificates:
        write_json_atomic(folder / CERTIFICATES, {name: each.to_json() for name, each in stored.certificates.items()})
    files = {path.name: _facts(path) for path in sorted(folder.iterdir())}
    versions = {name: importlib.metadata.version(name) for name in ("metanet", "torch")}
    write_json_atomic(folder / MANIFEST, {"format": FORMAT, "versions": versions, "files": files})


def packed(field: Field, bits: int) -> dict[str, Tensor]:
    """The tensors that are stored for a field: all its numbers, factors of 8-bit tables included."""
    found: dict[str, Tensor] = {}
    for name, tensor in field.folded_state().items():
        if bits == 8 and tensor.is_floating_point() and tensor.ndim > 1:
            factor = tensor.flatten(1).abs().amax(1).clamp_min(1e-30) / 127
            shape = [-1] + [1] * (tensor.ndim - 1)
            found[name] = (tensor / factor.view(shape)).round().clamp(-127, 127).to(torch.int8)
            found[name + FACTOR] = factor
        else:
            found[name] = tensor
    return found


def _unpacked(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    found = {}
    for name, tensor in tensors.items():
        factor = tensors.get(name + FACTOR)
        if factor is not None:
            found[name] = tensor.float() * factor.view([-1] + [1] * (tensor.ndim - 1))
        elif not name.endswith(FACTOR):
            found[name] = tensor
    return found


def quantised(stored: StoredField) -> StoredField:
    """The same field as it is after being stored with 8 bits, to measure what that loses."""
    made = _made(stored.field.kind, stored.field.spec, stored.field.sampling, stored.field.options())
    made.load_state_dict(_unpacked(packed(stored.field, 8)))
    return StoredField(made, stored.widths, stored.spaces, stored.architecture, stored.record, stored.certificates)


def _facts(path: Path) -> dict[str, Any]:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for chunk in iter(lambda: file.read(1 << 20), b""):
            digest.update(chunk)
    return {"bytes": path.stat().st_size, "sha256": digest.hexdigest()}


def _made(kind: str, spec: SymmetrySpec, sampling: Sampling, options: Mapping[str, Any]) -> Field:
    """An empty field of these options, as it is stored: without scales."""
    state = {
        name: torch.zeros((), dtype=getattr(torch, info.dtype)).expand(info.shape)
        for name, info in spec.tensors.items()
    }
    state = {name: state[spec.tensors[name].tied_to or name] for name in state}
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}
    made = KINDS[kind](spec, state, sampling, generator=torch.Generator().manual_seed(0), **given)
    made.fold()
    return made


def open_field(folder: str | os.PathLike[str]) -> StoredField:
    """Read a folder that :func:`save_field` wrote; nothing in it is run.

    Raises:
        FieldError: if it is no such folder, is incomplete, or a file has changed.
    """
    path = Path(folder)
    manifest = _json(path, MANIFEST)
    if manifest.get("format") != FORMAT:
        raise FieldError("is no folder of a field", where=path, hint="name one that metanet field fit wrote")
    files = manifest.get("files")
    if not isinstance(files, Mapping) or not {WEIGHTS, FIELD} <= set(files):
        raise FieldError("its manifest names no weights or field", where=path, hint=AGAIN)
    for name, facts in files.items():
        if Path(name).name != name or not (path / name).is_file() or _facts(path / name) != facts:
            raise FieldError(f"file {clean(repr(name), 60)} is missing or has changed", where=path, hint=AGAIN)
    told = _json(path, FIELD)
    try:
        spec = SymmetrySpec.from_json(told["spec"])
        made = _checked(told, spec)
        low, high = (float(width) for width in told["widths"])
        if not 0 < low <= high < math.inf:
            raise FieldError(f"widths from {low:g} to {high:g}", hint=AGAIN)
        spaces = varying(spec, tuple(told["spaces"]))
        record = dict(told["record"])
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, SpecError) as error:
        raise FieldError(f"{FIELD} is damaged ({clean(error, 100)})", where=path, hint=AGAIN) from None
    except FieldError as error:
        raise FieldError(error.reason, where=path / FIELD, hint=error.hint) from None
    try:
        made.load_state_dict(_unpacked(_tensors(path / WEIGHTS)))
    except (RuntimeError, AttributeError) as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise FieldError(f"{WEIGHTS} does not fit {FIELD} ({clean(reason, 120)})", where=path, hint=AGAIN) from None
    return StoredField(made, (low, high), spaces, _architecture(path, files), record, _certificates(path, files))


def _checked(told: Mapping[str, Any], spec: SymmetrySpec) -> Field:
    if told["kind"] not in KINDS:
        raise FieldError(f"unknown kind of field {clean(repr(told['kind']), 60)}", hint=f"there are {', '.join(KINDS)}")
    numbers = sum(math.prod(info.shape) for info in spec.tensors.values())
    if numbers > MAX_PARAMETERS:
        raise FieldError(f"a network of {numbers} numbers", hint=f"expected at most {MAX_PARAMETERS}")
    _check_options(told["options"])
    return _made(told["kind"], spec, Sampling(**told["sampling"]), told["options"])


def _check_options(options: Mapping[str, Any]) -> None:
    """Whether a field of these options can be made within reason."""
    for name, value in options.items():
        most = LARGEST.get(name, 1 << 30)
        if isinstance(value, int) and not 0 <= value <= most:
            raise FieldError(f"option {clean(repr(name), 60)} is {value}", hint=f"expected 0 to {most:,}")


def _json(folder: Path, name: str) -> Mapping[str, Any]:
    try:
        value = read_json(folder / name, MAX_JSON)
    except OSError as error:
        raise FieldError(
            f"{name} cannot be read ({error.strerror})", where=folder, hint="name a folder of a field"
        ) from None
    except ValueError as error:
        raise FieldError(f"{name} is not JSON ({clean(error, 80)})", where=folder, hint=AGAIN) from None
    if not isinstance(value, Mapping):
        raise FieldError(f"{name} holds a {type(value).__name__}, expected an object", where=folder, hint=AGAIN)
    return value


def _tensors(path: Path) -> Mapping[str, Tensor]:
    try:
        with path.open("rb") as file:
            return read_safetensors(file, path, path.stat().st_size).state
    except OSError as error:
        raise FieldError(f"cannot be read ({error.strerror})", where=path, hint=AGAIN) from None


def _architecture(folder: Path, files: Mapping[str, Any]) -> Architecture | None:
    if ARCHITECTURE not in files:
        return None
    try:
        return Architecture.from_json(_json(folder, ARCHITECTURE), f"the file {ARCHITECTURE}")
    except CheckpointError as error:
        raise error.within(folder / ARCHITECTURE) from None


def _certificates(folder: Path, files: Mapping[str, Any]) -> dict[str, Certificate]:
    if CERTIFICATES not in files:
        return {}
    try:
        return {name: Certificate.from_json(each) for name, each in _json(folder, CERTIFICATES).items()}
    except ScoreError as error:
        raise FieldError(error.reason, where=folder / CERTIFICATES, hint=error.hint) from None
