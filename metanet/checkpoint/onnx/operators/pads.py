"""How much is added at both ends of each spatial axis of a convolution or a pool?"""

from __future__ import annotations

from collections.abc import Sequence

from metanet.checkpoint.onnx.proto import Node

__all__ = ["axis_pads", "same_pads"]


def same_pads(total: int, lower: bool) -> tuple[int, int]:
    """``total`` in two halves; the odd one goes to the begin (``lower``) or to the end."""
    total = max(total, 0)
    small = total // 2
    return (total - small, small) if lower else (small, total - small)


def axis_pads(
    node: Node, sizes: Sequence[int], kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> tuple[list[int], list[int]]:
    """Pads at the begin and at the end of each axis, from ``pads`` or ``auto_pad`` (ONNX, operator Conv)."""
    rank = len(kernel)
    auto = node.attributes.get("auto_pad", b"NOTSET")
    if auto in (b"SAME_UPPER", b"SAME_LOWER"):
        begin, end = [], []
        for size, k, step, d in zip(sizes, kernel, strides, dilations, strict=True):
            total = (-(-size // step) - 1) * step + (k - 1) * d + 1 - size
            low, high = same_pads(total, lower=auto == b"SAME_LOWER")
            begin.append(low)
            end.append(high)
        return begin, end
    pads = (auto != b"VALID" and node.attributes.get("pads")) or [0] * (2 * rank)
    return list(pads[:rank]), list(pads[rank:])
