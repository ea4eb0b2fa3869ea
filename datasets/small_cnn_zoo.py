"""What is in a folder of the Small CNN Zoo: which networks, with which metrics, in which split?

Source of the layout: Unterthiner et al., Predicting Neural Network Accuracy from Weights, 2020, and its files:
``weights.npy`` with one flattened network per row, ``layout.csv`` that says which columns are which tensor,
``metrics.csv.gz`` with one row per network. Kernels are TensorFlow's: (height, width, in, out) and (in, out).
Strides and the side of an image stand in none of the files, so the caller gives them. Weights are read exactly; what
the module computes at the border of an image follows this package's padding.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from metanet.checkpoint import Architecture
from metanet.errors import ZooError, clean

from .published import PublishedNetwork, PublishedZoo, is_number, table_rows

__all__ = ["SmallCnnZoo", "read_small_cnn_zoo"]

FINAL_STEP = 86
_ZOO = "the Small CNN Zoo"
_METRICS = ("train_loss", "test_loss", "train_accuracy", "test_accuracy")
_SHAPE = re.compile(r"\(\s*([0-9]{1,7}(?:\s*,\s*[0-9]{1,7})*)\s*,?\s*\)")
# The column that names a training; all its checkpoints have the same one.
_RUN = "modeldir"


class SmallCnnZoo(PublishedZoo):
    """Networks in the order of the file; the last half of the trainings is "test". Use :func:`read_small_cnn_zoo`."""

    def __init__(
        self,
        folder: Path,
        weights: np.ndarray,
        rows: Sequence[int],
        table: Mapping[int, Mapping[str, str]],
        tensors: Sequence[tuple[int, tuple[int, ...]]],
        architectures: Mapping[str, Architecture],
    ) -> None:
        self.folder = folder
        self.metrics = tuple(name for name in _METRICS if name in table[rows[0]])
        self._weights, self._rows, self._table = weights, rows, table
        self._tensors, self._architectures = tensors, architectures
        runs = list(dict.fromkeys(self._run(row) for row in rows))
        self._tested = frozenset(runs[len(runs) // 2 :])

    def _run(self, row: int) -> str:
        return self._table[row].get(_RUN, str(row))

    def parts(self) -> list[tuple[str, str]]:
        """Run and part of every network, without reading weights."""
        runs = [self._run(row) for row in self._rows]
        return [(run, "test" if run in self._tested else "train") for run in runs]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, i: int) -> PublishedNetwork:  # type: ignore[override]
        row = self._rows[i]
        record, numbers = self._table[row], self._weights[row]
        architecture = self._architectures[record["config.activation"]]
        state = {
            name: _turned(numbers[start : start + math.prod(shape)], shape)
            for name, (start, shape) in zip(architecture.shapes(), self._tensors, strict=True)
        }
        metrics = {
            key: float(text) for key, text in record.items() if not key.startswith("config.") and is_number(text)
        }
        config = {key.removeprefix("config."): text for key, text in record.items() if key.startswith("config.")}
        run, step = self._run(row), record["step"]
        split = "test" if run in self._tested else "train"
        if not (step.isascii() and step.isdigit()):
            stated = f"line {row + 2} has step {clean(repr(step), 40)}, expected a whole number"
            raise ZooError(stated, where=self.folder / "metrics.csv.gz")
        return PublishedNetwork(state, architecture, metrics, config, split, run, int(step), name=f"{run}, step {step}")


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
    table, count = _table(folder / "metrics.csv.gz", step)
    path = folder / "weights.npy"
    try:
        weights = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ZooError(f"cannot be read: {clean(error, 120)}", where=path, hint="fetch it again") from error
    need = sum(math.prod(shape) for _, shape in tensors)
    if weights.ndim != 2 or weights.dtype.kind != "f" or weights.shape != (count, need):
        stated = f"({count}, {need}), rows of the table by numbers of the layout"
        raise ZooError(f"is {weights.dtype}{weights.shape}, expected floats {stated}", where=path)
    rows = list(table)
    if not rows:
        raise ZooError(f"no network of step {step}", where=folder / "metrics.csv.gz", hint="give step=None for all")
    activations = {table[row]["config.activation"] for row in rows}
    architectures = {name: _architecture(folder, tensors, name, strides, size) for name in sorted(activations)}
    return SmallCnnZoo(folder, weights, rows, table, tensors, architectures)


def _table(path: Path, step: int | None) -> tuple[dict[int, dict[str, str]], int]:
    """The rows of one step, by number, and how many there are of all steps."""
    found, count = {}, 0
    for row in table_rows(path, ("step", "config.activation", "test_accuracy", "train_accuracy"), _ZOO):
        if step is None or row["step"] == str(step):
            found[count] = row
        count += 1
    return found, count


def _layout(path: Path) -> list[tuple[int, tuple[int, ...]]]:
    tensors: list[tuple[int, tuple[int, ...], str]] = []
    for row in table_rows(path, ("varname", "start_idx", "end_idx", "size", "shape"), _ZOO):
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
