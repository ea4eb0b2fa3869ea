"""How do commands speak? Tables for people, JSON for programs, a progress bar only where somebody watches."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from metanet.errors import clean

T = TypeVar("T")


def print_json(value: Any) -> None:
    """`value` as JSON on stdout. Numbers that JSON has no word for become null."""
    print(json.dumps(_standard(value), indent=2, ensure_ascii=False, allow_nan=False))


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]], indent: str = "") -> str:
    """Rows under their columns, as wide as they need to be; numbers stand to the right.

    >>> print(table(["space", "units"], [["h1", 32], ["head", 8]]))
    space  units
    h1        32
    head       8
    """
    rows = [list(row) for row in rows]
    text = [[cell(value) for value in row] for row in rows]
    widths = [max([len(name), *(len(row[i]) for row in text)]) for i, name in enumerate(columns)]
    kinds = [{_is_number(row[i]) for row in rows if row[i] is not None} for i in range(len(columns))]
    right = [kind == {True} for kind in kinds]

    def line(cells: Sequence[str]) -> str:
        return (
            indent
            + "  ".join(c.rjust(w) if r else c.ljust(w) for c, w, r in zip(cells, widths, right, strict=True)).rstrip()
        )

    return "\n".join([line(list(columns)), *(line(row) for row in text)])


def cell(value: Any) -> str:
    """One value as a table shows it."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) >= 1e4 or 0 < abs(value) < 1e-3 else f"{value:.4f}"
    return str(value)


def watched() -> bool:
    """Whether a terminal is attached where progress is shown."""
    return sys.stderr.isatty()


def progress(items: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
    """`items`, with a progress bar on stderr if a terminal is attached."""
    if not watched():
        yield from items
        return
    from tqdm import tqdm

    yield from tqdm(items, desc=label, total=total, leave=False, dynamic_ncols=True)


def share(text: str) -> float:
    """An argument from 0 to 1."""
    return number(text, "a number from 0 to 1", lambda value: 0 <= value <= 1)


def above_zero(text: str) -> float:
    """An argument above 0."""
    return number(text, "a number above 0", lambda value: 0 < value < math.inf)


def not_negative(text: str) -> float:
    """An argument of at least 0."""
    return number(text, "a number of at least 0", lambda value: 0 <= value < math.inf)


def positive(text: str) -> int:
    """An argument that is a whole number, 1 or more."""
    return int(number(text, "a whole number, 1 or more", lambda value: value >= 1, int))


def count(text: str) -> int:
    """An argument that is a whole number, 0 or more."""
    # Generators take no larger seed.
    return int(number(text, "a whole number, 0 or more, below 2**63", lambda value: 0 <= value < 2**63, int))


def number(text: str, expected: str, fits: Callable[[float], bool], kind: Callable[[str], float] = float) -> float:
    """An argument that is a number of some kind.

    Raises:
        ArgumentTypeError: Saying what was given and what was expected.
    """
    try:
        value = kind(text)
        known = fits(value) and not math.isnan(value)
    except (ValueError, OverflowError):  # no number at all, or a whole one beyond every float
        known = False
    if not known:
        raise argparse.ArgumentTypeError(f"{clean(text, 40)} given, expected {expected}")
    return value


@contextmanager
def bar(label: str) -> Iterator[Callable[[int, int], None]]:
    """A function of (done, total) that moves a progress bar on stderr, if a terminal is attached."""
    if not watched():
        yield lambda done, total: None
        return
    from tqdm import tqdm

    with tqdm(desc=label, leave=False, dynamic_ncols=True) as shown:

        def move(done: int, total: int) -> None:
            shown.total = total
            shown.update(done - shown.n)

        yield move


def say(text: str = "") -> None:
    """A line for the person who waits: on stderr, so that stdout holds results only."""
    print(text, file=sys.stderr, flush=True)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _standard(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _standard(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_standard(item) for item in value]
    if hasattr(value, "item") and not isinstance(value, str | bytes) and getattr(value, "ndim", 1) == 0:
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
