"""Which group element takes each network of a batch to its canonical form? Batched motions and frames."""

from metanet.nn.frames.frame import GAUGES, canonical, check_frame, frame_of
from metanet.nn.frames.motion import Motion

__all__ = ["GAUGES", "Motion", "canonical", "check_frame", "frame_of"]
