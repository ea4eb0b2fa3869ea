"""How are many networks of one architecture narrowed and refitted at once, so that gradients flow through it?

Units are not taken away but masked: no weight reads a masked unit any more, and what it gave is rebuilt from those that
are left, in closed form (:mod:`metanet.morph.compensate`). A masked network computes what the narrowed one does.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from metanet.errors import PlanError
from metanet.morph.choose import normed_spaces
from metanet.morph.compensate import bias_of, readers, reading_dim, reads_alone
from metanet.morph.moments import Watch, features, watched
from symmetry import SymmetrySpec
from symmetry.spaces import Axis

__all__ = ["Masked", "Reading", "Stacked", "rebuilding", "refitted"]

State = Mapping[str, Tensor]
Made = TypeVar("Made")


@dataclass(frozen=True)
class Reading:
    """A weight that reads units of one space, and nothing else.

    Args:
        weight: its name.
        bias: of the bias beside it, or empty.
        space: whose units.
        axis: by which it reads.
        dim: which of its axes that is.
    """

    weight: str
    bias: str
    space: str
    axis: Axis
    dim: int


class Stacked:
    """One architecture, run for stacks of its networks.

    Args:
        model: a module of it.

    Attributes:
        module: a copy of it, in eval mode.
    """

    def __init__(self, model: nn.Module) -> None:
        # Attention and recurrent layers call functions that can be watched; weights keep their dtype.
        dtype = next((p.dtype for p in model.parameters()), torch.float32)
        self.module = watched(model).to(dtype)

    def outputs(self, states: State, inputs: Sequence[Tensor], own: bool = False) -> Tensor:
        """What all networks answer.

        Args:
            states: of all networks.
            inputs: one tensor per argument of ``forward``.
            own: whether each network has inputs of its own, along a first axis.

        Shapes:
            states (B, ...), inputs (n, ...) or (B, n, ...) -> (B, n, outputs)
        """
        return _stacked(self._answer, states, inputs, own)

    def steepest(self, states: State, inputs: Tensor, score: Callable[[Tensor], Tensor], own: bool = False) -> Tensor:
        """The gradients of a score of the answers by the inputs, network by network.

        Args:
            states: of all networks, which have one input each time they are called.
            inputs: where.
            score: a number for the answers (n, outputs) of one network.
            own: whether each network has inputs of its own, along a first axis.

        Shapes:
            states (B, ...), inputs (n, ...) or (B, n, ...) -> (B, n, ...)
        """

        def run(state: State, given: Tensor) -> Tensor:
            found: Tensor = torch.func.grad(lambda x: score(self._answer(state, x)))(given)
            return found

        return _stacked(run, states, (inputs,), own)

    def _answer(self, state: State, *given: Tensor) -> Tensor:
        out = torch.func.functional_call(self.module, dict(state), given)
        return out if isinstance(out, Tensor) else out[0]


class Masked(Stacked):
    """One architecture, run and narrowed for stacks of its networks.

    Args:
        model: a module of it.
        spec: its spec.

    Attributes:
        spaces: the spaces that can be narrowed here: those that are read by weights of their own alone.

    Raises:
        PlanError: if there are none.
    """

    def __init__(self, model: nn.Module, spec: SymmetrySpec) -> None:
        super().__init__(model)
        self.spec = spec
        names, normed = set(model.state_dict()), normed_spaces(spec)
        self.readings: dict[str, list[Reading]] = {}
        for space in spec.spaces:
            found = readers(spec, space.name)
            # A norm over units sees masked ones too: there a masked network is not the narrowed one.
            plain = bool(found) and not spec.within.get(space.name) and space.size > 1 and space.name not in normed
            if plain and all(reads_alone(axis) for axis in found.values()):
                self.readings[space.name] = [
                    Reading(name, bias_of(name, names) or "", space.name, axis, reading_dim(spec, name, axis))
                    for name, axis in found.items()
                ]
        if not self.readings:
            raise PlanError("no space of this network can be narrowed", hint="it needs spaces that weights alone read")
        self.spaces = tuple(self.readings)

    def samples(self, states: State, inputs: Sequence[Tensor], own: bool = False) -> dict[str, Tensor]:
        """What the readings of all networks read, by weight.

        Args:
            states: of all networks.
            inputs: one tensor per argument of ``forward``.
            own: whether each network has inputs of its own, along a first axis.

        Shapes:
            states (B, ...), inputs (n, ...) or (B, n, ...) -> (B, n, positions, units) for each weight; positions are
            places of a map, steps of a sequence, or one.
        """
        wanted = {reading.weight: reading for found in self.readings.values() for reading in found}

        def run(state: State, *given: Tensor) -> dict[str, Tensor]:
            watch = Watch({id(tensor): name for name, tensor in state.items()})
            with watch:
                torch.func.functional_call(self.module, dict(state), given)
            count = given[0].shape[0]
            found = {}
            for name, reading in wanted.items():
                if name in watch.seen:
                    rows = torch.stack([features(x, reading.axis) for x in watch.seen[name]], 0)
                    # Calls and positions are samples of the input that they come from.
                    found[name] = rows.reshape(len(rows), count, -1, rows.shape[-1]).movedim(0, 1).flatten(1, 2)
            return found

        return _stacked(run, states, inputs, own)

    def narrowed(
        self,
        states: State,
        moments: Mapping[str, tuple[Tensor, Tensor]],
        masks: Mapping[str, Tensor],
        ridge: Tensor | float = 1e-3,
    ) -> dict[str, Tensor]:
        """The stacks with masked units rebuilt from the rest.

        Args:
            states: of all networks.
            moments: mean and covariance of what each weight reads, by weight.
            masks: by space, 1 for units that stay.
            ridge: see :class:`metanet.morph.Compensation`.

        Shapes:
            moments (B, units) and (B, units, units); masks (B, units).
        """
        made = dict(states)
        for space, mask in masks.items():
            for reading in self.readings[space]:
                mean, covariance = moments[reading.weight]
                if not reading.bias:
                    # Nothing takes a constant: means are rebuilt like the rest.
                    covariance = covariance + mean.unsqueeze(-1) * mean.unsqueeze(-2)
                rebuilt = rebuilding(covariance, mask, ridge)
                constant = mean - torch.einsum("bmu,bm->bu", rebuilt, mean * mask)
                made |= refitted(made, reading, rebuilt, constant)
        return made


def refitted(states: State, reading: Reading, rebuilt: Tensor, constant: Tensor) -> dict[str, Tensor]:
    """A reading of all networks, and the bias beside it, once it reads ``R^T x + c`` in place of what it read.

    Args:
        states: of all networks.
        reading: which.
        rebuilt: R; rows of units that nothing is to be read of are zero.
        constant: c; without a bias to take it, it is left out.

    Shapes:
        rebuilt (B, units, units), constant (B, units) -> the tensors that changed, by name
    """
    units = rebuilt.shape[-1]
    weight = states[reading.weight].movedim(reading.dim + 1, -1)
    wide = weight.unflatten(-1, (units, weight.shape[-1] // units))
    moved = torch.einsum("b...up,bmu->b...mp", wide, rebuilt).flatten(-2)
    found = {reading.weight: moved.movedim(-1, reading.dim + 1)}
    if reading.bias:
        shift = torch.einsum("b...up,bu->b...", wide, constant)
        found[reading.bias] = states[reading.bias] + shift.reshape(*shift.shape[:2], -1).sum(-1)
    return found


def _stacked(run: Callable[..., Made], states: State, inputs: Sequence[Tensor], own: bool) -> Made:
    """A function of one network, for all of a stack."""
    with warnings.catch_warnings():
        # Some operations (pooling to one pixel) are run network by network, which torch tells again and again.
        warnings.filterwarnings("ignore", message="There is a performance drop")
        made: Made = torch.func.vmap(run, in_dims=(0, *[0 if own else None] * len(inputs)))(dict(states), *inputs)
    return made


def rebuilding(covariance: Tensor, mask: Tensor, ridge: Tensor | float) -> Tensor:
    """R with x ~ R^T x' + c, where x' are the units that the mask keeps; rows of masked units are zero.

    Shapes:
        (B, n, n), (B, n) -> (B, n, n)
    """
    variance = covariance.diagonal(dim1=-2, dim2=-1)
    floor = 1e-6 * variance.mean(-1, keepdim=True).detach() + 1e-12
    level = ridge * torch.maximum(variance, floor)
    both = mask.unsqueeze(-1) * mask.unsqueeze(-2)
    # Masked units get an equation of their own, so that the system stays regular.
    left = covariance * both + torch.diag_embed(torch.where(mask > 0, level, torch.ones_like(level)))
    right = (covariance + torch.diag_embed(level)) * mask.unsqueeze(-1)
    return torch.linalg.solve(left, right)
