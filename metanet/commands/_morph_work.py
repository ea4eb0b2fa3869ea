"""One network that is to be morphed: which inputs edit and score it, which plans bring it where it was asked for?"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any

from metanet.commands._score_data import read_data
from metanet.commands._terminal import bar

if TYPE_CHECKING:
    from torch import Tensor, nn

    from metanet.checkpoint import Checkpoint
    from metanet.morph import Compensation, Cost, Deepen, Morph, Plan
    from metanet.morph.search import Limit, Point
    from metanet.morph.timing import Timing
    from metanet.score import Preservation
    from metanet.score.certificate import Certificate
    from symmetry import SymmetrySpec

__all__ = ["Work"]

# Seconds for which a network is timed: where many are tried, and where it counts.
SEARCH_SECONDS, LAST_SECONDS = 0.15, 0.6
# Numbers in a network: widening is done in float64, in copies.
LARGEST = 10**9


class Work:
    """One network, the inputs for it, and what can be made of it.

    Args:
        arguments: of the command line.
        checkpoint: the network.
    """

    def __init__(self, arguments: argparse.Namespace, checkpoint: Checkpoint) -> None:
        from metanet.errors import ConfigError
        from metanet.morph import resizable

        self.arguments, self.checkpoint = arguments, checkpoint
        self.model: nn.Module = checkpoint.model()
        self.spec: SymmetrySpec = checkpoint.spec
        self.example = checkpoint.architecture.example_inputs()
        self.labels: Tensor | None = None
        self.edit_labels: Tensor | None = None
        self.timings: dict[nn.Module, Timing] = {}
        self._read_inputs()
        self.ridge = 1e-3
        self.predicted: Compensation | None = None
        if arguments.predict is not None:
            self._predict()
        self.spaces = resizable(self.spec)
        if arguments.spaces is not None:
            self.spaces = tuple(name.strip() for name in arguments.spaces.split(",") if name.strip())
            if not self.spaces:
                raise ConfigError("--spaces names none", hint="name them as metanet inspect does, by commas")

    def _read_inputs(self) -> None:
        """Inputs to edit with, and others to score on."""
        from metanet.errors import ConfigError
        from metanet.score import ProbeInputs

        given = self.arguments
        if given.data is None:
            if given.labels is not None:
                raise ConfigError("--labels without --data", hint="made-up inputs have no labels")
            if given.rows == 1:
                raise ConfigError("--rows 1", hint="one half of the inputs edits, the other scores: give at least two")
            rows = (given.rows or 8192) // 2
            self.scored: Any = ProbeInputs.of(self.checkpoint, rows, given.seed)
            self.origin: str | None = None
            self.batches = [ProbeInputs.of(self.checkpoint, rows, given.seed + 1).tensors()]
            return
        inputs, labels, origin = read_data(self.checkpoint.architecture, given.data, given.labels, given.rows)
        if len(inputs) < 2:
            raise ConfigError(f"{len(inputs)} inputs", where=given.data, hint="give at least two")
        if given.predict is not None:
            # Nothing is edited with data: all of them score.
            self.scored, self.labels, self.origin = inputs, labels, origin
            return
        # Every second input: files are often sorted by class.
        self.batches = [(inputs[1::2],)]
        self.scored, self.labels = inputs[::2], None if labels is None else labels[::2]
        self.edit_labels = None if labels is None else labels[1::2]
        self.origin = f"every second of {origin}"

    def _predict(self) -> None:
        """Inputs to edit with that are made from the weights alone."""
        from metanet.errors import ConfigError
        from metanet.tasks.morph_model import MorphModel

        given = self.arguments
        if given.no_compensation:
            raise ConfigError("--predict with --no-compensation", hint="what is predicted serves to make up for units")
        predictor = MorphModel.open(given.predict)
        self.predicted = predictor.compensation(self.model, self.spec, self.example[0], rounds=given.rounds)
        self.batches, self.ridge = [tuple(batch) for batch in self.predicted.batches or ()], self.predicted.ridge

    def compare(self, model: nn.Module, full: bool) -> Preservation:
        """The score of an edited network."""
        from metanet.score import compare

        options: dict[str, Any] = {} if full else {"layers": None, "line": 0, "resamples": 0}
        return compare(
            self.checkpoint, model, self.scored, self.labels, origin=self.origin, seed=self.arguments.seed, **options
        )

    def score(self, model: nn.Module) -> tuple[float | None, float | None, float]:
        """Divergence, agreement, error."""
        found = self.compare(model, full=False)
        return found.kl, found.agreement, found.error

    @cached_property
    def budget(self) -> tuple[str, float] | None:
        """What the network is to be brought down to, by the name of a cost."""
        given = self.arguments
        asked = {"parameters": given.parameters, "flops": given.flops, "latency_ms": given.latency}
        return next(((name, float(value)) for name, value in asked.items() if value is not None), None)

    def find(self, limit: Limit) -> tuple[Point | None, list[Point]]:
        """The network that was asked for, and all that were tried."""
        from metanet.errors import PlanError

        with bar("networks tried") as move:
            try:
                point, points = self._find(limit, lambda count: move(count, max(count, 12)))
            except PlanError as error:
                if self.arguments.plan is None or error.where:
                    raise
                raise PlanError(error.reason, where=self.arguments.plan, hint=error.hint) from None
        if point is None and not points:
            raise PlanError("changes nothing at this size", where=self.arguments.file, hint="ask for another width")
        # What was measured once more stands in place of what the search had measured.
        return point, [point if point is not None and each.morph is point.morph else each for each in points]

    def _find(self, limit: Limit, tried: Callable[[int], None]) -> tuple[Point | None, list[Point]]:
        from metanet.morph.search import Search, shallower

        given = self.arguments
        if given.depth is not None and given.depth < 0:
            behind = {} if self.compensation is None else {"compensation": self.compensation}
            found = shallower(self.model, self.example, -given.depth, self.score, tried, spec=self.spec, **behind)
            points = list(found)
            allowed = [point for point in points if limit.allows(point)]
            return (allowed[-1] if allowed else None), points
        plan: Callable[[float], Plan] = self.narrowing
        if given.plan is not None:
            plan = self.stored_plan
        elif given.depth is not None or (given.width is not None and given.width > 1):
            plan = self.growing
        options = {"compensation": self.compensation} if self.compensation is not None else {}
        measure = self.timed_cost if given.latency is not None else None
        search = Search(
            self.model, self.example, plan, self.score, measure=measure, tried=tried, spec=self.spec, **options
        )
        if self.budget is not None:
            point: Point | None = search.within(*self.budget, least=1e-6)
            if point is not None and given.latency is not None:
                point = search.confirmed(*self.budget, point, self.confirmed_cost)
            if point is not None and not limit.allows(point):
                point = search.smallest(point.amount, limit)
        elif given.width is not None and given.width <= 1:
            point = search.smallest(given.width, limit)
        else:
            point = search.at(1.0)
            point = point if point is None or limit.allows(point) else None
        return point, search.frontier

    @cached_property
    def compensation(self) -> Compensation | None:
        """How the readers of dropped units are refitted."""
        from metanet.morph import Compensation

        if self.predicted is not None:
            return self.predicted
        return (
            None
            if self.arguments.no_compensation
            else Compensation(self.batches, ridge=self.ridge, rounds=self.arguments.rounds)
        )

    def narrowing(self, ratio: float) -> Plan:
        """The plan for a share of the width."""
        import torch

        from metanet.morph import narrow, narrow_by_obs, to_sizes

        sizes = to_sizes(self.spec, ratio, self.spaces)
        if self.arguments.criterion == "obs":
            return narrow_by_obs(self.model, self.spec, sizes, self.batches, self.ridge)
        generator = torch.Generator().manual_seed(self.arguments.seed)
        return narrow(self.spec, self.checkpoint.state, sizes, self.arguments.criterion, generator)

    def growing(self, _: float) -> Plan:
        """The plan for more units or more blocks."""
        from metanet.errors import PlanError
        from metanet.morph import Insert, Plan, to_sizes, widen
        from metanet.morph.resize import resized_spec
        from metanet.morph.search import droppable

        given = self.arguments
        if given.width is not None:
            sizes = to_sizes(self.spec, given.width, self.spaces)
            spec = resized_spec(self.spec, sizes)
            numbers = sum(math.prod(info.shape) for info in spec.tensors.values())
            if numbers > LARGEST:
                raise PlanError(
                    f"--width {given.width:g}: {numbers:,} numbers, expected at most {LARGEST:,}",
                    where=given.file,
                    hint="ask for less",
                )
            return widen(self.spec, sizes)
        if given.depth < 1:
            raise PlanError("--depth 0", where=given.file, hint="-2 drops two blocks, 2 puts two in")
        blocks = droppable(self.model, self.example)
        if blocks:
            return Plan(tuple(Insert(blocks[-1 - number % len(blocks)], seed=number) for number in range(given.depth)))
        return Plan(tuple(self._layers(given.depth)))

    def _layers(self, number: int) -> list[Deepen]:
        """Identity layers in front of the last layers of a network without blocks, or residual ones behind others."""
        from metanet.errors import PlanError
        from metanet.morph import Deepen, apply

        maps = [name for name, module in self.model.named_modules() if _is_map(module)][1:]
        if len(maps) < number:
            raise PlanError(
                f"--depth {number}: {len(maps)} places for layers", where=self.arguments.file, hint="use --plan"
            )
        found = []
        for name in maps[-number:]:
            try:
                apply(Deepen(name), self.model, self.example, spec=self.spec)
                found.append(Deepen(name))
            except PlanError:
                # Not behind relu: there an identity layer is not exact, and a residual branch is.
                found.append(Deepen(name, residual=True))
        return found

    def stored_plan(self, _: float) -> Plan:
        """The plan in a file."""
        from metanet.errors import PlanError, clean
        from metanet.io import read_json
        from metanet.morph import Plan

        path = self.arguments.plan
        try:
            plan = Plan.from_json(read_json(path))
        except OSError as error:
            raise PlanError(f"cannot be read ({error.strerror})", where=path, hint="check the path") from None
        except ValueError as error:
            raise PlanError(f"is not JSON ({clean(error, 80)})", where=path, hint="give a plan.json") from None
        except PlanError as error:
            raise PlanError(error.reason, where=path, hint=error.hint) from None
        if not plan.edits:
            raise PlanError("the plan has no edits", where=path, hint="give at least one")
        return plan

    def time(self, model: nn.Module, seconds: float) -> Timing:
        """The old network and an edited one in turns."""
        from metanet.morph import timing

        return timing.time_together([self.model, model], self.example, self.arguments.batch, seconds)

    def timing(self, model: nn.Module) -> Timing:
        """The measurement of an edited network that counts: made once."""
        if model not in self.timings:
            self.timings[model] = self.time(model, LAST_SECONDS)
        return self.timings[model]

    def timed_cost(self, model: nn.Module) -> Cost:
        """The cost of a network with its latency, from a short measurement beside the old network."""
        from dataclasses import replace

        from metanet.morph import cost

        return replace(cost(model, self.example), latency_ms=self.time(model, SEARCH_SECONDS).calls[1].median)

    def confirmed_cost(self, model: nn.Module) -> Cost:
        """The same from the measurement that counts."""
        from dataclasses import replace

        from metanet.morph import cost

        return replace(cost(model, self.example), latency_ms=self.timing(model).calls[1].median)

    def certificate(self, morph: Morph) -> Certificate:
        """What was done, what it did, what it costs now."""
        import importlib.metadata
        from dataclasses import replace

        from metanet.morph import cost
        from metanet.score.certificate import Certificate

        before, after = (
            replace(cost(model, self.example), latency_ms=call.median).to_json()
            for model, call in zip((self.model, morph.model), self.timing(morph.model).calls, strict=True)
        )
        versions = {name: importlib.metadata.version(name) for name in ("metanet", "torch")}
        return Certificate(morph.plan.to_json(), self.compare(morph.model, full=True), before, after, versions)


def _is_map(module: nn.Module) -> bool:
    from torch import nn

    return isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)
