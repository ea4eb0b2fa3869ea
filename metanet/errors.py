"""Which errors does metanet raise at its boundary, and how do they read?

Every message is one line: where (file, tensor or option), what is wrong, and after a semicolon what to do. Text that
comes from a file is cleaned of line breaks and control characters, so that a hostile name cannot forge a second line
or a terminal command.
"""

from __future__ import annotations

import os

__all__ = [
    "CheckpointError",
    "ConfigError",
    "FieldError",
    "GraphError",
    "MetanetError",
    "ModelError",
    "PlanError",
    "ScoreError",
    "TaskError",
    "TrainError",
    "ZooError",
    "clean",
]

MAX_TEXT = 400


def clean(value: object, limit: int = MAX_TEXT) -> str:
    r"""``value`` as printable text on one line of at most ``limit`` characters.

    >>> print(clean("a\nb"))
    a\nb
    """
    text = str(value)
    shown = text[: limit + 1]
    printable = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in shown)
    return printable if len(printable) <= limit else printable[: limit - 3] + "..."


class MetanetError(Exception):
    """Base class of every error raised by :mod:`metanet`.

    Args:
        reason: what is wrong, with the value met and the value expected.
        hint: what the user can do about it.
        where: the file, option or object that the reason is about.
    """

    def __init__(self, reason: str, *, hint: str = "", where: str | os.PathLike[str] = "") -> None:
        self.reason = clean(reason)
        self.hint = clean(hint)
        self.where = clean(os.fspath(where))
        super().__init__(self._line())

    def _place(self) -> str:
        return self.where

    def _line(self) -> str:
        place = self._place()
        line = f"{place}: {self.reason}" if place else self.reason
        return f"{line}; {self.hint}" if self.hint else line

    def __str__(self) -> str:
        return self._line()


class CheckpointError(MetanetError):
    """A file is no checkpoint that can be read, or does not fit its architecture.

    Args:
        reason: what is wrong.
        hint: what to do.
        file: the file that was being read or written.
        tensor: the tensor in it that the reason is about.
    """

    def __init__(
        self, reason: str, *, hint: str = "", file: str | os.PathLike[str] = "", tensor: str | None = None
    ) -> None:
        self.file = os.fspath(file)
        self.tensor = tensor
        super().__init__(reason, hint=hint, where=self.file)

    def _place(self) -> str:
        parts = [self.where] if self.where else []
        if self.tensor is not None:
            parts.append(f"tensor '{clean(self.tensor, 120)}'")
        return ": ".join(parts)

    def within(self, file: str | os.PathLike[str]) -> CheckpointError:
        """The same error with the file named; for checks that do not know which file they look at."""
        if self.file:
            return self
        return CheckpointError(self.reason, hint=self.hint, file=file, tensor=self.tensor)


class ConfigError(MetanetError):
    """A configuration has a missing, unknown or impossible value."""


class ZooError(MetanetError):
    """A zoo folder cannot be built, resumed or read."""


class GraphError(MetanetError):
    """A spec and a state do not make a parameter graph, or a batch mixes what cannot be mixed."""


class ModelError(MetanetError):
    """A metanetwork was given something that it cannot read."""


class PlanError(MetanetError):
    """A plan does not fit the network, or an edit of it cannot be done as it was asked for."""


class FieldError(MetanetError):
    """A weight field does not fit the network, or cannot be sampled as it was asked for."""


class ScoreError(MetanetError):
    """Two networks cannot be compared: inputs or outputs do not fit, or a network does not run."""


class TaskError(MetanetError):
    """A task does not fit the data that it was given."""


class TrainError(MetanetError):
    """A training run cannot start, resume or be loaded."""
