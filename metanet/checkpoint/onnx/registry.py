"""Which ONNX operators can be run? One table, filled by one module per class of operator.

A rule is a small function of (run, node, inputs...) that returns a tensor or a tuple of them. A value is either a torch
tensor or *static*: a NumPy array that is known from constants and shapes alone. Shapes, axes and the like arrive
static, so that a graph whose shape arithmetic is done with operators still exports with fixed shapes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from types import MappingProxyType
from typing import Any

__all__ = ["Rule", "operator", "rule_for", "rules"]

CLASSES = (
    "pointwise", "contraction", "shape", "indexing", "reduction", "pooling", "normalization", "resize", "recurrent",
    "control", "quantized", "attention",
)  # fmt: skip
DOMAINS = ("",)


@dataclass(frozen=True)
class Rule:
    """How one operator is run.

    Args:
        function: of (run, node, inputs...).
        static: positions of inputs that are wanted as NumPy arrays: shapes, axes, bounds.
        buffers: positions of inputs that are statistics and no parameters.
        pointwise: whether a number may stand for a tensor of one element.
        either: whether every input is taken as it is, static or not.
    """

    function: Callable[..., Any]
    static: frozenset[int] = frozenset()
    buffers: frozenset[int] = frozenset()
    pointwise: bool = False
    either: bool = False


_TABLE: dict[str, Rule] = {}


def operator(
    *names: str,
    static: tuple[int, ...] = (),
    buffers: tuple[int, ...] = (),
    pointwise: bool = False,
    either: bool = False,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Enter a function for these operators into the table."""

    def enter(function: Callable[..., Any]) -> Callable[..., Any]:
        for name in names:
            if name in _TABLE:
                raise ValueError(f"{name} is entered twice")
            _TABLE[name] = Rule(function, frozenset(static), frozenset(buffers), pointwise, either)
        return function

    return enter


@functools.cache
def rules() -> Mapping[str, Rule]:
    """The whole table."""
    for name in CLASSES:
        import_module(f"metanet.checkpoint.onnx.operators.{name}")
    return MappingProxyType(_TABLE)


def rule_for(domain: str, name: str) -> Rule | None:
    """The rule of an operator, or ``None``."""
    return rules().get(name) if domain in DOMAINS else None
