"""How do gradients, Fisher diagonals and an optimiser's moments change when a group element acts on the weights?

The function stays, so a gradient changes by the inverse transpose of what the weights change by: permutations and
signs alike, scalings inverted, a matrix M as its inverse transpose. Squares of gradients take the square of that, which
exists for permutations, signs and scalings; a matrix mixes entries whose correlation a diagonal does not know. Shifts
of biases are translations and leave gradients alone, but for the signs that go with odd ones.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from symmetry.action import leaf_name, tensor_blocks
from symmetry.elements import GroupElement
from symmetry.errors import SpecError
from symmetry.factors import LinearSlot
from symmetry.frames.parts import onto
from symmetry.spec import SymmetrySpec

__all__ = ["OPTIMIZER_RULES", "act_fisher", "act_gradient", "act_optimizer"]

#: What torch's optimisers keep per parameter: the power of a scaling that multiplies it, and whether signs do.
OPTIMIZER_RULES: dict[str, tuple[int, bool]] = {
    "exp_avg": (-1, True),  # Adam and its kin: a mean of gradients
    "exp_avg_sq": (-2, False),
    "max_exp_avg_sq": (-2, False),
    "exp_inf": (-1, False),  # Adamax: a largest magnitude
    "momentum_buffer": (-1, True),  # SGD
    "sum": (-2, False),  # Adagrad
    "square_avg": (-2, False),  # RMSprop, Adadelta
    "grad_avg": (-1, True),
    "acc_delta": (2, False),  # Adadelta: squares of steps, which change like weights
    "prev": (-1, True),  # Rprop
    "step_size": (1, False),
}
COUNTERS = frozenset({"step", "mu_product", "eta", "mu"})


def act_gradient(
    spec: SymmetrySpec,
    element: GroupElement,
    gradients: Mapping[str, Tensor],
    state: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """The gradient at ``spec.act(element, state)`` from the gradient at ``state``.

    Args:
        spec: the spec of the architecture.
        element: what acts.
        gradients: by name of the parameter; any of the spec's names may be missing (buffers have none). A tied
            parameter has one gradient, under whichever of its names.
        state: the weights at which the gradient was taken; needed only where a matrix acts through the gain of a norm
            (``fold_gains``), whose gradient then depends on them.

    Returns:
        The same names, dtypes and devices. Momentum (a mean of gradients) changes in the same way.

    Raises:
        SpecError: for unknown names or other shapes, an element of another spec, or a ``state`` that is needed.
    """
    _check(spec, element, gradients, "gradients")
    folded = _folded(spec, element)
    if folded and state is None:
        raise SpecError(
            f"gradients: matrices act through the gain {folded[0][1].gain!r}, whose gradient depends on the weights; "
            "expected the argument state"
        )
    if state is not None:
        spec.check(state)
    result = {name: _transform(spec, element, name, value, -1, True, state=state) for name, value in gradients.items()}
    if folded and state is not None:
        _gain_gradients(spec, element, folded, gradients, result, state)
    return result


def act_fisher(
    spec: SymmetrySpec, element: GroupElement, fisher: Mapping[str, Tensor], approximate: bool = False
) -> dict[str, Tensor]:
    """A diagonal of the Fisher information (any mean of squared gradients) after an element has acted on the weights.

    Args:
        spec: the spec of the architecture.
        element: what acts.
        fisher: by name of the parameter; names may be missing.
        approximate: let matrices act as if the gradients of different units were uncorrelated: the diagonal of
            ``M^-T diag(v) M^-1``.

    Raises:
        SpecError: for unknown names or other shapes, an element of another spec, or an element with matrices unless
            ``approximate``.
    """
    _check(spec, element, fisher, "fisher")
    return {name: _transform(spec, element, name, value, -2, False, approximate) for name, value in fisher.items()}


def act_optimizer(
    spec: SymmetrySpec,
    element: GroupElement,
    optimizer_state: Mapping[str, Any],
    names: Sequence[str],
    approximate: bool = False,
) -> dict[str, Any]:
    """An optimiser's ``state_dict()`` after an element has acted on the weights, so that training goes on as it would.

    Under permutations and signs all further steps are the same up to the element. Under scalings the moments are those
    of the scaled weights, exactly; whether the next step is the scaled one depends on the optimiser, and for most it is
    not.

    Args:
        spec: the spec of the architecture.
        element: what acts.
        optimizer_state: of one of torch's optimisers, as ``optimizer.state_dict()`` gives it.
        names: the names of the parameters, in the order in which the optimiser got them.
        approximate: see :func:`act_fisher`.

    Returns:
        For ``optimizer.load_state_dict``; what was given is not changed.

    Raises:
        SpecError: for another layout, names or shapes, entries whose rule is not known (see ``OPTIMIZER_RULES``), an
            element of another spec, or an element with matrices unless ``approximate``.
    """
    try:
        groups, entries = optimizer_state["param_groups"], dict(optimizer_state["state"])
        count = sum(len(group["params"]) for group in groups)
    except (KeyError, TypeError) as error:
        raise SpecError(
            "optimizer_state: no entries 'state' and 'param_groups'; expected what optimizer.state_dict() gives"
        ) from error
    if count != len(names):
        raise SpecError(f"names: {len(names)} names for {count} parameters of the optimiser; expected one for each")
    if _folded(spec, element):
        raise SpecError("optimizer_state: matrices act through the gain of a norm, which momenta cannot follow")
    result: dict[Any, Any] = {}
    for index, kept in entries.items():
        if not (isinstance(index, int) and 0 <= index < count):
            raise SpecError(f"optimizer_state: state of parameter {index!r}; expected numbers below {count}")
        name, changed = names[index], {}
        for key, value in kept.items():
            # A copy: load_state_dict keeps counters as they are, and two optimisers would count in one.
            changed[key] = value.detach().clone() if isinstance(value, Tensor) else copy.deepcopy(value)
            if isinstance(value, Tensor) and key not in COUNTERS:
                if key not in OPTIMIZER_RULES:
                    raise SpecError(
                        f"optimizer_state: {key!r} of {name} has no rule; expected some of {', '.join(OPTIMIZER_RULES)}"
                    )
                _check(spec, element, {name: value}, f"optimizer_state {key}")
                power, signed = OPTIMIZER_RULES[key]
                if key == "momentum_buffer" and "square_avg" in kept:
                    power = 0  # RMSprop keeps steps in units of the learning rate
                changed[key] = _transform(spec, element, name, value, power, signed, approximate)
        result[index] = changed
    return {**optimizer_state, "state": result, "param_groups": [dict(group) for group in groups]}


def _check(spec: SymmetrySpec, element: GroupElement, given: Mapping[str, Any], what: str) -> None:
    if element.spec != spec:
        raise SpecError(f"{what}: the element belongs to another spec; expected one of this spec")
    for name, value in given.items():
        if name not in spec.tensors:
            raise SpecError(f"{what}: {name!r} is not an entry of the spec")
        if tuple(value.shape) != tuple(spec.tensors[name].shape):
            raise SpecError(f"{what}: {name} has shape {tuple(value.shape)}, expected {spec.tensors[name].shape}")


def _folded(spec: SymmetrySpec, element: GroupElement) -> list[tuple[str, LinearSlot]]:
    """The slots where a matrix other than the identity acts through a gain."""
    return [
        (factor.space, slot)
        for factor in spec.linear
        if not _is_identity(element.matrices[factor.space])
        for slot in factor.slots
        if slot.gain is not None
    ]


def _is_identity(matrix: Tensor) -> bool:
    return bool((matrix == torch.eye(matrix.shape[-1], dtype=matrix.dtype)).all())


def _transform(
    spec: SymmetrySpec,
    element: GroupElement,
    name: str,
    tensor: Tensor,
    power: int,
    signed: bool,
    approximate: bool = False,
    state: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """Permute, turn by matrices, and multiply by scalings to a power and by signs; computed in float64."""
    source = spec.tensors[name].tied_to or name
    result = tensor.detach().to(torch.float64, copy=True).contiguous()
    for number, block in enumerate(tensor_blocks(spec.axes[source])):
        names = [leaf_name(leaf) for leaf in block.leaves]
        values = _permuted(spec, element, names, block.read(result))
        for factor in spec.linear:
            for slot in factor.slots:
                if (slot.tensor, slot.block) == (source, number) and not _is_identity(element.matrices[factor.space]):
                    turn = _turn(spec, element, slot, factor.space, names, (power, signed), approximate)
                    if slot.gain is None or state is None:
                        values = turn(values)
                    else:
                        gain = onto(state[slot.gain].detach().to(values).reshape(-1), (slot.leaf,), len(names))
                        values = turn(values / gain) * gain
        for scale in spec.factors:
            for place in scale.slots:
                if (place.tensor, place.block) == (source, number):
                    if scale.kind == "scale":
                        logs = _spread(spec, element.log_scales[scale.name], scale.space, place.leaf, names)
                        values = values * (power * float(place.exponent) * logs).exp().to(values.device)
                    elif signed:
                        spread = _spread(spec, element.flips[scale.name], scale.space, place.leaf, names)
                        values = torch.where(spread.to(values.device), -values, values)
        for shift in spec.shifts if signed else ():
            for place in shift.flips:
                if (place.tensor, place.block) == (source, number):
                    odd = element.shifts[shift.name] % 2 == 1
                    spread = _spread(spec, odd, shift.space, place.leaf, names)
                    values = torch.where(spread.to(values.device), -values, values)
        block.write(result, values)
    return result.to(tensor.dtype)


def _spread(spec: SymmetrySpec, array: Tensor, space: str | None, leaf: int | None, names: list[str | None]) -> Tensor:
    dims = [] if leaf is None else [*(names.index(outer) for outer in spec.within.get(space or "", ())), leaf]
    return onto(array, dims, len(names))


def _permuted(spec: SymmetrySpec, element: GroupElement, names: list[str | None], values: Tensor) -> Tensor:
    """Outer spaces first, so that the new outer place chooses the inner permutation."""
    for dim in sorted(range(len(names)), key=lambda place: len(spec.within.get(names[place] or "", ()))):
        permutation = element.permutations.get(names[dim] or "")
        if permutation is not None:
            index = _spread(spec, permutation.to(values.device), names[dim], dim, names)
            values = torch.take_along_dim(values, index, dim=dim)
    return values


def _turn(
    spec: SymmetrySpec,
    element: GroupElement,
    slot: LinearSlot,
    space: str,
    names: list[str | None],
    rule: tuple[int, bool],
    approximate: bool,
) -> Callable[[Tensor], Tensor]:
    """Multiply along a leaf by the inverse transpose of what the weights are multiplied by, or by its squares."""
    matrix = element.matrices[space]
    dual = matrix if slot.inverse else torch.linalg.inv(matrix).mT
    if rule != (-1, True):
        if not approximate or rule != (-2, False):
            advice = ", or approximate=True" if rule == (-2, False) else ""
            raise SpecError(
                f"{slot.tensor}: squares and magnitudes of gradients do not follow the matrix on {space!r}, which "
                f"mixes units whose correlation they do not hold; expected an element without matrices{advice}"
            )
        dual = dual.square()
    dims = [*(names.index(outer) for outer in spec.within.get(space, ())), slot.leaf]
    places = list(range(len(dims)))

    def turn(values: Tensor) -> Tensor:
        front = values.movedim(dims, places)
        flat = front.reshape(*front.shape[: len(dims)], -1)
        return (dual.to(values.device) @ flat).reshape(front.shape).movedim(places, dims)

    return turn


def _gain_gradients(
    spec: SymmetrySpec,
    element: GroupElement,
    folded: Sequence[tuple[str, LinearSlot]],
    gradients: Mapping[str, Tensor],
    result: dict[str, Tensor],
    state: Mapping[str, Tensor],
) -> None:
    """Add to the gradients of gains what comes through the weights behind them.

    A weight W becomes ``W' = M (W g) / g``; with G and G' their gradients, that of g gains ``sum (W' G' - W G) / g``
    over everything else that indexes them. Further scalings and signs leave the products as they are.
    """
    acted = spec.act(element, state)
    for _, slot in folded:
        gain = str(slot.gain)
        if slot.tensor not in gradients or gain not in gradients:
            raise SpecError(f"gradients: {slot.tensor!r} or {gain!r} is missing; expected both, a matrix ties them")
        block = tensor_blocks(spec.axes[slot.tensor])[slot.block]
        rest = [dim for dim in range(len(block.leaves)) if dim != slot.leaf]
        products = [
            block.read(weight[slot.tensor].detach().to(torch.float64) * gradient[slot.tensor].to(torch.float64))
            for weight, gradient in ((acted, result), (state, gradients))
        ]
        added = (products[0] - products[1]).sum(rest) / acted[gain].detach().to(torch.float64).reshape(-1)
        result[gain] = result[gain] + added.reshape(result[gain].shape).to(result[gain].dtype)
