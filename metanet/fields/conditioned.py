"""What is an unseen checkpoint at any width? ``field(spec, sizes) -> state`` from its weights, with nothing trained.

A metanetwork has told, from the weights alone, which inputs stand for what the network reads. On them the units that
stay are chosen by optimal brain surgeon, what reads them is refitted layer by layer, and rounds of Gauss-Newton move
all weights that are left, down the divergence from the checkpoint. Beyond its width units are copied and what is read
of them is shared, which is the same function.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from metanet.errors import FieldError, PlanError
from metanet.fields.fitting import check_numbers, check_sizes, check_spec
from metanet.morph import Compensation, apply, narrow_by_obs, widen
from metanet.morph.running import doubled
from symmetry import GroupElement, SymmetrySpec, act, canonicalize

__all__ = ["ConditionedField", "canonical"]


class ConditionedField:
    """A function from sizes to a whole state that one checkpoint conditions.

    The checkpoint is first brought to the canonical form of its orbit: what is written does not depend on the order,
    the signs and the scales of its units.

    Args:
        model: the checkpoint's network; it is not changed.
        spec: of it.
        example_inputs: one entry per argument of ``forward``.
        inputs: what stands for the network's data; predicted ones: see ``metanet.tasks.MorphModel.field``.
        more: further inputs that rounds look at.
        ridge: see :class:`metanet.morph.Compensation`.
        rounds: of Gauss-Newton; 0 for outputs that are no logits of classes.
        gauge: of the canonical form (:func:`symmetry.canonicalize`); ``None`` to take the weights as they are.
        most: sizes whose networks are kept.

    Raises:
        FieldError: without inputs, or if they are not finite.

    Shapes:
        inputs (n, *input) each, one for every argument of ``forward``; more alike, or nothing
    """

    kind = "conditioned"

    def __init__(
        self,
        model: nn.Module,
        spec: SymmetrySpec,
        example_inputs: Sequence[Any],
        inputs: Sequence[Tensor],
        more: Sequence[Tensor] = (),
        ridge: float = 1e-3,
        rounds: int = 16,
        gauge: str | None = "balanced",
        most: int = 16,
    ) -> None:
        if not inputs or any(len(given) < 2 for given in inputs):
            raise FieldError("no inputs to condition on", hint="give at least two for every argument of forward")
        if not all(bool(given.isfinite().all()) for given in (*inputs, *more)):
            raise FieldError("inputs that are not finite", hint="check where they come from")
        state = {name: value.detach() for name, value in model.state_dict().items()}
        spec.check(state)
        self.spec, self.example_inputs, self.rounds, self.ridge = spec, tuple(example_inputs), rounds, ridge
        self.inputs, self.more, self.most = doubled(inputs), doubled(more), most
        self.model, self._dtypes = copy.deepcopy(model).eval(), {name: value.dtype for name, value in state.items()}
        self._canonical = canonical(model, spec, gauge)
        self._made: OrderedDict[tuple[int, ...], nn.Module] = OrderedDict()

    def __call__(self, spec: SymmetrySpec | None = None, sizes: Mapping[str, int] | None = None) -> dict[str, Tensor]:
        """The state of a network.

        Args:
            spec: of the architecture that is asked for, at any width; the checkpoint's own if ``None``.
            sizes: numbers of units by space; those of ``spec`` for spaces that are not named.

        Raises:
            FieldError: if the spec is of another architecture, or a size is impossible.
        """
        sized: dict[str, int] = {}
        if spec is not None and spec is not self.spec:
            check_spec(self.spec, spec)
            sized = {space.name: space.size for space in spec.spaces}
        sized.update(sizes or {})
        return {name: value.detach().clone() for name, value in self.network(sized).state_dict().items()}

    def network(self, sizes: Mapping[str, int] | None = None) -> nn.Module:
        """An ordinary module of some sizes, in eval mode.

        Args:
            sizes: numbers of units by space; those of the checkpoint where nothing is said.

        Raises:
            FieldError: if there is no network of these sizes.
        """
        sizes = dict(sizes or {})
        check_sizes(self.spec, sizes)
        check_numbers(self.spec, sizes)
        key = tuple(sizes.get(space.name, space.size) for space in self.spec.spaces)
        if key not in self._made:
            try:
                self._made[key] = self._make(sizes)
            except PlanError as error:
                raise FieldError(f"no network of these sizes: {error.reason}", hint=error.hint) from None
            if len(self._made) > self.most:
                self._made.popitem(last=False)
        self._made.move_to_end(key)
        return copy.deepcopy(self._made[key])

    def _make(self, sizes: Mapping[str, int]) -> nn.Module:
        full = {space.name: space.size for space in self.spec.spaces}
        less = {name: size for name, size in sizes.items() if size < full[name]}
        more = {name: size for name, size in sizes.items() if size > full[name]}
        made, spec = self.model, self.spec
        if less:
            whole, batches = self._canonical, [self.inputs]
            plan = narrow_by_obs(whole, spec, less, batches, self.ridge)
            beside = [self.more] if self.more else []
            behind = Compensation(batches, ridge=self.ridge, rounds=self.rounds, more=beside)
            found = apply(plan, whole, doubled(self.example_inputs), spec=spec, compensation=behind)
            made, spec = found.model, found.spec
            _cast(made, self._dtypes)
        if more:
            made = apply(widen(spec, more), made, self.example_inputs, spec=spec).model
        return made.eval()

    def __repr__(self) -> str:
        count = len(self.inputs[0])
        return f"ConditionedField({len(self.spec.spaces)} spaces, {count} inputs, {self.rounds} rounds)"


def canonical(model: nn.Module, spec: SymmetrySpec, gauge: str | None = "balanced") -> nn.Module:
    """The network of a checkpoint's orbit that is narrowed, in float64 and eval mode.

    Another order or other signs of the units give the same network bit by bit, other scales the same up to rounding.

    Args:
        model: the checkpoint's network; it is not changed.
        spec: of it.
        gauge: of the canonical form; ``None`` for the network as it is.
    """
    made = copy.deepcopy(model).double().eval()
    if gauge is None:
        return made
    state = dict(made.state_dict())
    first = canonicalize(spec, state, gauge)
    # Norms are sums over units: they are taken once more in the order that was found, so that rounding is the same.
    exact = replace(GroupElement.identity(spec), permutations=first.permutations, flips=first.flips)
    ordered = act(spec, exact, state)
    made.load_state_dict(act(spec, canonicalize(spec, ordered, gauge), ordered))
    return made


def _cast(model: nn.Module, dtypes: Mapping[str, torch.dtype]) -> None:
    """Bring every parameter and buffer to the precision of the checkpoint, in place."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if name in dtypes:
            tensor.data = tensor.data.to(dtypes[name])
