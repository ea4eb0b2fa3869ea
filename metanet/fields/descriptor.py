"""How does one field write the networks of a whole family of tasks, at any width, from a description of the task alone?

The numbers of an ordinary field of knots move with the description: ``numbers = base + moves @ e(description)``, with e
a small perceptron beside a linear map. What comes out for one description is an ordinary :class:`KnotsField`: it writes
any width, is kept in a folder and made a module like any other, and knows nothing of the family.
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from metanet.errors import FieldError
from metanet.fields.field import Field
from metanet.fields.generate import Skeletons
from metanet.fields.knots import KnotsField
from metanet.fields.layout import Piece
from metanet.fields.parts import Table
from metanet.fields.places import Places, Sampling
from metanet.fields.settings import FieldSettings
from metanet.fields.training import Run, Training, check_training
from symmetry import SymmetrySpec

__all__ = ["DescriptorField", "Task", "train_family"]

MOST, MOST_NUMBERS = 4096, 1 << 28  # of each option, and of all moves: a file may name any
_FINE = 1 / 16  # numbers of the embedding are stored larger, so that one relative learning rate does for all


class DescriptorField(Field):
    """A field of knots whose numbers depend on a description of the task.

    Args:
        spec: of the architecture at full width.
        state: a network of full width: scales, constants, biases and gains start from it.
        sampling: how coordinates are laid out.
        description: how many numbers describe a task; they should be of size 1.
        moves: in how many directions the numbers of the field move.
        hidden: units of the perceptron that says how far.
        generator: of the random start. At the start all tasks have the same numbers.
        knots: every other option of :class:`KnotsField`.

    Attributes:
        base: the field that is moved.
        current: the description for which the field writes when it is called; :func:`train_family` sets it. Everywhere
            else :meth:`given` is what is wanted.

    Raises:
        FieldError: for an impossible option.
    """

    kind = "descriptor"

    def __init__(
        self,
        spec: SymmetrySpec,
        state: Mapping[str, Tensor],
        sampling: Sampling | None = None,
        *,
        description: int,
        moves: int = 8,
        hidden: int = 32,
        generator: torch.Generator | None = None,
        **knots: Any,
    ) -> None:
        super().__init__(spec, state, sampling or Sampling())
        for name, value in (("description", description), ("moves", moves), ("hidden", hidden)):
            if not 1 <= value <= MOST:
                raise FieldError(f"{name}={value}", hint=f"expected 1 to {MOST}")
        self.description, self.hidden = description, hidden
        self.base = KnotsField(spec, state, self.sampling, generator=generator, **knots)
        self.names = [name for name, _ in self.base.named_parameters()]
        count = sum(value.numel() for value in self.base.parameters())
        if count * moves > MOST_NUMBERS:
            raise FieldError(f"{moves} moves of {count} numbers", hint=f"expected at most {MOST_NUMBERS:,} in all")
        # Directions last: 8-bit storage has a factor for each row of the first axis.
        self.moves = nn.ParameterList(
            torch.zeros(*value.shape, moves, dtype=value.dtype) for value in self.base.parameters()
        )
        dtype = next(self.base.parameters()).dtype

        def drawn(*shape: int, size: float) -> nn.Parameter:
            return nn.Parameter(torch.randn(*shape, generator=generator, dtype=dtype) * (size / _FINE))

        self.straight = drawn(moves, description, size=1.0)
        self.first = drawn(hidden, description, size=1 / math.sqrt(description))
        self.first_bias = drawn(hidden, size=0.5)
        self.last = drawn(moves, hidden, size=1 / math.sqrt(hidden))
        self.current: Tensor | None = None

    def embedding(self, description: Tensor) -> Tensor:
        """How far the numbers move in each direction. Shapes: (description,) -> (moves,)."""
        x = self.first @ description * _FINE + self.first_bias * _FINE
        return self.straight @ description * _FINE + self.last @ x.tanh() * _FINE

    def numbers(self, description: Tensor | Sequence[float]) -> dict[str, Tensor]:
        """The parameters of the field of one task, by their names there, with gradients to those of the family.

        Raises:
            FieldError: if the description has another length, or is not finite.
        """
        given = torch.as_tensor(description, dtype=self.first.dtype, device=self.first.device)
        if given.shape != (self.description,):
            raise FieldError(
                f"a description of shape {list(given.shape)}", hint=f"expected {self.description} numbers in one row"
            )
        if not bool(given.isfinite().all()):
            raise FieldError("the description is not finite", hint="give real numbers")
        told = self.embedding(given)
        pairs = zip(self.base.named_parameters(), self.moves, strict=True)
        return {name: value + move @ told for (name, value), move in pairs}

    def given(self, description: Tensor | Sequence[float]) -> KnotsField:
        """The field of one task: an ordinary one, with numbers of its own.

        Args:
            description: of the task.

        Raises:
            FieldError: if the description has another length, or is not finite.
        """
        made = copy.deepcopy(self.base)
        with torch.no_grad():
            numbers = self.numbers(description)
            for name, value in made.named_parameters():
                value.copy_(numbers[name])
        return made

    def written(
        self,
        numbers: Mapping[str, Tensor],
        sizes: Mapping[str, int] | None = None,
        spec: SymmetrySpec | None = None,
        noise: float = 0.0,
        generator: torch.Generator | None = None,
        draws: int = 1,
    ) -> dict[str, Tensor]:
        """The state of a network from what :meth:`numbers` gave; see :meth:`Field.forward`."""
        arguments = (spec, sizes, noise, generator, draws)
        found: dict[str, Tensor] = torch.func.functional_call(self.base, dict(numbers), arguments)
        return found

    def forward(
        self,
        spec: SymmetrySpec | None = None,
        sizes: Mapping[str, int] | None = None,
        noise: float = 0.0,
        generator: torch.Generator | None = None,
        draws: int = 1,
    ) -> dict[str, Tensor]:
        """The state of a network for the :attr:`current` description; see :meth:`Field.forward`.

        Raises:
            FieldError: if there is none.
        """
        if self.current is None:
            raise FieldError("the field writes for a described task, and no description is given", hint="field.given()")
        return self.written(self.numbers(self.current), sizes, spec, noise, generator, draws)

    def values(self, piece: Piece, places: Mapping[str, Places], width: float) -> Tensor:
        return self.base.values(piece, places, width)

    def statistics(self) -> list[Piece]:
        """None that the family shares: those of one task are estimated in what :meth:`given` returns."""
        return []

    def options(self) -> dict[str, Any]:
        sizes = {"description": self.description, "moves": self.last.shape[0], "hidden": self.hidden}
        return {**sizes, **self.base.options()}

    def folded_state(self) -> dict[str, Tensor]:
        found = dict(self.state_dict())
        found |= {f"base.{name}": value for name, value in self.base.folded_state().items()}
        found |= {f"moves.{number}": move * scale for number, (move, scale) in enumerate(self._scaled())}
        return found

    def fold(self) -> None:
        with torch.no_grad():
            for move, scale in self._scaled():
                move.mul_(scale)
        self.base.fold()

    def _scaled(self) -> list[tuple[Tensor, float]]:
        """The moves, and what training keeps apart from each: the scales of the tables of the base."""
        scales = {f"parts.{key}.table": part.scale for key, part in self.base.parts.items() if isinstance(part, Table)}
        return [(move, scales.get(name, 1.0)) for name, move in zip(self.names, self.moves, strict=True)]


@dataclass(frozen=True, eq=False)
class Task:
    """One task of a family.

    Args:
        description: numbers.
        data: what it is trained on.
    """

    description: Sequence[float]
    data: Training


def train_family(
    field: DescriptorField,
    skeletons: Skeletons,
    tasks: Sequence[Task],
    settings: FieldSettings,
    seed: int,
    state_file: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[dict[str, Any]]:
    """Train a field for a family of tasks, in place: every step is one of :func:`train` on a drawn task.

    Args:
        field: as it starts; with a state file that is there, where that left it.
        skeletons: of its architecture.
        tasks: some of the family.
        settings: see :class:`FieldSettings`.
        seed: of tasks, batches, widths and noise.
        state_file: see :func:`train`.
        progress: see :func:`train`.

    Returns:
        Rows of step, learning rate and losses.

    Raises:
        FieldError: if there are no tasks, a description does not fit, or the data do not allow the losses.
        TrainError: if the state file belongs to another run.
    """
    if not tasks:
        raise FieldError("no tasks", hint="give some")
    if settings.reconstruct:
        raise FieldError("reconstruct: teachers of several tasks have no order of units in common", hint="set it to 0")
    for task in tasks:
        field.numbers(task.description)
    return _FamilyRun(field, skeletons, tasks, settings, seed).go(state_file, progress)


class _FamilyRun(Run):
    """A training run whose task changes from step to step."""

    def __init__(
        self,
        field: DescriptorField,
        skeletons: Skeletons,
        tasks: Sequence[Task],
        settings: FieldSettings,
        seed: int,
    ) -> None:
        self.tasks, self.family = tasks, field
        field.current = torch.as_tensor(tasks[0].description)
        for task in tasks:
            check_training(task.data, settings)
        super().__init__(field, skeletons, tasks[0].data, settings, seed)

    def _identity(self) -> str:
        told = []
        for task in self.tasks:
            self.data = task.data
            told.append(f"{[float(value) for value in task.description]} {super()._identity()}")
        return hashlib.sha256("\n".join(told).encode()).hexdigest()

    def _step(self) -> None:
        task = self.tasks[int(torch.randint(len(self.tasks), (), generator=self.generator))]
        self.data, self.family.current = task.data, torch.as_tensor(task.description)
        super()._step()
