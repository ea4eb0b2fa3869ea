"""Do two networks fit each other: which outputs and layers belong together, and where do the inputs lie in them?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from metanet.errors import ScoreError, clean
from metanet.score.inputs import Inputs
from metanet.score.layers import Recorder
from metanet.score.measures import Reading, reading_of, row_axis, rows_first
from metanet.score.subjects import Subject, tensor_leaves

__all__ = ["Output", "Pair"]

FIRST_ROWS = 8
# How much an answer may depend on the batch around it: rounding, at most.
UNSTEADY = {torch.float64: 1e-8}


@dataclass(frozen=True, eq=False)
class Output:
    """Where one output is among the answers of both networks: numbers and axes of the inputs."""

    name: str
    numbers: tuple[int, int]
    axes: tuple[int, int]
    shape: tuple[int, ...]
    first: tuple[Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class Pair:
    """Two networks ready to run, and where their outputs and layers have the axis of the inputs."""

    a: Subject
    b: Subject
    inputs: Inputs
    outputs: tuple[Output, ...]
    recorders: tuple[Recorder, Recorder] | None
    steady: bool
    notes: tuple[str, ...]

    @classmethod
    def settle(cls, a: Subject, b: Subject, inputs: Inputs, layers: bool, features: str) -> Pair:
        rows = min(inputs.count, FIRST_ROWS)
        recorders = (Recorder(a, features), Recorder(b, features)) if layers else None
        found, notes, steady = [], [], True
        for number, subject in enumerate((a, b)):
            answers, shapes = [], []
            for size in (rows, max(rows - 1, 1)):
                some = inputs.take(torch.arange(size))
                seen: dict[str, tuple[int, ...]] = {}
                if recorders is None:
                    answers.append(tensor_leaves(subject.run(some.positional, some.keywords)))
                else:
                    with recorders[number].shapes(seen):
                        answers.append(tensor_leaves(subject.run(some.positional, some.keywords)))
                shapes.append(seen)
            if recorders is not None:
                recorders[number].settle(shapes[0], shapes[1], rows)
            axes = [row_axis(one.shape, two.shape, rows) for (_, one), (_, two) in zip(*answers, strict=True)]
            found.append((answers[0], axes))
            if not _agree(answers, axes, rows):
                steady = False
                notes.append(
                    f"network {subject.name} answers an input differently in another batch (chance, or the inputs of a "
                    "batch are not independent): no claim of exactness"
                )
        outputs, more = _matched(found, rows)
        return cls(a, b, inputs, outputs, recorders, steady, (*notes, *more))

    @property
    def dtype(self) -> str:
        """What the networks were run in."""
        kinds = {
            str(tensor.dtype).removeprefix("torch.")
            for subject in (self.a, self.b)
            for tensor in (*subject.model.parameters(), *subject.model.buffers())
            if tensor.is_floating_point()
        }
        if self.a.dtype is not None:
            kinds.add(str(self.a.dtype).removeprefix("torch."))
        return ", ".join(sorted(kinds)) or "no numbers"

    def readings(self, kind: str | Mapping[str, str], class_axis: int | None) -> list[Reading]:
        """How each output is read."""
        if isinstance(kind, Mapping):
            unknown = [name for name in kind if name not in {output.name for output in self.outputs}]
            if unknown:
                known = ", ".join(repr(output.name) for output in self.outputs[:8])
                raise ScoreError(f"kind: no output {clean(repr(unknown[0]), 60)}", hint=f"there are {known}")
        found, notes = [], []
        for number, output in enumerate(self.outputs):
            chosen = kind.get(output.name, "auto") if isinstance(kind, Mapping) else kind
            labels = (
                self.inputs.labels[: len(output.first[0])] if number == 0 and self.inputs.labels is not None else None
            )
            whole = self.inputs.labels if number == 0 else None
            if number > 0 and chosen == "auto":
                chosen = "values"
            if chosen != "auto" and not output.first[0].is_floating_point():
                chosen = "auto"
            reading, note = reading_of(output.name, *output.first, labels, chosen, class_axis)
            if whole is not None and reading.class_axis is not None:
                _check_classes(whole, output.shape[reading.class_axis - 1])
            found.append(reading)
            notes += [note] if note else []
        object.__setattr__(self, "notes", (*self.notes, *notes))
        return found


def _check_classes(labels: Tensor, classes: int) -> None:
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        raise ScoreError(f"labels from {low} to {high} for {classes} classes", hint="number classes from 0")


def _agree(answers: Sequence[Sequence[tuple[str, Tensor]]], axes: Sequence[int | None], rows: int) -> bool:
    """Whether the same inputs have the same answers in a batch with one input fewer."""
    for (_, one), (_, two), axis in zip(*answers, axes, strict=True):
        if axis is None or rows < 2 or not one.is_floating_point():
            continue
        first = rows_first(one, axis, rows)[: rows - 1]
        second = rows_first(two, axis, rows - 1)
        limit = UNSTEADY.get(one.dtype, 1e-2) * float(torch.nan_to_num(first).abs().amax() if first.numel() else 0.0)
        if float(torch.nan_to_num(first - second).abs().amax() if first.numel() else 0.0) > limit:
            return False
    return True


def _matched(found: Sequence[tuple[list[tuple[str, Tensor]], list[int | None]]], rows: int) -> tuple[Any, list[str]]:
    """Outputs of both networks one to one, in their order."""
    kept = [[i for i, axis in enumerate(axes) if axis is not None] for _, axes in found]
    notes = [
        f"output {name!r} of network {'ab'[side]} {list(leaf.shape)} has no axis of the inputs: left out"
        for side, (leaves, axes) in enumerate(found)
        for (name, leaf), axis in zip(leaves, axes, strict=True)
        if axis is None
    ]
    if not kept[0] or len(kept[0]) != len(kept[1]):
        told = [f"{len(places)} ({_shapes(leaves)})" for (leaves, _), places in zip(found, kept, strict=True)]
        raise ScoreError(
            f"outputs with an axis of the inputs: {told[0]} of network a, {told[1]} of network b",
            hint="both must give the same outputs",
        )
    outputs = []
    for i, j in zip(*kept, strict=True):
        sides = [rows_first(leaves[k][1], axes[k] or 0, rows) for (leaves, axes), k in zip(found, (i, j), strict=True)]
        shapes = [tuple(side.shape[1:]) for side in sides]
        name = found[0][0][i][0]
        if shapes[0] != shapes[1] or sides[0].is_complex() != sides[1].is_complex():
            raise ScoreError(
                f"output{' ' + repr(name) if name else ''} has shape {list(shapes[0])} in network a and "
                f"{list(shapes[1])} in network b, for one input",
                hint="networks of any widths can be compared if their outputs have the same shape",
            )
        axes = (found[0][1][i] or 0, found[1][1][j] or 0)
        outputs.append(Output(name, (i, j), axes, shapes[0], (sides[0], sides[1])))
    return tuple(outputs), notes


def _shapes(leaves: Sequence[tuple[str, Tensor]]) -> str:
    return ", ".join(str(list(leaf.shape)) for _, leaf in leaves[:6])
