"""Can it be told from weights alone how a network is best narrowed? What is learned, and how well it is done.

A predictor makes inputs for a network from its weights (:mod:`metanet.tasks.virtual`). On them the network's units are
run, chosen and made up for in closed form, as on data (:mod:`metanet.morph`). It is trained by what that does to the
function: the divergence between the narrowed network and the whole one, on the images that the network learned.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from metanet.errors import TaskError
from metanet.morph.batched import Masked
from metanet.morph.batched_refit import input_moments
from metanet.morph.orders import kept_of, obs_orders, reader_grams
from metanet.tasks.morph_data import MorphData, MorphGroup
from metanet.tasks.morph_path import gradient_gap
from metanet.tasks.options import check_ranges, task_options
from metanet.tasks.virtual import Virtual, VirtualInputs
from metanet.train import Extras, Monitor

__all__ = ["MORPH_NAME", "SHARES", "MorphTask", "divergence", "masks_for", "measured"]

MORPH_NAME, FORMAT = "morph.json", "metanet.morph-predictor/1"
SHARES = (0.75, 0.5, 0.25)  # of the units of every space, at which predictors are compared
_CHUNK = 32
_MORE = 4  # times as many images for gradients: those of a whole set are wanted

Masks = dict[str, Tensor]
Moments = dict[str, tuple[Tensor, Tensor]]


def divergence(logits: Tensor, edited: Tensor) -> Tensor:
    """KL(whole || narrowed) of the class probabilities, nats, mean over inputs. Shapes: (B, n, classes) -> (B,)."""
    one, two = logits.log_softmax(-1), edited.log_softmax(-1)
    return (one.exp() * (one - two)).sum(-1).mean(-1)


def masks_for(
    masked: Masked, states: Mapping[str, Tensor], moments: Moments, shares: Mapping[str, float], ridge: float
) -> Masks:
    """Which units stay, by optimal brain surgeon on the moments; spaces whose readings were not seen are left whole.

    Shapes:
        -> (B, units) by space, 1 for units that stay
    """
    found = {}
    for space, share in shares.items():
        readings = [reading for reading in masked.readings[space] if reading.weight in moments]
        if not readings:
            continue
        seen = []
        for reading in readings:
            mean, square = moments[reading.weight]
            # Where no bias takes a constant, a mean is lost with its unit.
            seen.append(square if reading.bias else square + mean.unsqueeze(2) * mean.unsqueeze(1))
        covariance = torch.stack(seen).mean(0).detach()
        size = covariance.shape[-1]
        keep = max(1, round(share * size))
        grams = reader_grams(states, readings, size)
        found[space] = kept_of(obs_orders(covariance, grams, size - keep, ridge), size, keep).to(covariance.dtype)
    return found


@dataclass(frozen=True)
class MorphTask:
    """Make inputs that stand for a network's data.

    Attributes:
        batch: networks per step, of one architecture and set of images.
        images: images that each step compares the function on.
        steps: steps per epoch.
        least: smallest share of units that is kept in training.
        most: largest.
        random: share of the steps in which the units that stay are drawn, and not chosen: what is learned must hold for
            any choice.
        floor: added to the divergence before its logarithm is taken: what is smaller does not count.
        moments: weight of a second loss: how far means and covariances of what weights read are from those on
            images.
        gradients: weight of a third: how far the gradient that rounds follow is from that on images.
        validated: networks of each group on which an epoch is judged, at most.
    """

    level: ClassVar[str] = "graph"
    column: ClassVar[str] = "morph"

    batch: int = 24
    images: int = 192
    steps: int = 100
    least: float = 0.15
    most: float = 0.9
    random: float = 0.25
    floor: float = 0.01
    moments: float = 0.0
    gradients: float = 0.0
    validated: int = 32

    def __post_init__(self) -> None:
        check_ranges(
            self,
            (
                ("batch", self.batch >= 1, "1 or more"),
                ("images", self.images >= 2, "2 or more"),
                ("steps", self.steps >= 1, "1 or more"),
                ("least", 0 < self.least <= self.most, "above 0, and not above task.most"),
                ("most", self.most < 1, "below 1"),
                ("random", 0 <= self.random <= 1, "a share from 0 to 1"),
                ("floor", 0 < self.floor < math.inf, "above 0"),
                ("moments", 0 <= self.moments < math.inf, "0 or more"),
                ("gradients", 0 <= self.gradients < math.inf, "0 or more"),
                ("validated", self.validated >= 1, "1 or more"),
            ),
        )

    @classmethod
    def from_mapping(cls, options: Mapping[str, Any]) -> MorphTask:
        """The task of a configuration.

        Raises:
            ConfigError: Unknown keys, or values of the wrong type or out of range.
        """
        return cls(**task_options(cls, options))

    @property
    def monitor(self) -> Monitor:
        """The logarithm of the divergence, over networks and shares."""
        return Monitor("val_log_kl", higher_is_better=False)

    def describe(self) -> dict[str, Any]:
        """The task as JSON."""
        return {"task": "morph", **asdict(self)}

    def model(self, data: MorphData, options: Mapping[str, Any], generator: torch.Generator) -> nn.Module:
        """A predictor whose first inputs have the mean and covariance of the images of the zoos."""
        made = VirtualInputs.from_mapping(options, data.shape, len(data.kinds), generator)
        firsts = {data.kind(number): group.item.images for number, group in reversed([*enumerate(data.groups)])}
        made.start([firsts[kind] for kind in range(len(data.kinds))], generator)
        return made

    def batches(self, data: MorphData, generator: torch.Generator) -> Sequence[tuple[int, Tensor]]:
        """One epoch: groups drawn by the number of their networks, and networks of their training part."""
        parts = [torch.from_numpy(group.part("train")) for group in data.groups]
        sizes = torch.tensor([float(len(part)) for part in parts])
        if not sizes.sum():
            raise TaskError("the training part is empty", hint="give it a share of the groups")
        # By the root: large groups are seen more often, small ones are not forgotten.
        drawn = torch.multinomial(sizes.sqrt(), self.steps, replacement=True, generator=generator).tolist()
        return [
            (number, parts[number][torch.randperm(len(parts[number]), generator=generator)[: self.batch]])
            for number in drawn
        ]

    def loss(self, model: nn.Module, data: MorphData, batch: tuple[int, Tensor], generator: torch.Generator) -> Tensor:
        """The mean logarithm of the divergence after narrowing to drawn sizes."""
        number, places = batch
        group = data.groups[number]
        masked, states, images = group.masked, group.rows(places), group.item.images
        drawn = images[torch.randint(len(images), (self.images,), generator=generator)]
        with torch.no_grad():
            whole = masked.outputs(states, (drawn,))
        kind = data.kind(number)
        virtual = model(masked, group.item.spec, states, images.shape[1:], generator, kind)
        moments = _moments(masked, states, virtual)
        shares = self._shares(masked, generator)
        if float(torch.rand((), generator=generator)) < self.random:
            masks = _random_masks(masked, len(places), shares, whole.dtype, generator)
        else:
            masks = masks_for(masked, states, moments, shares, float(virtual.ridge.detach()))
        masks = {s: m for s, m in masks.items() if all(r.weight in moments for r in masked.readings[s])}
        narrowed = masked.narrowed(states, moments, masks, virtual.ridge)
        loss = (divergence(whole, masked.outputs(narrowed, (drawn,))) + self.floor).log().mean()
        if self.moments:
            with torch.no_grad():
                true = _moments(masked, states, Virtual(drawn, virtual.ridge, own=False))
            loss = loss + self.moments * _far(moments, true)
        if self.gradients:
            more = images[torch.randint(len(images), (_MORE * self.images,), generator=generator)]
            gap = gradient_gap(masked, states, virtual.inputs, more, masks, virtual.ridge, generator, virtual.own)
            loss = loss + self.gradients * gap
        if isinstance(model, VirtualInputs) and model.kinds > 1:
            told = model.told(masked, group.item.spec, states, images.shape[1:])
            loss = loss + nn.functional.cross_entropy(told, torch.full((len(told),), kind))
        return loss

    def _shares(self, masked: Masked, generator: torch.Generator) -> dict[str, float]:
        """One share for all spaces half of the time, otherwise one for each."""
        drawn = self.least + (self.most - self.least) * torch.rand(len(masked.spaces) + 2, generator=generator)
        same = float(drawn[-1]) < (self.least + self.most) / 2
        return {space: float(drawn[-2] if same else drawn[i]) for i, space in enumerate(masked.spaces)}

    def metrics(self, model: nn.Module, data: MorphData) -> dict[str, float]:
        """The logarithm of the divergence on networks of the validation part, and the divergence at each share."""
        found = self.measure(model, data, "val", self.validated)
        logs = [(table[share]["kl"] + self.floor).log().mean() for table in found.values() for share in SHARES]
        plain = {
            f"val_kl_{share:g}": float(torch.cat([table[share]["kl"] for table in found.values()]).mean())
            for share in SHARES
        }
        return {"val_log_kl": float(torch.stack(logs).mean()), **plain}

    def measure(
        self, model: nn.Module, data: MorphData, part: str, most: int | None = None
    ) -> dict[str, dict[float, dict[str, Tensor]]]:
        """Divergence, agreement and accuracy of every network at each of `SHARES`, by group.

        Args:
            model: a predictor, or whatever else makes inputs.
            data: the networks.
            part: whose.
            most: networks of each group, at most.

        Raises:
            TaskError: The part is empty.
        """
        found: dict[str, dict[float, dict[str, Tensor]]] = {}
        for group in data.groups:
            places = torch.from_numpy(group.part(part)[:most])
            chunks = [measured(model, group, chunk) for chunk in places.split(_CHUNK)] if len(places) else []
            if chunks:
                found[group.item.name] = {
                    share: {key: torch.cat([chunk[share][key] for chunk in chunks]) for key in chunks[0][share]}
                    for share in SHARES
                }
        if not found:
            raise TaskError(f"the part {part!r} is empty", hint="give it a share of the groups")
        return found

    def complete(self, model: nn.Module, data: MorphData, generator: torch.Generator) -> Extras:
        """What images the predictor is for, and how well it does on the validation part."""
        shapes = sorted({tuple(group.item.images.shape[1:]) for group in data.groups})
        record = {
            "format": FORMAT,
            "input": list(data.shape),
            "kinds": list(data.kinds),
            "read_as": [list(shape) for shape in shapes],
            "architectures": sorted({group.item.name for group in data.groups}),
            "validation": self.metrics(model, data),
        }
        return Extras({}, {MORPH_NAME: record})


@torch.no_grad()
def measured(model: nn.Module, group: MorphGroup, places: Tensor) -> dict[float, dict[str, Tensor]]:
    """How much of the function of some networks of a group is kept at each of `SHARES`, on its test images."""
    masked, states = group.masked, group.rows(places)
    images, labels = group.item.test_images, group.item.test_labels
    whole = masked.outputs(states, (images,))
    virtual: Virtual = model(masked, group.item.spec, states, images.shape[1:])
    moments = _moments(masked, states, virtual)
    found = {}
    for share in SHARES:
        masks = masks_for(masked, states, moments, dict.fromkeys(masked.spaces, share), float(virtual.ridge))
        made = masked.outputs(masked.narrowed(states, moments, masks, virtual.ridge), (images,))
        found[share] = {
            "kl": divergence(whole, made),
            "agreement": (whole.argmax(-1) == made.argmax(-1)).double().mean(-1),
            "accuracy": (made.argmax(-1) == labels).double().mean(-1),
        }
    return found


def _moments(masked: Masked, states: Mapping[str, Tensor], virtual: Virtual) -> Moments:
    """Mean and covariance of what every weight reads, in the dtype of the weights."""
    found = input_moments(masked, states, (virtual.inputs,), own=virtual.own)
    return {name: (mean.to(states[name]), square.to(states[name])) for name, (mean, square) in found.items()}


def _far(made: Moments, true: Moments) -> Tensor:
    """How far means and covariances are from true ones, in units of these; large errors count by their logarithm."""
    parts = []
    for name, (mean, covariance) in true.items():
        variance = covariance.diagonal(dim1=1, dim2=2).mean(1).clamp_min(1e-12)
        parts.append(((made[name][0] - mean).square().mean(1) / variance).log1p().mean())
        size = covariance.square().sum((1, 2)).clamp_min(1e-24)
        parts.append(((made[name][1] - covariance).square().sum((1, 2)) / size).log1p().mean())
    return torch.stack(parts).mean()


def _random_masks(
    masked: Masked, count: int, shares: Mapping[str, float], dtype: torch.dtype, generator: torch.Generator
) -> Masks:
    found = {}
    for space, share in shares.items():
        size = masked.spec.sizes[space]
        order = torch.rand(count, size, generator=generator).argsort(1)
        found[space] = (order < max(1, round(share * size))).to(dtype)
    return found
