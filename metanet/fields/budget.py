"""Which sizes do the spaces of a field's network get within a budget, and which networks were tried to tell?

Uniform sizes are the widest share of all spaces that the budget allows. From there the budget is moved between spaces:
each in turn gets twice or half its share, later smaller factors, and all others give or take what that costs, so that
every network that is tried is within the budget and hardly below it. From a network that does better on validation
inputs the search goes on (compass search: Kolda, Lewis and Torczon, SIAM Review 45, 2003, section 3). It can afford to
try many, since a field writes each in milliseconds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from metanet.errors import FieldError
from metanet.fields.drafts import Drafts
from metanet.fields.field import Field
from metanet.fields.fitting import check_sizes
from metanet.fields.judge import Judge, Verdict
from metanet.morph import Cost, cost, to_sizes
from metanet.morph.cost import flops
from metanet.morph.resize import resized_spec
from metanet.morph.search import BUDGETS

__all__ = ["BudgetSearch", "Choice", "Tried"]

# Factors by which the share of one space is changed: from 2 down to about 1.06.
FIRST_STEP, LAST_STEP = math.log(2), math.log(1.06)
# Bisection to a relative width of about 1e-4, and to 1e-2 where every step is a measurement.
HALVINGS, MEASURED_HALVINGS = 15, 8
# Candidates and, after them, narrower networks that are measured once more before a latency is given up.
MOST_CONFIRMED = 5
AGAIN = 0.9

Measure = Callable[[nn.Module], float]


@dataclass(frozen=True, eq=False)
class Tried:
    """A network that was written and run.

    Args:
        sizes: units of the spaces that vary.
        cost: counted on it; with a latency where one was measured.
        verdict: on the validation inputs, if there are any.
        move: what it came from, in words.
        taken: whether the search went on from it.
    """

    sizes: Mapping[str, int]
    cost: Cost
    verdict: Verdict | None
    move: str
    taken: bool = False

    def to_json(self) -> dict[str, Any]:
        """A JSON value."""
        told = {} if self.verdict is None else self.verdict.to_json()
        return {"sizes": dict(self.sizes), "move": self.move, "taken": self.taken, **self.cost.to_json(), **told}


@dataclass(frozen=True, eq=False)
class Choice:
    """What a search has found.

    Args:
        chosen: within the budget; of those tried, that which does best on the validation inputs.
        uniform: the widest network within the budget whose spaces all have the same share.
        model: the chosen network.
        tried: all, in their order; of the same sizes once.
        whole: whether the budget allows the widest network of the range.
    """

    chosen: Tried
    uniform: Tried
    model: nn.Module
    tried: tuple[Tried, ...]
    whole: bool


class BudgetSearch:
    """Tries networks of a field.

    Args:
        field: that writes them.
        model: of the field's architecture at full width.
        example_inputs: one entry per argument of ``forward``.
        spaces: whose sizes vary; the others stay at full width.
        widths: lowest and highest share of the full width.
        judge: of networks; sizes are uniform if there is none.
        settle: what is done to every network before it is judged, in place: statistics estimated again.
        measure: milliseconds of one call, from a short measurement; for a budget of latency.
        confirm: the same from a measurement that counts.
        tries: how many networks are judged at most.
        progress: called with the number of networks that were judged, and the most there can be.
    """

    def __init__(
        self,
        field: Field,
        model: nn.Module,
        example_inputs: Sequence[Any],
        spaces: Sequence[str],
        widths: tuple[float, float],
        judge: Judge | None = None,
        settle: Callable[[nn.Module], None] = lambda made: None,
        measure: Measure | None = None,
        confirm: Measure | None = None,
        tries: int = 100,
        progress: Callable[[int, int], None] = lambda done, most: None,
    ) -> None:
        check_sizes(field.spec, dict.fromkeys(spaces, 1))
        field.check_model(model)
        if not spaces or not 0 < widths[0] <= widths[1] < math.inf:
            raise FieldError(
                f"spaces {', '.join(spaces) or 'none'}, widths {widths}", hint="expected a range to search"
            )
        self.field, self.model, self.example_inputs = field, model, tuple(example_inputs)
        self.spaces, self.widths, self.judge, self.settle = tuple(spaces), widths, judge, settle
        self.measure, self.confirm, self.tries, self.progress = measure, confirm or measure, tries, progress
        self.drafts = Drafts(field, model, example_inputs)
        self._amounts: dict[tuple[str, tuple[int, ...]], float] = {}

    def within(self, what: str, budget: float) -> Choice:
        """The network for a budget.

        Args:
            what: ``parameters``, ``flops`` or ``latency_ms``.
            budget: of it, at most.

        Raises:
            FieldError: if even the smallest network of the range costs more, or none was fast enough when measured
                again.
        """
        if what not in BUDGETS:
            raise FieldError(f"a budget of {what!r}", hint=f"expected one of {', '.join(BUDGETS)}")
        smallest = self._sizes({}, 0.0)
        least = self._amount(what, smallest)
        if not least <= budget:  # a budget that is no number is none
            narrower = "; ask with --extrapolate for narrower ones" if max(smallest.values()) > 1 else ""
            raise FieldError(
                f"{BUDGETS[what].format(budget)} cannot be reached",
                hint=f"the smallest network within widths {self.widths[0]:.2g} to {self.widths[1]:g} has "
                f"{BUDGETS[what].format(least)}{narrower}",
            )
        self.drafts.check(smallest)
        sizes = self._widest(what, budget, {})
        uniform = replace(self._tried(sizes, "uniform"), taken=True)
        tried = [uniform, *(self._exchange(*self._counted(what, budget, sizes), uniform) if self.judge else ())]
        by_score = sorted(tried, key=lambda each: each.verdict.value if each.verdict else 0.0)  # uniform first in ties
        if what == "latency_ms":
            chosen, made, tried = self._confirmed(budget, by_score, uniform, tried)
        else:
            chosen = by_score[0]
            made = self.network(chosen.sizes)
        verdict = None if self.judge is None else self.judge(made)
        if self.drafts.hold and verdict is not None and chosen.verdict is not None and not verdict.like(chosen.verdict):
            # Somewhere on the way drafts were other networks than those that were meant.
            self.drafts.hold = False
            self._amounts.clear()
            return self.within(what, budget)
        whole = sizes == self._sizes({}, math.inf)
        return Choice(replace(chosen, taken=True), uniform, made, tuple(tried), whole)

    def at(self, sizes: Mapping[str, int]) -> Choice:
        """The network of given sizes; nothing is searched.

        Raises:
            FieldError: if there is no such network.
        """
        self.drafts.hold = False
        found = replace(self._tried(sizes, "as asked"), taken=True)
        return Choice(found, found, self.network(sizes), (found,), False)

    def network(self, sizes: Mapping[str, int]) -> nn.Module:
        """The network of some sizes, an ordinary module; full width where nothing is said.

        Raises:
            FieldError: if there is no such network.
        """
        made = self.drafts.exact(sizes)
        self.settle(made)
        return made

    def _exchange(self, what: str, budget: float, uniform: Tried) -> Iterator[Tried]:
        """Networks that are tried after the uniform one."""
        shares, best, step = dict.fromkeys(self.spaces, 0.0), uniform, FIRST_STEP
        seen, done = {tuple(uniform.sizes.values())}, 1
        while step >= LAST_STEP and len(self.spaces) > 1:
            better = False
            for space, sign in ((space, sign) for space in self.spaces for sign in (1, -1)):
                if done >= self.tries:
                    return
                moved = {**shares, space: shares[space] + sign * step}
                sizes = self._widest(what, budget, moved)
                if tuple(sizes.values()) in seen:
                    continue
                seen.add(tuple(sizes.values()))
                found = self._moved(sizes, f"{space} x{math.exp(sign * step):.2g}", best)
                if found is None:
                    continue
                done += 1
                self.progress(done, max(self.tries, done))
                if found.taken:
                    # As they are after rounding and at the ends of the range, so that the next step does something.
                    shares = {name: math.log(size / self.field.layout.full[name]) for name, size in sizes.items()}
                    best, better = found, True
                yield found
            if not better:
                step /= 2
        # What rounding has left of the budget: single units.
        for space in self.spaces * 2:
            sizes = {**best.sizes, space: best.sizes[space] + 1}
            fits = sizes[space] <= self._sizes({}, math.inf)[space] and self._amount(what, sizes) <= budget
            if done < self.tries and fits and tuple(sizes.values()) not in seen:
                seen.add(tuple(sizes.values()))
                found = self._moved(sizes, f"{space} +1", best)
                if found is not None:
                    done += 1
                    best = found if found.taken else best
                    yield found

    def _moved(self, sizes: Mapping[str, int], move: str, best: Tried) -> Tried | None:
        """A network that is tried beside the best one so far; nothing where spaces only change together."""
        try:
            found = self._tried(sizes, move)
        except FieldError:
            return None
        better = found.verdict is not None and best.verdict is not None and found.verdict.value < best.verdict.value
        return replace(found, taken=better)

    def _confirmed(
        self, budget: float, by_score: Sequence[Tried], uniform: Tried, tried: Sequence[Tried]
    ) -> tuple[Tried, nn.Module, list[Tried]]:
        """The best network that is fast enough in the measurement that counts; narrower uniform ones after those."""
        if self.confirm is None:
            raise FieldError("a budget of latency without a measurement", hint="pass measure")
        ahead = [each for each in by_score if each.verdict is not None][:MOST_CONFIRMED]
        if uniform not in ahead:
            ahead.append(uniform)
        ratio, count = self._ratio(uniform.sizes), 0
        more: list[Tried] = []
        seen = {tuple(each.sizes.values()) for each in tried}
        while True:
            if ahead:
                here = ahead.pop(0)
            else:
                ratio *= AGAIN
                sizes = self._sizes({}, ratio)
                if tuple(sizes.values()) in seen and sizes == self._sizes({}, 0.0):
                    break
                if tuple(sizes.values()) in seen:
                    continue
                seen.add(tuple(sizes.values()))
                here = self._tried(sizes, "narrower")
                more.append(here)
            count += 1
            made = self.network(here.sizes)
            taken = self.confirm(made)
            if taken <= budget:
                found = replace(here, cost=replace(here.cost, latency_ms=taken))
                return found, made, [found if each is here else each for each in (*tried, *more)]
        raise FieldError(
            f"{BUDGETS['latency_ms'].format(budget)} was kept by none of {count} networks when measured again",
            hint="ask for a little more, or measure while the machine does nothing else",
        )

    def _counted(self, what: str, budget: float, uniform: Mapping[str, int]) -> tuple[str, float]:
        """The budget that candidates are held to: in place of a latency, which has noise, the operations."""
        return (what, budget) if what != "latency_ms" else ("flops", self._amount("flops", uniform))

    def _widest(self, what: str, budget: float, shares: Mapping[str, float]) -> dict[str, int]:
        """The largest sizes in these proportions within a budget, by bisection; costs must rise with sizes."""
        spread = max((abs(share) for share in shares.values()), default=0.0)
        low, high = math.log(self.widths[0]) - spread, math.log(self.widths[1]) + spread
        best = self._sizes(shares, math.exp(high))
        if self._amount(what, best) <= budget:
            return best
        best = self._sizes(shares, math.exp(low))
        for _ in range(MEASURED_HALVINGS if what == "latency_ms" else HALVINGS):
            middle = (low + high) / 2
            sizes = self._sizes(shares, math.exp(middle))
            if self._amount(what, sizes) <= budget:
                low, best = middle, sizes
            else:
                high = middle
        return best

    def _sizes(self, shares: Mapping[str, float], ratio: float) -> dict[str, int]:
        """Sizes of the varying spaces at a share of the full width, each with its own factor, within the range."""
        found: dict[str, int] = {}
        for space in self.spaces:
            own = ratio * math.exp(shares.get(space, 0.0))
            found |= to_sizes(self.field.spec, min(max(own, self.widths[0]), self.widths[1]), (space,))
        return found

    def _ratio(self, sizes: Mapping[str, int]) -> float:
        return max(size / self.field.layout.full[space] for space, size in sizes.items())

    def _amount(self, what: str, sizes: Mapping[str, int]) -> float:
        key = (what, tuple(sizes.values()))
        if key not in self._amounts:
            if what == "parameters":
                tensors = resized_spec(self.field.spec, sizes).tensors.values()
                numbers = (math.prod(info.shape) for info in tensors if not info.buffer and info.tied_to is None)
                self._amounts[key] = float(sum(numbers))
            elif what == "flops":
                self._amounts[key] = float(flops(self.drafts.make(sizes), self.example_inputs))
            elif self.measure is None:
                raise FieldError("a budget of latency without a measurement", hint="pass measure")
            else:
                self._amounts[key] = self.measure(self.drafts.make(sizes))
        return self._amounts[key]

    def _tried(self, sizes: Mapping[str, int], move: str) -> Tried:
        made = self.drafts.make(sizes)
        self.settle(made)
        counted = cost(made, self.example_inputs)
        latency = self._amounts.get(("latency_ms", tuple(sizes.values())))
        verdict = None if self.judge is None else self.judge(made)
        return Tried(sizes, replace(counted, latency_ms=latency), verdict, move)
