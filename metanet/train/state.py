"""What must be kept so that a killed training goes on exactly where it was?"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from metanet.errors import TrainError
from metanet.io import write_bytes_atomic

FORMAT = "metanet.training-state/1"
ANEW = "remove the file to start anew"


@dataclass
class LoopState:
    """Everything the loop carries from one epoch to the next.

    Attributes:
        epoch: Epochs done.
        step: Optimiser steps done.
        best_value: Best validation metric so far, None before the first.
        best_epoch: The epoch (counted from 1) that it was seen at; 0 before the first.
        threads: Threads that torch computed with: another number would add up in another order.
        model: State dict of the model.
        average: Moving average of the weights; empty where it is off.
        best: State dict of the best epoch.
        optimizer: State of the optimiser, by parameter number.
        generators: States of the random generators, by name.
        history: One row of metrics per epoch.
    """

    epoch: int = 0
    step: int = 0
    best_value: float | None = None
    best_epoch: int = 0
    threads: int = 0
    model: dict[str, Tensor] = field(default_factory=dict)
    average: dict[str, Tensor] = field(default_factory=dict)
    best: dict[str, Tensor] = field(default_factory=dict)
    optimizer: dict[int, dict[str, Tensor]] = field(default_factory=dict)
    generators: dict[str, Tensor] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)

    def save(self, path: Path, identity: str) -> None:
        """Write everything as one safetensors file, atomically: there is no moment with half a state.

        Args:
            path: The file.
            identity: Fingerprint of the configuration that the state belongs to.
        """
        tensors: dict[str, Tensor] = {}
        for part in ("model", "average", "best", "generators"):
            tensors.update({f"{part}/{name}": tensor for name, tensor in getattr(self, part).items()})
        for number, values in self.optimizer.items():
            tensors.update({f"optimizer/{number}/{name}": tensor for name, tensor in values.items()})
        scalars = {
            "epoch": self.epoch,
            "step": self.step,
            "best_value": self.best_value,
            "best_epoch": self.best_epoch,
            "threads": torch.get_num_threads(),
            "history": self.history,
        }
        metadata = {"format": FORMAT, "identity": identity, "state": json.dumps(scalars)}
        # Tied parameters share memory, which safetensors refuses: each name is kept on its own.
        separate = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
        write_bytes_atomic(path, save(separate, metadata=metadata))

    @classmethod
    def load(cls, path: Path, identity: str) -> LoopState:
        """Read a state back.

        Raises:
            TrainError: The file is damaged, or belongs to another configuration.
        """
        try:
            with safe_open(path, framework="pt", device="cpu") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            scalars = json.loads(metadata.get("state", "null"))
        except (SafetensorError, OSError, ValueError) as error:
            raise TrainError(f"not a readable training state ({error})", hint=ANEW, where=path) from error
        if metadata.get("format") != FORMAT or not isinstance(scalars, dict):
            raise TrainError(f"expected {FORMAT}, got {metadata.get('format')!r}", hint=ANEW, where=path)
        if metadata.get("identity") != identity:
            raise TrainError("belongs to another configuration", hint="use another folder or remove it", where=path)
        state = cls(**scalars)
        for name, tensor in tensors.items():
            part, _, rest = name.partition("/")
            if part == "optimizer":
                number, _, key = rest.partition("/")
                state.optimizer.setdefault(int(number), {})[key] = tensor
            else:
                getattr(state, part)[rest] = tensor
        return state


def clone_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A copy of a state dict that later steps do not change."""
    return {name: tensor.detach().clone() for name, tensor in state.items()}


def spawn_seeds(seed: int, count: int) -> list[int]:
    """Independent 63-bit seeds for torch generators from one root seed (`numpy.random.SeedSequence`)."""
    from numpy.random import SeedSequence

    words = [child.generate_state(1, "uint64")[0] for child in SeedSequence(seed).spawn(count)]
    return [int(word) & (2**63 - 1) for word in words]


def generator_from(seed: int) -> torch.Generator:
    """A generator on the CPU with the given seed."""
    generator = torch.Generator()
    generator.manual_seed(seed)
    return generator
