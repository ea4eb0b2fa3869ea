"""Which SIRENs does a configuration stand for, and how is one group of them fitted, measured and written?

Everything about a network follows from the root seed and its number, so a build that was killed goes on with the same
zoo, and the split is by image: no image is in two of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metanet.checkpoint import Architecture

from .draw import Group
from .images import ImageData
from .inr import SirenBatch, coordinates, fit, peak_signal_to_noise, siren_weights
from .inr_config import InrConfig
from .records import parameter_count
from .storage import SHARDS, write_group

__all__ = ["InrDraw", "InrRun", "build_inr_group", "draw_inrs", "measure_inr"]

# First entry of every spawn key: what the generator is for. Changing one changes every zoo.
_IMAGES, _RUN = 3, 4
# Networks that are fitted at once: their buffers stay in the processor's second-level cache.
_AT_ONCE = 16


@dataclass(frozen=True)
class InrRun:
    """What one network learns.

    Args:
        run: its number.
        seed: of its first weights.
        image: its image, test images counted on after the pool.
        copy: how many networks of the same image came before.
        split: of its image.
        architecture: its number in :attr:`InrDraw.architectures`.
    """

    run: int
    seed: int
    image: int
    copy: int
    split: str
    architecture: int = 0


@dataclass(frozen=True)
class InrDraw:
    """All that a configuration stands for, before anything is trained."""

    config: InrConfig
    architectures: tuple[Architecture, ...]
    runs: tuple[InrRun, ...]
    groups: tuple[Group, ...]

    def work(self, group: Group) -> int:
        """Network-steps in a group."""
        return len(group.runs) * self.config.steps


def draw_inrs(config: InrConfig, data: ImageData) -> InrDraw:
    """Every network and group of a zoo of images."""
    pool, test = len(data.pool_labels), len(data.test_labels)
    generator = np.random.default_rng(np.random.SeedSequence(config.seed, spawn_key=(_IMAGES,)))
    from_pool = generator.permutation(pool).tolist()
    from_test = (pool + generator.permutation(test)).tolist()
    train, val = config.images["train"], config.images["val"]
    parts = {"train": from_pool[:train], "val": from_pool[train : train + val], "test": from_test}
    runs: list[InrRun] = []
    for split, images in parts.items():
        for image in images[: config.images[split]]:
            for copy in range(config.copies):
                key = np.random.SeedSequence(config.seed, spawn_key=(_RUN, len(runs)))
                # 53 bits: readers of JSON that know only floats still get the exact number.
                seed = int(key.generate_state(1, np.uint64)[0] >> np.uint64(11))
                runs.append(InrRun(len(runs), seed, image, copy, split))
    starts = range(0, len(runs), config.group)
    groups = tuple(
        Group(number, 0, tuple(range(start, min(start + config.group, len(runs)))), ())
        for number, start in enumerate(starts)
    )
    return InrDraw(config, (config.architecture(data.shape[0]),), tuple(runs), groups)


def _first_weights(run: InrRun, architecture: Architecture) -> Tensor:
    return siren_weights(architecture, torch.Generator().manual_seed(run.seed))


def _targets(runs: list[InrRun], data: ImageData) -> Tensor:
    return torch.stack([data.image(run.image)[0].flatten(1) for run in runs])


def build_inr_group(draw: InrDraw, group: Group, data: ImageData, folder: Path, progress: Callable[[int], None]) -> int:
    """Fit the group's networks and write them.

    Returns:
        how many failed: their error became infinite or NaN.
    """
    config, architecture = draw.config, draw.architectures[0]
    points = coordinates(*data.shape[1:])
    states: list[dict[str, Tensor]] = []
    records: list[dict[str, Any]] = []
    shard = f"{SHARDS}/{group.name}.safetensors"
    for first in range(0, len(group.runs), _AT_ONCE):
        runs = [draw.runs[number] for number in group.runs[first : first + _AT_ONCE]]
        rows = torch.stack([_first_weights(run, architecture) for run in runs]).float()
        batch = SirenBatch(architecture, rows, points)
        losses = fit(batch, _targets(runs, data), config.steps, config.learning_rate, progress)
        fine = torch.isfinite(losses) & torch.isfinite(batch.weights).all(1)
        stacked = batch.state()
        for row, run in enumerate(runs):
            record = _record(run, architecture, config, data)
            if fine[row]:
                record |= {"loss": float(losses[row]), "psnr": float(peak_signal_to_noise(losses[row]))}
                record |= {"shard": shard, "key": len(states)}
                states.append({name: tensor[row] for name, tensor in stacked.items()})
            else:
                record |= {"status": "failed", "reason": f"the error became {float(losses[row])}"}
            records.append(record)
    about = {"group": group.number, "architecture": architecture.to_json(), "zoo": config.fingerprint}
    write_group(folder, group.name, records, states, about)
    return sum(record["status"] == "failed" for record in records)


def _record(run: InrRun, architecture: Architecture, config: InrConfig, data: ImageData) -> dict[str, Any]:
    widths = config.widths
    return {
        "run": run.run,
        "snapshot": 0,
        "step": config.steps,
        "split": run.split,
        "parent": None,
        "seed": run.seed,
        "status": "ok",
        "reason": None,
        "label": data.image(run.image)[1],
        "image": run.image,
        "copy": run.copy,
        "loss": None,
        "psnr": None,
        "architecture": 0,
        "family": architecture.family,
        "depth": len(widths),
        "width": sum(widths) / len(widths),
        "activation": "sin",
        "parameters": parameter_count(architecture),
        "steps": config.steps,
        "learning_rate": config.learning_rate,
        "shard": None,
        "key": None,
    }


def measure_inr(state: dict[str, Tensor], architecture: Architecture, data: ImageData, image: int) -> dict[str, float]:
    """Mean squared error and PSNR of one network against one image, through its plain module."""
    module = architecture.build()
    module.load_state_dict(state, strict=True)
    with torch.no_grad():
        rendered = module(coordinates(*data.shape[1:]).to(next(module.parameters()).dtype)).T
        loss = float((rendered - data.image(image)[0].flatten(1)).double().square().mean())
    return {"loss": loss, "psnr": -10.0 * math.log10(loss) if loss > 0 else math.inf}
