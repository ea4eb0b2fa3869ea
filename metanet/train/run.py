"""How does a task become a trained model in a folder, or in memory?"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from metanet.errors import ConfigError, TrainError
from metanet.train.artefact import STATE_NAME, fingerprint, finish_folder, open_folder, versions
from metanet.train.logs import FolderLog, Progress
from metanet.train.loop import Outcome, run_epochs
from metanet.train.settings import TrainerSettings
from metanet.train.state import LoopState, generator_from, spawn_seeds
from metanet.train.task import Extras, Task, TrainingData


@dataclass(frozen=True)
class Trained:
    """A trained model and how it came about.

    Attributes:
        model: The model with the weights of its best epoch, in eval mode.
        extras: What the task adds to the artefact.
        best_epoch: Counted from 1; 0 where no epoch had a defined metric.
        best_value: The monitored metric of that epoch.
        stopped_early: Whether patience ran out.
        history: One row per epoch.
    """

    model: nn.Module
    extras: Extras
    best_epoch: int
    best_value: float | None
    stopped_early: bool
    history: tuple[dict[str, Any], ...]


def fit(task: Task, data: TrainingData, model: Mapping[str, Any], settings: TrainerSettings) -> Trained:
    """Train in memory: nothing is written. Equal arguments give equal weights, and those of `train`.

    Args:
        task: The job.
        data: What it is trained on.
        model: Options that the task builds its model from.
        settings: The trainer's settings.
    """
    return _run(task, data, model, settings, folder=None, resume=False, identity="")


def train(
    task: Task,
    data: TrainingData,
    model: Mapping[str, Any],
    settings: TrainerSettings,
    folder: str | Path,
    overwrite: bool = False,
) -> Trained:
    """Train into a folder, or go on where a killed run with the same configuration stopped.

    The folder ends with `config.json`, `weights.safetensors`, `metrics.csv`, `metrics.jsonl`, what the task adds, and
    `manifest.json`, which is written last: a folder without it is not finished.

    Args:
        task: The job.
        data: What it is trained on.
        model: Options that the task builds its model from.
        settings: The trainer's settings.
        folder: Where the model goes.
        overwrite: Replace what an earlier run left there.

    Raises:
        TrainError: A finished model or another configuration's run is in the folder, or the training diverged.
        ConfigError: The device does not exist.
    """
    target = Path(folder)
    described = {"task": task.describe(), "data": data.describe(), "model": dict(model)}
    identity = {**described, "trainer": settings.identity()}
    config = {**described, "trainer": settings.to_json(), "versions": versions()}
    resume = open_folder(target, identity, config, overwrite)
    return _run(task, data, model, settings, target, resume, fingerprint(identity))


def _run(
    task: Task,
    data: TrainingData,
    options: Mapping[str, Any],
    settings: TrainerSettings,
    folder: Path | None,
    resume: bool,
    identity: str,
) -> Trained:
    _check_device(settings.device)
    model_seed, loop_seed, extras_seed = spawn_seeds(settings.seed, 3)
    with _threads(settings.threads):
        # Layers of torch initialise themselves from the global generator before a task initialises them from its own.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(model_seed)
            model = task.model(data, options, generator_from(model_seed))
        state = LoopState.load(folder / STATE_NAME, identity) if folder is not None and resume else None
        if state is not None and state.threads:
            # To go on exactly, sums must be split among as many threads as before the kill.
            torch.set_num_threads(state.threads)
        outcome = _epochs(task, data, model, settings, loop_seed, state, folder, identity)
        with torch.no_grad():
            extras = task.complete(outcome.model, data, generator_from(extras_seed))
    kept = outcome.state
    if folder is not None:
        summary = {
            "task": task.describe().get("task"),
            "seed": settings.seed,
            "epochs": kept.epoch,
            "stopped_early": outcome.stopped_early,
            "best": {"epoch": kept.best_epoch, "metric": task.monitor.name, "value": kept.best_value},
        }
        finish_folder(folder, outcome.model.state_dict(), extras.tensors, extras.values, summary)
    return Trained(outcome.model, extras, kept.best_epoch, kept.best_value, outcome.stopped_early, tuple(kept.history))


def _epochs(
    task: Task,
    data: TrainingData,
    model: nn.Module,
    settings: TrainerSettings,
    seed: int,
    state: LoopState | None,
    folder: Path | None,
    identity: str,
) -> Outcome:
    history = state.history if state is not None else []
    log = FolderLog(folder, history, settings.tensorboard) if folder is not None else None
    bar = Progress(
        settings.epochs, len(history), settings.progress if folder is not None else settings.progress or False
    )

    def on_epoch(now: LoopState, row: dict[str, Any]) -> None:
        if folder is not None and log is not None:
            # The state first: a row in the logs without a state behind it is written again after a kill.
            if now.epoch % settings.checkpoint_every == 0 or now.epoch == settings.epochs:
                now.save(folder / STATE_NAME, identity)
            log.add(row)
        bar.step({"loss": row["train_loss"], task.monitor.name: row[task.monitor.name], "best": now.best_value or 0.0})

    try:
        return run_epochs(task, data, model, settings, seed, state, on_epoch)
    finally:
        bar.close()
        if log is not None:
            log.close()


def _check_device(name: str) -> None:
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"{name!r} cannot be used ({error})", hint="set trainer.device=cpu", where="trainer.device"
        ) from error
    if device.type not in ("cpu", "cuda"):
        raise TrainError(f"device {name!r} is not supported", hint="use cpu or cuda")


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    if count:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
