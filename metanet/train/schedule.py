"""Which learning rate holds at a given point of the training?"""

from __future__ import annotations

import math

from metanet.train.settings import TrainerSettings


def learning_rate(settings: TrainerSettings, progress: float) -> float:
    """The learning rate after a share of the training.

    A pure function of the progress: a resumed run needs no state of the schedule, and nothing can get out of step.

    Args:
        settings: Names the schedule, the highest learning rate, warm-up and end.
        progress: Share of all epochs that is done, from 0 to 1.
    """
    peak, warmup = settings.learning_rate, settings.warmup
    if settings.schedule == "one_cycle":
        if progress < warmup:
            return _cosine(peak / 25, peak, progress / warmup)
        return _cosine(peak, peak / 1e4, (progress - warmup) / (1 - warmup))
    if progress < warmup:
        # A tenth to begin with: the very first step of Adam has the size of the learning rate whatever the gradient.
        return peak * (0.1 + 0.9 * progress / warmup)
    if settings.schedule == "constant":
        return peak
    return _cosine(peak, peak * settings.final, (progress - warmup) / (1 - warmup))


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))
