"""Which operations have a rule? One table from ATen operations to rules, filled by one module per class of operation.

A rule answers twice: ``axes`` in the first walk (which axes are the same), ``gauge`` in the second (what happens to
scalings and signs). What is not in the table is pinned and named in ``spec.pinned``.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from symmetry.trace.export import Node

__all__ = ["Rule", "register", "rule_for", "rule_table", "rules_as_markdown"]

_TABLE: dict[str, Rule] = {}
_CLASSES = (
    "contraction",
    "elementwise",
    "normalization",
    "pointwise",
    "pooling",
    "positions",
    "reduction",
    "selection",
    "shape",
)


class Rule(Protocol):
    """What the two walks ask of a class of operations; ``summary`` is its row in the table of rules."""

    @property
    def summary(self) -> str:
        """What happens to the group, in a few words."""
        ...

    def axes(self, walk: Any, node: Node) -> Any:
        """First walk: join and cut axes; return the value (or tuple of values) of the node."""
        ...

    def gauge(self, walk: Any, node: Node) -> Any:
        """Second walk: emit rows; return the expressions of the node."""
        ...


def register(rule: Rule, *operations: str) -> None:
    """Enter a rule for ATen operations such as ``aten.relu.default``.

    Raises:
        ValueError: if an operation already has a rule.
    """
    for operation in operations:
        if operation in _TABLE:
            raise ValueError(f"{operation} already has the rule {type(_TABLE[operation]).__name__}")
        _TABLE[operation] = rule


@cache
def _load() -> dict[str, Rule]:
    # One module imported by hand fills a part of the table, so that its being filled says nothing.
    for name in _CLASSES:
        import_module(f"{__name__}.{name}")
    return _TABLE


def rule_for(operation: str) -> Rule | None:
    """The rule of an operation, or ``None``."""
    return _load().get(operation)


def rule_table() -> list[tuple[str, str, str]]:
    """All rules as rows: class of operation, ATen operation, what happens to the group."""
    return sorted((type(rule).__name__, operation, rule.summary) for operation, rule in _load().items())


def rules_as_markdown() -> str:
    """All rules as a Markdown table, operations of one rule in one row."""
    rows: dict[tuple[str, str], list[str]] = {}
    for kind, operation, summary in rule_table():
        name = operation.removeprefix("aten.").split(".")[0]
        found = rows.setdefault((kind, summary), [])
        if name not in found:
            found.append(name)
    lines = ["| rule | operations | what happens to the group |", "| --- | --- | --- |"]
    for (kind, text), names in rows.items():
        lines.append(f"| {kind} | {', '.join(f'`{name}`' for name in names)} | {text} |")
    return "\n".join(lines)
