"""Is this mapping of architecture options safe and complete, before any memory is taken for a network?

Options come from files that nobody vouches for, so types are exact (``True`` is no integer, ``3.0`` is no width),
unknown names are refused, and everything has a limit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from metanet.errors import CheckpointError, clean

__all__ = ["ACTIVATIONS", "MAX_DEPTH", "MAX_PARAMETERS", "MAX_WIDTH", "Options"]

ACTIVATIONS = ("relu", "tanh", "gelu", "sin", "identity")
MAX_WIDTH = 1 << 20
MAX_DEPTH = 512
MAX_PARAMETERS = 1 << 30


class Options:
    """Reads options one by one; :meth:`finish` refuses whatever nobody asked for.

    Args:
        family: the family they belong to, for messages.
        options: the raw mapping.
    """

    def __init__(self, family: str, options: object) -> None:
        self.family = family
        if not isinstance(options, Mapping):
            raise self.error("options", type(options).__name__, "a mapping from option name to value")
        self._options = dict(options)
        self._read: list[str] = []

    def error(self, name: str, value: object, expected: str) -> CheckpointError:
        """The error for an option that is not as ``expected``."""
        shown = clean(value if isinstance(value, str) and name == "options" else repr(value), 60)
        return CheckpointError(
            f"architecture family '{self.family}': {clean(name, 80)} is {shown}, expected {expected}",
            hint="correct the architecture",
        )

    def take(self, name: str, default: Any = None, required: bool = True) -> Any:
        """The raw value of ``name``."""
        self._read.append(name)
        if name in self._options:
            return self._options[name]
        if required:
            raise CheckpointError(
                f"architecture family '{self.family}': option '{name}' is missing",
                hint=f"add '{name}' to the architecture's options",
            )
        return default

    def check_integer(self, name: str, value: object, low: int, high: int) -> int:
        """``value`` if it is a true integer between ``low`` and ``high``."""
        if type(value) is not int or not low <= value <= high:
            raise self.error(name, value, f"an integer from {low} to {high}")
        return value

    def integer(self, name: str, low: int = 1, high: int = MAX_WIDTH, default: int | None = None) -> int:
        """An integer option."""
        return self.check_integer(name, self.take(name, default, default is None), low, high)

    def number(self, name: str, low: float, high: float, default: float | None = None) -> float:
        """A real option; whole numbers are taken as real ones."""
        value = self.take(name, default, default is None)
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise self.error(name, value, f"a number from {low:g} to {high:g}")
        return float(value)

    def check_sequence(self, name: str, value: object, longest: int) -> Sequence[Any]:
        """``value`` if it is a list of at most ``longest`` entries."""
        if not isinstance(value, list | tuple):
            raise self.error(name, value, "a list")
        if len(value) > longest:
            raise self.error(f"length of {name}", len(value), f"at most {longest}")
        return value

    def widths(self, name: str = "widths", shortest: int = 0) -> tuple[int, ...]:
        """A list of layer widths."""
        value = self.check_sequence(name, self.take(name), MAX_DEPTH)
        if len(value) < shortest:
            raise self.error(f"length of {name}", len(value), f"at least {shortest}")
        return tuple(self.check_integer(f"{name}[{i}]", width, 1, MAX_WIDTH) for i, width in enumerate(value))

    def check_choice(self, name: str, value: object, choices: Sequence[str]) -> str:
        """``value`` if it is one of ``choices``."""
        if not isinstance(value, str) or value not in choices:
            raise self.error(name, value, "one of " + ", ".join(choices))
        return value

    def choice(self, name: str, choices: Sequence[str], default: str | None = None) -> str:
        """A string option out of ``choices``."""
        return self.check_choice(name, self.take(name, default, default is None), choices)

    def flag(self, name: str, default: bool) -> bool:
        """A boolean option."""
        value = self.take(name, default, required=False)
        if type(value) is not bool:
            raise self.error(name, value, "true or false")
        return value

    def finish(self) -> None:
        """Refuse options that the family does not know."""
        unknown = [name for name in self._options if name not in self._read]
        if unknown:
            raise CheckpointError(
                f"architecture family '{self.family}': unknown option '{clean(unknown[0], 60)}'",
                hint="known options: " + ", ".join(self._read),
            )
