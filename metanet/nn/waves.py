"""What do the weights of sine networks tell when nothing is run: learned channels that keep to signs and phases?

Channels of learned numbers travel through the weights from the inputs to the outputs, ``a = W h``, and meet learned
functions at every unit instead of the network's sine. A unit ``sin(w (a + b))`` may change its sign, or its bias by
half a period, when the weights behind it change theirs. With ``t = w b`` the phase of its bias, what is passed on,

    h = cos(t) odd(a) + sin(t) even(a),

turns its sign with it, for every odd and every even function: ``(a, t) -> (-a, -t)`` and ``t -> t + pi`` both give
``-h``. So the answers are invariant under the whole group, smoothly and without a frame. The functions are pairs of
bumps around learned places: ``odd, even = exp(-(a + c)^2) -+ exp(-(a - c)^2)``, at the first units in all of a unit's
weights at once, ``exp(-|w +- c|^2 / s^2)``. Neither the sine itself nor any point of its domain occurs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, layer_norm, linear

from metanet.errors import ModelError
from metanet.graph import Bucket, GraphBatch, Topology
from metanet.nn.dense import Dense, Table
from metanet.nn.frames.places import views_of

__all__ = ["Link", "Waves", "chain_of"]

_DEPTHS = 4  # hidden layers that are told apart; later ones share the last
_FITTED = 256  # networks by which sizes are set
_SPREAD = 1.2  # of the first places, where weights have size 1


@dataclass(frozen=True, slots=True)
class Link:
    """One layer of a chain: blocks of its weights and its bias, and the shift of the bias that turns the sine's sign.

    Args:
        weight: number of its block.
        bias: number of its block, ``None`` without.
        step: half a period; ``None`` at the outputs.
    """

    weight: int
    bias: int | None
    step: float | None


@lru_cache(maxsize=256)
def chain_of(topology: Topology) -> tuple[Link, ...]:
    """The layers of a network of sines, from the inputs to the outputs.

    Raises:
        ModelError: for anything else than linear layers one behind the other, with biases and sines between them.
    """
    found: list[Link] = []
    views, end = views_of(topology), None
    for number in topology.edges:
        block = topology.blocks[number]
        target, source = block.groups
        biases = [i for i in topology.nodes if topology.blocks[i].groups == (target,)]
        bias = biases[0] if len(biases) == 1 else None
        view = views[bias] if bias is not None else None
        steps = [shift.step for shift in view.shifts] if view is not None else []
        last = topology.groups[target].fixed
        goes_on = topology.groups[source].fixed if end is None else source == end
        if not goes_on or len(biases) > 1 or block.features != 1 or len(steps) != (0 if last else 1):
            raise ModelError(
                f"{block.tensor} is no layer of a chain of linear layers and sines",
                hint="waves=0; waves read implicit neural representations with sines",
            )
        found.append(Link(number, bias, None if last else steps[0]))
        end = None if last else target
    if not found or end is not None or any(link.step is None for link in found[:-1]) or topology.raw:
        raise ModelError("the networks are no chain of linear layers and sines", hint="waves=0")
    return tuple(found)


class Waves(nn.Module):
    """Features of sine networks from their weights alone, invariant under permutations, signs and phases.

    Numbers of inputs and outputs are those that :meth:`prepare` has seen; others are refused.

    Args:
        channels: how many travel through the weights.
        width: number of features.

    Shapes:
        a bucket of B networks -> ``(B, width)``.
    """

    seed: Tensor
    sizes: Tensor

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.channels, self.features = channels, width
        self.inputs = nn.ModuleDict()
        self.readers = nn.ModuleDict()
        self.places = Table(_DEPTHS, channels, scale=0.5)
        self.widths = Table(channels, scale=0.5)
        self.mix = Table(_DEPTHS - 1, channels, channels, scale=0.6 * channels**-0.5)
        self.register_buffer("sizes", torch.ones(_DEPTHS))
        self.register_buffer("seed", torch.zeros((), dtype=torch.int64))

    def reset_parameters(self, generator: torch.Generator) -> None:
        """Draw all weights anew; those of inputs and outputs are drawn when networks with as many are met."""
        self.seed.fill_(int(torch.randint(2**31, (), generator=generator)))
        self.places.reset_parameters(generator)
        self.widths.reset_parameters(generator)
        self.mix.reset_parameters(generator)
        self.sizes.fill_(1.0)
        self.inputs.clear()
        self.readers.clear()

    @torch.no_grad()
    def prepare(self, batch: GraphBatch) -> None:
        """Make what reads these networks' inputs and outputs, and bring channels to order 1; call it before training.

        Raises:
            ModelError: for networks that are no chain of sines.
        """
        for bucket in batch:
            inputs, outputs = _ends(bucket)
            self._input(str(inputs))
            self._reader(str(outputs))
        # One depth after the other: what reaches a layer depends on the sizes before it.
        for depth in range(_DEPTHS):
            self.sizes[depth] = 1.0
            reached: list[Tensor] = []
            for bucket in batch:
                rows = torch.arange(min(len(bucket), _FITTED), device=bucket.index.device)
                reached += self._sweep(bucket.select(rows, rows))[1][depth : depth + 1]
            if reached:
                size = torch.stack([value.square().mean() for value in reached]).mean().sqrt()
                self.sizes[depth] = size.clamp(min=1e-12)

    def _input(self, key: str) -> Dense:
        if key not in self.inputs:
            made = Dense(int(key), self.channels, bias=False, gain=_SPREAD * int(key) ** 0.5)
            made.reset_parameters(self._generator(2 * int(key)))
            self.inputs[key] = made.to(self.mix.weight)
        found = self.inputs[key]
        if not isinstance(found, Dense):
            raise ModelError(f"{type(found).__name__} stands at {key!r}, expected a linear map")
        return found

    def _reader(self, key: str) -> Dense:
        if key not in self.readers:
            made = Dense(int(key) * (self.channels + 1), self.features, gain=1.4)
            made.reset_parameters(self._generator(2 * int(key) + 1))
            self.readers[key] = made.to(self.mix.weight)
        found = self.readers[key]
        if not isinstance(found, Dense):
            raise ModelError(f"{type(found).__name__} stands at {key!r}, expected a linear map")
        return found

    def _generator(self, stream: int) -> torch.Generator:
        # Which architectures come first must not matter: every map has a stream of its own.
        return torch.Generator().manual_seed(int(self.seed) ^ (stream * 0x9E3779B1 & 0xFFFFFFFF))

    def _sweep(self, bucket: Bucket) -> tuple[Tensor, list[Tensor]]:
        """What reaches the outputs, and what reached each hidden layer before it was divided by its size."""
        reached: list[Tensor] = []
        chain = chain_of(bucket.topology)
        channels: Tensor | None = None
        for depth, link in enumerate(chain[:-1]):
            if link.step is None or link.bias is None:
                raise ModelError("a hidden layer without a phase", hint="waves=0")
            place = min(depth, _DEPTHS - 1)
            arrived = bucket.value(link.weight)[..., 0] * (math.pi / link.step)
            arrived = arrived if channels is None else arrived @ channels
            reached.append(arrived)
            arrived = arrived / self.sizes[place]
            if channels is None:
                bumps = _bumps_at(arrived, self._input(str(_ends(bucket)[0])).weight, self.widths.weight)
            else:
                arrived = linear(arrived, self.mix.weight[place - 1])
                bumps = _bumps(arrived, self.places.weight[place])
            channels = _met(*bumps, bucket.value(link.bias)[..., 0] * (math.pi / link.step))
        last = bucket.value(chain[-1].weight)[..., 0]
        return last if channels is None else last @ channels, reached

    def forward(self, bucket: Bucket) -> Tensor:
        """See the class."""
        inputs, outputs = _ends(bucket)
        for what, number, known in (("inputs", inputs, self.inputs), ("outputs", outputs, self.readers)):
            if str(number) not in known:
                raise ModelError(
                    f"networks with {number} {what}, this model has learned to read {', '.join(known) or 'none'}",
                    hint="train on networks with as many: fit_statistics makes what reads them",
                )
        bias = chain_of(bucket.topology)[-1].bias
        y = self._sweep(bucket)[0]
        last = y.new_zeros(*y.shape[:2], 1) if bias is None else bucket.value(bias)
        told = layer_norm(torch.cat([y, last], dim=-1), (self.channels + 1,))
        features: Tensor = gelu(self._reader(str(outputs))(told.flatten(1)))
        return features

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        # Maps of inputs and outputs follow from what a model was trained on: a trained model brings its own.
        for name in state_dict:
            part, _, key = name.removeprefix(prefix).partition(".")
            number = key.partition(".")[0]
            if name.startswith(prefix) and number.isascii() and number.isdigit() and len(number) < 7:
                if part == "inputs":
                    self._input(number)
                elif part == "readers":
                    self._reader(number)
        super()._load_from_state_dict(state_dict, prefix, *rest)  # type: ignore[no-untyped-call]

    def extra_repr(self) -> str:
        return f"channels={self.channels}"


def _ends(bucket: Bucket) -> tuple[int, int]:
    """Numbers of inputs and outputs."""
    chain = chain_of(bucket.topology)
    first, last = (bucket.value(chain[place].weight) for place in (0, -1))
    return first.shape[2], last.shape[1]


def _bumps(arrived: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    """One bump at minus, one at plus the place: they change their roles with the sign of what arrives.

    Shapes:
        arrived: ``(..., channels)``. places: ``(channels,)``. Returns two like ``arrived``.
    """
    return torch.exp(-((arrived + places) ** 2)), torch.exp(-((arrived - places) ** 2))


def _bumps_at(weights: Tensor, places: Tensor, widths: Tensor) -> tuple[Tensor, Tensor]:
    """The same around places among the weights of units; widths are logarithms of inverse squares.

    Shapes:
        weights: ``(..., inputs)``. places: ``(channels, inputs)``. widths: ``(channels,)``. Returns two of ``(...,
        channels)``.
    """
    squares = weights.square().sum(-1, keepdim=True) + places.square().sum(-1)
    twice, sharp = 2 * linear(weights, places), widths.exp()
    return torch.exp(-(squares + twice) * sharp), torch.exp(-(squares - twice) * sharp)


def _met(one: Tensor, two: Tensor, phase: Tensor) -> Tensor:
    """What units pass on: ``cos(t) (one - two) + sin(t) (one + two)``.

    Shapes:
        one, two: ``(B, units, channels)``. phase: ``(B, units)``. Returns like ``one``.
    """
    cosine, sine = phase.cos().unsqueeze(-1), phase.sin().unsqueeze(-1)
    return (sine + cosine) * one + (sine - cosine) * two
