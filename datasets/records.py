"""What does the index say about a snapshot, and about a run that failed?

A record is flat, so that the index reads as a table: a column for each setting that was drawn and each quality that was
measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from metanet.checkpoint import Architecture

from .draw import RunSettings
from .trainer import Failure, Snapshot

__all__ = ["CONFIG_COLUMNS", "INR_METRICS", "METRICS", "failure_record", "snapshot_record"]

METRICS = ("train_loss", "train_accuracy", "test_loss", "test_accuracy")
# Of a network that is an image itself.
INR_METRICS = ("loss", "psnr")

# The columns that were drawn: `config` of an entry.
CONFIG_COLUMNS = (
    "family",
    "depth",
    "width",
    "activation",
    "norm",
    "residual",
    "parameters",
    "steps",
    "data_share",
    "label_noise",
    "initial_scale",
    "optimiser",
    "learning_rate",
    "momentum",
    "weight_decay",
)


def _settings(run: RunSettings, architecture: Architecture) -> dict[str, Any]:
    options = architecture.options
    # The blocks of a transformer share one stream, and what they add to it has no other size.
    transformer = architecture.family == "transformer"
    widths = (options["width"],) * len(options["hidden"]) if transformer else options["widths"]
    return {
        "architecture": run.architecture,
        "family": architecture.family,
        "depth": len(widths),
        "width": sum(widths) / len(widths) if widths else 0.0,
        "activation": options["activation"],
        "norm": options["norm"],
        "residual": options.get("residual", transformer),
        "parameters": parameter_count(architecture),
        "steps": run.steps,
        "data_share": run.data_share,
        "label_noise": run.label_noise,
        # A child starts from its parent's weights: nothing was drawn.
        "initial_scale": run.initial_scale if run.parent is None else None,
        "optimiser": run.optimiser,
        "learning_rate": run.learning_rate,
        "momentum": run.momentum,
        "weight_decay": run.weight_decay,
    }


def parameter_count(architecture: Architecture) -> int:
    """Numbers that are trained; running statistics are not."""
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    total = 0
    for name, shape in architecture.shapes().items():
        if not name.endswith(buffers):
            count = 1
            for size in shape:
                count *= size
            total += count
    return total


def _record(
    run: RunSettings, architecture: Architecture, snapshot: int, step: int, metrics: Mapping[str, float | None]
) -> dict[str, Any]:
    return {
        "run": run.run,
        "snapshot": snapshot,
        "step": step,
        "split": run.split,
        "parent": run.parent,
        "seed": run.seed,
        "status": "ok",
        "reason": None,
        **{name: metrics.get(name) for name in METRICS},
        **_settings(run, architecture),
        "shard": None,
        "key": None,
    }


def snapshot_record(
    run: RunSettings, architecture: Architecture, number: int, snapshot: Snapshot, shard: str, key: int
) -> dict[str, Any]:
    """The record of a network whose weights are row ``key`` of ``shard``."""
    record = _record(run, architecture, number, snapshot.step, snapshot.metrics)
    return {**record, "shard": shard, "key": key}


def failure_record(run: RunSettings, architecture: Architecture, number: int, failure: Failure) -> dict[str, Any]:
    """The record of the step at which a run ended early, and why."""
    record = _record(run, architecture, number, failure.step, {})
    return {**record, "status": "failed", "reason": failure.reason}
