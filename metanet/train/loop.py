"""How is a model trained, epoch by epoch, such that a resumed run repeats the uninterrupted one bit for bit?"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from metanet.errors import TrainError
from metanet.train.schedule import learning_rate
from metanet.train.settings import TrainerSettings
from metanet.train.state import LoopState, clone_state, generator_from
from metanet.train.task import Task

EpochCallback = Callable[[LoopState, dict[str, Any]], None]


@dataclass(frozen=True)
class Outcome:
    """What the loop ends with: the model carries the best weights, the state tells the rest."""

    model: nn.Module
    state: LoopState
    stopped_early: bool


def run_epochs(
    task: Task,
    data: Any,
    model: nn.Module,
    settings: TrainerSettings,
    seed: int,
    state: LoopState | None = None,
    on_epoch: EpochCallback | None = None,
) -> Outcome:
    """Train a model and leave it with the weights of its best epoch.

    Args:
        task: Says what a batch, the loss and the metrics are.
        data: Handed to the task.
        model: The model as initialised; with a `state`, its weights are overwritten.
        settings: The trainer's settings.
        seed: Seeds the order of the batches and whatever the task or the model draws.
        state: Where to go on; None starts anew.
        on_epoch: Called after every epoch with the state (valid until the next epoch) and the epoch's row.

    Raises:
        TrainError: The loss or the gradient became NaN or infinite.
    """
    run = _Run(task, data, model, settings, seed)
    devices = [torch.device(settings.device)] if settings.device.startswith("cuda") else []
    # A layer such as dropout draws from torch's global generator: it is borrowed, seeded, kept in the state and
    # given back as it was.
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        run.start(state)
        while not run.finished():
            row = run.epoch()
            if on_epoch is not None:
                on_epoch(run.snapshot(), row)
    model.load_state_dict(run.state.best or model.state_dict())
    model.eval()
    return Outcome(model, run.snapshot(), run.stopped_early)


class _Run:
    """The moving parts of one training run."""

    def __init__(self, task: Task, data: Any, model: nn.Module, settings: TrainerSettings, seed: int) -> None:
        self.task, self.data, self.model, self.settings = task, data, model.to(settings.device), settings
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if not self.parameters:
            raise TrainError(f"{type(model).__name__} has no trainable parameter")
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        self.generator = generator_from(seed)
        self.state = LoopState()
        self.stopped_early = False

    def start(self, state: LoopState | None) -> None:
        """Begin anew, or where a kept state ends."""
        if state is None:
            if self.settings.average:
                self.state.average = clone_state(self.model.state_dict())
            return
        self.state = state
        self.model.load_state_dict(state.model)
        device = self.settings.device
        state.average = {name: tensor.to(device) for name, tensor in state.average.items()}
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state.optimizer, "param_groups": groups})
        self.generator.set_state(state.generators["loop"])
        torch.set_rng_state(state.generators["torch"])
        if "cuda" in state.generators:
            torch.cuda.set_rng_state(state.generators["cuda"], device)
        self._check_patience()

    def finished(self) -> bool:
        return self.stopped_early or self.state.epoch >= self.settings.epochs

    def snapshot(self) -> LoopState:
        """The state as of now, with the tensors that live in the model, the optimiser and the generators."""
        state = self.state
        state.model = self.model.state_dict()
        state.optimizer = self.optimizer.state_dict()["state"]
        state.generators = {"loop": self.generator.get_state(), "torch": torch.get_rng_state()}
        if self.settings.device.startswith("cuda"):
            state.generators["cuda"] = torch.cuda.get_rng_state(self.settings.device)
        return state

    def epoch(self) -> dict[str, Any]:
        """One pass over the training part, then the validation metrics."""
        state, began = self.state, time.perf_counter()
        batches = self.task.batches(self.data, self.generator)
        if not batches:
            raise TrainError("the training part has no batch", hint="is the training split empty?")
        self.model.train()
        losses, norms, rate = 0.0, 0.0, 0.0
        for index, batch in enumerate(batches):
            rate = learning_rate(self.settings, (state.epoch + index / len(batches)) / self.settings.epochs)
            loss, norm = self._step(batch, rate)
            losses, norms = losses + loss / len(batches), norms + norm / len(batches)
        state.epoch += 1
        metrics = self._validate()
        row: dict[str, Any] = {
            "epoch": state.epoch,
            "step": state.step,
            "learning_rate": rate,
            "train_loss": losses,
            "gradient_norm": norms,
            **metrics,
            "seconds": time.perf_counter() - began,
        }
        state.history.append(row)
        self._check_patience()
        return row

    def _step(self, batch: Any, rate: float) -> tuple[float, float]:
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.task.loss(self.model, self.data, batch, self.generator)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise self._diverged("the loss", value, rate)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = float(torch.nn.utils.clip_grad_norm_(self.parameters, self.settings.clip or math.inf))
        if not math.isfinite(norm):
            raise self._diverged("the norm of the gradient", norm, rate)
        self.optimizer.step()
        self.state.step += 1
        if self.settings.average:
            self._update_average()
        return value, norm

    def _diverged(self, what: str, value: float, rate: float) -> TrainError:
        return TrainError(
            f"{what} is {value} at epoch {self.state.epoch + 1}, step {self.state.step + 1}, learning rate {rate:.2g}",
            hint="lower trainer.learning_rate, set trainer.clip, or look for NaN in the data",
        )

    @torch.no_grad()
    def _update_average(self) -> None:
        # Early on the average follows closely, or it would mostly remember the initial weights.
        decay = min(self.settings.average, (1 + self.state.step) / (10 + self.state.step))
        for name, tensor in self.model.state_dict().items():
            if tensor.is_floating_point():
                self.state.average[name].lerp_(tensor, 1 - decay)
            else:
                self.state.average[name].copy_(tensor)

    @torch.no_grad()
    def _validate(self) -> dict[str, float]:
        self.model.eval()
        trained: dict[str, Tensor] = {}
        if self.settings.average:
            trained = clone_state(self.model.state_dict())
            self.model.load_state_dict(self.state.average)
        metrics = self.task.metrics(self.model, self.data)
        monitor, state = self.task.monitor, self.state
        if monitor.name not in metrics:
            raise TrainError(f"the task monitors {monitor.name!r} but measures only {', '.join(metrics)}")
        if monitor.improves(metrics[monitor.name], state.best_value):
            state.best_value, state.best_epoch = metrics[monitor.name], state.epoch
            state.best = clone_state(self.model.state_dict())
        if trained:
            self.model.load_state_dict(trained)
        return metrics

    def _check_patience(self) -> None:
        state, settings = self.state, self.settings
        late = state.epoch - state.best_epoch >= settings.patience
        self.stopped_early = (
            bool(settings.patience) and late and settings.minimum_epochs <= state.epoch < settings.epochs
        )
