"""Do two networks fit each other: which outputs and layers belong together, and where do the inputs lie in them?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

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
    def settle(
        cls, a: Subject, b: Subject, inputs: Inputs, batch: int, layers: bool = False, features: str = "linear"
    ) -> Pair:
        """Run both networks on a few inputs, and find where the inputs lie in their outputs and layers.

        Args:
            a: the first network.
            b: the second.
            inputs: all inputs.
            batch: how many inputs will be run at once.
            layers: whether layers will be looked at.
            features: how their features are prepared.

        Raises:
            ScoreError: where a network does not run, or the outputs do not fit.
        """
        recorders = (Recorder(a, features), Recorder(b, features)) if layers else None
        found, notes = [], []
        for number, subject in enumerate((a, b)):
            recorder = None if recorders is None else recorders[number]
            leaves, fewer, rows = _first_answers(subject, inputs, batch, recorder)
            shorter = [None] * len(leaves) if fewer is None else [leaf.shape for _, leaf in fewer]
            axes = [row_axis(leaf.shape, other, rows) for (_, leaf), other in zip(leaves, shorter, strict=True)]
            found.append(_Answers(leaves, axes, rows))
            if fewer is not None and not _agree((leaves, fewer), axes, rows):
                notes.append(
                    f"network {subject.name} answers an input differently in another batch (chance, or the inputs of a "
                    "batch are not independent): no claim of exactness"
                )
        outputs, more = _matched(found)
        return cls(a, b, inputs, outputs, recorders, not notes, (*notes, *more))

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

    def readings(self, kind: str | Mapping[str, str], class_axis: int | None) -> tuple[list[Reading], list[str]]:
        """How each output is read, and notes on what was assumed."""
        if isinstance(kind, Mapping):
            unknown = [name for name in kind if name not in {output.name for output in self.outputs}]
            if unknown:
                known = ", ".join(repr(output.name) for output in self.outputs[:8])
                raise ScoreError(f"kind: no output {clean(repr(unknown[0]), 60)}", hint=f"there are {known}")
        found, notes = [], []
        for number, output in enumerate(self.outputs):
            one, two = output.first
            labels = self.inputs.labels if number == 0 else None
            if isinstance(kind, Mapping):
                chosen = kind.get(output.name, "auto" if number == 0 else "values")
            else:
                chosen = kind if number == 0 else "values"
            few = None if labels is None else labels[: len(one)]
            reading, note = reading_of(output.name, one, two, few, chosen, class_axis)
            if labels is not None and reading.class_axis is not None:
                _check_classes(labels, output.shape[reading.class_axis - 1])
            found.append(reading)
            notes += [note] if note else []
        return found, notes


@dataclass(frozen=True, eq=False)
class _Answers:
    """What one network answers to the first inputs: its tensors, and the axis of the inputs in each."""

    leaves: list[tuple[str, Tensor]]
    axes: list[int | None]
    rows: int

    @property
    def shapes(self) -> str:
        """In words."""
        return ", ".join(str(list(leaf.shape)) for _, leaf in self.leaves[:6])


def _first_answers(
    subject: Subject, inputs: Inputs, batch: int, recorder: Recorder | None
) -> tuple[list[tuple[str, Tensor]], list[tuple[str, Tensor]] | None, int]:
    """Answers to the first few inputs, to one fewer, and how many these were.

    A network that takes one size of batch only is run on a whole batch; of one fewer nothing is known then.
    """

    def answer(rows: int, seen: dict[str, tuple[int, ...]]) -> list[tuple[str, Tensor]]:
        some = inputs.take(torch.arange(rows))
        with recorder.shapes(seen) if recorder is not None else nullcontext():
            return tensor_leaves(subject.run(some.positional, some.keywords))

    rows = min(inputs.count, FIRST_ROWS)
    full: dict[str, tuple[int, ...]] = {}
    shorter: dict[str, tuple[int, ...]] = {}
    fewer: list[tuple[str, Tensor]] | None
    try:
        leaves, fewer = answer(rows, full), answer(max(rows - 1, 1), shorter)
    except ScoreError:
        rows, fewer = min(inputs.count, batch), None
        full.clear()
        leaves = answer(rows, full)
    if recorder is not None:
        recorder.settle(full, None if fewer is None else shorter, rows)
    return leaves, fewer, rows


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


def _matched(found: Sequence[_Answers]) -> tuple[tuple[Output, ...], list[str]]:
    """Outputs of both networks one to one, in their order, and notes on what was left out."""
    kept = [[i for i, axis in enumerate(side.axes) if axis is not None] for side in found]
    notes = [
        f"output {name!r} of network {which} {list(leaf.shape)} has no axis of the inputs: left out"
        for which, side in zip("ab", found, strict=True)
        for (name, leaf), axis in zip(side.leaves, side.axes, strict=True)
        if axis is None
    ]
    if not kept[0] or len(kept[0]) != len(kept[1]):
        told = [f"{len(places)} ({side.shapes})" for side, places in zip(found, kept, strict=True)]
        raise ScoreError(
            f"outputs with an axis of the inputs: {told[0]} of network a, {told[1]} of network b",
            hint="both must give the same outputs",
        )
    outputs = []
    for places in zip(*kept, strict=True):
        axes = [side.axes[k] or 0 for side, k in zip(found, places, strict=True)]
        one, two = (
            rows_first(side.leaves[k][1], axis, side.rows) for side, k, axis in zip(found, places, axes, strict=True)
        )
        name = found[0].leaves[places[0]][0]
        if one.shape[1:] != two.shape[1:] or one.is_complex() != two.is_complex():
            raise ScoreError(
                f"output{' ' + repr(name) if name else ''} has shape {list(one.shape[1:])} in network a and "
                f"{list(two.shape[1:])} in network b, for one input",
                hint="networks of any widths can be compared if their outputs have the same shape",
            )
        first, second = places
        outputs.append(Output(name, (first, second), (axes[0], axes[1]), tuple(one.shape[1:]), (one, two)))
    return tuple(outputs), notes
