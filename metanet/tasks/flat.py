"""How far does a plain network on the raw weights get? The baseline that knows no symmetry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from metanet.errors import ConfigError
from metanet.tasks.data import PropertyData, flat_weights
from metanet.tasks.property import PropertyTask
from metanet.train import Extras, Monitor

SCALES = ("place", "whole")
_CLIP = 5.0  # standard deviations; one broken network must not rule a column


@dataclass(frozen=True, eq=False)
class FlatData:
    """The raw weights of the networks, padded to one length and standardised by the training part.

    Shapes:
        inputs: (n, width)
    """

    source: PropertyData
    inputs: Tensor

    @classmethod
    def of(cls, data: PropertyData, scale: str = "place") -> FlatData:
        """The flat weights of the networks.

        Args:
            data: The networks.
            scale: "place" standardises each place in the list by itself; "whole" divides all by one number, so that
                padding stays zero, which serves better where few networks share an architecture.

        Raises:
            ConfigError: Another scale.
        """
        weights = data.remember("flat", lambda: flat_weights(data.graphs))
        train = weights[data.part("train")]
        if scale == "place":
            mean, deviation = train.mean(axis=0), train.std(axis=0)
            # A place that is zero in every training network (padding) says nothing.
            scaled = np.where(deviation > 1e-8, (weights - mean) / np.maximum(deviation, 1e-8), 0.0)
        elif scale == "whole":
            scaled = weights / max(float(np.sqrt(np.square(train[train != 0]).mean())), 1e-8)
        else:
            raise ConfigError(f"{scale!r} given, expected one of {', '.join(SCALES)}", where="flat.scale")
        return cls(data, torch.from_numpy(np.clip(scaled, -_CLIP, _CLIP).astype(np.float32)))

    def describe(self) -> dict[str, Any]:
        return {**self.source.describe(), "flat": self.inputs.shape[1]}


@dataclass(frozen=True)
class FlatTask:
    """A property task whose model reads the flat weights instead of the graphs."""

    task: PropertyTask

    @property
    def monitor(self) -> Monitor:
        return self.task.monitor

    def describe(self) -> dict[str, Any]:
        return {**self.task.describe(), "task": "flat"}

    def model(self, data: FlatData, options: Mapping[str, Any], generator: torch.Generator) -> nn.Module:
        hidden, dropout = int(options.get("hidden", 128)), float(options.get("dropout", 0.2))
        outputs = self.task.encoding(data.source).outputs
        return nn.Sequential(
            nn.Linear(data.inputs.shape[1], hidden),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, outputs),
        )

    def batches(self, data: FlatData, generator: torch.Generator) -> Sequence[Tensor]:
        return self.task.batches(data.source, generator)

    def loss(self, model: nn.Module, data: FlatData, batch: Tensor, generator: torch.Generator) -> Tensor:
        weights = self.task.class_weights(data.source)
        return self.task.loss_of(model(data.inputs[batch]), self.task.targets(data.source)[batch], weights)

    def metrics(self, model: nn.Module, data: FlatData) -> dict[str, float]:
        places = torch.from_numpy(data.source.part("val"))
        return self.task.validate(model(data.inputs[places]).numpy(), data.source)

    def complete(self, model: nn.Module, data: FlatData, generator: torch.Generator) -> Extras:
        return Extras()
