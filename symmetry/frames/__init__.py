"""Where on its orbit does a network stand? Canonical gauges for every factor of its group."""

from symmetry.frames.canonical import canonicalize, gauge_distance

__all__ = ["canonicalize", "gauge_distance"]
