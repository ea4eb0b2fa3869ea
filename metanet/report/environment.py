"""How do templates become pages, and how does a page write a number?"""

from __future__ import annotations

import json
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

__all__ = ["environment"]


def environment() -> Environment:
    """The templates of this package: text is escaped, a name that is not there is an error."""
    made = Environment(
        loader=PackageLoader("metanet.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "number": _number,
        "count": _count,
        "percent": _percent,
        "scientific": _scientific,
        "measured": _measured,
        "size": _size,
        "duration": _duration,
        "indented": _indented,
    }
    return made


def _number(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}".replace("-", "−")


def _count(value: float | None) -> str:
    # A narrow no-break space between thousands reads the same in every language.
    return "–" if value is None else f"{int(value):,}".replace(",", "\u202f")


def _percent(value: float | None, digits: int = 1) -> str:
    return "–" if value is None else f"{100 * value:.{digits}f}\u202f%".replace("-", "−")


def _scientific(value: float | None) -> str:
    return "–" if value is None else f"{value:.1e}"


def _measured(value: Any) -> str:
    """A measured number to four digits, whatever its size; a whole one with its thousands."""
    if value is None or isinstance(value, str):
        return value or "–"
    if isinstance(value, int) or (float(value).is_integer() and abs(value) >= 1000):
        return _count(value)
    if value and not 1e-3 <= abs(value) < 1e5:
        return f"{value:.2e}".replace("-", "−")
    return f"{value:.4g}".replace("-", "−")


def _size(value: int | None) -> str:
    if value is None:
        return "–"
    for unit in ("bytes", "kB", "MB", "GB"):
        if value < 1000 or unit == "GB":
            break
        value = value / 1000  # type: ignore[assignment]
    return f"{value:.0f} {unit}" if unit == "bytes" else f"{value:.1f} {unit}"


def _duration(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.1f} s" if value < 60 else f"{int(value // 60)} min {int(value % 60)} s"


def _indented(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)
