"""What people run: transformers of several styles, recurrent and convolutional families, experts, ensembles, ties."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations

from .families import LoRALinear, Recurrent, Stages
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


class ConvNeXt(nn.Module):
    """Depthwise convolution, LayerNorm over channels, a pointwise bottleneck, layer scale."""

    def __init__(self, width: int = 4, hidden: int = 6) -> None:
        super().__init__()
        self.stem, self.deep = nn.Conv2d(3, width, 2, 2), nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.gamma, self.head = nn.Parameter(torch.rand(width)), nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.norm(self.deep(x).permute(0, 2, 3, 1))
        x = x + (self.gamma * self.down(functional.gelu(self.up(y)))).permute(0, 3, 1, 2)
        return self.head(x.mean((-2, -1)))


class DenseNet(nn.Module):
    """Each layer reads all that came before, batch norm before the non-linearity."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1, bias=False)
        self.n1, self.c1 = nn.BatchNorm2d(4), nn.Conv2d(4, 3, 3, padding=1, bias=False)
        self.n2, self.c2 = nn.BatchNorm2d(7), nn.Conv2d(7, 3, 3, padding=1, bias=False)
        self.n3, self.head = nn.BatchNorm2d(10), nn.Linear(10, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.cat([x, self.c1(torch.relu(self.n1(x)))], 1)
        x = torch.cat([x, self.c2(torch.relu(self.n2(x)))], 1)
        return self.head(torch.relu(self.n3(x)).mean((2, 3)))


class SqueezeExcite(nn.Module):
    """Channels weighted by a gate that sees their means."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 5, 3), nn.Conv2d(5, 5, 3), nn.Linear(5, 2)
        self.down, self.up = nn.Conv2d(5, 3, 1), nn.Conv2d(3, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(torch.relu(self.a(x)))
        gate = torch.sigmoid(self.up(torch.relu(self.down(x.mean((2, 3), keepdim=True)))))
        return self.head(torch.relu(x * gate).mean((2, 3)))


class Experts(nn.Module):
    """A soft mixture of experts: gates by softmax, experts by batched products."""

    def __init__(self, experts: int = 3, width: int = 4, hidden: int = 5) -> None:
        super().__init__()
        self.stem, self.head, self.gate = nn.Linear(3, width), nn.Linear(width, 2), nn.Linear(width, experts)
        self.w1, self.b1 = nn.Parameter(torch.randn(experts, width, hidden)), nn.Parameter(torch.randn(experts, hidden))
        self.w2, self.b2 = nn.Parameter(torch.randn(experts, hidden, width)), nn.Parameter(torch.randn(experts, width))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        gates = self.gate(x).softmax(-1)
        inner = torch.relu(torch.einsum("bi,eih->beh", x, self.w1) + self.b1)
        outer = torch.einsum("beh,eho->beo", inner, self.w2) + self.b2
        return self.head(torch.relu((gates[..., None] * outer).sum(1)))


class Ensemble(nn.Module):
    """Several MLPs side by side by ``bmm``, their outputs averaged."""

    def __init__(self, members: int = 3, hidden: int = 4) -> None:
        super().__init__()
        self.w1, self.b1 = nn.Parameter(torch.randn(members, 3, hidden)), nn.Parameter(torch.randn(members, 1, hidden))
        self.w2, self.b2 = nn.Parameter(torch.randn(members, hidden, 2)), nn.Parameter(torch.randn(members, 1, 2))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.expand(self.w1.shape[0], -1, -1)
        return torch.baddbmm(self.b2, torch.relu(torch.baddbmm(self.b1, wide, self.w1)), self.w2).mean(0)


class TiedMLP(nn.Module):
    """A non-linear autoencoder with tied weights."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 5), nn.Parameter(torch.randn(4)), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.relu(functional.linear(torch.relu(self.a(x)), self.a.weight.T, self.b)))


class WaveNet(nn.Module):
    """Dilated causal convolutions with gates, residual and skip connections."""

    def __init__(self, width: int = 4, hidden: int = 3, skip: int = 5) -> None:
        super().__init__()
        self.stem = nn.Conv1d(2, width, 1)
        self.filters = nn.ModuleList(nn.Conv1d(width, 2 * hidden, 2, dilation=2**n) for n in range(2))
        self.residual = nn.ModuleList(nn.Conv1d(hidden, width, 1) for _ in range(2))
        self.skips = nn.ModuleList(nn.Conv1d(hidden, skip, 1) for _ in range(2))
        self.head = nn.Conv1d(skip, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x, total = self.stem(x), torch.zeros(())
        for number, (filters, residual, skip) in enumerate(
            zip(self.filters, self.residual, self.skips, strict=True)
        ):
            a, b = filters(functional.pad(x, (2**number, 0))).chunk(2, 1)
            y = torch.tanh(a) * torch.sigmoid(b)
            x, total = x + residual(y), total + skip(y)
        return self.head(torch.relu(total))


class UpsamplingUNet(nn.Module):
    """Two levels with batch norm; up by bilinear interpolation."""

    def __init__(self, mode: str = "bilinear") -> None:
        super().__init__()
        self.mode = mode
        self.a, self.na = nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.b, self.nb = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.c, self.out = nn.Conv2d(7, 5, 3, padding=1), nn.Conv2d(5, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = torch.relu(self.na(self.a(x)))
        b = torch.relu(self.nb(self.b(functional.avg_pool2d(a, 2))))
        align = None if self.mode == "nearest" else False
        b = functional.interpolate(b, scale_factor=2, mode=self.mode, align_corners=align)
        return self.out(torch.relu(self.c(torch.cat([b, a], 1))))


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


def weight_normed() -> nn.Module:
    return Stages(parametrizations.weight_norm(nn.Linear(3, 4)), torch.relu, nn.Linear(4, 2))


def instance_normed() -> nn.Module:
    return Stages(
        nn.Conv2d(3, 4, 3), nn.InstanceNorm2d(4, affine=True), torch.relu, lambda x: x.mean((2, 3)), nn.Linear(4, 2)
    )


SEQUENCE, WORDS = (7, 5, 3), ("words", 7, 5)
f = math.factorial
WIDE = (
    Subject("vit", ViT, (7, 1, 4, 4), f(4) * f(5) ** 2 * f(2) ** 2, 1, 0, 2 * 2 * 2 * 4),
)
