"""How is a field trained, such that a resumed run repeats the uninterrupted one bit for bit?

Every step draws a batch, writes the network at full width, at the narrowest and at random widths, runs each by
:func:`torch.func.functional_call`, and adds up their losses: on targets, beside a teacher, and in the weights
(NeuMeta, section 3.2, equation 4).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from metanet.errors import FieldError
from metanet.fields.field import Field
from metanet.fields.fitting import varying
from metanet.fields.generate import Skeletons
from metanet.fields.losses import divergence, first_output, magnitude, reconstruction, task_loss
from metanet.fields.settings import FieldSettings
from metanet.morph import to_sizes
from metanet.train.state import LoopState

__all__ = ["Run", "Training", "check_training", "train"]

KEEP_EVERY = 250


@dataclass(frozen=True, eq=False)
class Training:
    """What a field is trained on.

    Args:
        inputs: the first axis counts them.
        targets: classes (whole numbers) or values; ``None`` where only the teacher says what is right.
        teacher: a network of full width in eval mode; needed for ``distil`` and ``reconstruct``.
        classes: whether the teacher's outputs are read as logits of classes.
        spaces: that vary; all that can by default.

    Shapes:
        inputs: (count, ...), targets: (count, ...)
    """

    inputs: Tensor
    targets: Tensor | None = None
    teacher: nn.Module | None = None
    classes: bool = True
    spaces: tuple[str, ...] | None = None


def train(
    field: Field,
    skeletons: Skeletons,
    data: Training,
    settings: FieldSettings,
    seed: int,
    state_file: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[dict[str, Any]]:
    """Train a field, in place; it is left with the averaged numbers if they are averaged.

    Args:
        field: as it starts; with a state file that is there, where that left it.
        skeletons: of its architecture.
        data: see :class:`Training`.
        settings: see :class:`FieldSettings`.
        seed: of batches, widths and noise.
        state_file: kept up to date every few hundred steps, and read first if it is there.
        progress: called with the steps done and their number.

    Returns:
        Rows of step, learning rate and losses.

    Raises:
        FieldError: if the data do not allow the losses, or a loss is not finite.
        TrainError: if the state file belongs to another run.
    """
    return Run(field, skeletons, data, settings, seed).go(state_file, progress)


class Run:
    """The moving parts of one training run."""

    def __init__(self, field: Field, skeletons: Skeletons, data: Training, settings: FieldSettings, seed: int) -> None:
        self.field, self.skeletons, self.data, self.settings, self.seed = field, skeletons, data, settings, seed
        check_training(data, settings)
        self.spaces = varying(field.spec, data.spaces)
        self.parameters = dict(field.named_parameters())
        self.optimizer = torch.optim.AdamW(self.parameters.values(), lr=settings.rate, weight_decay=settings.decay)
        self.generator = torch.Generator().manual_seed(seed)
        self.state = LoopState()
        self.weights = [piece.tensor for piece in field.layout.pieces if piece.weighs]
        with torch.no_grad():
            start = field()
        self.start = {name: max(float(start[name].square().mean()), 1e-12) for name in dict.fromkeys(self.weights)}
        trained = dict.fromkeys(piece.tensor for piece in field.layout.pieces if piece.trained)
        self.wanted = {} if data.teacher is None else dict(data.teacher.state_dict())
        # A tensor that is all zeros in the teacher has no size to measure a distance by.
        self.compared = [name for name in trained if name in self.wanted and bool(self.wanted[name].any())]

    def go(self, state_file: Path | None, progress: Callable[[int, int], None] | None) -> list[dict[str, Any]]:
        identity = self._identity()
        if state_file is not None and state_file.exists():
            self._resume(LoopState.load(state_file, identity))
        while self.state.step < self.settings.steps:
            self._step()
            if progress is not None:
                progress(self.state.step, self.settings.steps)
            if state_file is not None and self.state.step % KEEP_EVERY == 0:
                self._keep(state_file, identity)
        if self.state.average:
            with torch.no_grad():
                for name, parameter in self.parameters.items():
                    parameter.copy_(self.state.average[name])
        return self.state.history

    def _identity(self) -> str:
        """What a run must share with the one that it goes on with."""
        data = hashlib.sha256(self.data.inputs.contiguous().numpy().tobytes())
        if self.data.targets is not None:
            data.update(self.data.targets.contiguous().numpy().tobytes())
        for name, tensor in self.wanted.items():
            data.update(name.encode() + tensor.detach().contiguous().numpy().tobytes())
        told = {
            "settings": self.settings.to_json(),
            "field": [self.field.kind, self.field.options(), str(self.field.sampling)],
            "spec": self.field.spec.fingerprint,
            "seed": self.seed,
            "spaces": list(self.spaces),
            "data": data.hexdigest(),
        }
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()

    def _resume(self, state: LoopState) -> None:
        self.state = state
        self.field.load_state_dict(state.model)
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state.optimizer, "param_groups": groups})
        self.generator.set_state(state.generators["loop"])

    def _keep(self, path: Path, identity: str) -> None:
        self.state.model = self.field.state_dict()
        self.state.optimizer = self.optimizer.state_dict()["state"]
        self.state.generators = {"loop": self.generator.get_state()}
        self.state.save(path, identity)

    def _widths(self) -> list[dict[str, int]]:
        """The sizes of the networks of a step, full width first."""
        settings = self.settings
        found = [to_sizes(self.field.spec, 1.0, self.spaces)] if settings.full else []
        if settings.lowest and settings.low < 1:
            found.append(to_sizes(self.field.spec, settings.low, self.spaces))
        for _ in range(settings.random):
            drawn = torch.rand(len(self.spaces) if settings.separate else 1, generator=self.generator).tolist()
            ratios = [settings.low + (settings.high - settings.low) * share for share in drawn]
            sizes: dict[str, int] = {}
            for number, space in enumerate(self.spaces):
                sizes |= to_sizes(self.field.spec, ratios[number % len(ratios)], (space,))
            found.append(sizes)
        return found

    def _step(self) -> None:
        settings, step = self.settings, self.state.step
        rate = one_cycle(step / settings.steps, settings.rate)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        rows = torch.randint(len(self.data.inputs), (settings.batch,), generator=self.generator)
        inputs = self.data.inputs[rows]
        targets = None if self.data.targets is None else self.data.targets[rows]
        told: Tensor | None = None
        if settings.distil and self.data.teacher is not None:
            with torch.no_grad():
                told = first_output(self.data.teacher(inputs))
        self.optimizer.zero_grad(set_to_none=True)
        losses: dict[str, float] = {}
        own: Tensor | None = None
        for number, sizes in enumerate(self._widths()):
            state = self.field(None, sizes, settings.noise, self.generator)
            output = first_output(self.skeletons.run(state, sizes, (inputs,), train=True))
            is_full = settings.full and number == 0
            loss = self._loss(output, targets, told, None if is_full else own, losses)
            if is_full:
                own = output.detach() if settings.own else None
                loss = loss + self._weight_losses(state, losses, full=True)
            else:
                loss = loss + self._weight_losses(state, losses, full=False)
            if not bool(loss.isfinite()):
                raise FieldError(f"the loss is not finite at step {step}", hint="lower the rate, or check the inputs")
            loss.backward()  # type: ignore[no-untyped-call]
        if settings.clip:
            nn.utils.clip_grad_norm_(self.parameters.values(), settings.clip)
        self.optimizer.step()
        self.state.step = step + 1
        self._average()
        if step % 100 == 0 or step + 1 == settings.steps:
            self.state.history.append({"step": step + 1, "rate": rate, **losses})

    def _loss(
        self, output: Tensor, targets: Tensor | None, told: Tensor | None, own: Tensor | None, losses: dict[str, float]
    ) -> Tensor:
        settings = self.settings
        loss = output.new_zeros(())
        task = settings.task * (1 - settings.own if own is not None else 1)
        if targets is not None and task:
            part = task_loss(output, targets)
            losses["task"] = losses.get("task", 0.0) + float(part.detach())
            loss = loss + task * part
        for name, weight, teacher in (("distil", settings.distil, told), ("own", settings.own, own)):
            if weight and teacher is not None:
                part = divergence(output, teacher, self.data.classes)
                losses[name] = losses.get(name, 0.0) + float(part.detach())
                loss = loss + weight * part
        return loss

    def _weight_losses(self, state: Mapping[str, Tensor], losses: dict[str, float], full: bool) -> Tensor | float:
        settings = self.settings
        loss: Tensor | float = 0.0
        if settings.regularise:
            loss = settings.regularise * magnitude(state, self.start)
        fall = 1 - self.state.step / max(settings.reconstruct_until * settings.steps, 1e-9)
        if full and settings.reconstruct and fall > 0:
            part = reconstruction(state, self.wanted, self.compared)
            losses["reconstruct"] = float(part.detach())
            loss = loss + settings.reconstruct * fall * part
        return loss

    def _average(self) -> None:
        settings, state = self.settings, self.state
        if not settings.average or state.step <= settings.steps // 2:
            return
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                if name not in state.average:
                    state.average[name] = parameter.detach().clone()
                state.average[name].lerp_(parameter.detach(), 1 - settings.average)


def one_cycle(progress: float, peak: float) -> float:
    """The learning rate after a share of the steps: up over a quarter, down over the rest, by cosines."""
    start, end, share = (
        (peak / 25, peak, progress / 0.25) if progress < 0.25 else (peak, peak / 1e4, (progress - 0.25) / 0.75)
    )
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * share))


def check_training(data: Training, settings: FieldSettings) -> None:
    """Whether the data allow the losses.

    Raises:
        FieldError: if not.
    """
    if not len(data.inputs):
        raise FieldError("no inputs", hint="give some")
    if data.targets is not None and len(data.targets) != len(data.inputs):
        raise FieldError(f"{len(data.targets)} targets for {len(data.inputs)} inputs", hint="give one for each")
    if data.teacher is None and (settings.distil or settings.reconstruct):
        raise FieldError("distil and reconstruct need a teacher", hint="give one, or set both to 0")
    if not (settings.distil and data.teacher) and not (data.targets is not None and settings.task):
        raise FieldError("nothing says what is right", hint="give targets, or a teacher and a weight for it")
