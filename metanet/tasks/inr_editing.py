"""Can a metanetwork change the weights of a network such that the picture it shows is changed as wanted?

The wanted change is a grey dilation (every pixel becomes the largest of its neighbourhood); the loss is on the picture
that the changed network shows, never on weights: many weights show one picture, and any of them is right.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from metanet.errors import ConfigError, ModelError, TaskError
from metanet.graph import Bucket, GraphBatch
from metanet.nn.steered import Steered, pixel_grid
from metanet.tasks.build import build_model, prepare_model
from metanet.tasks.coverage import Coverage
from metanet.tasks.data import PropertyData
from metanet.tasks.options import check_ranges, task_options
from metanet.train import Extras, Monitor

__all__ = ["EDITING_NAME", "EditingData", "InrEditingTask", "dilated", "editing_data", "pixel_grid", "rendered"]

EDITING_NAME = "editing.json"
FORMAT = "metanet.editing/1"
_CHUNK = 128


def dilated(pictures: Tensor, window: int) -> Tensor:
    """Grey dilation: the largest value of a square window around every pixel; outside of the picture there is nothing.

    Shapes:
        pictures: (n, side * side); returns the same.
    """
    side = math.isqrt(pictures.shape[1])
    square = pictures.reshape(len(pictures), 1, side, side)
    return nn.functional.max_pool2d(square, window, stride=1, padding=window // 2).reshape(pictures.shape)


def rendered(bucket: Bucket, state: Mapping[str, Tensor], grid: Tensor) -> Tensor:
    """The pictures that networks show.

    Args:
        bucket: The networks; their operations are known.
        state: Their stacked tensors, perhaps changed.
        grid: Where to look.

    Shapes:
        grid: (pixels, 2)
        return: (B, pixels)

    Raises:
        TaskError: The operations are not known, or the networks do not give one number per point.
    """
    if bucket.program is None:
        raise TaskError("the graphs hold no program", hint="ParameterGraph.build(spec, state, program=...)")
    picture = bucket.program.run(state, (grid,))[0]
    if picture.ndim != 3 or picture.shape[-1] != 1:
        raise TaskError(f"the networks give {list(picture.shape[2:])} numbers per point, expected 1")
    return picture[..., 0]


@dataclass(frozen=True, eq=False)
class EditingData:
    """Networks that show pictures, and the pictures that they are to show.

    Attributes:
        networks: The networks in their parts; their targets are not used.
        wanted: What each is to show.
        side: Pixels along each side.
    """

    networks: PropertyData
    wanted: Tensor
    side: int

    def part(self, name: str) -> NDArray[np.intp]:
        """The places of one part's networks."""
        return self.networks.part(name)

    @property
    def batch(self) -> GraphBatch:
        """All networks as one batch."""
        return self.networks.batch

    @property
    def dropped(self) -> tuple[tuple[str, str], ...]:
        """Name and reason of every network that was left out."""
        return self.networks.dropped

    def describe(self) -> dict[str, Any]:
        """Sizes and fingerprint as JSON."""
        return {**self.networks.describe(), "side": self.side, "wanted": float(self.wanted.double().mean())}


def editing_data(networks: PropertyData, task: InrEditingTask, pictures: Tensor | None = None) -> EditingData:
    """Networks with the pictures that they are to show.

    Args:
        networks: They know their operations.
        task: Says how large pictures are and how they change.
        pictures: What the networks were fitted to; without, what they show.

    Shapes:
        pictures: (n, side * side)
    """
    if pictures is None:
        grid = pixel_grid(task.side)
        with torch.no_grad():
            pictures = networks.batch.gather(rendered(bucket, bucket.state(), grid) for bucket in networks.batch)
    if pictures.shape != (len(networks), task.side**2):
        raise TaskError(f"pictures of shape {list(pictures.shape)}, expected {[len(networks), task.side**2]}")
    return EditingData(networks, dilated(pictures, task.window), task.side)


@dataclass(frozen=True)
class InrEditingTask:
    """Change networks such that their pictures are dilated.

    Attributes:
        side: Pixels along each side.
        window: Side of the window of the dilation, an odd number.
        batch: Networks per step.
        size: What the metanetwork's answer is multiplied by before it is added to the state: small, because the
            pictures of sine networks depend on their weights very strongly.
        column: Column of the index; networks without a value there are left out.
    """

    level: ClassVar[str] = "edge"

    column: str = "label"
    side: int = 14
    window: int = 3
    batch: int = 64
    size: float = 0.05

    def __post_init__(self) -> None:
        check_ranges(
            self,
            (
                ("side", self.side >= 2, "2 or more"),
                ("window", self.window >= 3 and self.window % 2 == 1, "an odd number of at least 3"),
                ("batch", self.batch >= 1, "1 or more"),
                ("size", 0 < self.size < math.inf, "above 0"),
            ),
        )

    @classmethod
    def from_mapping(cls, options: Mapping[str, Any]) -> InrEditingTask:
        """The task of a configuration.

        Raises:
            ConfigError: Unknown keys, or values of the wrong type or out of range.
        """
        return cls(**task_options(cls, options))

    @property
    def monitor(self) -> Monitor:
        """The error of the pictures."""
        return Monitor("val_mse", higher_is_better=False)

    def describe(self) -> dict[str, Any]:
        """The task as JSON."""
        return {"task": "inr_editing", **asdict(self)}

    def model(self, data: EditingData, options: Mapping[str, Any], generator: torch.Generator) -> nn.Module:
        """What the options ask for, prepared for the training networks."""
        model = self.editor(options, generator)
        prepare_model(model, data.batch.select(data.part("train").tolist()))
        return model

    def editor(self, options: Mapping[str, Any], generator: torch.Generator) -> nn.Module:
        """A metanetwork with one answer per weight, or with `name: steered` learned steps along gradients.

        Raises:
            ConfigError: An unknown model or option, or one out of range.
        """
        if options.get("name") != "steered":
            return build_model(options, 1, generator, self.level)
        given = {key: value for key, value in options.items() if key != "name"}
        unknown = sorted(set(given) - {"steps", "channels"})
        if unknown:
            raise ConfigError(f"no such option: {unknown[0]!r}", hint="there are steps, channels", where="model")
        try:
            return Steered(self.side, generator=generator, **given)
        except ModelError as error:
            raise ConfigError(error.reason, hint=error.hint, where="model") from error

    def batches(self, data: EditingData, generator: torch.Generator) -> Sequence[Tensor]:
        """The training part in random order."""
        places = torch.from_numpy(data.part("train"))
        return places[torch.randperm(len(places), generator=generator)].split(self.batch)

    def edited(self, model: nn.Module, bucket: Bucket) -> dict[str, Tensor]:
        """The networks' tensors as the model changes them.

        Shapes:
            return: (B, ...) by name
        """
        if isinstance(model, Steered):
            changed: dict[str, Tensor] = model(bucket)
            return changed
        one = replace(bucket, index=torch.arange(len(bucket)))
        rows = model(GraphBatch((one,), len(bucket)))
        return {
            name: value + self.size * torch.stack([row[name] for row in rows]) if name in rows[0] else value
            for name, value in bucket.state().items()
        }

    def errors(self, model: nn.Module | None, data: EditingData, places: Tensor) -> Tensor:
        """Mean squared error of the picture of every network after the change; without a model, unchanged.

        Shapes:
            places: (n,)
            return: (n,)
        """
        batch, grid, wanted = data.batch.select(places), pixel_grid(data.side), data.wanted[places]
        parts = []
        for bucket in batch:
            state = bucket.state() if model is None else self.edited(model, bucket)
            parts.append((rendered(bucket, state, grid) - wanted[bucket.index]).square().mean(1))
        return batch.gather(parts)

    def loss(self, model: nn.Module, data: EditingData, batch: Tensor, generator: torch.Generator) -> Tensor:
        """The mean error of one batch."""
        return self.errors(model, data, batch).mean()

    def error(self, model: nn.Module | None, data: EditingData, part: str) -> float:
        """The mean error of one part."""
        places = torch.from_numpy(data.part(part))
        if not len(places):
            raise TaskError(f"the part {part!r} is empty", hint="give it a share of the groups")
        with torch.no_grad():
            return float(torch.cat([self.errors(model, data, chunk) for chunk in places.split(_CHUNK)]).mean())

    def metrics(self, model: nn.Module, data: EditingData) -> dict[str, float]:
        """The error of the validation part."""
        return {"val_mse": self.error(model, data, "val")}

    def complete(self, model: nn.Module, data: EditingData, generator: torch.Generator) -> Extras:
        """Errors of the model and of leaving everything as it is."""
        record = {
            "format": FORMAT,
            "coverage": Coverage.of([data.networks.graphs[i].spec for i in data.part("train")]).to_json(),
            "validation": {"metanet": self.error(model, data, "val"), "identity": self.error(None, data, "val")},
        }
        return Extras({}, {EDITING_NAME: record})
