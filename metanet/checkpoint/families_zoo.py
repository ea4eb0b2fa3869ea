"""How are the transformers of the Small Transformer Zoo built: blocks one behind the other, with nothing added around?

Source: Tran et al., Equivariant Neural Functional Networks for Transformers, 2025, and the layout of its checkpoints.
Layer norms have no numbers of their own, attention has no biases, and no block has a way around it. Networks of texts
were saved without their embedding, which all share, so they read tokens that are embedded already.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from metanet.checkpoint.families import MAX_PIXELS_SIDE, Family
from metanet.checkpoint.options import MAX_DEPTH, Options

__all__ = ["ZOO_TRANSFORMER", "ZooTransformer"]


class _Patches(nn.Module):
    """Patches of an image as tokens, with the table of their positions added.

    Shapes:
        (batch, channels, size, size) -> (batch, patches, width)
    """

    def __init__(self, channels: int, size: int, patch: int, width: int) -> None:
        super().__init__()
        # In the order of the published state dicts.
        self.pos_embedding = nn.Parameter(_waves((size // patch) ** 2, width))
        self.conv1 = nn.Conv2d(channels, width, patch, stride=patch)

    def forward(self, x: Tensor) -> Tensor:
        tokens: Tensor = self.conv1(x).flatten(2).transpose(1, 2)
        return tokens + self.pos_embedding


def _waves(places: int, width: int) -> Tensor:
    """Sine and cosine of each place at falling frequencies.

    Source: Vaswani et al., Attention Is All You Need, 2017, section 3.5.
    """
    frequency = 10000.0 ** (-torch.arange(0, width, 2) / width)
    angle = torch.arange(places)[:, None] * frequency
    return torch.stack([angle.sin(), angle.cos()], dim=2).flatten(1)[:, :width]


class _Attention(nn.Module):
    """``softmax(Q K' / sqrt(d)) V`` in each head, without biases.

    Shapes:
        (batch, tokens, width) -> itself
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.queries, self.keys, self.values, self.out_projection = (
            nn.Linear(width, width, bias=False) for _ in range(4)
        )
        self.heads = heads

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.queries, self.keys, self.values)
        )
        weights = torch.softmax(query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1]), dim=-1)
        mixed: Tensor = self.out_projection((weights @ value).transpose(1, 2).flatten(2))
        return mixed


class _Block(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.attention = _Attention(width, heads)
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.attention(nn.functional.layer_norm(x, x.shape[-1:]))
        result: Tensor = self.fc2(torch.relu(self.fc1(nn.functional.layer_norm(x, x.shape[-1:]))))
        return result


class _Classifier(nn.Module):
    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, width), nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.fc2(torch.relu(self.fc1(x.mean(dim=1))))
        return result


class ZooTransformer(nn.Module):
    """Blocks of attention and two linear layers, a last norm, the mean over tokens, two linear layers.

    Shapes:
        (batch, channels, size, size), or (batch, tokens, width) where nothing is embedded -> (batch, outputs)
    """

    def __init__(
        self, width: int, heads: int, layers: int, hidden: int, outputs: int, tokens: int, channels: int, size: int,
        patch: int,
    ) -> None:  # fmt: skip
        super().__init__()
        self.embedding = None if tokens else _Patches(channels, size, patch, width)
        self.encoder = nn.ModuleList(_Block(width, heads, hidden) for _ in range(layers))
        self.classifier = _Classifier(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        if self.embedding is not None:
            x = self.embedding(x)
        for block in self.encoder:
            x = block(x)
        result: Tensor = self.classifier(nn.functional.layer_norm(x, x.shape[-1:]))
        return result


def _normalize(raw: object) -> dict[str, Any]:
    options = Options("zoo_transformer", raw)
    result: dict[str, Any] = {"width": options.integer("width")}
    result["heads"] = options.integer("heads", high=result["width"])
    result["layers"] = options.integer("layers", high=MAX_DEPTH)
    result["hidden"] = options.integer("hidden")
    result["outputs"] = options.integer("outputs")
    result["tokens"] = options.integer("tokens", low=0, default=0)
    low = 0 if result["tokens"] else 1
    # A network of embedded tokens has no image: its channels, size and patch are 0.
    high = 0 if result["tokens"] else MAX_PIXELS_SIDE
    for name in ("channels", "size", "patch"):
        result[name] = options.integer(name, low=low, high=high, default=0 if result["tokens"] else None)
    options.finish()
    if result["width"] % result["heads"]:
        raise options.error("heads", result["heads"], f"a divisor of width {result['width']}")
    if result["tokens"] == 0 and result["size"] % result["patch"]:
        raise options.error("patch", result["patch"], f"a divisor of size {result['size']}")
    return result


def _input_shapes(options: Any) -> tuple[tuple[int, ...], ...]:
    if options["tokens"]:
        return ((options["tokens"], options["width"]),)
    return ((options["channels"], options["size"], options["size"]),)


ZOO_TRANSFORMER = Family("zoo_transformer", _normalize, lambda o: ZooTransformer(**o), _input_shapes)
