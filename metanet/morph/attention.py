"""How does torch's attention run with a number of heads, or units in them, that do not multiply to its width?"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from metanet.errors import PlanError

__all__ = ["FreeAttention", "free_heads"]


class FreeAttention(nn.MultiheadAttention):
    """torch's MultiheadAttention with any number of heads, units per query and units per value.

    Tensors have the names that torch gives them; scores keep the scale that they had before units went or came. Made
    from a module of torch's by :func:`free_heads`, never built.

    Shapes:
        as torch.nn.MultiheadAttention
    """

    value_dim: int
    scale: float

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        single = query.dim() == 2
        streams = [
            x.unsqueeze(0) if single else x if self.batch_first else x.transpose(0, 1) for x in (query, key, value)
        ]
        q, k, v = (self._project(number, x) for number, x in enumerate(streams))
        mask = self._mask(attn_mask, key_padding_mask, is_causal, q, k.shape[-2])
        scores = (q * self.scale) @ k.mT
        weights = (scores if mask is None else scores + mask).softmax(-1)
        dropped = functional.dropout(weights, self.dropout, self.training)
        out = self.out_proj((dropped @ v).transpose(1, 2).flatten(2))
        out = out.squeeze(0) if single else out if self.batch_first else out.transpose(0, 1)
        if not need_weights:
            return out, None
        told = weights.mean(1) if average_attn_weights else weights
        return out, told.squeeze(0) if single else told

    def _project(self, number: int, x: Tensor) -> Tensor:
        """Queries, keys or values. Shapes: (batch, time, width) -> (batch, heads, time, units)."""
        sizes = [self.num_heads * self.head_dim] * 2 + [self.num_heads * self.value_dim]
        start = sum(sizes[:number])
        if self.in_proj_weight is not None:
            weight = self.in_proj_weight[start : start + sizes[number]]
        else:
            weight = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)[number]
        bias = None if self.in_proj_bias is None else self.in_proj_bias[start : start + sizes[number]]
        return functional.linear(x, weight, bias).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def _mask(
        self, attn_mask: Tensor | None, padding: Tensor | None, is_causal: bool, q: Tensor, keys: int
    ) -> Tensor | None:
        """What is added to the scores, or nothing."""
        masks = []
        if attn_mask is None and is_causal:
            raise RuntimeError("is_causal needs attn_mask, as in torch.nn.MultiheadAttention")
        if attn_mask is not None:
            mask = attn_mask if attn_mask.dim() == 2 else attn_mask.reshape(q.shape[0], -1, *attn_mask.shape[1:])
            masks.append(mask)
        if padding is not None:
            masks.append(padding.reshape(-1, 1, 1, keys))
        added = [_added(mask, q) for mask in masks]
        return sum(added[1:], added[0]) if added else None


def _added(mask: Tensor, like: Tensor) -> Tensor:
    if mask.dtype != torch.bool:
        return mask.to(like.dtype)
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, float("-inf"))


def free_heads(layer: Any, value_dim: int, scale: float) -> None:
    """Turn a module of torch's, whose tensors have their new shapes, into a :class:`FreeAttention`, in place.

    Raises:
        PlanError: if it adds keys of its own.
    """
    if layer.bias_k is not None or layer.add_zero_attn:
        raise PlanError("attention with add_bias_kv or add_zero_attn cannot be resized", hint="build it without them")
    layer.__class__ = FreeAttention
    layer.value_dim, layer.scale = value_dim, scale
    # torch's encoder layers run kernels of their own, which know equal heads only, where this is true.
    layer._qkv_same_embed_dim = False
