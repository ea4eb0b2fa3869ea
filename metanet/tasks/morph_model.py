"""How is a network narrowed by a trained predictor, from its weights alone?"""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from metanet.errors import TaskError, TrainError
from metanet.fields import ConditionedField
from metanet.fields.conditioned import canonical
from metanet.morph import Compensation
from metanet.morph.batched import Stacked
from metanet.tasks.crossing import crossed
from metanet.tasks.morph_task import FORMAT, MORPH_NAME, MorphTask
from metanet.tasks.virtual import Virtual, VirtualInputs
from metanet.train import Artefact
from symmetry import SymmetrySpec

__all__ = ["MorphModel"]

_SEED = 7


class MorphModel:
    """A trained predictor, read from its folder.

    Args:
        artefact: The folder, checked.

    Attributes:
        model: makes inputs for stacks of networks.
        shape: of an image, as the zoos have them.
        record: what the training left: the architectures, how well it does on its validation part.

    Raises:
        TrainError: The folder is not finished or damaged.
        TaskError: It holds another kind of model.
    """

    def __init__(self, artefact: Artefact) -> None:
        if not artefact.holds(MORPH_NAME) or artefact.values(MORPH_NAME).get("format") != FORMAT:
            raise TaskError("holds no predictor of morphs", where=artefact.folder, hint="metanet train task=morph")
        self.folder = artefact.folder
        self.record: Mapping[str, Any] = artefact.values(MORPH_NAME)
        self.task = MorphTask.from_mapping(artefact.config.get("task") or {})
        shape, kinds = self.record.get("input"), self.record.get("kinds")
        if not (_sizes(shape) and isinstance(kinds, list) and kinds):
            raise TaskError(f"{MORPH_NAME} does not say what it is for", where=artefact.folder, hint="train it again")
        self.shape = tuple(shape)
        options = artefact.config.get("model") or {}
        model = VirtualInputs.from_mapping(options, self.shape, len(kinds), torch.Generator())
        try:
            model.load_state_dict(artefact.tensors())
        except RuntimeError as error:
            raise TrainError("the weights do not fit the configured model", where=artefact.folder) from error
        self.model: nn.Module = model.eval()

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> MorphModel:
        """Read a model's folder."""
        return cls(Artefact.open(Path(folder)))

    @torch.no_grad()
    def inputs(self, model: nn.Module, spec: SymmetrySpec, example: Tensor) -> Virtual:
        """What stands for the data of one network.

        Args:
            model: the network.
            spec: its spec.
            example: one batch of what it reads.

        Shapes:
            inputs of the result (n, *input)

        Raises:
            TaskError: The network reads something else than what the predictor was trained for.
        """
        shape = tuple(example.shape[1:])
        if math.prod(shape) != math.prod(self.shape):
            raise TaskError(
                f"the network reads inputs of shape {list(shape)}, the predictor makes images of {list(self.shape)}",
                where=self.folder,
                hint="train one on networks that read the same",
            )
        state = {name: value.detach() for name, value in model.state_dict().items()}
        dtype = next((value.dtype for value in state.values() if value.is_floating_point()), torch.float32)
        # In float64, so that rounding does not tell networks of one orbit apart.
        wide = copy.deepcopy(model).double()
        stack = {name: value.unsqueeze(0) for name, value in wide.state_dict().items()}
        made: Virtual = copy.deepcopy(self.model).double()(Stacked(wide), spec, stack, shape)
        inputs = made.inputs[0] if made.own else made.inputs
        return Virtual(inputs.reshape(-1, *shape).to(dtype), made.ridge, own=False)

    def compensation(
        self, model: nn.Module, spec: SymmetrySpec, example: Tensor, sequential: bool = True, rounds: int = 0
    ) -> Compensation:
        """How the readers of dropped units are refitted, and with `Compensation.batches` how units are chosen.

        Args:
            model: the network.
            spec: its spec.
            example: one batch of what it reads.
            sequential: see :class:`metanet.morph.Compensation`.
            rounds: see there; they also look at the inputs joined with each other (:mod:`metanet.tasks.crossing`).

        Raises:
            TaskError: The network reads something else than what the predictor was trained for.
        """
        made = self.inputs(model, spec, example)
        joined = self.joined(made.inputs)
        more = [(joined,)] if rounds and joined is not None else []
        return Compensation([(made.inputs,)], ridge=float(made.ridge), sequential=sequential, rounds=rounds, more=more)

    def field(
        self, model: nn.Module, spec: SymmetrySpec, example: Tensor, rounds: int = 16, gauge: str | None = "balanced"
    ) -> ConditionedField:
        """The network at any width, made from its weights alone.

        Args:
            model: the network.
            spec: its spec.
            example: one batch of what it reads.
            rounds: see :class:`metanet.fields.ConditionedField`.
            gauge: see there.

        Raises:
            TaskError: The network reads something else than what the predictor was trained for.
        """
        made = self.inputs(canonical(model, spec, gauge), spec, example)
        joined = self.joined(made.inputs)
        more = (joined,) if rounds and joined is not None else ()
        return ConditionedField(model, spec, (example,), (made.inputs,), more, float(made.ridge), rounds, gauge)

    def joined(self, inputs: Tensor) -> Tensor | None:
        """Inputs joined with each other, always the same; nothing where training has asked for the gradients of images.

        Shapes:
            (n, *input) -> the same
        """
        if self.task.gradients:
            return None
        images = inputs.reshape(-1, *self.shape)
        return crossed(images, torch.Generator().manual_seed(_SEED)).reshape(inputs.shape)


def _sizes(value: Any) -> TypeGuard[list[int]]:
    """Whether this is a list of positive whole numbers, as a file may hold it."""
    return isinstance(value, list) and all(type(size) is int and size > 0 for size in value)
