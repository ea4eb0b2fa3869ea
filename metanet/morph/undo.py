"""How does a network get its old weights back, bit by bit?

Exact edits are undone algebraically (copies summed, scales taken back). What that does not give to the last bit, and
what approximate edits have dropped, comes from a stored difference: the entries of the old tensors that differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from metanet.errors import PlanError
from metanet.morph.resize import Resizing, resize, resized_spec
from symmetry import GroupElement, SymmetrySpec

__all__ = ["Difference", "Step", "difference", "inverse", "restore_state"]

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True, eq=False)
class Step:
    """How one edit is taken back: the spec before it, and what it did to the state.

    Args:
        spec: before the edit.
        change: a :class:`Resizing`, a group element, or ``None`` where modules were replaced.
    """

    spec: SymmetrySpec
    change: Resizing | GroupElement | None


@dataclass(frozen=True, eq=False)
class Difference:
    """Entries of tensors that the algebra does not give back.

    Args:
        places: by tensor, flat positions; ``None``: the tensor as a whole.
        values: by tensor, what stood there.
    """

    places: Mapping[str, Tensor | None]
    values: Mapping[str, Tensor]

    @property
    def size(self) -> int:
        """How many numbers are stored."""
        return sum(value.numel() for value in self.values.values())


def _taken_back(steps: tuple[Step, ...], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What algebra alone makes of the edited state; entries that it knows nothing of are missing."""
    found = dict(state)
    for step in reversed(steps):
        if isinstance(step.change, GroupElement):
            if set(found) == set(step.spec.axes):
                found = step.spec.act(~step.change, found)
        elif isinstance(step.change, Resizing):
            after = resized_spec(step.spec, {step.change.space: step.change.size})
            if set(found) == set(after.axes):
                found = resize(after, found, inverse(step.spec, step.change))
        else:
            # Modules were replaced: what kept its name and shape is taken over.
            found = {
                name: tensor
                for name, tensor in found.items()
                if name in step.spec.tensors and tuple(tensor.shape) == tuple(step.spec.tensors[name].shape)
            }
    return found


def inverse(spec: SymmetrySpec, change: Resizing) -> Resizing:
    """Back to the old units: each is written like its first copy, and read as all its copies together."""
    shape, size = tuple(change.source.shape), spec.sizes[change.space]
    new = torch.arange(change.size).expand(shape)
    first = torch.full((*shape[:-1], size), change.size)
    first = first.scatter_reduce(-1, change.source, new, "amin")
    known = first < change.size
    writer = torch.zeros(*shape[:-1], size, change.size, dtype=torch.float64)
    writer.scatter_(-1, first.clamp_max(change.size - 1).unsqueeze(-1), known.double().unsqueeze(-1))
    reader = torch.zeros(*shape, size, dtype=torch.float64).scatter_(-1, change.source.unsqueeze(-1), 1.0)
    return Resizing(change.space, first.clamp_max(change.size - 1), writer=writer, reader=reader)


def difference(steps: tuple[Step, ...], old: Mapping[str, Tensor], new: Mapping[str, Tensor]) -> Difference:
    """What has to be stored beside the new state so that the old one comes back bit by bit."""
    guess = _taken_back(steps, new)
    places: dict[str, Tensor | None] = {}
    values: dict[str, Tensor] = {}
    for name, tensor in old.items():
        tensor = tensor.detach().cpu().contiguous()
        close = guess.get(name)
        if close is None or close.shape != tensor.shape or close.dtype != tensor.dtype:
            places[name], values[name] = None, tensor.clone()
            continue
        wrong = (_bits(close.detach().cpu()) != _bits(tensor)).reshape(-1).nonzero().reshape(-1)
        # A place takes eight bytes: beyond a share of the entries the whole tensor is smaller.
        if len(wrong) * (8 + tensor.element_size()) >= tensor.numel() * tensor.element_size():
            places[name], values[name] = None, tensor.clone()
        elif len(wrong):
            places[name], values[name] = wrong, tensor.reshape(-1)[wrong].clone()
    return Difference(places, values)


def restore_state(
    steps: tuple[Step, ...], stored: Difference, new: Mapping[str, Tensor], names: tuple[str, ...]
) -> dict[str, Tensor]:
    """The old state, bit by bit.

    Args:
        steps: of the edits, in their order.
        stored: what :func:`difference` gave.
        new: the edited state.
        names: of the old state, in its order.

    Raises:
        PlanError: if the new state is not the one that the difference was made for.
    """
    found = _taken_back(steps, new)
    result = {}
    for name in names:
        if name in stored.values and stored.places[name] is None:
            result[name] = stored.values[name].clone()
            continue
        if name not in found:
            raise PlanError(f"{name}: cannot be taken back from this state", hint="undo needs the state that was made")
        tensor = found[name].detach().clone().contiguous()
        places = stored.places.get(name)
        if places is not None:
            tensor.reshape(-1)[places.to(tensor.device)] = stored.values[name].to(tensor.device)
        result[name] = tensor
    return result


def _bits(tensor: Tensor) -> Tensor:
    """A tensor's bits as integers, so that NaNs and signed zeros compare."""
    flat = tensor.contiguous()
    if flat.dtype == torch.bool:
        return flat
    if flat.is_complex():
        flat = torch.view_as_real(flat)
    return flat.view(_INTEGERS[flat.element_size()])
