"""Which network families can an architecture file name, and how is each one built?

A family is data in, module out: it checks its options, fills in defaults, and builds a plain ``nn.Module`` whose
forward pass depends on shapes only, so it works with ``torch.func.functional_call`` and ``vmap`` and can be traced.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from metanet.checkpoint.options import ACTIVATIONS, MAX_DEPTH, Options

__all__ = ["Activation", "Family", "Mlp", "Cnn", "MLP", "CNN"]

MAX_PIXELS_SIDE = 4096


@dataclass(frozen=True)
class Family:
    """One kind of network that an architecture can name.

    Args:
        name: as it stands in files.
        normalize: checks raw options and returns them complete, defaults filled in; the values are JSON.
        build: makes the module from normalized options.
        input_shapes: shapes of the inputs, without the batch dimension.
    """

    name: str
    normalize: Callable[[object], dict[str, Any]]
    build: Callable[[Mapping[str, Any]], nn.Module]
    input_shapes: Callable[[Mapping[str, Any]], tuple[tuple[int, ...], ...]]


class Activation(nn.Module):
    """A pointwise function by its name."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: any to the same."""
        match self.name:
            case "relu":
                return torch.relu(x)
            case "tanh":
                return torch.tanh(x)
            case "gelu":
                return nn.functional.gelu(x)
            case "sin":
                return torch.sin(x)
            case _:
                return x

    def extra_repr(self) -> str:
        return self.name


class Mlp(nn.Module):
    """Linear layers with one activation between them; the last layer is linear.

    With ``residual`` every hidden layer after the first adds to a stream they share: ``h = h + act(layer(h))``.

    Shapes:
        (batch, inputs) -> (batch, outputs)
    """

    def __init__(
        self, inputs: int, widths: tuple[int, ...], outputs: int, activation: str, norm: str, residual: bool
    ) -> None:
        super().__init__()
        sizes = (inputs, *widths, outputs)
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))
        self.norms = nn.ModuleList(nn.BatchNorm1d(width) for width in widths) if norm == "batch" else None
        self.activation = Activation(activation)
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        last = len(self.layers) - 1
        for i, layer in enumerate(self.layers):
            if i == last:
                return layer(x)
            h = layer(x)
            if self.norms is not None:
                h = self.norms[i](h)
            h = self.activation(h)
            x = x + h if self.residual and i > 0 else h
        return x


def _normalize_mlp(raw: object) -> dict[str, Any]:
    options = Options("mlp", raw)
    widths = options.widths()
    result: dict[str, Any] = {
        "inputs": options.integer("inputs"),
        "widths": widths,
        "outputs": options.integer("outputs"),
        "activation": options.choice("activation", ACTIVATIONS),
        "norm": options.choice("norm", ("none", "batch"), default="none"),
        "residual": options.flag("residual", default=False),
    }
    options.finish()
    if result["residual"] and len(set(widths)) > 1:
        raise options.error("widths", list(widths), "equal widths, because residual layers share one stream")
    return result


MLP = Family("mlp", _normalize_mlp, lambda o: Mlp(**o), lambda o: ((o["inputs"],),))


def _norm(norm: str, width: int) -> nn.Module:
    return nn.BatchNorm2d(width) if norm == "batch" else nn.Identity()


def _convolution(inputs: int, outputs: int, kernel: int, stride: int, norm: str) -> nn.Conv2d:
    # A bias in front of a norm does nothing, so there is none.
    return nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=norm == "none")


class _Pool(nn.Module):
    """Halves both sides of an image, or leaves it alone."""

    def __init__(self, reduce: str, factor: int) -> None:
        super().__init__()
        self.reduce, self.factor = reduce, factor

    def forward(self, x: Tensor) -> Tensor:
        if self.factor == 1 or self.reduce == "stride":
            return x
        pool = nn.functional.max_pool2d if self.reduce == "max" else nn.functional.avg_pool2d
        return pool(x, self.factor)


class _PlainBlock(nn.Module):
    """convolution, norm, activation, pooling."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, reduce: str, norm: str, act: str) -> None:
        super().__init__()
        self.conv = _convolution(inputs, outputs, kernel, stride if reduce == "stride" else 1, norm)
        self.norm = _norm(norm, outputs)
        self.activation = Activation(act)
        self.pool = _Pool(reduce, stride)

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(self.activation(self.norm(self.conv(x))))


class _ResidualBlock(nn.Module):
    """``act(x + f(x))`` with two convolutions in ``f``; a 1x1 convolution on ``x`` where width or resolution changes.

    Source: He et al., Deep Residual Learning for Image Recognition, 2016, section 3.3.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, reduce: str, norm: str, act: str) -> None:
        super().__init__()
        stride_of_convolution = stride if reduce == "stride" else 1
        self.pool = _Pool(reduce, stride)
        self.conv1 = _convolution(inputs, outputs, kernel, stride_of_convolution, norm)
        self.norm1 = _norm(norm, outputs)
        self.conv2 = _convolution(outputs, outputs, kernel, 1, norm)
        self.norm2 = _norm(norm, outputs)
        self.activation = Activation(act)
        self.shortcut: nn.Module | None = None
        if inputs != outputs or stride_of_convolution != 1:
            self.shortcut = nn.Sequential(
                _convolution(inputs, outputs, 1, stride_of_convolution, norm), _norm(norm, outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(x)
        h = self.activation(self.norm1(self.conv1(x)))
        h = self.norm2(self.conv2(h))
        return self.activation((x if self.shortcut is None else self.shortcut(x)) + h)


class Cnn(nn.Module):
    """Convolutions, a readout of the last feature map, one linear layer.

    Plain: block ``i`` is convolution, norm, activation, with ``widths[i]`` channels. Residual: a convolution to
    ``widths[0]`` channels, then block ``i`` adds to a stream of ``widths[i]`` channels. Block ``i`` divides the
    resolution by ``strides[i]``.

    Shapes:
        (batch, channels, size, size) -> (batch, outputs)
    """

    def __init__(
        self,
        channels: int,
        size: int,
        widths: tuple[int, ...],
        outputs: int,
        activation: str,
        norm: str,
        residual: bool,
        kernel: int,
        strides: tuple[int, ...],
        reduce: str,
        head: str,
    ) -> None:
        super().__init__()
        self.stem = _PlainBlock(channels, widths[0], kernel, 1, reduce, norm, activation) if residual else None
        before = (widths[0] if residual else channels, *widths[:-1])
        block = _ResidualBlock if residual else _PlainBlock
        self.blocks = nn.ModuleList(
            block(a, b, kernel, stride, reduce, norm, activation)
            for a, b, stride in zip(before, widths, strides, strict=True)
        )
        side = _last_side(size, strides, reduce)
        self.flatten = head == "flatten"
        self.head = nn.Linear(widths[-1] * (side * side if self.flatten else 1), outputs)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        if self.stem is not None:
            x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(torch.flatten(x, 1) if self.flatten else x.mean(dim=(2, 3)))


def _last_side(size: int, strides: tuple[int, ...], reduce: str) -> int:
    for stride in strides:
        # A padded convolution rounds up, pooling rounds down.
        size = -(-size // stride) if reduce == "stride" else size // stride
    return size


def _normalize_cnn(raw: object) -> dict[str, Any]:
    options = Options("cnn", raw)
    result: dict[str, Any] = {
        "channels": options.integer("channels"),
        "size": options.integer("size", high=MAX_PIXELS_SIDE),
        "widths": options.widths(shortest=1),
        "outputs": options.integer("outputs"),
        "activation": options.choice("activation", ACTIVATIONS),
        "norm": options.choice("norm", ("none", "batch"), default="none"),
        "residual": options.flag("residual", default=False),
        "kernel": options.integer("kernel", high=15, default=3),
        "reduce": options.choice("reduce", ("stride", "max", "average"), default="stride"),
        "head": options.choice("head", ("average", "flatten"), default="average"),
    }
    depth = len(result["widths"])
    strides = options.check_sequence("strides", options.take("strides", [1] * depth, required=False), MAX_DEPTH)
    result["strides"] = tuple(options.check_integer(f"strides[{i}]", s, 1, 4) for i, s in enumerate(strides))
    options.finish()
    if len(strides) != depth:
        raise options.error("length of strides", len(strides), f"{depth}, as many as widths")
    if result["kernel"] % 2 == 0:
        raise options.error("kernel", result["kernel"], "an odd number, so that padding keeps the size")
    if _last_side(result["size"], result["strides"], result["reduce"]) < 1:
        raise options.error("size", result["size"], f"large enough for strides {list(strides)}")
    return result


CNN = Family("cnn", _normalize_cnn, lambda o: Cnn(**o), lambda o: ((o["channels"], o["size"], o["size"]),))
