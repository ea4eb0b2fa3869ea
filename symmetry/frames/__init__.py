"""Where on its orbit does a network stand? Canonical gauges for every factor of its group."""
