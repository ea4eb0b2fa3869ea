"""Which values may a setting of a zoo take, and how is one drawn?

A range is one mapping with one key, as it stands in YAML, or a constant:

    {choice: [relu, tanh]}            one of these, each equally often
    {uniform: [0.0, 0.9]}             a real number
    {log_uniform: [1.0e-4, 1.0e-1]}   a real number, uniform in its logarithm
    {integer: [1, 3]}                 a whole number, both ends included
    {log_integer: [20, 600]}          a whole number, uniform in its logarithm, both ends included
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from metanet.errors import ConfigError, clean

__all__ = ["Range", "parse_range"]

KINDS = ("choice", "uniform", "log_uniform", "integer", "log_integer")
MAX_CHOICES = 1000


@dataclass(frozen=True)
class Range:
    """A declared set of values with a way to draw from it.

    Args:
        kind: "choice", "uniform", "log_uniform", "integer" or "log_integer".
        values: the choices, or the two ends.
    """

    kind: str
    values: tuple[Any, ...]

    def draw(self, generator: np.random.Generator) -> Any:
        """One value, as a plain Python value."""
        if self.kind == "choice":
            return self.values[int(generator.integers(len(self.values)))]
        low, high = self.values
        match self.kind:
            case "integer":
                return int(generator.integers(low, high + 1))
            case "uniform":
                return float(generator.uniform(low, high))
            case "log_uniform":
                # Rounding in exp and log may step over an end by one unit in the last place.
                return min(max(math.exp(generator.uniform(math.log(low), math.log(high))), low), high)
            case _:
                return min(max(int(math.exp(generator.uniform(math.log(low), math.log(high + 1)))), low), high)

    def draw_many(self, generator: np.random.Generator, count: int) -> list[Any]:
        """``count`` values; choices come equally often, up to one, in random order."""
        if self.kind != "choice":
            return [self.draw(generator) for _ in range(count)]
        rounds = -(-count // len(self.values))
        order = [i for _ in range(rounds) for i in generator.permutation(len(self.values)).tolist()]
        return [self.values[i] for i in order[:count]]

    def __contains__(self, value: object) -> bool:
        if self.kind == "choice":
            return _freeze(value) in self.values
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        if self.kind in ("integer", "log_integer") and not isinstance(value, int):
            return False
        return bool(self.values[0] <= value <= self.values[1])

    def to_json(self) -> Any:
        """The form that :func:`parse_range` reads."""
        return {self.kind: [_thaw(value) for value in self.values]}


def _freeze(value: Any) -> Any:
    return tuple(_freeze(item) for item in value) if isinstance(value, list | tuple) else value


def _thaw(value: Any) -> Any:
    return [_thaw(item) for item in value] if isinstance(value, tuple) else value


def parse_range(where: str, raw: object, low: float = -math.inf, high: float = math.inf) -> Range:
    """The range written as ``raw``.

    Args:
        where: the setting's path in the configuration, for messages.
        raw: a constant, or a mapping with one key as above.
        low: the least value that makes sense for this setting, for numbers.
        high: the greatest.

    Raises:
        ConfigError: if ``raw`` is no range, or reaches outside ``low`` and ``high``.
    """
    if isinstance(raw, Mapping):
        if len(raw) != 1 or next(iter(raw)) not in KINDS:
            keys = clean(", ".join(map(str, raw)) or "nothing", 60)
            raise ConfigError(
                f"a range with keys {keys}, expected exactly one of " + ", ".join(KINDS),
                where=where,
                hint="write for example {uniform: [0.0, 0.9]}, or a constant",
            )
        kind, values = next(iter(raw.items()))
    else:
        kind, values = "choice", [raw]
    if not isinstance(values, Sequence) or isinstance(values, str):
        raise ConfigError(f"{kind} is {clean(repr(values), 60)}, expected a list", where=where)
    values = _freeze(list(values))
    if kind == "choice":
        if not 1 <= len(values) <= MAX_CHOICES:
            raise ConfigError(f"{len(values)} choices, expected 1 to {MAX_CHOICES}", where=where)
        if len(set(map(repr, values))) != len(values):
            raise ConfigError(f"a choice is listed twice in {clean(list(values), 80)}", where=where)
    else:
        _check_ends(where, kind, values)
    for value in values:
        if isinstance(value, int | float) and not isinstance(value, bool) and not low <= value <= high:
            raise ConfigError(f"{value!r} is outside {low:g} to {high:g}", where=where, hint="narrow the range")
    return Range(kind, values)


def _check_ends(where: str, kind: str, values: tuple[Any, ...]) -> None:
    whole = kind in ("integer", "log_integer")
    kinds: tuple[type, ...] = (int,) if whole else (int, float)
    if len(values) != 2 or any(isinstance(v, bool) or not isinstance(v, kinds) for v in values):
        expected = "two whole numbers" if whole else "two numbers"
        raise ConfigError(f"{kind} is {clean(list(values), 60)}, expected {expected} [lowest, highest]", where=where)
    if not all(math.isfinite(v) for v in values) or values[0] > values[1]:
        raise ConfigError(f"{kind} is {list(values)}, expected lowest <= highest, both finite", where=where)
    if kind.startswith("log") and values[0] <= 0:
        raise ConfigError(f"{kind} starts at {values[0]}, expected more than 0", where=where)
