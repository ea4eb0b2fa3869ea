"""What is in a folder of the Small CNN Zoo: which networks, with which metrics, in which split?

Source of the layout: Unterthiner et al., Predicting Neural Network Accuracy from Weights, 2020, and its files:
``weights.npy`` with one flattened network per row, ``layout.csv`` that says which columns are which tensor,
``metrics.csv.gz`` with one row per network. Kernels are TensorFlow's: (height, width, in, out) and (in, out).
Strides and the side of an image stand in none of the files, so the caller gives them. Weights are read exactly; what
the module computes at the border of an image follows this package's padding.
"""

from __future__ import annotations

import csv
import gzip
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from metanet.checkpoint import Architecture
from metanet.errors import ZooError, clean

__all__ = ["PublishedNetwork", "SmallCnnZoo", "read_small_cnn_zoo"]

FINAL_STEP = 86
_SHAPE = re.compile(r"\(\s*([0-9]{1,7}(?:\s*,\s*[0-9]{1,7})*)\s*,?\s*\)")
_MAX_TABLE_BYTES = 1 << 30


@dataclass(frozen=True, eq=False)
class PublishedNetwork:
    """One network of a published zoo.

    Args:
        state: its weights, in PyTorch's order.
        architecture: what builds its module.
        metrics: the columns of the table that hold numbers.
        config: the columns that begin with "config.", as text.
        split: "train" or "test".
    """

    state: Mapping[str, Tensor]
    architecture: Architecture
    metrics: Mapping[str, float]
    config: Mapping[str, str]
    split: str


class SmallCnnZoo(Sequence[PublishedNetwork]):
    """The networks of one step, in the order of the file; the last half is "test". Use :func:`read_small_cnn_zoo`."""

    def __init__(
        self,
        weights: np.ndarray,
        rows: Sequence[int],
        table: Sequence[Mapping[str, str]],
        tensors: Sequence[tuple[int, tuple[int, ...]]],
        architectures: Mapping[str, Architecture],
    ) -> None:
        self._weights, self._rows, self._table = weights, rows, table
        self._tensors, self._architectures = tensors, architectures

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[PublishedNetwork]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, i: int) -> PublishedNetwork:  # type: ignore[override]
        row = self._rows[i]
        record, numbers = self._table[row], self._weights[row]
        architecture = self._architectures[record["config.activation"]]
        state = {
            name: _turned(numbers[start : start + math.prod(shape)], shape)
            for name, (start, shape) in zip(architecture.shapes(), self._tensors, strict=True)
        }
        metrics = {key: float(text) for key, text in record.items() if _is_number(key, text)}
        config = {key.removeprefix("config."): text for key, text in record.items() if key.startswith("config.")}
        split = "test" if range(len(self))[i] >= len(self) // 2 else "train"
        return PublishedNetwork(state, architecture, metrics, config, split)


def _is_number(key: str, text: str) -> bool:
    if key.startswith("config."):
        return False
    try:
        float(text)
    except ValueError:
        return False
    return True


def _turned(numbers: np.ndarray, shape: tuple[int, ...]) -> Tensor:
    tensor = torch.from_numpy(np.array(numbers, dtype=np.float32)).reshape(shape)
    if len(shape) == 4:
        return tensor.permute(3, 2, 0, 1).contiguous()
    return tensor.T.contiguous() if len(shape) == 2 else tensor


def read_small_cnn_zoo(
    folder: str | os.PathLike[str],
    step: int | None = FINAL_STEP,
    strides: Sequence[int] = (2, 2, 2),
    size: int = 32,
) -> SmallCnnZoo:
    """The networks in a folder with ``weights.npy``, ``layout.csv`` and ``metrics.csv.gz``.

    Args:
        folder: of one data set of the zoo.
        step: only the networks at this step; None for all.
        strides: of the convolutions.
        size: side of an image.

    Raises:
        ZooError: naming the file and what is wrong in it.
    """
    folder = Path(folder)
    tensors = _layout(folder / "layout.csv")
    table = _table(folder / "metrics.csv.gz")
    path = folder / "weights.npy"
    try:
        weights = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ZooError(f"cannot be read: {clean(error, 120)}", where=path, hint="fetch it again") from error
    need = sum(math.prod(shape) for _, shape in tensors)
    if weights.ndim != 2 or weights.dtype.kind != "f" or weights.shape != (len(table), need):
        stated = f"({len(table)}, {need}), rows of the table by numbers of the layout"
        raise ZooError(f"is {weights.dtype}{weights.shape}, expected floats {stated}", where=path)
    rows = [i for i, record in enumerate(table) if step is None or record["step"] == str(step)]
    if not rows:
        raise ZooError(f"no network of step {step}", where=folder / "metrics.csv.gz", hint="give step=None for all")
    activations = {table[row]["config.activation"] for row in rows}
    architectures = {name: _architecture(folder, tensors, name, strides, size) for name in sorted(activations)}
    return SmallCnnZoo(weights, rows, table, tensors, architectures)


def _read_rows(path: Path, needed: Sequence[str]) -> list[dict[str, str]]:
    try:
        if path.suffix == ".gz":
            with gzip.open(path, "rb") as file:
                data = file.read(_MAX_TABLE_BYTES + 1)
        else:
            data = path.read_bytes()[: _MAX_TABLE_BYTES + 1]
        text = data.decode("utf-8")
    except (OSError, EOFError, ValueError) as error:
        raise ZooError(f"cannot be read: {clean(error, 120)}", where=path, hint="fetch it again") from error
    if len(data) > _MAX_TABLE_BYTES:
        raise ZooError("is larger than 1 GiB, which no such table is", where=path)
    reader = csv.DictReader(text.splitlines())
    missing = [name for name in needed if name not in (reader.fieldnames or ())]
    if missing:
        raise ZooError(f"has no column {missing[0]!r}", where=path, hint="is it a table of the Small CNN Zoo?")
    rows = list(reader)
    if not rows:
        raise ZooError("has no rows", where=path)
    for number, row in enumerate(rows, 2):
        if None in row or any(value is None for value in row.values()):
            raise ZooError(f"line {number} has not as many fields as the first", where=path)
    return rows


def _table(path: Path) -> list[dict[str, str]]:
    return _read_rows(path, ("step", "config.activation", "test_accuracy", "train_accuracy"))


def _layout(path: Path) -> list[tuple[int, tuple[int, ...]]]:
    tensors: list[tuple[int, tuple[int, ...], str]] = []
    for row in _read_rows(path, ("varname", "start_idx", "end_idx", "size", "shape")):
        name, match = clean(repr(row["varname"]), 60), _SHAPE.fullmatch(row["shape"].strip())
        if match is None:
            raise ZooError(f"{name} has shape {clean(repr(row['shape']), 60)}, expected (3, 3, 1, 16)", where=path)
        shape = tuple(int(part) for part in match.group(1).split(","))
        stated = [row[key].strip() for key in ("start_idx", "end_idx", "size")]
        if not all(text.isascii() and text.isdigit() for text in stated):
            raise ZooError(f"{name} has start, end and size {clean(stated, 60)}, expected whole numbers", where=path)
        start, end, size = map(int, stated)
        if not end - start == size == math.prod(shape):
            raise ZooError(f"{name} has {size} numbers from {start} to {end}, its shape {shape}", where=path)
        tensors.append((start, shape, row["varname"]))
    tensors.sort()
    at = 0
    for start, shape, name in tensors:
        if start != at:
            raise ZooError(f"{clean(repr(name), 60)} starts at {start}, expected {at}", where=path)
        at += math.prod(shape)
    return _kernels_first(path, [(start, shape) for start, shape, _ in tensors])


def _kernels_first(path: Path, tensors: list[tuple[int, tuple[int, ...]]]) -> list[tuple[int, tuple[int, ...]]]:
    # Each layer's kernel and bias, whichever of the two the file has first.
    ordered: list[tuple[int, tuple[int, ...]]] = []
    for pair in zip(tensors[::2], tensors[1::2], strict=False):
        kernel, bias = sorted(pair, key=lambda tensor: -len(tensor[1]))
        if len(kernel[1]) not in (2, 4) or bias[1] != kernel[1][-1:]:
            raise ZooError(f"tensors of shapes {kernel[1]} and {bias[1]}, expected a kernel and its bias", where=path)
        ordered += [kernel, bias]
    kinds = [len(shape) for _, shape in ordered[::2]]
    if len(tensors) % 2 or len(kinds) < 2 or kinds[-1] != 2 or set(kinds[:-1]) != {4}:
        raise ZooError("expected convolutions and then one dense layer, each with a bias", where=path)
    return ordered


def _architecture(
    folder: Path, tensors: Sequence[tuple[int, tuple[int, ...]]], activation: str, strides: Sequence[int], size: int
) -> Architecture:
    kernels = [shape for _, shape in tensors[::2]]
    options = {
        "channels": kernels[0][2],
        "size": size,
        "widths": [shape[3] for shape in kernels[:-1]],
        "outputs": kernels[-1][1],
        "activation": activation,
        "kernel": kernels[0][0],
        "strides": list(strides),
    }
    architecture = Architecture("cnn", options, provenance="Small CNN Zoo; strides and size given by the caller")
    found = [tuple(_turned(np.zeros(math.prod(shape)), shape).shape) for _, shape in tensors]
    if found != list(architecture.shapes().values()):
        raise ZooError(f"holds tensors of shapes {found[:8]}, no such network", where=folder / "layout.csv")
    return architecture
