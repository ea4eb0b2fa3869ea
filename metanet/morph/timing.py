"""How long does one call of each of several networks take, measured beside each other, and how far is that from sure?

Networks take turns, so that whatever else the machine does meets all of them alike; what is told is a median, and how
far single rounds lie from it.
"""

from __future__ import annotations

import copy
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from metanet.errors import PlanError, clean

__all__ = ["Spread", "Timing", "time_together", "with_rows"]

WARM_UP = 3
# A round lasts long enough for the clock to tell, and there are enough of them for quartiles.
ROUND_SECONDS, MOST_CALLS = 5e-4, 200
FEWEST_ROUNDS, MOST_ROUNDS = 9, 199

Clock = Callable[[], float]


@dataclass(frozen=True)
class Spread:
    """A median and the quartiles around it: half of all rounds lie between ``low`` and ``high``."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of at least two values."""
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high)

    def __str__(self) -> str:
        return f"{self.median:.3g} [{self.low:.3g}, {self.high:.3g}]"


@dataclass(frozen=True)
class Timing:
    """What was measured of some networks that took turns.

    Args:
        calls: milliseconds of one call, for each network.
        ratios: how many times as long as the first network each takes, from rounds that lie beside each other.
        rounds: how often each had its turn.
        batch: inputs in a call.
        threads: that torch used.
        device: on which they ran.
    """

    calls: tuple[Spread, ...]
    ratios: tuple[Spread, ...]
    rounds: int
    batch: int
    threads: int
    device: str = "cpu"

    def __str__(self) -> str:
        last = f", {self.ratios[-1]} times" if len(self.calls) > 1 else ""
        return f"{' -> '.join(map(str, self.calls))} ms{last} ({self.setting})"

    @property
    def setting(self) -> str:
        """How it was measured, in words."""
        inputs, threads = _counted(self.batch, "input"), _counted(self.threads, "thread")
        return f"median and quartiles of {self.rounds} rounds in turns, {inputs} a call, {threads}, {self.device}"

    def to_json(self) -> dict[str, Any]:
        """A JSON value that :meth:`from_json` reads back."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Timing:
        """The timing that a JSON value describes."""
        spreads = {name: tuple(Spread(**item) for item in value[name]) for name in ("calls", "ratios")}
        return cls(**{**value, **spreads})


def time_together(
    models: Sequence[nn.Module],
    example_inputs: Sequence[Any],
    batch: int | None = None,
    seconds: float = 0.3,
    clock: Clock = time.perf_counter,
) -> Timing:
    """Call networks in turns and take the time.

    Args:
        models: any modules; none is changed. They run in eval mode, without gradients.
        example_inputs: one entry per argument of ``forward``, for all of them.
        batch: inputs in a call; as many as the example has by default.
        seconds: about how long each network runs in all; at least nine rounds, however long they take.
        clock: tells seconds.

    Raises:
        PlanError: if a network cannot be run at this batch size.
    """
    rows = _rows(example_inputs)
    inputs = example_inputs if batch is None or batch == rows else with_rows(example_inputs, batch)
    runners = [copy.deepcopy(model).eval() for model in models]
    with torch.no_grad():
        try:
            single = [min(_seconds(runner, inputs, 1, clock) for _ in range(WARM_UP)) for runner in runners]
        except (RuntimeError, ValueError, IndexError) as error:
            if inputs is example_inputs:
                raise
            reason = f"cannot be run on {batch} inputs at once ({clean(error, 80)})"
            raise PlanError(reason, hint=f"measure with {rows}") from error
        shortest, longest = max(min(single), 1e-9), max(max(single), 1e-9)
        calls = min(max(math.ceil(ROUND_SECONDS / shortest), 1), MOST_CALLS)
        rounds = min(max(int(seconds / (calls * longest)), FEWEST_ROUNDS), MOST_ROUNDS)
        taken: list[list[float]] = [[] for _ in runners]
        for number in range(rounds):
            # Who comes first changes from round to round.
            for place in range(len(runners)):
                turn = (place + number) % len(runners)
                taken[turn].append(1e3 * _seconds(runners[turn], inputs, calls, clock) / calls)
    ratios = [[one / first if first else 1.0 for one, first in zip(times, taken[0], strict=True)] for times in taken]
    return Timing(
        tuple(map(Spread.of, taken)),
        tuple(map(Spread.of, ratios)),
        rounds,
        _rows(inputs),
        torch.get_num_threads(),
        _device(runners),
    )


def with_rows(example_inputs: Sequence[Any], rows: int) -> tuple[Any, ...]:
    """The example with another number of inputs: those that are there, over and over.

    Shapes:
        tensors whose first axis counts inputs: (n, ...) -> (rows, ...); everything else stays
    """
    here = _rows(example_inputs)
    return tuple(
        item[torch.arange(rows) % here] if isinstance(item, Tensor) and item.ndim and item.shape[0] == here else item
        for item in example_inputs
    )


def _rows(example_inputs: Sequence[Any]) -> int:
    return max(next((item.shape[0] for item in example_inputs if isinstance(item, Tensor) and item.ndim), 1), 1)


def _seconds(model: nn.Module, inputs: Sequence[Any], calls: int, clock: Clock) -> float:
    start = clock()
    for _ in range(calls):
        model(*inputs)
    return clock() - start


def _device(models: Sequence[nn.Module]) -> str:
    first = next(models[0].parameters(), None)
    return "cpu" if first is None else first.device.type


def _counted(number: int, word: str) -> str:
    return f"{number} {word}{'s' * (number != 1)}"
