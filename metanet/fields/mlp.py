"""How does a small network write the weights of a network of any size, one weight per call?

The field of NeuMeta (Yang, Zhou and Wang, Neural Metamorphosis, ECCV 2024, section 3.2): coordinates of a weight and
the widths of the network that it is for, normalised to the full width (their equation 3), embedded by sines and cosines
of rising frequencies, go through a residual perceptron, one for each tensor. Of their coordinates the number of the
layer and the depth are the same for all weights of one tensor, so that the first bias stands for them. Fixed axes
(inputs, outputs, kernel positions) are outputs of the perceptron: its last layer is their table. Biases, gains and
statistics are tables of knots: a perceptron for a row of numbers would hold more than the row.

Weights are divided by fan-in through the shares of what is read (see :mod:`metanet.fields.places`). Perceptrons on such
embeddings die at once if they are initialised like layers on centred data; here every layer is scaled, at the start, by
what it answers over all coordinates of full width (as in LSUV: Mishkin and Matas 2016).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from metanet.errors import FieldError
from metanet.fields.field import Field, start_scale
from metanet.fields.layout import Piece
from metanet.fields.parts import Table, to_knots
from metanet.fields.places import Places, Sampling
from symmetry import SymmetrySpec

__all__ = ["MlpField", "Perceptron"]


class Perceptron(nn.Module):
    """Coordinates of units and widths in, the entries of all fixed axes out.

    Args:
        piece: that it writes.
        hidden: units of every layer.
        blocks: residual blocks ``h + W relu(V norm(h))``.
        frequencies: of the embedding: 1, 2, 4, ... half periods over the unit interval.
        generator: of the start.
    """

    def __init__(
        self, piece: Piece, hidden: int, blocks: int, frequencies: int, generator: torch.Generator | None
    ) -> None:
        super().__init__()
        self.moving = [dim for dim, space in enumerate(piece.spaces) if space is not None]
        self.fixed = [dim for dim, space in enumerate(piece.spaces) if space is None]
        self.fixed_shape = [piece.full[dim] for dim in self.fixed]
        self.frequencies = frequencies
        numbers = 2 * len(self.moving) * (1 + 2 * frequencies)
        self.first = nn.Linear(numbers, hidden)
        self.wide = nn.ModuleList(nn.Linear(hidden, hidden) for _ in range(blocks))
        self.back = nn.ModuleList(nn.Linear(hidden, hidden) for _ in range(blocks))
        self.last = nn.Linear(hidden, math.prod(self.fixed_shape))
        with torch.no_grad():
            for layer in (self.first, *self.wide, *self.back, self.last):
                layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator) / math.sqrt(layer.in_features))
                layer.bias.zero_()

    def embed(self, places: Sequence[Places | None]) -> Tensor:
        """Features of every combination of units. Shapes: -> (combinations, features)."""
        here = [place for place in places if place is not None]
        columns = [*torch.meshgrid(*(place.positions for place in here), indexing="ij")]
        columns += [torch.full_like(columns[0], place.size / place.full) for place in here]
        v = torch.stack([column.flatten() for column in columns], -1)
        angle = v[..., None] * (math.pi * 2.0 ** torch.arange(self.frequencies, dtype=v.dtype))
        return torch.cat([v, angle.sin().flatten(1), angle.cos().flatten(1)], -1).to(self.first.weight)

    def body(self, features: Tensor) -> Tensor:
        """The last hidden layer. Shapes: (combinations, features) -> (combinations, hidden)."""
        h = self.first(features)
        for wide, back in zip(self.wide, self.back, strict=True):
            h = h + back(torch.relu(wide(_normed(h))))
        return torch.relu(_normed(h))

    def settle(self, places: Sequence[Places | None], deviation: float) -> None:
        """Scale every layer so that what it answers over the given coordinates has mean 0 and deviation 1.

        Args:
            places: of every leaf at full width.
            deviation: of the values that are written.
        """
        with torch.no_grad():
            features = self.embed(places)
            h = _settled(self.first, features, 1.0)
            for wide, back in zip(self.wide, self.back, strict=True):
                h = h + _settled(back, torch.relu(_settled(wide, _normed(h), 1.0)), 0.5)
            _settled(self.last, torch.relu(_normed(h)), deviation)

    def dead(self, places: Sequence[Places | None]) -> float:
        """The share of hidden units that answer the same at all coordinates."""
        with torch.no_grad():
            h = self.body(self.embed(places))
            return float((h.amax(0) - h.amin(0) < 1e-6).float().mean())

    def fit(self, values: Tensor, places: Sequence[Places | None]) -> None:
        """The last layer by least squares, so that the values come out as closely as the others allow."""
        with torch.no_grad():
            h = self.body(self.embed(places)).double()
            wanted = values.permute(*self.moving, *self.fixed).reshape(len(h), -1).double()
            design = torch.cat([h, torch.ones(len(h), 1, dtype=h.dtype)], 1)
            gram = design.mT @ design + 1e-6 * len(h) * torch.eye(design.shape[1], dtype=h.dtype)
            found = torch.linalg.solve(gram, design.mT @ wanted)
            self.last.weight.copy_(found[:-1].mT)
            self.last.bias.copy_(found[-1])

    def forward(self, places: Sequence[Places | None], width: float) -> Tensor:
        """The values of the piece; ``places`` has one entry per leaf. The embedding holds the widths of its spaces."""
        out = self.last(self.body(self.embed(places)))
        sizes = [place.size for place in places if place is not None]
        order = [*self.moving, *self.fixed]
        return out.view(*sizes, *self.fixed_shape).permute([order.index(dim) for dim in range(len(order))])


def _normed(h: Tensor) -> Tensor:
    return h * (h.square().mean(-1, keepdim=True) + 1e-6).rsqrt()


def _settled(layer: nn.Module, inputs: Tensor, deviation: float) -> Tensor:
    """The layer scaled and shifted; its answers."""
    if not isinstance(layer, nn.Linear):
        raise TypeError(f"{type(layer).__name__}, expected a linear layer")
    out = layer(inputs)
    # Over all numbers, not per unit: a unit that hardly varies must not be blown up.
    layer.weight.mul_(deviation / out.std(correction=0).clamp_min(1e-6))
    layer.bias.sub_(layer(inputs).mean(0))
    answers: Tensor = layer(inputs)
    return answers


class MlpField(Field):
    """A field of small networks.

    Args:
        spec: of the architecture at full width.
        state: a network of full width: scales, constants, biases and gains start from it.
        sampling: how coordinates are laid out.
        hidden: units of the layers of every perceptron.
        blocks: residual blocks of every perceptron.
        frequencies: of the embedding.
        width_knots: at how many widths biases, gains and statistics have their own values.
        widths: the lowest and the highest of these widths.
        start: ``random``, or ``fit``: the last layers by least squares to the weights of ``state``.
        generator: of the random start.

    Raises:
        FieldError: for an impossible option.
    """

    kind = "mlp"

    def __init__(
        self,
        spec: SymmetrySpec,
        state: Mapping[str, Tensor],
        sampling: Sampling | None = None,
        *,
        hidden: int = 32,
        blocks: int = 1,
        frequencies: int = 6,
        width_knots: int = 1,
        widths: tuple[float, float] = (0.25, 1.0),
        start: str = "random",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(spec, state, sampling or Sampling())
        for name, value, least in (("hidden", hidden, 1), ("blocks", blocks, 0), ("frequencies", frequencies, 0)):
            if value < least:
                raise FieldError(f"{name}={value}", hint=f"expected {least} or more")
        if start not in ("random", "fit"):
            raise FieldError(f"start={start!r}", hint="expected random or fit")
        self.hidden, self.blocks, self.frequencies = hidden, blocks, frequencies
        self.width_knots, self.widths = width_knots, widths
        for piece in self.layout.pieces:
            values, places = self.start_values(piece, state), self.places(piece)
            if not piece.weighs or not any(piece.spaces):
                for dim, here in enumerate(places):
                    if here is not None:
                        values = to_knots(values, dim, here, here.size)
                self.parts[piece.key] = Table(values, 1.0, width_knots, widths, piece.trained)
                continue
            perceptron = Perceptron(piece, hidden, blocks, frequencies, generator).to(values.dtype)
            perceptron.settle(places, start_scale(piece, values))
            if start == "fit":
                perceptron.fit(values, places)
            self.parts[piece.key] = perceptron

    def values(self, piece: Piece, places: Mapping[str, Places], width: float) -> Tensor:
        here = [None if space is None else places[space] for space in piece.spaces]
        values: Tensor = self.parts[piece.key](here, width)
        return values

    def options(self) -> dict[str, Any]:
        return {
            "hidden": self.hidden,
            "blocks": self.blocks,
            "frequencies": self.frequencies,
            "width_knots": self.width_knots,
            "widths": list(self.widths),
        }
