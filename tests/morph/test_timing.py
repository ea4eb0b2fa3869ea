"""Are networks timed fairly beside each other, and is a latency that was asked for searched for and confirmed?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metanet import morph
from metanet.errors import PlanError
from metanet.morph import Cost, Plan, cost
from metanet.morph.search import Search
from metanet.morph.timing import Spread, Timing, time_together, with_rows
from tests.morph.subjects import network

INPUTS = (torch.zeros(7, 3),)


class Clock:
    """Tells the seconds that networks say they take: no test looks at a real clock."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[str] = []

    def __call__(self) -> float:
        return self.now


class Slow(nn.Module):
    """Takes as long as it is told, one number of seconds after the other."""

    clock: Clock

    def __init__(self, name: str, seconds: Iterator[float]) -> None:
        super().__init__()
        self.name, self.seconds = name, seconds

    def __deepcopy__(self, memo: Any) -> Slow:
        return self

    def forward(self, x: Tensor) -> Tensor:
        self.clock.now += next(self.seconds)
        self.clock.calls.append(f"{self.name}{len(x)}")
        return x


def subjects(*seconds: Iterator[float]) -> tuple[list[nn.Module], Clock]:
    clock = Clock()
    models = [Slow("ab"[number], each) for number, each in enumerate(seconds)]
    for model in models:
        model.clock = clock
    return list(models), clock


def forever(*values: float) -> Iterator[float]:
    while True:
        yield from values


def test_medians_ratios_and_what_they_are_of() -> None:
    models, clock = subjects(forever(0.004), forever(0.002))
    found = time_together(models, INPUTS, seconds=0.2, clock=clock)
    assert [each.median for each in found.calls] == pytest.approx([4, 2])
    assert found.ratios[0] == Spread(1.0, 1.0, 1.0)
    assert found.ratios[1].median == pytest.approx(0.5)
    assert (found.batch, found.rounds, found.threads) == (7, 50, torch.get_num_threads())
    assert Timing.from_json(found.to_json()) == found
    assert "50 rounds in turns, 7 inputs a call" in str(found)


def test_turns_alternate_after_the_warm_up() -> None:
    models, clock = subjects(forever(0.02), forever(0.02))
    time_together(models, INPUTS, batch=2, seconds=0.1, clock=clock)
    told = "".join(clock.calls)
    assert told.startswith("a2a2a2b2b2b2")
    assert told[12:28] == "a2b2b2a2a2b2b2a2"


def test_what_slows_the_machine_meets_both() -> None:
    """A load that comes in the middle moves the medians of networks timed one after the other, not those in turns."""

    def loaded(seconds: float, from_call: int) -> Iterator[float]:
        yield from (seconds for _ in range(from_call))
        yield from forever(10 * seconds)

    models, clock = subjects(loaded(0.01, 30), loaded(0.005, 30))
    found = time_together(models, INPUTS, seconds=0.5, clock=clock)
    assert found.ratios[1].median == pytest.approx(0.5)
    alone = []
    for number in range(2):
        models, clock = subjects(loaded(0.01, 60), loaded(0.005, 0))
        alone.append(time_together([models[number]], INPUTS, seconds=0.5, clock=clock).calls[0].median)
    assert alone[1] / alone[0] > 2  # the negative control: one after the other, the faster network looks slower


def test_an_outlier_moves_no_median() -> None:
    models, clock = subjects(forever(*[0.001] * 9, 1.0), forever(0.001))
    found = time_together(models, INPUTS, seconds=0.2, clock=clock)
    assert found.calls[0].median == pytest.approx(found.calls[1].median) == pytest.approx(1)


def test_rows() -> None:
    x, lengths = torch.arange(3.0)[:, None], torch.tensor(5)
    made = with_rows((x, lengths, "word"), 5)
    assert made[0][:, 0].tolist() == [0, 1, 2, 0, 1]
    assert made[1] is lengths
    assert made[2] == "word"
    fixed = nn.Sequential(nn.Flatten(0), nn.Linear(21, 2))
    with pytest.raises(PlanError, match=r"cannot be run on 4 inputs at once .*; measure with 7"):
        time_together([fixed], INPUTS, batch=4)


class Searched:
    """Widths of a network searched by a made-up latency, with what each measurement adds to it."""

    def __init__(self, *noise: float) -> None:
        self.model, self.inputs, self.spec = network("mlp relu")
        self.noise = forever(*(noise or (0.0,)))
        self.search = Search(
            self.model, self.inputs, self.plan, lambda made: (None, None, 0.0), measure=self.noisy, spec=self.spec
        )

    def plan(self, ratio: float) -> Plan:
        sizes = morph.to_sizes(self.spec, ratio)
        return morph.narrow(self.spec, self.model.state_dict(), sizes)

    def true(self, made: nn.Module) -> Cost:
        """A millisecond for each hundred parameters."""
        found = cost(made, self.inputs)
        return replace(found, latency_ms=found.parameters / 100)

    def noisy(self, made: nn.Module) -> Cost:
        found = self.true(made)
        return replace(found, latency_ms=(found.latency_ms or 0) * (1 + next(self.noise)))


def test_the_widest_network_within_a_latency() -> None:
    searched = Searched()
    before = searched.true(searched.model).latency_ms or 0
    point = searched.search.within("latency_ms", 0.6 * before, least=1e-6)
    tried = [each.cost.latency_ms or 0 for each in searched.search.frontier]
    assert point.cost.latency_ms == max(each for each in tried if each <= 0.6 * before)
    assert searched.search.confirmed("latency_ms", 0.6 * before, point, searched.true).morph is point.morph
    with pytest.raises(PlanError, match=r"asked for, and the network has .* ms a call; ask for less"):
        searched.search.within("latency_ms", 2 * before, least=1e-6)
    with pytest.raises(PlanError, match=r"0\.0001 ms a call cannot be reached; the narrowest network has .* ms"):
        searched.search.within("latency_ms", 1e-4, least=1e-6)


def test_a_lucky_measurement_is_not_believed() -> None:
    """Every measurement of the search is a third too good; what is taken holds when it is measured again."""
    searched = Searched(-1 / 3)
    budget = 0.5 * (searched.true(searched.model).latency_ms or 0)
    point = searched.search.within("latency_ms", budget, least=1e-6)
    assert (searched.true(point.morph.model).latency_ms or 0) > budget
    found = searched.search.confirmed("latency_ms", budget, point, searched.true)
    assert found.cost == searched.true(found.morph.model)
    assert (found.cost.latency_ms or 0) <= budget
    assert found.cost.stored < point.cost.stored
    never = replace(searched.true(searched.model), latency_ms=1e9)
    with pytest.raises(PlanError, match=r"was kept by none of \d networks when measured again"):
        searched.search.confirmed("latency_ms", budget, point, lambda made: never)
