"""Which tensors of a network hold values that no network computes with: NaN, infinities, variances below zero?"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from metanet.graph.graph import ParameterGraph
from metanet.graph.topology import Block

__all__ = ["bad_values"]

_LISTED = 6  # tensors that are named


def bad_values(graph: ParameterGraph) -> str:
    """What is wrong with the values of a network, by tensor; empty where nothing is.

    Args:
        graph: the network.
    """
    pairs = [(b, v) for b, v in zip(graph.topology.blocks, graph.values, strict=True) if v.is_floating_point()]
    if all(bool(_sound(block, value).all()) for block, value in pairs):
        return ""

    def told(what: str, bad: Callable[[Block, Tensor], Tensor]) -> str:
        found: dict[str, list[int]] = {}
        for block, value in pairs:
            count = found.setdefault(block.tensor, [0, 0])
            count[0] += int(bad(block, value).sum())
            count[1] += value.numel()
        names = [f"{name} ({bad:,} of {of:,} values)" for name, (bad, of) in found.items() if bad]
        more = f" and {len(names) - _LISTED} more tensors" if len(names) > _LISTED else ""
        return f"{what} in {', '.join(names[:_LISTED])}{more}" if names else ""

    reasons = (
        told("NaN or infinities", lambda _, value: ~torch.isfinite(value)),
        told("negative variances", lambda block, value: torch.isfinite(value) & ~_sound(block, value)),
    )
    return "; ".join(filter(None, reasons))


def _sound(block: Block, value: Tensor) -> Tensor:
    """Finite, and the root of a variance plus epsilon exists."""
    if block.offset is None:
        return torch.isfinite(value)
    return torch.isfinite(value) & (value > -block.offset)
