"""How is an edited network kept in a folder, opened again without running anything in it, and taken back?

A folder holds ``weights.safetensors``, ``plan.json``, ``undo.safetensors``, ``certificate.json`` where one was made,
``architecture.json`` (of the new network, where a family has it) and ``source.json`` (of the old one, on which the plan
is done again), and ``manifest.json``, written last, with the size and SHA-256 of every other file.
"""

from __future__ import annotations

import copy
import hashlib
import importlib.metadata
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import symmetry
from metanet.checkpoint import Architecture, save_checkpoint
from metanet.checkpoint.architecture import FAMILIES
from metanet.checkpoint.safetensors_file import read_safetensors
from metanet.errors import CheckpointError, PlanError, ScoreError, clean
from metanet.io import read_json, umask, write_json_atomic
from metanet.morph.apply import Morph, replay
from metanet.morph.modules import put_tensors
from metanet.morph.plan import Plan
from metanet.morph.undo import Difference, Step, restore_state
from metanet.score.certificate import Certificate

__all__ = ["FORMAT", "Opened", "open_folder", "restore", "save", "undo_folder"]

FORMAT = "metanet.morph/1"
MANIFEST, WEIGHTS, PLAN, UNDO = "manifest.json", "weights.safetensors", "plan.json", "undo.safetensors"
CERTIFICATE, ARCHITECTURE, SOURCE = "certificate.json", "architecture.json", "source.json"
REPORT = "report.json"
MAX_JSON = 256 * 1024 * 1024


@dataclass(frozen=True, eq=False)
class Opened:
    """A folder that was checked.

    Args:
        folder: where.
        plan: what was done.
        state: of the edited network.
        architecture: of the edited network, if a family has it.
        source: of the old network, if it was known.
        certificate: what was measured, if anything was.
        stored: what undoing needs.
        source_names: names of the old state.
    """

    folder: Path
    plan: Plan
    state: Mapping[str, Tensor]
    architecture: Architecture | None
    source: Architecture | None
    certificate: Certificate | None
    stored: Difference
    source_names: tuple[str, ...]

    def model(self) -> nn.Module:
        """The edited network, in eval mode; for networks of a known family.

        Raises:
            PlanError: where no family is known: :func:`restore` then takes the user's own module.
        """
        if self.architecture is not None:
            made = self.architecture.build()
            put_tensors(made, self.state)
            return made.eval()
        if self.source is None:
            raise PlanError(
                "holds a network of no known family",
                where=self.folder,
                hint="open it with metanet.morph.restore(model, folder, example_inputs), the model being of its class",
            )
        return restore(self.source.build().eval(), self.folder, self.source.example_inputs())


def save(
    folder: str | os.PathLike[str],
    morph: Morph,
    source: Architecture | None = None,
    certificate: Certificate | None = None,
    report: Mapping[str, Any] | None = None,
) -> Path:
    """Write an edited network into a new folder, whole or not at all.

    Args:
        folder: which must not exist; the one above it must.
        morph: what :func:`metanet.morph.apply` gave.
        source: the architecture of the old network, if it is known.
        certificate: goes with it.
        report: goes with it: the values of a page (:mod:`metanet.report`), which `metanet report` draws.

    Raises:
        PlanError: if the folder exists or cannot be written.
    """
    target = Path(folder)
    if target.exists():
        raise PlanError("exists already", where=target, hint="give a new name")
    try:
        made = Path(tempfile.mkdtemp(prefix=f".{target.name[:80]}.", dir=target.parent))
    except OSError as error:
        raise PlanError(f"cannot be made ({error.strerror})", where=target, hint="check the folder above it") from None
    try:
        _fill(made, morph, source, certificate)
        if report is not None:
            write_json_atomic(made / REPORT, report)
        _seal(made)
        # mkdtemp makes the folder private; give it the permissions that mkdir would have given.
        made.chmod(0o777 & ~umask())
        os.rename(made, target)
    except OSError as error:
        raise PlanError(f"cannot be written ({error.strerror})", where=target, hint="check the disk") from None
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return target


def _fill(folder: Path, morph: Morph, source: Architecture | None, certificate: Certificate | None) -> None:
    state = {name: tensor.detach() for name, tensor in morph.model.state_dict(keep_vars=True).items()}
    # A network that the user's own code builds can only be built by that code again: no file may name it.
    source = source if source is not None and source.family in FAMILIES else None
    new = None if source is None else resized_architecture(source, state)
    save_checkpoint(folder / WEIGHTS, state, new)
    write_json_atomic(folder / PLAN, {**morph.plan.to_json(), "source_names": list(morph.source_names)})
    undo: dict[str, Tensor] = {}
    for name, values in morph.stored.values.items():
        undo[f"values/{name}"] = values
        places = morph.stored.places[name]
        if places is not None:
            undo[f"places/{name}"] = places
    # No reader takes a file without tensors, and an exact edit may need nothing at all.
    save_checkpoint(folder / UNDO, undo or {"nothing": torch.zeros(1)})
    if new is not None:
        write_json_atomic(folder / ARCHITECTURE, new.to_json())
    if source is not None:
        write_json_atomic(folder / SOURCE, source.to_json())
    if certificate is not None:
        write_json_atomic(folder / CERTIFICATE, certificate.to_json())


def _seal(folder: Path) -> None:
    files = {path.name: _facts(path) for path in sorted(folder.iterdir())}
    versions = {name: importlib.metadata.version(name) for name in ("metanet", "torch")}
    write_json_atomic(folder / MANIFEST, {"format": FORMAT, "versions": versions, "files": files})


def _facts(path: Path) -> dict[str, Any]:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for chunk in iter(lambda: file.read(1 << 20), b""):
            digest.update(chunk)
    return {"bytes": path.stat().st_size, "sha256": digest.hexdigest()}


def open_folder(folder: str | os.PathLike[str]) -> Opened:
    """Read a folder that :func:`save` wrote; nothing in it is run.

    Raises:
        PlanError: if it is no such folder, is incomplete, or a file has changed.
        CheckpointError: if its weights are damaged.
    """
    path = Path(folder)
    manifest = _json(path, MANIFEST)
    if not isinstance(manifest, Mapping) or manifest.get("format") != FORMAT:
        raise PlanError("is no folder of a morph", where=path, hint="name one that metanet morph wrote")
    files = manifest.get("files")
    needed = {WEIGHTS, PLAN, UNDO}
    if not isinstance(files, Mapping) or not needed <= set(files):
        raise PlanError("its manifest names no weights or plan", where=path, hint="morph the network again")
    for name, facts in files.items():
        if Path(name).name != name or not (path / name).is_file() or _facts(path / name) != facts:
            raise PlanError(f"file {clean(repr(name), 60)} is missing or has changed", where=path, hint="morph again")
    told = _json(path, PLAN)
    plan = Plan.from_json(told)
    names = told.get("source_names")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise PlanError("its plan does not name the tensors of the source", where=path, hint="morph again")
    undo = _tensors(path / UNDO)
    stored = {name.removeprefix("values/"): value for name, value in undo.items() if name.startswith("values/")}
    places = {name: undo.get(f"places/{name}") for name in stored}
    certificate = None
    if CERTIFICATE in files:
        try:
            certificate = Certificate.from_json(_json(path, CERTIFICATE))
        except ScoreError as error:
            raise PlanError(error.reason, where=path / CERTIFICATE, hint=error.hint) from None
    return Opened(
        path,
        plan,
        _tensors(path / WEIGHTS),
        _architecture(path, files, ARCHITECTURE),
        _architecture(path, files, SOURCE),
        certificate,
        Difference(places, stored),
        tuple(names),
    )


def restore(model: nn.Module, folder: str | os.PathLike[str], example_inputs: Sequence[Any]) -> nn.Module:
    """The edited network in a module of the user's own class: the plan is done again, then the weights are put in.

    Args:
        model: built as the old network was; its weights do not matter, and it is not changed.
        folder: that :func:`save` wrote.
        example_inputs: one entry per argument of ``forward``.

    Raises:
        PlanError: if the model is of another architecture than the plan.
    """
    opened = open_folder(folder)
    made, _ = _replayed(opened, model, example_inputs)
    state = made.state_dict(keep_vars=True)
    for name, tensor in opened.state.items():
        if name not in state or state[name].shape != tensor.shape:
            found = "nothing" if name not in state else f"shape {tuple(state[name].shape)}"
            raise PlanError(
                f"{name}: has shape {tuple(tensor.shape)}, the edited model has {found}",
                where=opened.folder,
                hint="build the model as the old network was built",
            )
    put_tensors(made, {name: opened.state[name] for name in state})
    return made


def undo_folder(model: nn.Module, folder: str | os.PathLike[str], example_inputs: Sequence[Any]) -> nn.Module:
    """The old network, bit by bit.

    Args:
        model: built as the old network was; its weights do not matter, and it is not changed.
        folder: that :func:`save` wrote.
        example_inputs: one entry per argument of ``forward``.

    Raises:
        PlanError: if the model is of another architecture than the plan.
    """
    opened = open_folder(folder)
    _, steps = _replayed(opened, model, example_inputs)
    made = copy.deepcopy(model)
    put_tensors(made, restore_state(steps, opened.stored, opened.state, opened.source_names))
    return made


def _replayed(opened: Opened, model: nn.Module, example_inputs: Sequence[Any]) -> tuple[nn.Module, tuple[Step, ...]]:
    steps: list[Step] = []
    made = model
    try:
        for stage in replay(opened.plan, model, example_inputs, symmetry.trace(model, example_inputs)):
            made = stage.model
            steps += stage.steps
    except PlanError as error:
        raise PlanError(error.reason, where=opened.folder, hint=error.hint) from None
    return made, tuple(steps)


def resized_architecture(source: Architecture, state: Mapping[str, Tensor]) -> Architecture | None:
    """The architecture of the same family that has the shapes of a state, or nothing.

    Every whole number among the options is tried at the sizes that occur in the state, one number after the other, and
    kept where more tensors fit.
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if source.shapes() == wanted:
        return source
    sizes = sorted({size for shape in wanted.values() for size in shape})
    options = source.to_json()["options"]
    best = _fitting(source, options, wanted)
    for _ in range(2):
        for place in _numbers(options):
            for size in sizes:
                tried = _with(options, place, size)
                fit = _fitting(source, tried, wanted)
                if fit > best:
                    best, options = fit, tried
    try:
        found = Architecture(source.family, options, "edited")
    except CheckpointError:
        return None
    return found if found.shapes() == wanted else None


def _fitting(source: Architecture, options: Any, wanted: Mapping[str, tuple[int, ...]]) -> int:
    """How many axes of tensors have the size that is wanted; less than nothing for options that are refused."""
    try:
        shapes = Architecture(source.family, options).shapes()
    except CheckpointError:
        return -1
    pairs = ((shape, wanted[name]) for name, shape in shapes.items() if name in wanted)
    return sum(a == b for one, other in pairs for a, b in zip(one, other, strict=False))


def _numbers(options: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    if isinstance(options, dict):
        return [found for key, item in options.items() for found in _numbers(item, (*place, key))]
    if isinstance(options, list):
        return [found for number, item in enumerate(options) for found in _numbers(item, (*place, number))]
    return [place] if type(options) is int else []


def _with(options: Any, place: tuple[Any, ...], value: int) -> Any:
    if not place:
        return value
    made = dict(options) if isinstance(options, dict) else list(options)
    made[place[0]] = _with(options[place[0]], place[1:], value)
    return made


def _json(folder: Path, name: str) -> Any:
    try:
        return read_json(folder / name, MAX_JSON)
    except OSError as error:
        raise PlanError(
            f"{name} cannot be read ({error.strerror})", where=folder, hint="name a folder of a morph"
        ) from None
    except ValueError as error:
        raise PlanError(f"{name} is not JSON ({clean(error, 80)})", where=folder, hint="morph again") from None


def _tensors(path: Path) -> Mapping[str, Tensor]:
    try:
        with path.open("rb") as file:
            return read_safetensors(file, path, path.stat().st_size).state
    except OSError as error:
        raise PlanError(f"cannot be read ({error.strerror})", where=path, hint="morph the network again") from None


def _architecture(folder: Path, files: Mapping[str, Any], name: str) -> Architecture | None:
    if name not in files:
        return None
    try:
        return Architecture.from_json(_json(folder, name), f"the file {name}")
    except CheckpointError as error:
        raise error.within(folder / name) from None
