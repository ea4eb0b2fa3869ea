"""Which group element takes each network of a batch to its canonical form? Batched motions and frames."""

from metanet.nn.frames.motion import Motion

__all__ = ["Motion"]
