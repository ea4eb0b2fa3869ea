"""How is a small transformer built that classifies images: patches in, attention between them, one linear layer out?"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from metanet.checkpoint.families import MAX_PIXELS_SIDE, Activation, Family
from metanet.checkpoint.options import ACTIVATIONS, Options

__all__ = ["TRANSFORMER", "Table", "Transformer"]


class Table(nn.Module):
    """Rows that are learned, one for each place, and added to what stands there.

    Shapes:
        (..., rows, width) -> itself
    """

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(rows, width) / math.sqrt(width))

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return x + self.weight


class Attention(nn.Module):
    """Every token reads all tokens: ``softmax(Q K' / sqrt(d)) V`` in each head, heads side by side into one layer.

    Source: Vaswani et al., Attention Is All You Need, 2017, section 3.2.

    Shapes:
        (batch, tokens, width) -> itself
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)
        self.heads = heads

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        # Products in place of torch's fused attention: they have a batching rule, so stacks of networks train at once.
        query, key, value = (self._heads(layer(x)) for layer in (self.query, self.key, self.value))
        weights = torch.softmax(query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1]), dim=-1)
        mixed: Tensor = self.out((weights @ value).transpose(1, 2).flatten(2))
        return mixed

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class _Block(nn.Module):
    """Attention, then two linear layers on every token, each added to the stream that all blocks share.

    With ``norm`` "layer", each reads the stream through a layer norm.
    Source: Xiong et al., On Layer Normalization in the Transformer Architecture, 2020, figure 1 (b).
    """

    def __init__(self, width: int, heads: int, hidden: int, activation: str, norm: str) -> None:
        super().__init__()
        self.norm1, self.norm2 = _norm(norm, width), _norm(norm, width)
        self.attention = Attention(width, heads)
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.activation = Activation(activation)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.down(self.activation(self.up(self.norm2(x))))


def _norm(norm: str, width: int) -> nn.Module:
    return nn.LayerNorm(width) if norm == "layer" else nn.Identity()


class Transformer(nn.Module):
    """Patches of an image become tokens; blocks of attention and linear layers; a readout; one linear layer.

    The readout is the mean over tokens, or ("token") a further token in front, whose content is its learned position.

    Shapes:
        (batch, channels, size, size) -> (batch, outputs)
    """

    def __init__(
        self,
        channels: int,
        size: int,
        patch: tuple[int, int],
        width: int,
        heads: int,
        hidden: tuple[int, ...],
        outputs: int,
        activation: str,
        norm: str,
        readout: str,
    ) -> None:
        super().__init__()
        self.patch, self.readout = patch, readout
        tokens = (size // patch[0]) * (size // patch[1])
        self.stem = nn.Linear(channels * patch[0] * patch[1], width)
        self.positions = Table(tokens + (readout == "token"), width)
        self.blocks = nn.ModuleList(_Block(width, heads, units, activation, norm) for units in hidden)
        self.norm = _norm(norm, width)
        self.head = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        x = self.stem(self._patches(x))
        if self.readout == "token":
            x = nn.functional.pad(x, (0, 0, 1, 0))
        x = self.positions(x)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        result: Tensor = self.head(x[:, 0] if self.readout == "token" else x.mean(dim=1))
        return result

    def _patches(self, x: Tensor) -> Tensor:
        # (batch, channels, down, height, across, width) -> (batch, down * across, channels * height * width)
        cut = x.unflatten(-1, (-1, self.patch[1])).unflatten(-3, (-1, self.patch[0]))
        return cut.permute(0, 2, 4, 1, 3, 5).flatten(1, 2).flatten(2)


def _normalize(raw: object) -> dict[str, Any]:
    options = Options("transformer", raw)
    result: dict[str, Any] = {
        "channels": options.integer("channels"),
        "size": options.integer("size", high=MAX_PIXELS_SIDE),
    }
    size = result["size"]
    patch = options.check_sequence("patch", options.take("patch"), 2)
    if len(patch) != 2:
        raise options.error("patch", list(patch), "[height, width]")
    result["patch"] = tuple(options.check_integer(f"patch[{i}]", side, 1, size) for i, side in enumerate(patch))
    result["width"] = options.integer("width")
    result["heads"] = options.integer("heads", high=result["width"])
    result["hidden"] = options.widths("hidden", shortest=1)
    result["outputs"] = options.integer("outputs")
    result["activation"] = options.choice("activation", ACTIVATIONS)
    result["norm"] = options.choice("norm", ("layer", "none"), default="layer")
    result["readout"] = options.choice("readout", ("mean", "token"), default="mean")
    options.finish()
    if any(size % side for side in result["patch"]):
        raise options.error("patch", list(patch), f"sides that divide size {size}")
    if result["width"] % result["heads"]:
        raise options.error("heads", result["heads"], f"a divisor of width {result['width']}")
    return result


TRANSFORMER = Family(
    "transformer", _normalize, lambda o: Transformer(**o), lambda o: ((o["channels"], o["size"], o["size"]),)
)
