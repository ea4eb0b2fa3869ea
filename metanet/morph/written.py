"""How does a network of another shape, whose weights something else has written, become a morph like any other?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from metanet.errors import PlanError
from metanet.morph.apply import Morph, Record, replay
from metanet.morph.edits import Written
from metanet.morph.function import Function
from metanet.morph.modules import put_tensors
from metanet.morph.plan import Plan, fingerprint
from metanet.morph.undo import difference
from symmetry import SymmetrySpec

__all__ = ["written"]


def written(
    model: nn.Module,
    made: nn.Module,
    example_inputs: Sequence[Any],
    spec: SymmetrySpec,
    sizes: Mapping[str, int],
    by: str = "",
) -> Morph:
    """A morph from a network to one that was not made by editing it: by a field, or by another generator.

    Its folder holds and gives back what that of every morph does; undoing gives the old network bit by bit, which is
    stored whole.

    Args:
        model: the old network; it is not changed.
        made: the new one, with the names of the old one's tensors; it is not changed.
        example_inputs: one entry per argument of ``forward``.
        spec: of the old network.
        sizes: of the spaces of the new network that the generator can vary; at least one.
        by: what wrote it, in words.

    Raises:
        PlanError: if the new network does not have these sizes.
    """
    plan = Plan(tuple(Written(space, size, by) for space, size in sizes.items()), fingerprint(spec))
    source = model.state_dict(keep_vars=True)
    (stage,) = replay(plan, model, example_inputs, spec)
    state, expected = made.state_dict(keep_vars=True), stage.model.state_dict(keep_vars=True)
    for name in (*expected, *state):
        one, other = (tuple(each[name].shape) if name in each else None for each in (state, expected))
        if one != other:
            raise PlanError(f"{name}: has shape {one}, these sizes ask for {other}", hint="write it at these sizes")
    put_tensors(stage.model, state)
    error = Function(model, example_inputs, spec).error(stage.model)
    counts = (sum(tensor.numel() for tensor in each.values()) for each in (source, state))
    record = Record(plan.edits, (next(counts), next(counts)), error, False)
    stored = difference(stage.steps, source, stage.model.state_dict(keep_vars=True))
    return Morph(
        stage.model.eval(),
        stage.spec,
        plan,
        (record,),
        error,
        error,
        model,
        tuple(source),
        stage.steps,
        stored,
    )
