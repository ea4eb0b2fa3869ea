"""Which class does the picture belong to that a network holds in its weights?"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from metanet.errors import ConfigError
from metanet.tasks.data import PropertyData
from metanet.tasks.inr_maps import CoordinateMaps, mapped
from metanet.tasks.property import PropertyTask, jittered

__all__ = ["InrClassificationTask"]


@dataclass(frozen=True)
class InrClassificationTask(PropertyTask):
    """Predict the label of implicit neural representations; everything of `PropertyTask`, with maps of their pictures.

    Attributes:
        column: The labels' column.
        kind: Classes.
        rotation, scale, shear, shift: At every step each picture is mapped at random, exactly and in weight space; see
            `CoordinateMaps`.
        smoothing: Share of the target that all classes have in common.
        ensemble: Also fit boosted trees on layer statistics; they say little of a picture.
    """

    column: str = "label"
    kind: str = "classification"
    batch: int = 256
    chunk: int = 256
    jitter: float = 0.0
    best_by: str = "val_accuracy"
    ensemble: bool = False
    rotation: float = 0.15
    scale: float = 0.1
    shear: float = 0.1
    shift: float = 0.08
    smoothing: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kind != "classification":
            raise ConfigError(f"{self.kind!r} given, expected classification", where="task.kind")
        if not 0 <= self.smoothing < 1:
            raise ConfigError(f"{self.smoothing!r} given, expected from 0 to below 1", where="task.smoothing")
        CoordinateMaps(self.rotation, self.scale, self.shear, self.shift)

    @cached_property
    def maps(self) -> CoordinateMaps:
        """The random maps of training."""
        return CoordinateMaps(self.rotation, self.scale, self.shear, self.shift)

    def describe(self) -> dict[str, Any]:
        return {"task": "inr_classification", **asdict(self)}

    def loss(self, model: nn.Module, data: PropertyData, batch: Tensor, generator: torch.Generator) -> Tensor:
        device = next(model.parameters()).device
        targets = self.targets(data)[batch].to(device)
        networks = jittered(mapped(data.batch.select(batch), self.maps, generator), self.jitter, generator)
        weights = self.class_weights(data)
        return nn.functional.cross_entropy(
            model(networks.to(device)),
            targets,
            None if weights is None else weights.to(device),
            label_smoothing=self.smoothing,
        )
