"""How are the distances of many pairs of networks of the same two architectures measured at once?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from metanet.errors import ScoreError
from metanet.score.compare import LEAST_INPUTS, default_kind
from metanet.score.inputs import Batch, Inputs
from metanet.score.measures import Moments, Reading, measure
from metanet.score.pairing import Output, Pair
from metanet.score.stacks import Stack, state_of
from metanet.score.subjects import Comparable, Subject
from metanet.score.values import CONSTANT

__all__ = ["Group"]


class Group:
    """All pairs of one pair of architectures."""

    def __init__(
        self,
        pairs: Sequence[tuple[Comparable, Comparable]],
        numbers: list[int],
        inputs: Inputs,
        dtype: torch.dtype | None,
        device: str | torch.device | None,
        kind: str | Mapping[str, str],
        class_axis: int | None,
        tolerance: float,
        batch: int,
    ) -> None:
        self.numbers, self.inputs, self.tolerance, self.batch = numbers, inputs, tolerance, batch
        a, b = pairs[numbers[0]]
        try:
            subjects = Subject.of(a, "a", dtype, device), Subject.of(b, "b", dtype, device)
            self.pair = Pair.settle(*subjects, inputs, batch)
            self.readings, self.assumed = self.pair.readings(default_kind(a, kind), class_axis)
        except ScoreError as error:
            raise ScoreError(error.reason, hint=error.hint, where=f"pair {numbers[0]}") from error
        self.stacks = Stack(subjects[0]), Stack(subjects[1])
        self.states = [(state_of(pairs[number][0]), state_of(pairs[number][1])) for number in numbers]

    @property
    def notes(self) -> list[str]:
        """What was assumed, and which networks could not be run at once."""
        told = [
            f"{type(stack.subject.model).__name__} was run one by one: {stack.alone}"
            for stack in self.stacks
            if stack.alone
        ]
        return [*self.pair.notes, *self.assumed, *told]

    def score(self, memory: int, seed: int) -> dict[str, Tensor]:
        """Every column, for the pairs in the order of ``numbers``."""
        some = self.inputs.take(torch.arange(min(self.batch, self.inputs.count)))
        needed = sum(stack.settle(some.positional, some.keywords) for stack in self.stacks)
        # Answers, probabilities and differences of both networks lie beside what the modules give out.
        needed += 8 * sum(output.first[0][0].numel() for output in self.pair.outputs) * len(some.rows)
        size = max(1, memory // (8 * max(needed, 1)))
        batches = list(self.inputs.batches(self.batch, seed))
        starts = range(0, len(self.states), size)
        parts = [self._chunk(start, min(start + size, len(self.states)), batches) for start in starts]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _chunk(self, start: int, stop: int, batches: Sequence[Batch]) -> dict[str, Tensor]:
        places: dict[int, int] = {}
        shared: list[int] = []
        where: list[int] = []
        for number in range(start, stop):
            state = self.states[number][0]
            if id(state) not in places:
                places[id(state)] = len(shared)
                shared.append(number)
            where.append(places[id(state)])
        one = self._stacked(0, shared)
        two = self._stacked(1, range(start, stop))
        index = torch.tensor(where)
        totals = [Totals(reading) for reading in self.readings]
        for given in batches:
            left = self.stacks[0].run(one, len(shared), given.positional, given.keywords)
            right = self.stacks[1].run(two, stop - start, given.positional, given.keywords)
            for number, (output, total) in enumerate(zip(self.pair.outputs, totals, strict=True)):
                sides = [
                    _lead(made[output.numbers[side]], output, side, len(given.rows))
                    for side, made in enumerate((left, right))
                ]
                total.add(sides[0], sides[1], index, given.labels if number == 0 else None)
        return self._columns([total.finish() for total in totals])

    def _stacked(self, side: int, numbers: Sequence[int]) -> dict[str, Tensor]:
        names = [f"pair {self.numbers[number]}, network {'ab'[side]}" for number in numbers]
        return self.stacks[side].stacked([self.states[number][side] for number in numbers], names)

    def _columns(self, outputs: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        main = outputs[0]
        worst = torch.stack([output["max_error"] for output in outputs]).amax(0)
        error = torch.stack([output["error"] for output in outputs]).amax(0)
        broken = torch.stack([output["not_finite_a"] + output["not_finite_b"] for output in outputs]).sum(0)
        varies = torch.stack([output.pop("varies") for output in outputs]).amax(0)
        able = self.pair.dtype == "float64" and self.pair.steady and self.inputs.count >= LEAST_INPUTS
        exact = (error <= self.tolerance) & (broken == 0) & (varies > 0)
        return {**main, "max_error": worst, "error": error, "exact": exact.double() * able}


def _lead(value: Tensor, output: Output, side: int, rows: int) -> Tensor:
    """Answers of many networks, with the inputs along the second axis."""
    moved = value.movedim(output.axes[side] + 1, 1)
    return moved if moved.shape[1] == rows else moved.reshape(len(moved), rows, -1, *moved.shape[2:])


# So many numbers at once are measured in the processor's cache: three times faster than all of them together.
BLOCK = 50_000

# Measures that are means over inputs, under the names of the columns.
MEANS = {
    "kl": "kl",
    "kl_reverse": "kl_reverse",
    "agreement": "agreement",
    "right_a": "accuracy_a",
    "right_b": "accuracy_b",
    "right_change": "accuracy_change",
    "loss_a": "loss_a",
    "loss_b": "loss_b",
    "loss_change": "loss_change",
}


class Totals:
    """Sums over the inputs of one output of many pairs."""

    def __init__(self, reading: Reading) -> None:
        self.reading = reading
        self.moments: list[Moments] = []
        self.rows = 0
        self.names: list[str] = []
        self.sums = torch.zeros(())
        self.squares = torch.zeros(())
        self.worst = torch.zeros(())
        self.index = torch.zeros(())

    def add(self, shared: Tensor, b: Tensor, index: Tensor, labels: Tensor | None) -> None:
        """Take a batch into account: answers of the different first networks, and which of them each pair has."""
        self.index = index = index.to(shared.device)
        size = max(1, BLOCK // max(shared[0].numel(), 1))
        blocks = shared.split(size)
        self.moments = self.moments or [Moments(lead=1) for _ in blocks]
        for moments, block in zip(self.moments, blocks, strict=True):
            moments.add(block)
        parts = []
        for start in range(0, len(index), size):
            places = index[start : start + size]
            found = measure(shared[places], b[start : start + size], self.reading, labels, lead=1)
            for name in ("right", "loss"):
                if f"{name}_a" in found:
                    found[f"{name}_change"] = found[f"{name}_b"] - found[f"{name}_a"]
            worst = found.pop("error").amax(-1)
            self.names = list(found)
            values = torch.stack(list(found.values()))
            parts.append((worst, values.sum(-1), values.square().sum(-1)))
        worst, sums, squares = (torch.cat(part, -1) for part in zip(*parts, strict=True))
        self.worst = torch.maximum(self.worst.to(worst.device), worst)
        self.sums, self.squares = self.sums.to(sums.device) + sums, self.squares.to(sums.device) + squares
        self.rows += b.shape[1]

    def finish(self) -> dict[str, Tensor]:
        """The columns of this output, and whether it varies over the inputs."""
        # What belongs to the first network alone was measured once for each of them.
        spread, size = (
            torch.cat([getattr(moments, name) for moments in self.moments])[self.index] for name in ("spread", "size")
        )
        sums, rows = dict(zip(self.names, self.sums, strict=True)), self.rows
        squares = dict(zip(self.names, self.squares, strict=True))
        varies = spread > CONSTANT * size
        scale = torch.where(varies, spread, size)
        found = {
            "max_error": self.worst,
            "spread": spread,
            "error": torch.where(self.worst == 0, 0.0, self.worst / scale),
            "relative_l2": torch.where(sums["square"] == 0, 0.0, (sums["square"] / sums["norm"]).sqrt()),
            "not_finite_a": sums["broken_a"],
            "not_finite_b": sums["broken_b"],
            "varies": varies.double(),
        }
        for name, column in MEANS.items():
            if name in sums:
                mean = sums[name] / rows
                variance = (squares[name] / rows - mean.square()).clamp(min=0.0)
                found[column] = mean
                found[f"{column}_standard_error"] = (variance / max(rows - 1, 1)).sqrt()
        return {name: value.cpu() for name, value in found.items()}
