"""How is a training run set up, and is every setting sensible?"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from metanet.errors import ConfigError

SCHEDULES = ("constant", "cosine", "one_cycle")

# These change what is shown or how often the state is kept, never the weights: a resumed run may alter them.
PRESENTATION = ("progress", "tensorboard", "checkpoint_every")


@dataclass(frozen=True)
class TrainerSettings:
    """The settings of one training run.

    Attributes:
        seed: Root seed: initialisation, order of the batches and everything else are spawned from it.
        epochs: Most epochs; early stopping may end the run before.
        learning_rate: The highest learning rate of the schedule.
        weight_decay: Decoupled weight decay of AdamW (Loshchilov and Hutter 2019).
        schedule: "constant", "cosine" (linear warm-up, then half a cosine) or "one_cycle" (Smith and Topin 2018:
            cosine up from a 25th, cosine down to a 10,000th).
        warmup: Share of the training in which the learning rate rises.
        final: Share of the highest learning rate that the cosine schedule ends at.
        clip: Largest norm of the gradient; larger gradients are scaled down. 0 turns it off.
        patience: Epochs without a better validation metric after which the run stops. 0 turns it off.
        minimum_epochs: No early stop before this epoch.
        average: Decay of the exponential moving average of the weights that is validated and kept; 0 turns it off.
        device: Where the model is trained, as torch names it.
        threads: Threads that torch computes with; 0 leaves what is set. Part of what makes a run repeatable.
        checkpoint_every: Epochs between two kept states; a killed run goes on from the last one.
        tensorboard: Also write TensorBoard event files (needs the extra `tensorboard`).
        progress: True shows a progress bar, False none, None where a terminal is attached.

    Raises:
        ConfigError: A setting is out of its range.
    """

    seed: int = 0
    epochs: int = 100
    learning_rate: float = 2e-3
    weight_decay: float = 1e-2
    schedule: str = "cosine"
    warmup: float = 0.1
    final: float = 0.0
    clip: float = 1.0
    patience: int = 20
    minimum_epochs: int = 0
    average: float = 0.0
    device: str = "cpu"
    threads: int = 0
    checkpoint_every: int = 1
    tensorboard: bool = False
    progress: bool | None = None

    def __post_init__(self) -> None:
        checks = (
            ("seed", self.seed >= 0, "0 or more"),
            ("epochs", self.epochs >= 1, "1 or more"),
            ("learning_rate", 0 < self.learning_rate < math.inf, "above 0"),
            ("weight_decay", 0 <= self.weight_decay < math.inf, "0 or more"),
            ("schedule", self.schedule in SCHEDULES, f"one of {', '.join(SCHEDULES)}"),
            ("warmup", 0 <= self.warmup < 1, "from 0 to below 1"),
            ("final", 0 <= self.final <= 1, "from 0 to 1"),
            ("clip", 0 <= self.clip < math.inf, "0 (off) or more"),
            ("patience", self.patience >= 0, "0 (off) or more"),
            ("minimum_epochs", self.minimum_epochs >= 0, "0 or more"),
            ("average", 0 <= self.average < 1, "from 0 (off) to below 1"),
            ("threads", self.threads >= 0, "0 (leave) or more"),
            ("checkpoint_every", self.checkpoint_every >= 1, "1 or more"),
        )
        for name, good, expected in checks:
            if not good:
                raise ConfigError(f"{getattr(self, name)!r} given, expected {expected}", where=f"trainer.{name}")

    @classmethod
    def from_mapping(cls, options: Mapping[str, Any]) -> TrainerSettings:
        """Settings from a configuration; keys that do not exist and values of another type are refused.

        Raises:
            ConfigError: An unknown key, a value of the wrong type or out of range.
        """
        fields = {field.name: field for field in dataclasses.fields(cls)}
        unknown = sorted(set(options) - set(fields))
        if unknown:
            raise ConfigError(
                f"no such setting: {unknown[0]!r}", hint=f"there are {', '.join(fields)}", where="trainer"
            )
        return cls(**{key: _typed(key, value, fields[key].default) for key, value in options.items()})

    def to_json(self) -> dict[str, Any]:
        """All settings as JSON."""
        return dataclasses.asdict(self)

    def identity(self) -> dict[str, Any]:
        """The settings that decide the weights: a run may be resumed only with equal ones."""
        return {key: value for key, value in self.to_json().items() if key not in PRESENTATION}


def _typed(key: str, value: Any, default: Any) -> Any:
    if key == "progress":
        expected, good = "true, false or null", value is None or isinstance(value, bool)
    elif isinstance(default, bool):
        expected, good = "true or false", isinstance(value, bool)
    elif isinstance(default, int):
        expected, good = "a whole number", isinstance(value, int) and not isinstance(value, bool)
    elif isinstance(default, float):
        expected, good = "a number", isinstance(value, int | float) and not isinstance(value, bool)
        value = float(value) if good else value
    else:
        expected, good = "a word", isinstance(value, str)
    if not good:
        raise ConfigError(f"{value!r} given, expected {expected}", where=f"trainer.{key}")
    return value
