"""What does a network cost: how many numbers, how many floating point operations, how long for an input?"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from metanet.morph.timing import time_together

__all__ = ["Cost", "cost", "flops"]


@dataclass(frozen=True)
class Cost:
    """What one network costs.

    Args:
        parameters: numbers that are trained.
        stored: numbers in the state, buffers included.
        flops: floating point operations for one input: 2 for each multiply-add of matrix products and convolutions, as
            torch counts them.
        latency_ms: median milliseconds of one call; ``None`` where not measured. Of two networks it can be told apart
            only where both took turns: :func:`metanet.morph.timing.time_together`.
    """

    parameters: int
    stored: int
    flops: int
    latency_ms: float | None = None

    def to_json(self) -> dict[str, Any]:
        """A JSON value."""
        return asdict(self)


def cost(model: nn.Module, example_inputs: Sequence[Any], timed: bool = False) -> Cost:
    """Count, and measure if ``timed``.

    Args:
        model: any module; it is not changed.
        example_inputs: one entry per argument of ``forward``; the first axis of the first tensor counts inputs.
        timed: whether to measure the latency, with as many inputs in a call as the example has.
    """
    stored = sum(tensor.numel() for tensor in _distinct(model.state_dict(keep_vars=True).values()))
    trained = sum(parameter.numel() for parameter in model.parameters())
    latency = time_together([model], example_inputs).calls[0].median if timed else None
    return Cost(trained, stored, flops(model, example_inputs), latency)


def flops(model: nn.Module, example_inputs: Sequence[Any]) -> int:
    """Floating point operations for one input, as torch's counter counts them; see :class:`Cost`."""
    runner = copy.deepcopy(model).eval()
    # Counting needs shapes only; the fused kernels of torch's encoder layers are not counted, so gradients stay on.
    with FlopCounterMode(display=False) as counter:
        runner(*example_inputs)
    rows = next((item.shape[0] for item in example_inputs if isinstance(item, Tensor) and item.ndim), 1)
    return counter.get_total_flops() // max(rows, 1)


def _distinct(tensors: Any) -> list[Tensor]:
    return list({id(tensor): tensor for tensor in tensors}.values())
