"""How far can a network be brought towards a target while its function stays within a limit?

Every point that is tried is a network that was made and run: its cost and its score stand in the frontier.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from metanet.errors import PlanError
from metanet.morph.apply import Morph, apply
from metanet.morph.cost import Cost, cost
from metanet.morph.edits import Edit
from metanet.morph.plan import Plan
from metanet.morph.structure import Drop, observe

__all__ = ["BUDGETS", "Limit", "Point", "Search", "droppable", "shallower"]

STEPS = 8
# What a network can be brought down to, and how an amount of it is told.
BUDGETS = {
    "parameters": "{:,.0f} parameters",
    "flops": "{:,.0f} floating point operations",
    "latency_ms": "{:.4g} ms a call",
}


@dataclass(frozen=True)
class Limit:
    """What a network must keep.

    Args:
        max_kl: highest divergence from the old network, nats.
        min_agreement: lowest share of inputs on which both decide alike.
    """

    max_kl: float | None = None
    min_agreement: float | None = None

    def allows(self, point: Point) -> bool:
        """Whether a point keeps it."""
        if self.max_kl is not None and not (point.kl is not None and point.kl <= self.max_kl):
            return False
        return self.min_agreement is None or (point.agreement is not None and point.agreement >= self.min_agreement)

    def __str__(self) -> str:
        parts = [] if self.max_kl is None else [f"KL at most {self.max_kl:g}"]
        parts += [] if self.min_agreement is None else [f"agreement at least {self.min_agreement:g}"]
        return " and ".join(parts) or "no limit"


@dataclass(frozen=True, eq=False)
class Point:
    """A network that was tried.

    Args:
        amount: of the change: a ratio of widths, or a number of blocks.
        morph: the network.
        cost: what it costs.
        kl: divergence from the old network, nats; ``None`` where outputs are no distribution.
        agreement: share of inputs on which both decide alike; ``None`` where they decide nothing.
        error: largest change over spread.
    """

    amount: float
    morph: Morph
    cost: Cost
    kl: float | None
    agreement: float | None
    error: float


Score = Callable[[nn.Module], tuple[float | None, float | None, float]]
Measure = Callable[[nn.Module], Cost]


class Search:
    """Tries amounts of one kind of change and keeps what was seen.

    Args:
        model: the network.
        example_inputs: one entry per argument of ``forward``.
        plan: the plan for an amount; a plan without edits stands for the network itself.
        score: divergence, agreement and error of a network against the old one.
        measure: what a network costs; :func:`metanet.morph.cost` by default, which takes no time.
        tried: called with the number of networks after each that was made and run.
        options: of :func:`metanet.morph.apply`.
    """

    def __init__(
        self,
        model: nn.Module,
        example_inputs: Sequence[Any],
        plan: Callable[[float], Plan],
        score: Score,
        measure: Measure | None = None,
        tried: Callable[[int], None] = lambda count: None,
        **options: Any,
    ) -> None:
        self.model, self.example_inputs, self.plan, self.score = model, example_inputs, plan, score
        self.measure: Measure = measure or (lambda made: cost(made, example_inputs))
        self.tried, self.options = tried, options
        self.points: dict[Plan, Point] = {}

    @property
    def frontier(self) -> list[Point]:
        """All points, the largest network first."""
        return sorted(self.points.values(), key=lambda point: -point.cost.stored)

    def at(self, amount: float) -> Point | None:
        """The network at an amount; ``None`` where the amount changes nothing."""
        plan = self.plan(amount)
        if not plan.edits:
            return None
        if plan not in self.points:
            morph = apply(plan, self.model, self.example_inputs, **self.options)
            kl, agreement, error = self.score(morph.model)
            self.points[plan] = Point(amount, morph, self.measure(morph.model), kl, agreement, error)
            self.tried(len(self.points))
        return self.points[plan]

    def smallest(self, target: float, limit: Limit, start: float = 1.0) -> Point | None:
        """The point nearest to ``target`` that a limit allows, by bisection between ``start`` and it.

        Scores need not fall evenly with the amount: what is found keeps the limit, and a smaller network that keeps it
        too may have been stepped over. ``None`` where nothing that was tried keeps it.
        """
        point = self.at(target)
        if point is None or limit.allows(point):
            return point
        good, bad, best = start, target, None
        for _ in range(STEPS):
            middle = (good + bad) / 2
            point = self.at(middle)
            if point is None or limit.allows(point):
                good, best = middle, point or best
            else:
                bad = middle
        return best

    def within(self, what: str, budget: float, least: float, start: float = 1.0) -> Point:
        """The largest network whose cost (a name in :data:`BUDGETS`) is within a budget, by bisection.

        Raises:
            PlanError: if even the smallest amount costs more, or the network costs no more already.
        """
        words, before = BUDGETS[what], getattr(self.measure(self.model), what)
        if before <= budget:
            told = words.format(before)
            raise PlanError(f"{words.format(budget)} asked for, and the network has {told}", hint="ask for less")
        point = self.at(least)
        if point is None or getattr(point.cost, what) > budget:
            smallest = words.format(before if point is None else getattr(point.cost, what))
            raise PlanError(f"{words.format(budget)} cannot be reached", hint=f"the narrowest network has {smallest}")
        good, bad, best = least, start, point
        for _ in range(STEPS + 4):
            middle = (good + bad) / 2
            point = self.at(middle)
            if point is not None and getattr(point.cost, what) <= budget:
                good, best = middle, point
            else:
                bad = middle
        return best

    def confirmed(self, what: str, budget: float, point: Point, measure: Measure) -> Point:
        """The point, or a smaller one, that is within a budget when it is measured once more.

        A search takes the best of many noisy measurements, which is too good on average. This one decides alone; where
        it says no, the next network is a tenth narrower.

        Raises:
            PlanError: if none that was tried is.
        """
        amount, count, seen = point.amount, 0, set()
        for _ in range(STEPS):
            if point.morph.plan not in seen:
                seen.add(point.morph.plan)
                found, count = measure(point.morph.model), count + 1
                if getattr(found, what) <= budget:
                    return replace(point, cost=found)
            amount *= 0.9
            point = self.at(amount) or point
        raise PlanError(
            f"{BUDGETS[what].format(budget)} was kept by none of {count} networks when measured again",
            hint="ask for a little more, or measure while the machine does nothing else",
        )


def droppable(model: nn.Module, example_inputs: Sequence[Any]) -> list[str]:
    """The modules with parameters that keep the shape of their input and lie in no other such module.

    A single linear layer or convolution is no block, even where it keeps the shape: what passes it is no stream.
    """
    found: list[str] = []
    for name, module in model.named_modules():
        if not name or any(name.startswith(f"{other}.") for other in found):
            continue
        if not any(True for _ in module.children()) or not any(True for _ in module.parameters()):
            continue
        try:
            given, out = observe(model, name, example_inputs)
        except PlanError:
            continue  # not called with tensors: no block that a tensor can pass
        if given.shape == out.shape:
            found.append(name)
    return found


def shallower(
    model: nn.Module,
    example_inputs: Sequence[Any],
    count: int,
    score: Score,
    tried: Callable[[int], None] = lambda count: None,
    **options: Any,
) -> Iterator[Point]:
    """Drop blocks one after the other, each time the one without which the function changes least.

    Args:
        model: the network.
        example_inputs: one entry per argument of ``forward``.
        count: how many.
        score: see :class:`Search`; blocks are compared by divergence, or by error where there is none.
        tried: see :class:`Search`.
        options: of :func:`metanet.morph.apply`.

    Raises:
        PlanError: if there are fewer blocks.
    """
    blocks = droppable(model, example_inputs)
    if not 1 <= count <= len(blocks):
        shown = ", ".join(blocks[:6]) or "none"
        raise PlanError(
            f"{count} blocks to drop, and {len(blocks)} that keep the shape of their input ({shown})",
            hint="ask for fewer, or narrow the network",
        )
    chosen: list[Edit] = []
    total = 0
    for number in range(1, count + 1):
        points = []
        for block in blocks:
            if all(block != edit.module for edit in chosen if isinstance(edit, Drop)):
                morph = apply(Plan((*chosen, Drop(block))), model, example_inputs, **options)
                kl, agreement, error = score(morph.model)
                made = cost(morph.model, example_inputs)
                points.append(Point(number, morph, made, kl, agreement, error))
                total += 1
                tried(total)
        best = min(points, key=lambda point: point.error if point.kl is None else point.kl)
        chosen = list(best.morph.plan.edits)
        yield best
