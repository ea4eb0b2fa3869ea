"""Attention as one operator, and the rotation of its queries and keys by their positions (opset 23 and later)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from metanet.checkpoint.onnx.operators.pointwise import in_type
from metanet.checkpoint.onnx.proto import Node
from metanet.checkpoint.onnx.registry import operator


def _heads(x: Tensor, count: int) -> Tensor:
    """(batch, time, heads * units) to (batch, heads, time, units)."""
    return x.reshape(x.shape[0], x.shape[1], count, -1).transpose(1, 2)


def _allowed(node: Node, queries: int, keys: int, past: int, lengths: Tensor | None) -> Tensor | None:
    """Which keys each query may look at: those that are there, not ahead of it, and within its window."""
    left, right = node.attributes.get("left_window_size", -1), node.attributes.get("right_window_size", -1)
    causal = bool(node.attributes.get("is_causal", 0))
    if lengths is None and not causal and left < 0 and right < 0:
        return None
    places = torch.arange(keys)
    # The queries are the last ones of what is there.
    offset = past if lengths is None else (lengths - queries).reshape(-1, 1, 1, 1)
    rows = torch.arange(queries).reshape(-1, 1) + offset
    allowed = torch.ones(queries, keys, dtype=torch.bool)
    if lengths is not None:
        allowed = allowed & (places < lengths.reshape(-1, 1, 1, 1))
    if causal:
        allowed = allowed & (places <= rows)
    if left >= 0:
        allowed = allowed & (places >= rows - left)
    return allowed & (places <= rows + right) if right >= 0 else allowed


@operator("Attention")
def attention(
    run: Any, node: Node, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, past_key: Tensor | None = None,
    past_value: Tensor | None = None, lengths: Tensor | None = None,
) -> tuple[Tensor, ...]:  # fmt: skip
    flat = q.ndim == 3
    if flat:
        heads = node.attributes["kv_num_heads"]
        q, k, v = _heads(q, node.attributes["q_num_heads"]), _heads(k, heads), _heads(v, heads)
    past = 0
    if past_key is not None and past_value is not None:
        past = past_key.shape[2]
        k, v = torch.cat((past_key, k), 2), torch.cat((past_value, v), 2)
    present = (k, v)
    groups = q.shape[1] // k.shape[1]
    if groups > 1:
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    # Half of the scale on each side, as ONNX says, keeps half precision in range.
    scale = math.sqrt(node.attributes.get("scale") or 1 / math.sqrt(q.shape[-1]))
    scores = (q * scale) @ (k * scale).transpose(-1, -2)
    stages = [scores]
    cap = node.attributes.get("softcap", 0.0)
    if cap:
        scores = cap * torch.tanh(scores / cap)
    stages.append(scores)
    lowest = float("-inf")
    if mask is not None:
        if mask.shape[-1] < k.shape[2]:
            missing = k.shape[2] - mask.shape[-1]
            mask = functional.pad(mask, (0, missing), value=False if mask.dtype == torch.bool else lowest)
        scores = scores.masked_fill(~mask, lowest) if mask.dtype == torch.bool else scores + mask
    allowed = _allowed(node, q.shape[2], k.shape[2], past, lengths)
    if allowed is not None:
        scores = scores.masked_fill(~allowed, lowest)
    stages.append(scores)
    precision = node.attributes.get("softmax_precision")
    wide = scores if not precision else in_type(scores, run.dtype(precision, node))
    weights = in_type(torch.softmax(wide, -1), scores.dtype)
    if mask is not None or allowed is not None:
        # A query that may look nowhere sees nothing.
        weights = torch.where((scores == lowest).all(-1, keepdim=True), torch.zeros_like(weights), weights)
    stages.append(weights)
    y = weights @ v
    if flat:
        y = y.transpose(1, 2).flatten(2)
    return (y, *present, stages[node.attributes.get("qk_matmul_output_mode", 0)])


@operator("RotaryEmbedding")
def rotary(run: Any, node: Node, x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor | None = None) -> Tensor:
    flat = x.ndim == 3
    if flat:
        x = _heads(x, node.attributes["num_heads"])
    width = node.attributes.get("rotary_embedding_dim", 0) or x.shape[-1]
    turned, rest = x[..., :width], x[..., width:]
    if positions is not None:
        cos, sin = functional.embedding(positions, cos), functional.embedding(positions, sin)
    cos, sin = cos[..., : width // 2].unsqueeze(1), sin[..., : width // 2].unsqueeze(1)
    if node.attributes.get("interleaved", 0):
        a, b = turned[..., 0::2], turned[..., 1::2]
        turned = torch.stack((cos * a - sin * b, sin * a + cos * b), -1).flatten(-2)
    else:
        a, b = turned.chunk(2, -1)
        turned = torch.cat((cos * a - sin * b, sin * a + cos * b), -1)
    y = torch.cat((turned, rest), -1) if rest.shape[-1] else turned
    return y.transpose(1, 2).flatten(2) if flat else y
