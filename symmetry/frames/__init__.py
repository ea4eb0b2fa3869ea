"""Where on its orbit does a network stand? Canonical gauges for every factor of its group."""

from symmetry.frames.canonical import canonicalize

__all__ = ["canonicalize"]
