"""On what is a network run when there are no data? On made-up inputs, drawn from what is known of the real ones."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from metanet.checkpoint import Architecture, Checkpoint
from metanet.checkpoint.families_inr import SIREN
from metanet.errors import ScoreError, clean

__all__ = ["InputDescription", "ProbeInputs"]

KINDS = ("normal", "smooth", "uniform", "tokens")
MAX_FEATURES = 4096


@dataclass(frozen=True, slots=True)
class InputDescription:
    """What is known of one argument of ``forward``.

    Args:
        shape: of one input, without the axis of the inputs.
        kind: ``normal`` numbers, ``smooth`` noise over the last two axes (images), ``uniform`` numbers, or ``tokens``.
        low: the lowest value; for ``tokens`` it is 0.
        high: the highest value; for ``tokens`` their number.
        mean: one number, or one for each entry of the first axis (channels, features).
        deviation: standard deviation, like ``mean``.
        covariance: between the features of a flat input, row by row; replaces ``deviation``.
        exponent: of smooth noise: amplitudes fall with frequency f as ``f ** -exponent``.
        frequencies: how often each token occurs; equally often if empty.
        known_from: where this is known from.

    Raises:
        ScoreError: for values that contradict each other.
    """

    shape: tuple[int, ...]
    kind: str = "normal"
    low: float | None = None
    high: float | None = None
    mean: tuple[float, ...] = (0.0,)
    deviation: tuple[float, ...] = (1.0,)
    covariance: tuple[tuple[float, ...], ...] = ()
    exponent: float = 1.0
    frequencies: tuple[float, ...] = ()
    known_from: str = "given by the user"

    def __post_init__(self) -> None:
        def refuse(name: str, hint: str) -> ScoreError:
            return ScoreError(f"{name}={clean(getattr(self, name), 60)} of inputs {list(self.shape)}", hint=hint)

        if self.kind not in KINDS:
            raise refuse("kind", f"expected one of {', '.join(KINDS)}")
        if any(size < 1 for size in self.shape):
            raise refuse("shape", "sizes are positive")
        if self.kind == "smooth" and len(self.shape) < 2:
            raise refuse("kind", "smooth noise needs two axes of pixels")
        if self.kind in ("uniform", "tokens") and (self.high is None or self.high <= (self.low or 0)):
            raise refuse("high", "expected a number above low")
        if self.frequencies and (len(self.frequencies) != self.high or min(self.frequencies) < 0):
            raise refuse("frequencies", "expected one for each token, none negative")
        for name in ("mean", "deviation"):
            if len(getattr(self, name)) not in (1, *self.shape[:1]):
                raise refuse(name, "expected one number, or one for each entry of the first axis")
        sides = {len(row) for row in self.covariance} | {len(self.covariance)}
        if self.covariance and (len(self.shape) != 1 or sides != {self.shape[0]}):
            raise refuse("covariance", "expected a square matrix over the features of a flat input")

    @property
    def words(self) -> str:
        """What is drawn, in words."""
        match self.kind:
            case "smooth":
                return f"smooth noise (amplitude f^-{self.exponent:g})"
            case "uniform":
                return f"uniform numbers from {self.low or 0:g} to {self.high:g}"
            case "tokens":
                return f"tokens drawn {'by their frequencies' if self.frequencies else 'equally often'}"
            case _:
                return f"normal numbers{' with the known covariance' if self.covariance else ''}"

    @classmethod
    def of_data(cls, inputs: Tensor, kind: str | None = None) -> InputDescription:
        """What samples tell: range, mean, deviation and, for flat inputs, covariance; or how often tokens occur.

        Args:
            inputs: samples, along the first axis.
            kind: ``smooth`` for images (inputs with three axes or more) if ``None``.
        """
        shape, known = tuple(inputs.shape[1:]), f"{len(inputs):,} samples"
        if not inputs.is_floating_point():
            counts = torch.bincount(inputs.reshape(-1).long().cpu()).double()
            share = tuple((counts / counts.sum()).tolist())
            return cls(shape, "tokens", 0, len(share), frequencies=share, known_from=known)
        wide = inputs.detach().double().cpu()
        kind = kind or ("smooth" if len(shape) >= 2 and min(shape[-2:]) > 1 else "normal")
        # One mean for each channel or feature.
        flat = wide.movedim(1, 0).reshape(shape[0], -1) if shape else wide.reshape(1, -1)
        covariance: tuple[tuple[float, ...], ...] = ()
        if len(shape) == 1 and shape[0] <= MAX_FEATURES and len(inputs) > 1:
            covariance = tuple(tuple(row) for row in torch.cov(flat).reshape(shape[0], shape[0]).tolist())
        return cls(
            shape,
            kind,
            float(wide.min()),
            float(wide.max()),
            tuple(flat.mean(1).tolist()),
            tuple(flat.std(1, correction=0).tolist()),
            covariance,
            known_from=known,
        )

    @classmethod
    def of_example(cls, example: Tensor, model: nn.Module | None = None) -> InputDescription:
        """What the shape and type of an example tell.

        Args:
            example: inputs along the first axis.
            model: tells how many tokens there are, if it holds exactly one size of embedding.
        """
        shape = tuple(example.shape[1:])
        if example.is_complex() or example.dtype == torch.bool:
            raise ScoreError(f"an input of {example.dtype} cannot be made up", hint="give inputs")
        if not example.is_floating_point():
            modules = model.modules() if model is not None else ()
            sizes = {module.num_embeddings for module in modules if isinstance(module, nn.Embedding)}
            most = int(example.max()) + 1
            # Position tables are embeddings as well: without a single candidate only what the example shows is safe.
            number = sizes.pop() if len(sizes) == 1 else most
            return cls(shape, "tokens", 0, max(number, most, 1), known_from="the shape and type of an example")
        image = len(shape) == 3 and shape[0] in (1, 3, 4) and min(shape[1:]) > 1
        return cls(shape, "smooth" if image else "normal", known_from="the shape of an example")

    @classmethod
    def of_network(cls, network: Checkpoint | Architecture) -> tuple[InputDescription, ...]:
        """What is known of each input of a network from its architecture alone.

        Raises:
            CheckpointError: where the architecture is not known.
        """
        architecture = network.architecture if isinstance(network, Checkpoint) else network
        examples = architecture.example_inputs()
        if architecture.family == SIREN.name:
            known = "coordinates of a signal"
            return tuple(cls(tuple(x.shape[1:]), "uniform", -1, 1, known_from=known) for x in examples)
        needed = any(not example.is_floating_point() for example in examples)
        model = architecture.build() if needed else None
        found = tuple(cls.of_example(example, model) for example in examples)
        if architecture.family == "cnn":
            # The architecture says that these are images, however many channels they have.
            found = tuple(replace(one, kind="smooth" if min(one.shape[-2:]) > 1 else one.kind) for one in found)
        return tuple(replace(one, known_from=f"the architecture ({architecture.family})") for one in found)

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Made-up inputs.

        Shapes:
            (count, *shape), float32, or int64 for tokens.
        """
        shape = (count, *self.shape)
        if self.kind == "tokens":
            weights = torch.tensor(self.frequencies or (1.0,) * int(self.high or 1), dtype=torch.float64)
            drawn = torch.multinomial(weights, math.prod(shape), replacement=True, generator=generator)
            return drawn.reshape(shape)
        if self.kind == "uniform":
            low, high = self.low or 0.0, self.high or 1.0
            return low + (high - low) * torch.rand(shape, generator=generator)
        if self.covariance:
            noise = torch.randn(shape, generator=generator, dtype=torch.float64) @ self._root()
        elif self.kind == "smooth":
            noise = _smooth(shape, self.exponent, generator) * self._axis(self.deviation)
        else:
            noise = torch.randn(shape, generator=generator, dtype=torch.float64) * self._axis(self.deviation)
        noise = noise + self._axis(self.mean)
        return noise.clamp(self.low, self.high).float() if (self.low, self.high) != (None, None) else noise.float()

    def _axis(self, values: Sequence[float]) -> Tensor:
        """Along the first axis of an input."""
        found = torch.tensor(values, dtype=torch.float64)
        return found.reshape(-1, *(1,) * (len(self.shape) - 1)) if self.shape else found.reshape(())

    def _root(self) -> Tensor:
        """A matrix whose square is the covariance; of rounding only what is negative is cut off."""
        values, vectors = torch.linalg.eigh(torch.tensor(self.covariance, dtype=torch.float64))
        return (vectors * values.clamp(min=0).sqrt()) @ vectors.T

    def to_json(self) -> dict[str, Any]:
        """A JSON value that :meth:`from_json` reads back."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> InputDescription:
        """The description that a JSON value holds.

        Raises:
            ScoreError: for anything else.
        """
        names = {field.name for field in fields(cls)}
        if not isinstance(value, Mapping) or set(value) - names or "shape" not in value:
            raise ScoreError("no description of an input", hint=f"a JSON object with shape and any of {sorted(names)}")

        def frozen(item: Any) -> Any:
            return tuple(frozen(part) for part in item) if isinstance(item, list | tuple) else item

        return cls(**{name: frozen(item) for name, item in value.items()})


def _smooth(shape: tuple[int, ...], exponent: float, generator: torch.Generator) -> Tensor:
    """Noise over the last two axes with amplitude ``f ** -exponent``, of mean 0 and variance 1.

    The amplitudes of natural images fall with exponent 1 (Field, Relations between the statistics of natural images,
    1987). The mean of an image is a frequency like others, as strong as the lowest.
    """
    height, width = shape[-2:]
    rows = torch.fft.fftfreq(height, dtype=torch.float64)[:, None]
    columns = torch.fft.fftfreq(width, dtype=torch.float64)
    frequency = (rows.square() + columns.square()).sqrt()
    amplitude = frequency.clamp(min=1.0 / max(height, width)) ** -exponent
    amplitude = amplitude / amplitude.square().mean().sqrt()
    white = torch.randn(shape, generator=generator, dtype=torch.float64)
    return torch.fft.ifft2(torch.fft.fft2(white) * amplitude).real


@dataclass(frozen=True, slots=True)
class ProbeInputs:
    """Made-up inputs: what a network is run on where there are no data.

    Args:
        descriptions: one for each argument of ``forward``.
        count: how many inputs.
        seed: they are the same for the same seed.

    >>> description = InputDescription((1, 14, 14), kind="smooth", mean=(0.1,), low=0, high=1)
    >>> probes = ProbeInputs((description,), 4096)
    >>> probes.origin
    'smooth noise (amplitude f^-1), 4,096 made-up inputs; not data'
    >>> probes.tensors()[0].shape
    torch.Size([4096, 1, 14, 14])
    """

    descriptions: tuple[InputDescription, ...]
    count: int = 4096
    seed: int = 0

    def __post_init__(self) -> None:
        if self.count < 1 or not self.descriptions:
            raise ScoreError(f"{self.count} made-up inputs of {len(self.descriptions)} arguments", hint="at least one")

    @classmethod
    def of(cls, network: Checkpoint | Architecture, count: int = 4096, seed: int = 0) -> ProbeInputs:
        """Inputs for a network of which only the architecture is known."""
        return cls(InputDescription.of_network(network), count, seed)

    @property
    def origin(self) -> str:
        """What they are, in words."""
        kinds = list(dict.fromkeys(description.words for description in self.descriptions))
        return f"{' and '.join(kinds)}, {self.count:,} made-up inputs; not data"

    def tensors(self) -> tuple[Tensor, ...]:
        """The inputs, the same on every call.

        Shapes:
            one tensor for each argument, (count, *shape).
        """
        generator = torch.Generator().manual_seed(self.seed)
        return tuple(description.draw(self.count, generator) for description in self.descriptions)
