"""How would a run be trained by itself, in the ordinary way? The reference for the trainer, in tests and benchmarks."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from metanet.checkpoint import Architecture

from .draw import RunSettings
from .images import ImageData
from .optimisers import BETA2, EPSILON
from .trainer import data_of_run, first_state

__all__ = ["optimiser_of_run", "train_alone"]


def optimiser_of_run(run: RunSettings, module: torch.nn.Module) -> torch.optim.Optimizer:
    """The optimiser of ``torch.optim`` with the run's settings."""
    rate, decay, betas = run.learning_rate, run.weight_decay, (run.momentum, BETA2)
    if run.optimiser == "sgd":
        return torch.optim.SGD(module.parameters(), lr=rate, momentum=run.momentum, weight_decay=decay)
    kind = torch.optim.Adam if run.optimiser == "adam" else torch.optim.AdamW
    return kind(module.parameters(), lr=rate, betas=betas, eps=EPSILON, weight_decay=decay)


def train_alone(
    architecture: Architecture,
    run: RunSettings,
    data: ImageData,
    batch_size: int,
    start: Mapping[str, Tensor] | None = None,
    dtype: torch.dtype = torch.float32,
) -> dict[int, dict[str, Tensor]]:
    """State dicts by step, of the same run that :func:`.trainer.train_group` trains among others.

    Args:
        architecture: of the run.
        run: its settings.
        data: the images.
        batch_size: images in a minibatch.
        start: first weights; drawn from the run's own seed by default.
        dtype: to compute in.
    """
    module = architecture.build()
    module.load_state_dict(dict(first_state(run, architecture) if start is None else start))
    module.to(dtype).train()
    optimiser = optimiser_of_run(run, module)
    own = data_of_run(run, data, batch_size)
    images = data.pool_images.to(dtype)
    images = images.flatten(1) if architecture.family == "mlp" else images
    labels, batches = torch.from_numpy(own.labels), torch.from_numpy(own.batches)
    kept: dict[int, dict[str, Tensor]] = {}
    for step, rows in enumerate(batches, 1):
        optimiser.zero_grad()
        cross_entropy(module(images[rows]), labels[rows]).backward()
        optimiser.step()
        if step in run.snapshot_steps:
            kept[step] = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
    return kept
