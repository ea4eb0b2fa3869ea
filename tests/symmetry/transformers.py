"""Transformers as people write them, with groups derived by hand: fused and separate projections, many styles."""

from __future__ import annotations

from math import factorial as f

import torch
from torch import Tensor, nn
from torch.nn import functional

from .families import LoRALinear
from .models import Subject


class Attention(nn.Module):
    """Self-attention in the style of timm: one fused projection, a view into [3, heads, units], unbind."""

    def __init__(self, width: int, heads: int, causal: bool = False, bias: bool = True) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.qkv, self.proj = nn.Linear(width, 3 * width, bias=bias), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, time, width = x.shape
        qkv = self.qkv(x).reshape(batch, time, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.proj(y.transpose(1, 2).reshape(batch, time, width))


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, width: int, heads: int, hidden: int, causal: bool = False, scaled: bool = False) -> None:
        super().__init__()
        self.n1, self.n2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads, causal)
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.gamma = nn.Parameter(torch.ones(width)) if scaled else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.attention(self.n1(x))
        x = x + (y if self.gamma is None else self.gamma * y)
        return x + self.down(functional.gelu(self.up(self.n2(x))))


class ViT(nn.Module):
    """A vision transformer: patches, a class token, positions, two blocks."""

    def __init__(self, width: int = 4, heads: int = 2, hidden: int = 5, scaled: bool = False) -> None:
        super().__init__()
        self.patch = nn.Conv2d(1, width, 2, 2)
        self.token, self.place = nn.Parameter(torch.randn(1, 1, width)), nn.Parameter(torch.randn(1, 5, width))
        self.blocks = nn.Sequential(*(Block(width, heads, hidden, scaled=scaled) for _ in range(2)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.place
        return self.head(self.norm(self.blocks(x))[:, 0])


class GPT(nn.Module):
    """A causal language model whose output weights are its token embedding."""

    def __init__(self, words: int = 6, width: int = 4, heads: int = 2, hidden: int = 5, time: int = 5) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(words, width), nn.Embedding(time, width)
        self.blocks = nn.Sequential(*(Block(width, heads, hidden, causal=True) for _ in range(2)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, words, bias=False)
        self.head.weight = self.words.weight
        self.register_buffer("order", torch.arange(time), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.words(x) + self.places(self.order[: x.shape[1]]))))


def rotated(x: Tensor) -> Tensor:
    """Rotary positions: pairs of the two halves are turned by angles that grow with the place."""
    half = x.shape[-1] // 2
    angle = torch.arange(x.shape[-2], dtype=x.dtype)[:, None] * (100.0 ** -torch.arange(0, 1, 1 / half, dtype=x.dtype))
    cos, sin = torch.cat([angle.cos()] * 2, -1), torch.cat([angle.sin()] * 2, -1)
    return x * cos + torch.cat([-x[..., half:], x[..., :half]], -1) * sin


class LlamaBlock(nn.Module):
    """RMSNorm, rotary positions, grouped queries, SwiGLU."""

    def __init__(self, width: int = 4, heads: int = 4, groups: int = 2, units: int = 4, hidden: int = 5) -> None:
        super().__init__()
        self.heads, self.groups, self.units = heads, groups, units
        self.n1, self.n2 = nn.RMSNorm(width), nn.RMSNorm(width)
        self.q, self.o = nn.Linear(width, heads * units, bias=False), nn.Linear(heads * units, width, bias=False)
        self.k, self.v = (nn.Linear(width, groups * units, bias=False) for _ in range(2))
        self.g, self.u = nn.Linear(width, hidden, bias=False), nn.Linear(width, hidden, bias=False)
        self.d = nn.Linear(hidden, width, bias=False)

    def _cut(self, x: Tensor, heads: int) -> Tensor:
        return x.view(x.shape[0], x.shape[1], heads, self.units).transpose(1, 2)

    def _shared(self, x: Tensor) -> Tensor:
        batch, groups, time, units = x.shape
        wide = x[:, :, None].expand(batch, groups, self.heads // groups, time, units)
        return wide.reshape(batch, self.heads, time, units)

    def forward(self, x: Tensor) -> Tensor:
        y = self.n1(x)
        q, k, v = self._cut(self.q(y), self.heads), self._cut(self.k(y), self.groups), self._cut(self.v(y), self.groups)
        y = functional.scaled_dot_product_attention(
            rotated(q), self._shared(rotated(k)), self._shared(v), is_causal=True
        )
        x = x + self.o(y.transpose(1, 2).reshape(*x.shape[:2], -1))
        y = self.n2(x)
        return x + self.d(functional.silu(self.g(y)) * self.u(y))


class Llama(nn.Module):
    """A small LLaMA-like model."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(6, 4), nn.Linear(4, 6, bias=False)
        self.blocks, self.norm = nn.Sequential(LlamaBlock()), nn.RMSNorm(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.words(x))))


class Translator(nn.Module):
    """torch's own encoder and decoder layers, pre-norm, with cross-attention."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        options = {"dropout": 0.0, "batch_first": True, "norm_first": True}
        self.a, self.b, self.head = nn.Linear(3, width), nn.Linear(3, width), nn.Linear(width, 2)
        self.encoder = nn.TransformerEncoderLayer(width, 2, 6, **options)  # type: ignore[arg-type]
        self.decoder = nn.TransformerDecoderLayer(width, 2, 5, **options)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.decoder(self.b(x[:, :3]), self.encoder(self.a(x))).mean(1))


class QKNorm(nn.Module):
    """Attention whose queries and keys are normalised with a gain shared by all heads."""

    def __init__(self, width: int = 4, heads: int = 2, units: int = 3) -> None:
        super().__init__()
        self.heads, self.units = heads, units
        self.q, self.k, self.v = (nn.Linear(width, heads * units) for _ in range(3))
        self.stem, self.o, self.head = nn.Linear(3, width), nn.Linear(heads * units, width), nn.Linear(width, 2)
        self.nq, self.nk = nn.RMSNorm(units), nn.RMSNorm(units)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.stem(x))
        q, k, v = (
            layer(x).view(*x.shape[:2], self.heads, self.units).transpose(1, 2) for layer in (self.q, self.k, self.v)
        )
        y = functional.scaled_dot_product_attention(self.nq(q), self.nk(k), v)
        return self.head(self.o(y.transpose(1, 2).flatten(2)).mean(1))


class Windowed(nn.Module):
    """Attention in a window of two by two with a learned bias for each relative place and head, as in Swin."""

    def __init__(self, width: int = 4, heads: int = 2, hidden: int = 5) -> None:
        super().__init__()
        self.heads = heads
        self.stem, self.head = nn.Linear(3, width), nn.Linear(width, 2)
        self.n1, self.n2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.table = nn.Parameter(torch.randn(9, heads))
        place = torch.stack(torch.meshgrid(torch.arange(2), torch.arange(2), indexing="ij")).flatten(1)
        apart = (place[:, :, None] - place[:, None, :]).permute(1, 2, 0) + 1
        self.register_buffer("index", apart[..., 0] * 3 + apart[..., 1])

    def attend(self, x: Tensor) -> Tensor:
        batch, places, width = x.shape
        qkv = self.qkv(x).reshape(batch, places, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0] * 0.7, qkv[1], qkv[2]
        bias = self.table[self.index.view(-1)].view(places, places, -1).permute(2, 0, 1).contiguous()
        scores = (q @ k.transpose(-2, -1) + bias.unsqueeze(0)).softmax(-1)
        return self.proj((scores @ v).transpose(1, 2).reshape(batch, places, width))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.attend(self.n1(x))
        return self.head((x + self.down(torch.relu(self.up(self.n2(x))))).mean(1))


def heads_of(x: Tensor, heads: int) -> Tensor:
    """[batch, time, heads x units] -> [batch, heads, time, units]."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


class LoRAAttention(nn.Module):
    """Pre-norm attention whose queries and values carry a low-rank term."""

    def __init__(self, width: int = 4, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.stem, self.norm, self.head = nn.Linear(3, width), nn.LayerNorm(width), nn.Linear(width, 2)
        self.q, self.v = LoRALinear(width, width), LoRALinear(width, width)
        self.k, self.o = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.norm(x)
        q, k, v = (heads_of(layer(y), self.heads) for layer in (self.q, self.k, self.v))
        y = functional.scaled_dot_product_attention(q, k, v)
        return self.head((x + self.o(y.transpose(1, 2).flatten(2))).mean(1))


class CrossAttention(nn.Module):
    """Queries from one stream, keys and values from another of another width, by torch's own module."""

    def __init__(self, width: int = 4, other: int = 5, heads: int = 2) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(3, width), nn.Linear(3, other), nn.Linear(width, 2)
        self.attention = nn.MultiheadAttention(width, heads, kdim=other, vdim=other, batch_first=True)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        x, y = torch.tanh(self.a(x)), torch.relu(self.b(y))
        return self.head((x + self.attention(x, y, y, need_weights=False)[0]).mean(1))


class FewKeys(nn.Module):
    """Several heads of queries and one head of keys and values (multi-query attention)."""

    def __init__(self, width: int = 4, heads: int = 3, units: int = 2) -> None:
        super().__init__()
        self.heads, self.stem, self.head = heads, nn.Linear(3, width), nn.Linear(width, 2)
        self.q, self.o = nn.Linear(width, heads * units), nn.Linear(heads * units, width)
        self.k, self.v = nn.Linear(width, units), nn.Linear(width, units)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.stem(x))
        q, k, v = heads_of(self.q(x), self.heads), self.k(x)[:, None], self.v(x)[:, None]
        y = (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(-1) @ v
        return self.head((x + self.o(y.transpose(1, 2).flatten(2))).mean(1))


class Slopes(nn.Module):
    """Attention whose scores fall with distance, at a fixed slope of its own for each head (ALiBi)."""

    def __init__(self, width: int = 4, heads: int = 2) -> None:
        super().__init__()
        self.heads, self.stem, self.head = heads, nn.Linear(3, width), nn.Linear(width, 2)
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.register_buffer("slopes", 2.0 ** -torch.arange(1, heads + 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.stem(x))
        place = torch.arange(x.shape[1])
        bias = -self.slopes[:, None, None] * (place[:, None] - place).abs()
        q, k, v = (heads_of(layer(x), self.heads) for layer in (self.q, self.k, self.v))
        y = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))
        return self.head((x + self.o(y.transpose(1, 2).flatten(2))).mean(1))


class FusedGLU(nn.Module):
    """A gated layer whose two halves come from one matrix by ``chunk``."""

    def __init__(self, width: int = 4, hidden: int = 5) -> None:
        super().__init__()
        self.stem, self.up, self.down = nn.Linear(3, width), nn.Linear(width, 2 * hidden), nn.Linear(hidden, width)
        self.head = nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        gate, y = self.up(x).chunk(2, -1)
        return self.head(x + self.down(functional.gelu(gate) * y))


# Letters: G is the number of norms, each with a gain per unit whose sign and scale the readers take up; a LayerNorm
# lets only the sign of a whole stream pass, an RMSNorm that of each unit. GL: Q with K and V with O, n^2 per head each.
SEQUENCE = (7, 5, 3)
TRANSFORMERS = (
    # stream 4!, two hidden layers 5!, two blocks of 2! heads. G = 5: 20 + the stream's sign. GL: 2 blocks 2 heads 2 4.
    Subject("vit", ViT, (7, 1, 4, 4), f(4) * f(5) ** 2 * f(2) ** 2, 20 + 1, 20, 32),
    # Layer scale on the attention of each block: 4 more against the rows of its projection, twice.
    Subject("vit, layer scale", lambda: ViT(scaled=True), (7, 1, 4, 4), f(4) * f(5) ** 2 * 4, 21 + 8, 20 + 8, 32),
    # As the ViT, but the readers of the last norm are the embedding itself: its gain is not free, 4 less each.
    Subject("gpt, tied embedding", GPT, (7, 5), f(4) * f(5) ** 2 * f(2) ** 2, 16 + 1, 16, 32, words=6),
    # stream 4!, hidden 5!, two groups of keys 2!, in each two queries 2!. Signs: stream 4, G = 3: 12, u against d 5,
    # and queries against keys. Both have one factor per group and pair that turns together, 4; found are those that are
    # a product of one per group and one per pair, 3. Scales: 12 + 5 + 3. GL: values of 4 units in two groups.
    Subject("llama", Llama, (7, 5), f(4) * f(5) * 2 * 2**2, 4 + 12 + 5 + 3, 12 + 5 + 3, 32, words=6),
    # One stream, for both (one axis of the decoder's fused projection reads both), hidden 6! 5!, three attentions of 2!
    # heads. G = 5: 20 + the sign of either stream; relu layers 6 + 5 scales. GL: 3 attentions 2 heads 2 4.
    Subject("translator", Translator, SEQUENCE, f(4) * f(6) * f(5) * 2**3, 20 + 2, 20 + 11, 48),
    # tanh 4!, heads 2!, units 3! that all heads share by the gains. Signs: tanh 4; per unit three of q, k and both
    # gains, 3 3 = 9, and one against the other per head, 1 more (true: 2 more for head by unit). Scales: the gains
    # against each other 3. GL: V with O 2 9, and O with the head 16.
    Subject("shared norms of queries and keys", QKNorm, SEQUENCE, f(4) * 2 * f(3), 4 + 9 + 1, 3, 18 + 16),
    # stream 4!, hidden 5!, heads 2! with the columns of the table. G = 2: 8 + the stream's sign; relu 5 scales.
    # Its rows are looked up by place and stay where they are.
    Subject(
        "window, relative places",
        Windowed,
        (7, 4, 3),
        f(4) * f(5) * 2,
        8 + 1,
        8 + 5,
        16,
        pinned=("aten.index.Tensor",),
    ),
    # stream 4!, heads 2!. G = 1. GL: 2 heads 2 4, and GL(2) inside each of the two low-rank terms.
    Subject("lora attention", LoRAAttention, SEQUENCE, f(4) * 2, 4 + 1, 4, 16 + 8),
    # tanh 4! with 4 signs, relu 5! with 5 scales, heads 2!.
    Subject("cross-attention", CrossAttention, SEQUENCE, f(4) * f(5) * 2, 4, 5, 16, more=((7, 4, 3),)),
    # tanh 4!, heads of queries 3!. GL(2) once for the one head of keys, once for that of values.
    Subject("multi-query attention", FewKeys, SEQUENCE, f(4) * f(3), 4, 0, 8),
    # relu 4! with 4 scales; hidden 5!, where the half that is not gated has sign and scale.
    Subject("fused gated layer", FusedGLU, (7, 3), f(4) * f(5), 5, 4 + 5),
    # tanh 4!; the slopes tell the heads apart. True: GL 2 heads 2 4 = 16. Found: one matrix for both heads, 2 4, and
    # one head against the other by sign and by scale, 2 each.
    Subject("slopes", Slopes, SEQUENCE, f(4), 4 + 2, 2, 8),
)
