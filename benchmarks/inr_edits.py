"""How near do edited networks come to the dilated picture: a metanetwork's changes, beside simpler ways to change them?

Part of inr.py. Errors (`mse`) are of the pictures that the changed networks show, against the dilated pictures, on test
networks:

    steered   learned steps along the gradients of the weights (model=steered_editing), following the whole group
    strict    weights only: messages along edges in each network's frame, one change per weight (model=editing)
    flat      a multilayer perceptron from the list of raw weights to a change of each
    same      one change, the same for all networks
    identity  the networks as they are
    refit     no metanetwork: the first 64 are fitted to the dilated picture itself, a bound for any edit

All that learn see the same training networks and are kept at their best epoch on the validation networks.
"""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from metanet.commands._compose import compose
from metanet.graph import Bucket, GraphBatch
from metanet.nn.dense import Dense
from metanet.tasks import PropertyData, task_from_mapping
from metanet.tasks.inr_editing import EditingData, InrEditingTask, editing_data
from metanet.tasks.inr_editing_score import refitted_error, same_edit
from metanet.train import TrainerSettings, fit
from metanet.train.loop import run_epochs

__all__ = ["NETWORKS", "errors"]

NETWORKS = 4000  # for training
EPOCHS = {"steered": 12, "strict": 8, "flat": 30}
_FLAT = TrainerSettings(learning_rate=1e-3, weight_decay=0.01, patience=0, progress=False)


class FlatEdit(nn.Module):
    """A change of every weight from all raw weights in a row, in units of each tensor's root mean square.

    Args:
        bucket: training networks of the one architecture that it is for.
        hidden: width.
        generator: source of the first weights.
    """

    mean: Tensor
    spread: Tensor
    sizes: Tensor

    def __init__(self, bucket: Bucket, hidden: int, generator: torch.Generator) -> None:
        super().__init__()
        state = bucket.state()
        self.shapes = {name: value.shape[1:] for name, value in state.items()}
        flat = self._flat(bucket)
        sizes = torch.cat([value.square().mean().sqrt().expand(value[0].numel()) for value in state.values()])
        self.register_buffer("mean", flat.mean(0))
        self.register_buffer("spread", flat.std(0).clamp(min=1e-8))
        self.register_buffer("sizes", sizes)
        self.layers = nn.ModuleList(
            [Dense(flat.shape[1], hidden, gain=1.4), Dense(hidden, hidden, gain=1.4), Dense(hidden, flat.shape[1])]
        )
        for layer, gain in zip(self.layers, (1.4, 1.4, 0.1), strict=True):
            if isinstance(layer, Dense):
                layer.gain = gain
                layer.reset_parameters(generator)

    @staticmethod
    def _flat(bucket: Bucket) -> Tensor:
        return torch.cat([value.flatten(1) for value in bucket.state().values()], dim=1)

    def forward(self, batch: GraphBatch) -> list[dict[str, Tensor]]:
        """One change per network, by name."""
        (bucket,) = batch.buckets
        x = (self._flat(bucket) - self.mean) / self.spread
        for layer in list(self.layers)[:-1]:
            x = torch.relu(layer(x))
        change = (self.layers[-1](x) * self.sizes).split([shape.numel() for shape in self.shapes.values()], dim=1)
        named = {
            name: value.unflatten(1, shape) for (name, shape), value in zip(self.shapes.items(), change, strict=True)
        }
        return [{name: value[row] for name, value in named.items()} for row in range(len(bucket))]


def _ours(model: str, task: InrEditingTask, data: EditingData, seed: int, epochs: int) -> nn.Module:
    words = [f"trainer.epochs={epochs}", "trainer.progress=false", f"seed={seed}", f"model={model}"]
    config = compose("train", ["task=inr_editing", *words])
    return fit(task, data, config["model"], TrainerSettings.from_mapping(config["trainer"])).model


def _flat(task: InrEditingTask, data: EditingData, seed: int, epochs: int) -> nn.Module:
    (bucket,) = data.batch.select(data.part("train").tolist()).buckets
    model = FlatEdit(bucket, 256, torch.Generator().manual_seed(seed))
    run_epochs(task, data, model, replace(_FLAT, epochs=epochs), seed)
    return model


def errors(networks: PropertyData, seed: int, quick: bool) -> dict[str, dict[str, float]]:
    """Errors of dilated pictures by variant, with the processor seconds of what was trained."""
    task = task_from_mapping(compose("train", ["task=inr_editing"])["task"])
    if not isinstance(task, InrEditingTask):
        raise TypeError(type(task).__name__)
    data = editing_data(networks, task)
    found = {"identity": {"mse": task.error(None, data, "test")}, "refit": {"mse": refitted_error(data)}}
    makers = {"steered": partial(_ours, "steered_editing"), "strict": partial(_ours, "editing"), "flat": _flat}
    for name, make in makers.items():
        began = time.process_time()
        model = make(task, data, seed, 1 if quick else EPOCHS[name])
        found[name] = {"train_s": time.process_time() - began, "mse": task.error(model, data, "test")}
    found["same"] = {"mse": task.error(same_edit(task, data, seed), data, "test")}
    return found
