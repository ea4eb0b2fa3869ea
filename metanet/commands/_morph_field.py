"""Which network of a weight field stands in for a checkpoint, at the sizes or within the budget that was asked for?"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metanet.commands._field_data import sizes_by_name
from metanet.commands._terminal import bar, table

if TYPE_CHECKING:
    from torch import nn

    from metanet.commands._morph_work import Work
    from metanet.fields import StoredField
    from metanet.fields.budget import BudgetSearch, Choice, Tried
    from metanet.morph.search import Limit, Point
    from metanet.score.certificate import Certificate

__all__ = ["FieldWork", "check_options", "field_text"]

# Statistics and scores are averages over this many inputs: more change neither by what matters here.
MOST_INPUTS = 2048
TRIES = 100


def check_options(given: argparse.Namespace) -> None:
    """Whether the options go together: a field writes weights, a plan edits them.

    Raises:
        ConfigError: with the first that does not.
    """
    from metanet.errors import ConfigError

    if given.field is None:
        for name in ("sizes", "extrapolate", "tries"):
            if getattr(given, name):
                raise ConfigError(f"--{name} without --field", hint="name a folder that metanet field fit wrote")
        return
    edits = {
        "--depth": given.depth is not None,
        "--plan": given.plan is not None,
        "--predict": given.predict is not None,
        "--criterion": given.criterion != "obs",
        "--no-compensation": given.no_compensation,
        "--rounds": given.rounds > 0,
    }
    for option, is_given in edits.items():
        if is_given:
            raise ConfigError(f"--field with {option}", hint="a field writes the weights; nothing is edited then")
    if given.tries is not None and (given.width is not None or given.sizes is not None):
        raise ConfigError("--tries without a budget", hint="give --parameters, --flops or --latency-ms")


class FieldWork:
    """A field, and the checkpoint that one of its networks stands in for.

    Args:
        work: the checkpoint and the inputs for it.

    Raises:
        FieldError: if the folder is none of a field, or that of another architecture.
    """

    def __init__(self, work: Work) -> None:
        from metanet.errors import FieldError
        from metanet.fields import open_field
        from metanet.fields.fitting import check_finite, check_sizes, check_spec

        self.work, self.folder = work, Path(work.arguments.field)
        self.stored: StoredField = open_field(self.folder)
        field = self.stored.field
        try:
            check_spec(field.spec, work.spec)
            field.check_model(work.model)
        except FieldError as error:
            raise FieldError(error.reason, where=self.folder, hint=error.hint) from None
        check_finite({name: tensor.detach() for name, tensor in field().items()}, self.folder)
        self.spaces = self.stored.spaces
        if work.arguments.spaces is not None:
            check_sizes(field.spec, dict.fromkeys(work.spaces, 1))
            self.spaces = work.spaces
        self.told: dict[str, Any] = {}

    def find(self, limit: Limit) -> tuple[Point | None, list[Point]]:
        """The network that was asked for, and all that were tried; nothing if a limit does not allow it."""
        from dataclasses import replace

        from metanet.fields.fitting import check_numbers, check_range, check_sizes, sizes_of
        from metanet.morph import written

        given, spec, search = self.work.arguments, self.stored.field.spec, self._search()
        if self.work.budget is not None:
            with bar("networks tried") as move:
                search.progress = move
                choice: Choice = search.within(*self.work.budget)
        else:
            if given.sizes is not None:
                sizes = sizes_by_name(given.sizes)
                check_sizes(spec, sizes)
            else:
                sizes = sizes_of(spec, given.width, self.spaces)
            if not given.extrapolate:
                check_range(spec, sizes, self.stored.widths)
            check_numbers(spec, sizes)
            choice = search.at(sizes)
        morph = written(
            self.work.model, choice.model, self.work.example, self.work.spec, choice.chosen.sizes, "a field"
        )
        if choice.model in self.work.timings:
            # The measurement that has decided is the one that is told.
            self.work.timings[morph.model] = self.work.timings[choice.model]
        point = replace(self._point(choice.chosen, choice.model), morph=morph)
        kl, agreement, error = self.work.score(morph.model)
        point = replace(point, kl=kl, agreement=agreement, error=error)
        points = [
            point if each.sizes == choice.chosen.sizes else self._point(each, choice.model) for each in choice.tried
        ]
        self._tell(search, choice)
        return (point if limit.allows(point) else None), points

    def _search(self) -> BudgetSearch:
        from metanet.commands._morph_work import SEARCH_SECONDS
        from metanet.errors import FieldError
        from metanet.fields.budget import BudgetSearch
        from metanet.fields.judge import Judge
        from metanet.morph import recalibrate

        given, work, field = self.work.arguments, self.work, self.stored.field
        low, high = self.stored.widths
        if given.extrapolate:
            low = min(low, 1 / max(field.layout.full.values()))
        judge, batches = None, []
        if given.data is not None:
            rows = work.batches[0][0][:MOST_INPUTS]
            try:
                judge = Judge(work.model, rows, None if work.edit_labels is None else work.edit_labels[:MOST_INPUTS])
            except FieldError as error:
                raise FieldError(error.reason, where="--data", hint=error.hint) from None
            batches = [(part,) for part in rows.split(256) if len(part) > 1] if field.statistics() else []
        self.settled = sum(len(part) for (part,) in batches)

        def settle(made: nn.Module) -> None:
            if batches:
                recalibrate(made, batches)

        return BudgetSearch(
            field,
            work.model,
            work.example,
            self.spaces,
            (low, high),
            judge,
            settle,
            lambda made: work.time(made, SEARCH_SECONDS).calls[1].median,
            lambda made: work.timing(made).calls[1].median,
            given.tries or TRIES,
        )

    def _point(self, tried: Tried, model: nn.Module) -> Point:
        """What the page shows of a network that was tried: its sizes, its cost, its score on the validation inputs."""
        from metanet.morph import Morph, Plan, Written
        from metanet.morph.resize import resized_spec
        from metanet.morph.search import Point
        from metanet.morph.undo import Difference

        work, verdict = self.work, tried.verdict
        plan = Plan(tuple(Written(space, size, "a field") for space, size in tried.sizes.items()))
        spec, error = resized_spec(work.spec, tried.sizes), float("nan") if verdict is None else verdict.value
        sketch = Morph(model, spec, plan, (), error, error, work.model, (), (), Difference({}, {}))
        kl, agreement = (None, None) if verdict is None else (verdict.kl, verdict.agreement)
        return Point(self.stored.field.width(self._all(tried)), sketch, tried.cost, kl, agreement, error)

    def _all(self, tried: Tried) -> dict[str, int]:
        return {**self.stored.field.layout.full, **tried.sizes}

    def _tell(self, search: BudgetSearch, choice: Choice) -> None:
        field = self.stored.field
        statistics = "none"
        if field.statistics():
            statistics = (
                f"estimated on {self.settled} inputs" if self.settled else "stored with the field, interpolated"
            )
        self.told = {
            "folder": str(self.folder),
            "kind": field.kind,
            "stored": field.stored,
            "widths": list(self.stored.widths),
            "full_width": self._scored(search.network({})),
            "statistics": statistics,
            "validation": None if search.judge is None else len(search.judge.inputs),
            "by": None if choice.chosen.verdict is None else choice.chosen.verdict.by,
            "whole": choice.whole,
            "chosen": choice.chosen.to_json(),
            "uniform": choice.uniform.to_json(),
            "search": [each.to_json() for each in choice.tried],
        }
        if choice.uniform.sizes != choice.chosen.sizes:
            self.told["uniform_scored"] = self._scored(search.network(choice.uniform.sizes))
        self.certified = {name: self.told[name] for name in ("kind", "stored", "full_width", "statistics", "search")}

    def _scored(self, model: nn.Module) -> dict[str, float | None]:
        return dict(zip(("kl", "agreement", "error"), self.work.score(model), strict=True))

    def certificate(self, given: Certificate) -> Certificate:
        """A certificate that says how the sizes were chosen, and how far the field's full width is from the network."""
        from dataclasses import replace

        return replace(given, plan={**given.plan, "field": self.certified})


def field_text(told: dict[str, Any]) -> list[str]:
    """What a field has to do with the network that came out, for people."""
    low, high = told["widths"]
    lines = [
        f"by the field {told['folder']} ({told['kind']}, {told['stored']:,} numbers, widths {low:g} to {high:g})",
        f"  its own network of full width: {_distance(told['full_width'])} from the checkpoint",
    ]
    if told["statistics"] != "none":
        lines.append(f"  running statistics: {told['statistics']}")
    if told["whole"] and len(told["search"]) == 1:
        lines.append("  the budget allows the widest network of this range")
    if told["validation"] is not None and len(told["search"]) > 1:
        lines += [
            "",
            f"{len(told['search'])} networks tried within the budget, by {told['by']} on {told['validation']} inputs "
            "that do not score; below are those that the search went on from, -> is what was taken",
            _search_table(told),
        ]
    if "uniform_scored" in told:
        lines.append(f"  with uniform sizes, on the inputs that score: {_distance(told['uniform_scored'])}")
    return lines


def _search_table(told: dict[str, Any]) -> str:
    chosen = told["chosen"]
    spaces = list(chosen["sizes"])[:8]
    columns = ["", "move", *spaces, "parameters", "flops", "KL", "agreement", "loss", "accuracy"]
    rows = []
    for each in told["search"]:
        is_chosen = each["sizes"] == chosen["sizes"]
        if is_chosen or each["taken"]:
            cells = [each[name] for name in ("parameters", "flops", "kl", "agreement", "loss", "accuracy")]
            rows.append(["->" if is_chosen else "", each["move"], *(each["sizes"][name] for name in spaces), *cells])
    return table(columns, rows, "  ")


def _distance(score: dict[str, float | None]) -> str:
    parts = [f"KL {score['kl']:.3g}"] if score["kl"] is not None else []
    parts += [f"agreement {score['agreement']:.1%}"] if score["agreement"] is not None else []
    return ", ".join(parts or [f"error {score['error']:.3g} of the spread"])
