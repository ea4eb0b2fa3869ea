"""What is in the folders of images as networks that came with DWSNets: which SIRENs, of which class, in which part?

Source of the layouts: Navon et al., Equivariant Architectures for Learning in Deep Weight Spaces, 2023, and its data.

    MNIST          mnist_png_training_<class>_<number>/checkpoints/model_final.pth, and ..._testing_...
    Fashion-MNIST  train/model_<number>.pth, test/model_<number>.pth, each with its class under "label"; splits.json

A file is the state dict of a SIREN 2-32-32-1 ("seq.0.weight", "seq.0.bias", ... "seq.2.bias"), whose sines all have the
frequency 30. The module that they belong to adds 0.5 to what the last layer says; here the last bias holds it. A split
file says for "train", "val" and "test" which files are in them, as a list or as {"path": [...], "label": [...]}. Its
paths are those of the machine that it was written on, so only their last parts count; they are never opened.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor

from metanet.checkpoint import Architecture, Raw
from metanet.errors import ZooError, clean
from metanet.io import read_json

from .config import SPLITS
from .published import PublishedNetwork, PublishedZoo, listing, parts_by_share, read_network

__all__ = ["InrFolders", "read_inr_folders"]

_FOLDER = re.compile(r"([a-z0-9]+)_png_(train|training|test|testing)_([A-Za-z0-9]{1,40})_([0-9]{1,12})")
_FILE = "checkpoints/model_final.pth"
_NUMBERED = re.compile(r"model_([0-9]{1,12})\.pth")
_TENSOR = re.compile(r"seq\.([0-9]{1,3})\.(weight|bias)")
_PARTS = {"train": "train", "training": "train", "val": "val", "test": "test", "testing": "test"}
# What the authors keep of the training images for validation: 5,000 of 60,000.
_VALIDATION = 1 / 12


@dataclass(frozen=True)
class _File:
    path: str
    part: str
    number: int
    label: str | None = None


class InrFolders(PublishedZoo):
    """SIRENs by part and number. Use :func:`read_inr_folders`."""

    def __init__(self, folder: Path, files: Sequence[_File], left_out: Sequence[str], w0: float, shift: float) -> None:
        self.folder, self.left_out = folder, tuple(left_out)
        self._files, self._w0, self._shift = tuple(files), w0, shift

    def parts(self) -> list[tuple[str, str]]:
        """Run and part of every network, without reading weights."""
        return [(_name(file), file.part) for file in self._files]

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, i: int) -> PublishedNetwork:  # type: ignore[override]
        file = self._files[i]
        path = self.folder / file.path
        raw = read_network(path, plain=("label",))
        label = _label(raw, file, path)
        state, architecture = _siren(raw.state, path, self._w0)
        last = list(state)[-1]
        state[last] = state[last] + self._shift
        name = _name(file)
        shown = int(label) if label.isascii() and label.isdigit() else label
        return PublishedNetwork(state, architecture, {}, {}, file.part, name, label=shown, name=name)


def read_inr_folders(
    folder: str | os.PathLike[str],
    data: str | None = None,
    splits: str | os.PathLike[str] | None = None,
    validation: float = _VALIDATION,
    w0: float = 30.0,
    shift: float = 0.5,
) -> InrFolders:
    """The networks in a folder of MNIST-INR or Fashion-MNIST-INR, in a fixed order: by part and number.

    Args:
        folder: the one that holds ``mnist_png_training_...`` or ``train`` and ``test``.
        data: the image set whose networks are wanted, where folders of several lie side by side: "mnist".
        splits: the split file; the one in the folder if None. Where there is neither, training images are "train" and
            testing images "test".
        validation: without a split file, the share of the training images that becomes "val": always the same ones.
        w0: frequency of the sines.
        shift: what the published module adds to its last layer; it goes into the last bias. 0 leaves the file's number.

    Raises:
        ZooError: naming the file and what is wrong in it. Files that a split names must be there: a part of the zoo is
            refused.
    """
    folder = Path(folder)
    if not 0 <= validation < 1:
        raise ZooError(f"validation={validation!r}, expected a share from 0 to below 1", where=folder)
    found, others = _found(folder, data)
    path = Path(splits) if splits is not None else _split_file(folder)
    if path is None:
        drawn = parts_by_share(
            [file.path for file in found if file.part == "train"], {"val": validation, "train": 1 - validation}
        )
        files = [replace(file, part=drawn.get(file.path, file.part)) for file in found]
    else:
        files, unnamed = _split(path, found)
        others += unnamed
    order = {part: place for place, part in enumerate(SPLITS)}
    files.sort(key=lambda file: (order[file.part], file.number, file.path))
    return InrFolders(folder, files, sorted(others), float(w0), float(shift))


def _found(folder: Path, data: str | None) -> tuple[list[_File], list[str]]:
    """The networks in a folder, and the names of all else in it."""
    names = listing(folder)
    matches = {name: match for name in names if (match := _FOLDER.fullmatch(name))}
    if not matches:
        files, others = _numbered(folder, names)
        if data is not None:
            raise ZooError(f"does not say that it holds {clean(repr(data), 40)}", where=folder, hint="leave data= out")
        return files, others
    sets = sorted({match[1] for match in matches.values()})
    if data is None and len(sets) > 1:
        raise ZooError(f"holds networks of {', '.join(sets)}", where=folder, hint=f"choose one: data={sets[0]}")
    if data is not None and data not in sets:
        raise ZooError(f"holds no network of {clean(repr(data), 40)}", where=folder, hint=f"there is {', '.join(sets)}")
    files = []
    for name, match in matches.items():
        if match[1] == (data or sets[0]):
            if not (folder / name / _FILE).is_file():
                raise ZooError(f"has no {_FILE}", where=folder / name, hint="unpack the whole archive again")
            files.append(_File(f"{name}/{_FILE}", _PARTS[match[2]], int(match[4]), match[3]))
    chosen = {file.path.split("/")[0] for file in files}
    return files, [name for name in names if name not in chosen and not name.endswith("splits.json")]


def _numbered(folder: Path, names: Sequence[str]) -> tuple[list[_File], list[str]]:
    files: list[_File] = []
    others = [name for name in names if name not in SPLITS and not name.endswith("splits.json")]
    for part in SPLITS:
        for name in listing(folder / part) if part in names else ():
            match = _NUMBERED.fullmatch(name)
            if match:
                files.append(_File(f"{part}/{name}", part, int(match[1])))
            else:
                others.append(f"{part}/{name}")
    if not files:
        inside = next((name for name in names if (folder / name).is_dir()), None)
        raise ZooError(
            "holds no network: neither folders like mnist_png_training_5_0 nor files like train/model_0.pth",
            where=folder,
            hint=f"perhaps they are in {inside}" if inside else "name the folder of the unpacked archive",
        )
    return files, others


def _split_file(folder: Path) -> Path | None:
    found = [name for name in listing(folder) if name.endswith("splits.json")]
    if len(found) > 1:
        raise ZooError(f"holds {len(found)} split files, {found[0]} and {found[1]}", where=folder, hint="name one")
    return folder / found[0] if found else None


def _split(path: Path, found: Sequence[_File]) -> tuple[list[_File], list[str]]:
    """The files with the parts that a split file gives them, and the names of those that it does not name."""
    try:
        stated = read_json(path)
    except (OSError, ValueError) as error:
        raise ZooError(f"cannot be read: {clean(error, 120)}", where=path, hint="fetch it again") from error
    if not isinstance(stated, Mapping) or not set(stated) <= set(SPLITS) or not {"train", "test"} <= set(stated):
        expected = "an object with train, val and test"
        raise ZooError(f"is no split file, expected {expected}", where=path, hint="fetch it again")
    known = {file.path: file for file in found}
    depth = len(PurePosixPath(found[0].path).parts)
    given: dict[str, _File] = {}
    for part in SPLITS:
        for text, label in _entries(path, part, stated.get(part, [])):
            name = "/".join(PurePosixPath(text).parts[-depth:])
            file = known.get(name)
            if file is None:
                raise ZooError(
                    f"'{part}' names {clean(name, 100)}, which is not there",
                    where=path,
                    hint="unpack the whole archive: a part of the zoo is not the zoo",
                )
            if name in given:
                raise ZooError(f"names {clean(name, 100)} in '{given[name].part}' and again in '{part}'", where=path)
            if label is not None and file.label is not None and label != file.label:
                raise ZooError(f"says that {clean(name, 100)} shows {clean(label, 40)}", where=path)
            given[name] = replace(file, part=part, label=file.label if label is None else label)
    return list(given.values()), [file.path for file in found if file.path not in given]


def _entries(path: Path, part: str, value: Any) -> Iterable[tuple[str, str | None]]:
    labels: Any = None
    if isinstance(value, Mapping):
        value, labels = value.get("path"), value.get("label")
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise ZooError(f"'{part}' is no list of files", where=path, hint="fetch it again")
    if labels is None:
        return [(text, None) for text in value]
    if not isinstance(labels, list) or len(labels) != len(value):
        raise ZooError(f"'{part}' has not one label for each of its {len(value)} files", where=path)
    return [(text, str(label)) for text, label in zip(value, labels, strict=True)]


def _name(file: _File) -> str:
    return file.path.removesuffix("/" + _FILE)


def _label(raw: Raw, file: _File, path: Path) -> str:
    """The class that a network shows: from its folder's name, the split file or its own file."""
    stated: Any = raw.metadata.get("label", raw.state.get("label"))
    if isinstance(stated, Tensor):
        stated = stated.item() if stated.numel() == 1 else None
    if stated is None and file.label is None:
        raise ZooError("says nowhere what it shows", where=path, hint="expected a 'label' beside its tensors")
    if stated is not None and file.label is not None and str(stated) != file.label:
        where = f"its folder or the split file {clean(file.label, 40)}"
        raise ZooError(f"says that it shows {clean(stated, 40)}, {where}", where=path, hint="fetch it again")
    return str(stated) if file.label is None else file.label


def _siren(state: Mapping[str, Tensor], path: Path, w0: float) -> tuple[dict[str, Tensor], Architecture]:
    """The tensors under this package's names, and the architecture that their shapes tell."""
    found: dict[tuple[int, str], Tensor] = {}
    for name, tensor in state.items():
        if name == "label":
            continue
        match = _TENSOR.fullmatch(name)
        if match is None or tensor.dtype != torch.float32 or tensor.dim() != (2 if match[2] == "weight" else 1):
            shown = f"'{clean(name, 60)}' ({tensor.dtype}, {list(tensor.shape)})"
            raise ZooError(f"holds {shown}, expected 'seq.0.weight', 'seq.0.bias' and so on in float32", where=path)
        found[int(match[1]), match[2]] = tensor
    layers = len(found) // 2
    if layers < 2 or set(found) != {(i, kind) for i in range(layers) for kind in ("weight", "bias")}:
        raise ZooError(f"holds {clean(list(state)[:8], 120)}, no chain of layers from seq.0", where=path)
    sizes = (found[0, "weight"].shape[1], *(found[i, "weight"].shape[0] for i in range(layers)))
    architecture = _architecture(tuple(int(size) for size in sizes), w0)
    shapes = architecture.shapes()
    named = {name: found[int(name.split(".")[1]), name.split(".")[2]] for name in shapes}
    for name, tensor in named.items():
        if tuple(tensor.shape) != shapes[name]:
            shown = f"'{name.replace('layers', 'seq')}' has shape {list(tensor.shape)}"
            raise ZooError(f"{shown}, expected {list(shapes[name])} after the layer before it", where=path)
    return {name: tensor.contiguous() for name, tensor in named.items()}, architecture


@functools.lru_cache(maxsize=256)
def _architecture(sizes: tuple[int, ...], w0: float) -> Architecture:
    options = {"inputs": sizes[0], "widths": list(sizes[1:-1]), "outputs": sizes[-1], "w0": w0}
    return Architecture("siren", options, provenance="DWSNets INR folder; frequency given by the reader")
