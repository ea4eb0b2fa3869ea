"""The errors that this library raises at its boundary."""

__all__ = ["SpecError", "SymmetryError", "TraceError"]


class SymmetryError(Exception):
    """Base class of every error raised by :mod:`symmetry`."""


class TraceError(SymmetryError):
    """The model could not be traced. The message names node, operation, source line and what to do."""


class SpecError(SymmetryError, ValueError):
    """A spec, a group element and a state do not belong together. The message names the first difference."""
