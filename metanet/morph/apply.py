"""What does a plan make of a network, and did it keep what it claims?"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import symmetry
from metanet.errors import PlanError
from metanet.morph.behind import refit_behind
from metanet.morph.compensate import Compensation, compensate
from metanet.morph.edits import Edit, ModuleEdit, SpaceEdit, StateEdit, Written
from metanet.morph.function import TOLERANCE, Function
from metanet.morph.modules import put_tensors, rebuild
from metanet.morph.norms import recalibrate
from metanet.morph.plan import Plan, fingerprint
from metanet.morph.rebuilding import Rebuilding
from metanet.morph.refine import refine
from metanet.morph.refit import steps_of
from metanet.morph.resize import resize, resized_spec
from metanet.morph.running import doubled
from metanet.morph.scores import keep_scale
from metanet.morph.undo import Difference, Step, difference, restore_state
from symmetry import SymmetrySpec, TraceError

__all__ = ["Morph", "Record", "Stage", "apply", "replay", "undo"]


@dataclass(frozen=True)
class Record:
    """What some edits that belong together did.

    Args:
        edits: they.
        parameters: of the network before and after, buffers included.
        error: largest change of any output over the spread between networks, in float64.
        exact: whether they claim to be exact.
        rebuilt: what dropped units were rebuilt from, for each reader that was refitted.
    """

    edits: tuple[Edit, ...]
    parameters: tuple[int, int]
    error: float
    exact: bool
    rebuilt: tuple[Rebuilding, ...] = ()


@dataclass(frozen=True, eq=False)
class Morph:
    """A network edited by a plan.

    Args:
        model: the new module; in the mode of the old one.
        spec: its symmetry, traced anew.
        plan: with the fingerprint of the architecture that it was done on.
        records: what the edits did, in order.
        error: of the whole plan, in float64; see :class:`Record`.
        stored_error: the same for the module as it is, in its own dtype, running statistics estimated again included.
        source: the user's own module, which is never changed; its structure serves to undo.
        source_names: names of its state.
        steps: how to undo, with
        stored: what algebra does not give back.
        uncompensated: weights that read dropped units, and edits behind which nothing could be refitted.
    """

    model: nn.Module
    spec: SymmetrySpec
    plan: Plan
    records: tuple[Record, ...]
    error: float
    stored_error: float
    source: nn.Module
    source_names: tuple[str, ...]
    steps: tuple[Step, ...]
    stored: Difference
    uncompensated: tuple[str, ...] = ()

    @property
    def exact(self) -> bool:
        """Whether the network computes what it did before: proved by running both, not claimed."""
        return self.error <= TOLERANCE

    def __str__(self) -> str:
        before, after = self.records[0].parameters[0], self.records[-1].parameters[1]
        word = "exact" if self.exact else "approximate"
        return (
            f"{len(self.plan)} edits, {before:,} -> {after:,} numbers, {word}: outputs change by {self.error:.1e} of "
            f"their spread, {self.stored_error:.1e} as stored"
        )


def apply(
    plan: Plan | Edit | Sequence[Edit],
    model: nn.Module,
    example_inputs: Sequence[Any],
    *,
    spec: SymmetrySpec | None = None,
    approximate: bool = False,
    batch_norm_data: Iterable[Sequence[Any]] | None = None,
    compensation: Compensation | None = None,
) -> Morph:
    """Edit a network. The given module is not changed, whatever happens.

    Neighbouring edits of spaces are done together, so that spaces which only change together (the layers of an LSTM)
    can. After every other edit the new module is traced again. Edits that claim to be exact are checked in float64.

    Args:
        plan: what to do.
        model: a module that :func:`symmetry.trace` can trace.
        example_inputs: one entry per argument of ``forward``.
        spec: of the model, if it is known; traced otherwise.
        approximate: accept edits that claim to be exact and are not (a layer norm over units copied unevenly).
        batch_norm_data: argument lists of ``forward``, to estimate running statistics again at the end.
        compensation: how the readers of dropped and merged units, and what stands behind blocks that were dropped, are
            refitted; they are left alone by default.

    Raises:
        PlanError: if the plan is for another architecture, an edit does not fit or is not exact, or a module cannot be
            replaced.
    """
    plan = plan if isinstance(plan, Plan) else Plan((plan,) if isinstance(plan, Edit) else tuple(plan))
    beside = [edit for edit in plan if isinstance(edit, Written)]
    if beside:
        raise PlanError(f"{beside[0]}: no edit makes these weights", hint="have the network written again")
    found = spec if spec is not None else _trace(model, example_inputs)
    source_state = model.state_dict(keep_vars=True)
    found.check(source_state)
    first = Function(model, example_inputs, found)
    records: list[Record] = []
    steps: list[Step] = []
    skipped: list[str] = []
    # Edits are done in float64, so that what they claim can be told apart from what storing the result rounds off.
    wide, inputs = copy.deepcopy(model).to(torch.float64), doubled(example_inputs)
    work, here, function = wide, found, first
    for stage in replay(plan, wide, inputs, found, apart=compensation is not None):
        spaces = [edit for edit in stage.edits if isinstance(edit, SpaceEdit)]
        rebuilt: list[Rebuilding] = []
        scales = keep_scale(work, stage.model, here, steps_of(here, spaces), inputs) if spaces else {}
        if compensation is not None and spaces:
            rebuilt, missed = compensate(work, stage.model, here, spaces, compensation, scales)
            skipped += missed
        elif compensation is not None and _changes_modules(stage.edits):
            done = refit_behind(work, stage.model, here, stage.spec, compensation)
            skipped += [] if done else [str(stage.edits[0])]
        error, group = function.error(stage.model), stage.edits
        exact = all(edit.exact for edit in group)
        if exact and error > TOLERANCE and not approximate:
            raise PlanError(
                f"{'; '.join(map(str, group))}: changes the outputs by {error:.2g} of their spread"
                + _reason(stage.model, stage.spec, group),
                hint="choose another edit, or pass approximate=True",
            )
        records.append(Record(group, (_count(work), _count(stage.model)), error, exact, tuple(rebuilt)))
        work, here = stage.model, stage.spec
        steps += stage.steps
        function = Function(work, inputs, here)
    if compensation is not None and compensation.rounds and compensation.batches is not None:
        work = copy.deepcopy(work)
        refine(wide, work, [*compensation.batches, *compensation.more], compensation.rounds)
    error = first.error(work)
    work = _rounded(work, source_state)
    if batch_norm_data is not None:
        recalibrate(work, batch_norm_data)
    edits = tuple(edit for record in records for edit in record.edits)
    return Morph(
        work,
        here,
        Plan(edits, fingerprint(found)),
        tuple(records),
        error,
        first.error(work),
        model,
        tuple(source_state),
        tuple(steps),
        difference(tuple(steps), source_state, work.state_dict(keep_vars=True)),
        tuple(skipped),
    )


@dataclass(frozen=True, eq=False)
class Stage:
    """A network after some edits that belong together.

    Args:
        edits: they, with everything decided that depends on weights.
        model: the module.
        spec: its symmetry.
        steps: how to take them back.
    """

    edits: tuple[Edit, ...]
    model: nn.Module
    spec: SymmetrySpec
    steps: tuple[Step, ...]


def replay(
    plan: Plan, model: nn.Module, example_inputs: Sequence[Any], spec: SymmetrySpec, apart: bool = False
) -> Iterator[Stage]:
    """Do the edits of a plan one group after the other, without asking whether the function is kept.

    Args:
        plan: what to do.
        model: the network; it is not changed.
        example_inputs: one entry per argument of ``forward``.
        spec: of the model.
        apart: do edits of spaces and moves within the group one after the other, so that what is in between can be
            looked at.

    Raises:
        PlanError: as in :func:`apply`.
    """
    if not plan.edits:
        raise PlanError("the plan has no edits", hint="give at least one")
    here = fingerprint(spec)
    if plan.fingerprint and plan.fingerprint != here:
        raise PlanError(
            f"the plan is for another architecture ({plan.fingerprint[:12]}, here {here[:12]})",
            hint="make a plan for this network",
        )
    for group in _groups(plan.edits, apart):
        if isinstance(group[0], ModuleEdit):
            edit = group[0].resolved(model)
            model = copy.deepcopy(model)
            edit.restructure(model, example_inputs)
            step = Step(spec, None)
            spec = _trace(model, example_inputs)
            yield Stage((edit,), model, spec, (step,))
        else:
            model, spec, steps = _edit_state(group, model, spec, example_inputs)
            yield Stage(tuple(group), model, spec, tuple(steps))


def undo(morph: Morph) -> nn.Module:
    """The network as it was: a module of the old structure with the old weights, bit by bit.

    Args:
        morph: what :func:`apply` gave, its model unchanged.
    """
    state = restore_state(morph.steps, morph.stored, morph.model.state_dict(keep_vars=True), morph.source_names)
    made = copy.deepcopy(morph.source)
    put_tensors(made, state)
    return made


def _edit_state(
    group: list[Edit], model: nn.Module, spec: SymmetrySpec, example_inputs: Sequence[Any]
) -> tuple[nn.Module, SymmetrySpec, list[Step]]:
    """Edits of spaces and states, one after the other on the state, then one module for the result."""
    state: dict[str, Tensor] = {name: value.detach() for name, value in model.state_dict(keep_vars=True).items()}
    state = _tied(spec, state)
    here, steps = spec, []
    for edit in group:
        if isinstance(edit, SpaceEdit):
            change = edit.resizing(here)
            steps.append(Step(here, change))
            state, here = resize(here, state, change), resized_spec(here, {edit.space: change.size})
        elif isinstance(edit, StateEdit):
            element = edit.element(here)
            steps.append(Step(here, element))
            state = here.act(element, state)
    layout = _layout(here)

    traced: list[SymmetrySpec] = []

    def accept(made: nn.Module) -> bool:
        traced.append(_trace(made, example_inputs))
        return layout == _layout(traced[-1])

    made = rebuild(model, spec, here, state, example_inputs, accept)
    return made, traced[-1], steps


def _layout(spec: SymmetrySpec) -> list[list[list[int]]]:
    """Sizes of the leaves of every axis. A leaf of size 1 says nothing: one unit is a space of its own or none."""
    return [[[leaf.size for leaf in axis.leaves() if leaf.size > 1] for axis in spec.axes[name]] for name in spec.axes]


def _rounded(model: nn.Module, source: Mapping[str, Tensor]) -> nn.Module:
    """The module in the dtypes of the old one; tensors that are new get the most common of them."""
    kinds = [tensor.dtype for tensor in source.values() if tensor.is_floating_point()]
    common = max(set(kinds), key=kinds.count) if kinds else torch.float32
    state = model.state_dict(keep_vars=True)
    rounded: dict[int, Tensor] = {}
    for name, tensor in state.items():
        kind = source[name].dtype if name in source else common
        if id(tensor) not in rounded:
            rounded[id(tensor)] = tensor.detach().to(kind) if tensor.is_floating_point() else tensor.detach()
    made = model.to(common)
    put_tensors(made, {name: rounded[id(tensor)] for name, tensor in state.items()})
    return made


def _tied(spec: SymmetrySpec, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Entries that are one tensor as one object, as ``spec.act`` wants them."""
    return {name: state[spec.tensors[name].tied_to or name] for name in state}


def _groups(edits: Sequence[Edit], apart: bool) -> list[list[Edit]]:
    """Neighbouring edits of spaces and states together, edits of modules each alone."""
    groups: list[list[Edit]] = []
    for edit in edits:
        last = groups[-1][0] if groups else edit
        alone = isinstance(edit, ModuleEdit) or isinstance(last, ModuleEdit)
        if groups and not alone and not (apart and isinstance(edit, StateEdit) != isinstance(last, StateEdit)):
            groups[-1].append(edit)
        else:
            groups.append([edit])
    return groups


def _changes_modules(edits: Sequence[Edit]) -> bool:
    """Whether modules were changed so that the function did: nothing has to be made up for behind exact edits."""
    return isinstance(edits[0], ModuleEdit) and not edits[0].exact


def _trace(model: nn.Module, example_inputs: Sequence[Any]) -> SymmetrySpec:
    try:
        return symmetry.trace(model, example_inputs)
    except TraceError as error:
        raise PlanError(f"the network cannot be traced: {error}", hint="see the page on symmetry") from error


def _reason(model: nn.Module, spec: SymmetrySpec, group: Sequence[Edit]) -> str:
    """Why an edit of a space was not exact, where a norm over its units explains it."""
    spaces = {edit.space for edit in group if isinstance(edit, SpaceEdit)}
    for name, axes in spec.axes.items():
        inside = {leaf.space.name for axis in axes for leaf in axis.leaves() if isinstance(leaf, symmetry.Atom)}
        module = model.get_submodule(name.rpartition(".")[0])
        if inside & spaces and isinstance(module, nn.LayerNorm | nn.RMSNorm | nn.GroupNorm):
            return (
                f": the {type(module).__name__} '{name.rpartition('.')[0]}' runs over all units of "
                f"{sorted(inside & spaces)[0]!r}, and is exact only if each is copied equally often"
            )
    return ""


def _count(model: nn.Module) -> int:
    return sum(tensor.numel() for tensor in model.state_dict(keep_vars=True).values())
