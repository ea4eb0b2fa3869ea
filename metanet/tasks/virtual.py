"""Which inputs stand for the data that a network learned, when nothing is known but its weights?

Learned ones, the same for all networks of a kind of data; or random fields made to measure for each network. Its first
weights tell where its data vary and how smoothly: their correlations set how much of each smoothness a field has at
each place. Steps along the gradients of the network's own answers then bring the fields nearer to what it tells apart.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from metanet.errors import ConfigError
from metanet.morph.batched import Stacked
from metanet.tasks.first_weights import CHANNELS, weight_correlations
from metanet.tasks.options import check_options
from symmetry import SymmetrySpec

__all__ = ["Virtual", "VirtualInputs", "VirtualOptions"]

# Widths of the Gaussian filters whose noise is mixed, in places.
_WIDTHS = (0.05, 0.6, 0.9, 1.3, 1.8, 2.5, 3.5)
_SCALE = 20.0  # learned inputs move as much faster than weights of layers, under one learning rate
_POOLED, _ANSWERS, _SHOWN = 4, 4, 64  # of the choice of a kind: places of the maps, features, inputs that are run
_SEED = 99  # of the fields that a trained predictor makes


@dataclass(frozen=True, eq=False)
class Virtual:
    """Inputs for a stack of networks.

    Args:
        inputs: the same for all, or each network's own.
        ridge: for the least squares on them; see :class:`metanet.morph.Compensation`.
        own: whether they are each network's own.

    Shapes:
        inputs (n, *input) or (B, n, *input)
    """

    inputs: Tensor
    ridge: Tensor
    own: bool


@dataclass(frozen=True)
class VirtualOptions:
    """How inputs are made.

    Attributes:
        inputs: learned inputs that networks share; of as many kinds as there are data sets in training, one of which
            is chosen for each network by what its weights and its answers to them say.
        fields: random fields made for each network, in a step of training.
        used: the same, in use.
        steps: steps of the fields along gradients of the network's answers.
        hidden: channels of the small convolutional network that reads the statistics of the first weights.
    """

    inputs: int = 256
    fields: int = 0
    used: int = 768
    steps: int = 0
    hidden: int = 48


class VirtualInputs(nn.Module):
    """Makes inputs from weights; equal networks in another order, scale or sign of their units get equal ones.

    Args:
        options: how.
        shape: of an image: channels, rows, columns.
        kinds: data sets that learned inputs stand for.
        generator: of what is drawn at first.
    """

    def __init__(self, options: VirtualOptions, shape: Sequence[int], kinds: int, generator: torch.Generator) -> None:
        super().__init__()
        self.options, self.shape, self.kinds = options, tuple(shape), kinds
        channels, height, width = self.shape
        self.log_ridge = nn.Parameter(torch.tensor(math.log(1e-3) / 5))
        drawn = torch.randn(kinds, options.inputs, *self.shape, generator=generator)
        self.learned = nn.Parameter(drawn / _SCALE)
        if kinds > 1:
            self.by_weights = nn.Linear(channels * CHANNELS * _POOLED**2, kinds)
            self.by_answers = nn.Sequential(nn.Linear(2 * _ANSWERS, 16), nn.GELU(), nn.Linear(16, 1))
            for layer in (self.by_weights, self.by_answers[0], self.by_answers[2]):
                _draw(layer, generator)
        if not options.fields:
            return
        hidden, outputs = options.hidden, channels * (len(_WIDTHS) + 3 + options.steps)
        self.reader = nn.Sequential(
            nn.Conv2d(channels * CHANNELS + 2, hidden, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(hidden, hidden, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(hidden, hidden, 3, padding=2, dilation=2),
            nn.GELU(),
        )
        self.whole = nn.Sequential(nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, hidden))
        self.sizes, self.bend = nn.Conv2d(hidden, outputs, 1), nn.Linear(hidden, 4)
        for layer in (*self.reader, *self.whole, self.sizes, self.bend):
            _draw(layer, generator)
        with torch.no_grad():
            self.sizes.weight.mul_(0.1)
            self.bend.weight.zero_()
        self.base = nn.Parameter(torch.zeros(outputs, height, width))
        self.smooth = nn.Parameter(torch.zeros(options.steps, len(_WIDTHS)))
        rows, columns = torch.linspace(-1, 1, height), torch.linspace(-1, 1, width)
        self.places: Tensor
        self.filters: Tensor
        self.averages: Tensor
        self.register_buffer("places", torch.stack(torch.meshgrid(rows, columns, indexing="ij")), persistent=False)
        self.register_buffer("filters", torch.stack([_filter(self.shape, w) for w in _WIDTHS]), persistent=False)
        self.register_buffer("averages", torch.stack([_average(self.shape, w) for w in _WIDTHS]), persistent=False)
        with torch.no_grad():
            # At first two smoothnesses, alike for every network.
            self.base.view(-1, channels, height, width)[2] = 0.5
            self.base.view(-1, channels, height, width)[4] = 0.5

    @classmethod
    def from_mapping(
        cls, options: Mapping[str, Any], shape: Sequence[int], kinds: int, generator: torch.Generator
    ) -> VirtualInputs:
        """The predictor of a configuration.

        Raises:
            ConfigError: Unknown keys, or values of the wrong type or out of range.
        """
        if options.get("name") != "virtual":
            raise ConfigError(f"{options.get('name')!r} given, task=morph takes 'virtual'", where="model.name")
        given = VirtualOptions(
            **check_options(VirtualOptions, {k: v for k, v in options.items() if k != "name"}, "model")
        )
        if len(shape) != 3:
            raise ConfigError(f"inputs of shape {list(shape)}, expected channels, rows and columns", where="model")
        for name, least in (("inputs", 0), ("fields", 0), ("used", 2), ("steps", 0), ("hidden", 1)):
            if getattr(given, name) < least:
                raise ConfigError(f"{getattr(given, name)} given, expected {least} or more", where=f"model.{name}")
        if given.inputs + given.fields < 2:
            raise ConfigError("no inputs and no fields", where="model", hint="inputs=256, or fields=192")
        return cls(given, shape, kinds if given.inputs else 1, generator)

    @torch.no_grad()
    def start(self, images: Sequence[Tensor], generator: torch.Generator) -> None:
        """Give the learned inputs of each kind the mean and covariance of its images.

        Shapes:
            images (n, *input) each, one for each kind
        """
        if not self.options.inputs:
            return
        for kind, given in enumerate(images):
            flat = given[:10_000].flatten(1).double()
            covariance = torch.cov(flat.mT) + 1e-4 * torch.eye(flat.shape[1], dtype=torch.float64)
            noise = torch.randn(self.options.inputs, flat.shape[1], generator=generator, dtype=torch.float64)
            drawn = flat.mean(0) + noise @ torch.linalg.cholesky(covariance).mT
            self.learned[kind].copy_((drawn.reshape(self.learned[kind].shape) / _SCALE).to(self.learned))

    @property
    def ridge(self) -> Tensor:
        """The weight of the shrinkage."""
        return (5 * self.log_ridge).exp()

    def forward(
        self,
        stacked: Stacked,
        spec: SymmetrySpec,
        states: Mapping[str, Tensor],
        read_as: Sequence[int],
        generator: torch.Generator | None = None,
        kind: int | None = None,
    ) -> Virtual:
        """Inputs for a stack of networks.

        Args:
            stacked: runs them.
            spec: their spec.
            states: their weights.
            read_as: the shape in which the networks read an image.
            generator: draws the fields of a step of training; without, they are always the same, and more.
            kind: of the data set that the networks learned, where it is known: in training. Otherwise it is told.

        Shapes:
            states (B, ...)
        """
        learned = self.learned * _SCALE
        if self.kinds == 1 or kind is not None:
            shared = learned[0 if self.kinds == 1 else kind or 0]
            own = False
        else:
            shared = learned[self.told(stacked, spec, states, read_as).argmax(1)]
            own = True
        if not self.options.fields:
            flat = shared.reshape(*shared.shape[: -len(self.shape)], *read_as)
            return Virtual(flat, self.ridge, own)
        count = self.options.fields if generator is not None else self.options.used
        generator = torch.Generator().manual_seed(_SEED) if generator is None else generator
        made = self._fields(stacked, spec, states, tuple(read_as), count, generator)
        both = torch.cat([shared if own else shared.expand(len(made), *shared.shape), made], 1)
        return Virtual(both.reshape(*both.shape[:2], *read_as), self.ridge, own=True)

    def told(
        self, stacked: Stacked, spec: SymmetrySpec, states: Mapping[str, Tensor], read_as: Sequence[int]
    ) -> Tensor:
        """How likely each kind of data is the one that a network learned, as logits.

        Its first weights say it, and its answers to the inputs of each kind: where they are, on average over inputs,
        evenly spread over the classes and sure for each input, the inputs are of its kind.

        Shapes:
            states (B, ...) -> (B, kinds)
        """
        maps = nn.functional.adaptive_avg_pool2d(weight_correlations(spec, states, self.shape, self.learned), _POOLED)
        found: Tensor = self.by_weights(maps.flatten(1))
        dtype = next((value.dtype for value in states.values() if value.is_floating_point()), found.dtype)
        shown = self.learned.detach()[:, :_SHOWN] * _SCALE
        flat = shown.reshape(-1, *read_as).to(dtype)
        with torch.no_grad():
            logits = stacked.outputs(states, (flat,)).unflatten(1, (self.kinds, -1)).to(found)
        chance = logits.softmax(-1)
        mean = chance.mean(2)
        sure = chance.amax(-1).mean(2)
        entropy = -(chance * chance.clamp_min(1e-12).log()).sum(-1).mean(2)
        spread = -(mean * mean.clamp_min(1e-12).log()).sum(-1)
        size = (logits - logits.mean(-1, keepdim=True)).square().mean((2, 3)).sqrt().log1p()
        features = torch.stack([sure, entropy, spread, size], -1)
        relative = features - features.mean(1, keepdim=True)
        scale = relative.square().mean(1, keepdim=True).sqrt() + 1e-6
        answers: Tensor = self.by_answers(torch.cat([features, relative / scale], -1)).squeeze(-1)
        return found + answers

    def _fields(
        self,
        stacked: Stacked,
        spec: SymmetrySpec,
        states: Mapping[str, Tensor],
        read_as: tuple[int, ...],
        count: int,
        generator: torch.Generator,
    ) -> Tensor:
        """Random fields of each network's own. Shapes: -> (B, count, channels, rows, columns)."""
        channels, height, width = self.shape
        told = weight_correlations(spec, states, self.shape, self.learned)
        places = self.places.expand(len(told), -1, -1, -1)
        features = self.reader(torch.cat([told, places], 1))
        whole = self.whole(features.mean((2, 3)))
        sizes = self.sizes(features + whole[:, :, None, None]) + self.base
        sizes = sizes.unflatten(1, (-1, channels))
        number = len(_WIDTHS)
        white = torch.randn(count, channels, height * width, generator=generator).to(self.base)
        smooth = torch.einsum("fpq,kcq->kfcp", self.filters, white).unflatten(-1, (height, width))
        level = (
            torch.randn(count, 2, 1, 1, 1, generator=generator).to(self.base).expand(-1, -1, channels, height, width)
        )
        noise = torch.cat([smooth, level], 1)
        made = torch.einsum("bfchw,kfchw->bkchw", sizes[:, : number + 2], noise) + sizes[:, number + 2, None]
        bend = self.bend(whole)[:, :, None, None, None, None]
        made = made + bend[:, 0] * (made - bend[:, 1]).relu() + bend[:, 2] * made.abs()
        made = made + bend[:, 3] * torch.tanh(2 * made)
        for step in range(self.options.steps):
            slope = self._slope(stacked, states, made, read_as, generator)
            average = torch.einsum("f,fpq->pq", (3 * self.smooth[step]).softmax(0), self.averages)
            slope = (slope.flatten(-2) @ average).unflatten(-1, (height, width))
            made = made + sizes[:, number + 3 + step, None] * slope
        return made

    def _slope(
        self,
        stacked: Stacked,
        states: Mapping[str, Tensor],
        made: Tensor,
        read_as: tuple[int, ...],
        generator: torch.Generator,
    ) -> Tensor:
        """Where each field has to go for the network to take it for one of a class that is drawn; of size one."""
        dtype = next((value.dtype for value in states.values() if value.is_floating_point()), made.dtype)
        flat = made.reshape(*made.shape[:2], *read_as).to(dtype)
        count = made.shape[1]
        drawn = torch.rand(count, 1, generator=generator)

        def score(answers: Tensor) -> Tensor:
            wanted = (drawn * answers.shape[-1]).long().clamp_max(answers.shape[-1] - 1)
            return answers.log_softmax(-1).gather(-1, wanted).sum()

        found = stacked.steepest(states, flat, score, own=True).reshape(made.shape).to(made)
        size = found.square().mean((1, 2, 3, 4), keepdim=True).sqrt()
        return found / (size + 1e-6)


def _draw(layer: nn.Module, generator: torch.Generator) -> None:
    """First weights of a layer, from a generator of the caller's."""
    if isinstance(layer, nn.Conv2d | nn.Linear):
        bound = 1 / math.sqrt(layer.weight[0].numel())
        nn.init.uniform_(layer.weight, -bound, bound, generator=generator)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def _filter(shape: Sequence[int], width: float) -> Tensor:
    """A Gaussian filter of noise that gives variance one at every place. Shapes: -> (places, places)."""
    matrix = _average(shape, width)
    return matrix / matrix.square().sum(1, keepdim=True).sqrt()


def _average(shape: Sequence[int], width: float) -> Tensor:
    """A Gaussian average over neighbouring places. Shapes: -> (places, places)."""
    parts = []
    for size in shape[1:]:
        at = torch.arange(size, dtype=torch.float32)
        kernel = torch.exp(-0.5 * ((at[:, None] - at[None]) / width) ** 2)
        parts.append(kernel / kernel.sum(1, keepdim=True))
    return torch.kron(parts[0], parts[1])
