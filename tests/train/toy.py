"""A task small enough to watch: fit a noisy line with a network that drops units. Also a program to kill and resume."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass

import torch
from torch import nn

from metanet.train import Extras, Monitor, TrainerSettings, train


@dataclass(frozen=True)
class ToyData:
    x: torch.Tensor
    y: torch.Tensor
    name: str = "toy"

    def describe(self):
        return {"name": self.name, "size": len(self.x)}


def toy_data(seed=0, size=40, name="toy"):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(size, 3, generator=generator)
    return ToyData(x, x.sum(1, keepdim=True) + 0.1 * torch.randn(size, 1, generator=generator), name)


@dataclass(frozen=True)
class ToyTask:
    delay: float = 0.0
    nan_at: int = -1
    higher_is_better: bool = False

    @property
    def monitor(self):
        return Monitor("val_mse", self.higher_is_better)

    def describe(self):
        return {"task": "toy"}

    def model(self, data, options, generator):
        hidden = options.get("hidden", 8)
        net = nn.Sequential(nn.Linear(3, hidden), nn.BatchNorm1d(hidden), nn.Dropout(0.2), nn.Linear(hidden, 1))
        for parameter in net.parameters():
            with torch.no_grad():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / 3)
        return net

    def batches(self, data, generator):
        return list(torch.randperm(30, generator=generator).split(8))

    def loss(self, model, data, batch, generator):
        time.sleep(self.delay)
        noise = 0.01 * torch.randn(len(batch), 3, generator=generator)
        loss = (model(data.x[batch] + noise) - data.y[batch]).square().mean()
        return loss * float("nan") if self.nan_at >= 0 else loss

    def metrics(self, model, data):
        return {"val_mse": float((model(data.x[30:]) - data.y[30:]).square().mean())}

    def complete(self, model, data, generator):
        bias = model[3].bias.detach()
        return Extras(
            {"extra.safetensors": {"bias": bias, "draw": torch.rand(3, generator=generator)}}, {"extra.json": {"a": 1}}
        )


if __name__ == "__main__":
    folder, delay, settings = sys.argv[1], float(sys.argv[2]), json.loads(sys.argv[3])
    train(ToyTask(delay), toy_data(), {"hidden": 8}, TrainerSettings.from_mapping(settings), folder)
