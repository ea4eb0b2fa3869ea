"""Does the group really leave the function alone? Act with random elements, run the model in float64, compare.

An error is the largest change of any output, divided by the spread: the root mean square difference between the outputs
of different networks of this architecture. A tolerance on the bare error would pass wherever outputs hardly differ.
Beside it stands a negative control: the same element with one touched tensor left as it was must change the function.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from symmetry.elements import GroupElement
from symmetry.errors import SpecError
from symmetry.spec import SymmetrySpec

__all__ = ["Verification", "VerificationRow", "generic_state", "verify"]

TOLERANCE = 1e-10
CONTROL = 1e-6
ENOUGH = 1e-3
POINTS = 6
LEAST_ROWS = 7


@dataclass(frozen=True, slots=True)
class VerificationRow:
    """One factor of the group.

    Args:
        kind: ``permutation``, ``scale``, ``sign``, ``linear``, ``orthogonal``, or ``all`` for elements of the whole
            group.
        name: the space or factor.
        size: number of units.
        error: largest error over spread.
        control: error over spread with one touched tensor left out; ``None`` where nothing could be left out.
    """

    kind: str
    name: str
    size: int
    error: float
    control: float | None


@dataclass(frozen=True, slots=True)
class Verification:
    """The outcome of :func:`verify`.

    Args:
        table: one row per factor, and one for the whole group.
        max_error: the largest error over spread.
        control_error: the smallest negative control (infinite if the group is trivial).
        spread: root mean square difference of outputs between different networks.
        passed: errors at most ``tolerance`` and controls above ``least_control``.
        trials: random elements of the whole group.
        dtype: what the model was run in.
    """

    table: tuple[VerificationRow, ...]
    max_error: float
    control_error: float
    spread: float
    passed: bool
    trials: int
    tolerance: float = TOLERANCE
    least_control: float = CONTROL
    dtype: str = "float64"

    def __str__(self) -> str:
        verdict = "passed" if self.passed else "FAILED"
        lines = [
            f"{verdict}: error / spread {self.max_error:.1e} (at most {self.tolerance:.0e}), negative control "
            f"{self.control_error:.1e} (at least {self.least_control:.0e}), {self.dtype}, {self.trials} random elements"
        ]
        for row in self.table:
            control = "-" if row.control is None else f"{row.control:.1e}"
            lines.append(f"  {row.kind:<12} {row.name:<40} {row.size:>6}  error {row.error:.1e}  control {control}")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """A JSON value with all fields; an infinite control is ``None``."""
        found = asdict(self)
        found["table"] = [asdict(row) for row in self.table]
        found["control_error"] = None if self.control_error == float("inf") else self.control_error
        return found


def generic_state(
    spec: SymmetrySpec, state: Mapping[str, Tensor], generator: torch.Generator, fresh: bool = False
) -> dict[str, Tensor]:
    """A state in general position near the given one, in float64, or (``fresh``) an unrelated one of the same scales.

    Zero biases and unit gains hide errors: two equal numbers do not show that they were swapped.
    """
    made: dict[int, Tensor] = {}
    result = {}
    for name, tensor in state.items():
        if not tensor.is_floating_point():
            result[name] = tensor
            continue
        if id(tensor) not in made:
            wide = tensor.detach().to(torch.float64)
            noise = torch.randn(wide.shape, generator=generator, dtype=torch.float64)
            size = float(wide.square().mean().sqrt()) if wide.numel() else 0.0
            if not size < float("inf"):
                raise SpecError(f"{name}: holds values that are not finite; verify needs a finite state")
            if spec.tensors[name].positive_offset is not None:
                made[id(tensor)] = wide.abs().clamp_min(1e-3) * (0.5 * noise).exp()
            elif fresh:
                made[id(tensor)] = (size or 0.3) * noise
            else:
                made[id(tensor)] = wide + 0.3 * (size or 1.0) * noise
        result[name] = made[id(tensor)]
    return result


def relative(output: Tensor, reference: Tensor, spread: float) -> float:
    """Largest absolute difference over spread; infinite where something is not finite."""
    error = float((output - reference).abs().max()) if output.numel() else 0.0
    return error / spread if error == error else float("inf")


def single_factors(spec: SymmetrySpec, generator: torch.Generator) -> list[tuple[str, str, int, GroupElement]]:
    """For every factor of the group one element that acts by it alone: (kind, name, size, element)."""
    found = []
    neutral = spec.identity()
    for space in spec.permuted:
        if space.size > 1:
            shape = spec.array_shape(space.name)
            order = torch.rand(shape, generator=generator, dtype=torch.float64).argsort(-1)
            still = (order == torch.arange(space.size)).all(-1, keepdim=True)
            order = torch.where(still, order.roll(1, -1), order)
            element = GroupElement(spec, {**neutral.permutations, space.name: order}, neutral.log_scales, neutral.flips)
            found.append(("permutation", space.name, space.size, element))
    for factor in spec.factors:
        shape = spec.array_shape(factor.space)
        if factor.kind == "scale":
            values = 0.5 + torch.rand(shape, generator=generator, dtype=torch.float64)
            element = GroupElement(
                spec, neutral.permutations, {**neutral.log_scales, factor.name: values}, neutral.flips
            )
        else:
            flips = torch.randint(0, 2, shape, generator=generator).bool()
            flips = flips if bool(flips.any()) else torch.ones(shape, dtype=torch.bool)
            element = GroupElement(
                spec, neutral.permutations, neutral.log_scales, {**neutral.flips, factor.name: flips}
            )
        found.append((factor.kind, factor.name, factor.size, element))
    for shift in spec.shifts:
        numbers = torch.randint(1, 4, spec.array_shape(shift.space), generator=generator)
        element = replace(neutral, shifts={**neutral.shifts, shift.name: numbers})
        found.append(("shift", shift.name, shift.size, element))
    for matrix in spec.linear:
        drawn = spec.sample(generator, {matrix.kind}).matrices[matrix.space]
        element = replace(neutral, matrices={**neutral.matrices, matrix.space: drawn})
        found.append((matrix.kind, matrix.space, matrix.size, element))
    return found


def negative_control(
    spec: SymmetrySpec,
    element: GroupElement,
    state: Mapping[str, Tensor],
    run: Callable[[Mapping[str, Tensor]], float],
    enough: float,
    most: int = 6,
) -> float | None:
    """The largest error when one touched tensor is left as it was, over at most ``most`` tensors.

    ``None`` if the element touches fewer than two tensors: then leaving one out is not acting at all.
    """
    acted = spec.act(element, state)
    touched = [name for name, info in spec.tensors.items() if info.tied_to is None and acted[name] is not state[name]]
    if len(touched) < 2:
        return None
    best = 0.0
    for name in touched[:most]:
        names = {alias for alias, info in spec.tensors.items() if info.tied_to == name} | {name}
        best = max(best, run({key: state[key] if key in names else value for key, value in acted.items()}))
        if best > enough:
            break
    return best


def verify(
    model: nn.Module,
    example_inputs: Sequence[Any],
    spec: SymmetrySpec,
    trials: int = 8,
    generator: torch.Generator | None = None,
) -> Verification:
    """Prove a spec by running the model, in float64, before and after random elements of its group.

    The weights are moved into general position first (see :func:`generic_state`), and at least seven rows of input are
    used: the example's own, then normal draws of the same shapes. The model itself is not changed.

    Args:
        model: the module that the spec was traced from.
        example_inputs: one entry per argument of ``forward``.
        spec: its spec.
        trials: random elements of the whole group; every factor alone is tried besides.
        generator: source of randomness; a fresh one with seed 0 if ``None``.

    Raises:
        SpecError: if the model has other tensors than the spec, or holds values that are not finite.
    """
    generator = generator or torch.Generator().manual_seed(0)
    state = model.state_dict(keep_vars=True)
    spec.check(state)
    state = generic_state(spec, state, generator)
    runner = copy.deepcopy(model).to(torch.float64).eval()
    batches = _batches(example_inputs, generator)

    def outputs(given: Mapping[str, Tensor]) -> Tensor:
        with torch.no_grad():
            made = [torch.func.functional_call(runner, dict(given), batch) for batch in batches]
        flat = [
            leaf.reshape(-1).to(torch.float64)
            for out in made
            for leaf in pytree.tree_leaves(out)
            if isinstance(leaf, Tensor)
        ]
        return torch.cat(flat)

    points = [(state, outputs(state))]
    others = [outputs(generic_state(spec, state, generator, fresh=True)) for _ in range(2)]
    spread = float(torch.stack([other - points[0][1] for other in others]).square().mean().sqrt())
    if not 0 < spread < float("inf"):
        raise SpecError(
            f"verify: outputs of different networks have spread {spread}; expected a positive finite number"
        )

    rows = []
    for kind, name, size, element in single_factors(spec, generator):
        worst, best = 0.0, None
        for number in range(POINTS):
            # A unit that is dead at one point of weight space says nothing there; another point is drawn for it.
            if number == len(points):
                drawn = generic_state(spec, state, generator, fresh=True)
                points.append((drawn, outputs(drawn)))
            point, reference = points[number]

            def error(given: Mapping[str, Tensor], reference: Tensor = reference) -> float:
                return relative(outputs(given), reference, spread)

            worst = max(worst, error(spec.act(element, point)))
            control = negative_control(spec, element, point, error, ENOUGH)
            best = control if best is None or control is None else max(best, control)
            if best is None or best > ENOUGH:
                break
        rows.append(VerificationRow(kind, name, size, worst, best))
    whole = [spec.act(spec.sample(generator), state) for _ in range(trials)]
    error_of_all = max((relative(outputs(given), points[0][1], spread) for given in whole), default=0.0)
    rows.append(VerificationRow("all", "whole group", len(spec.spaces), error_of_all, None))
    controls = [row.control for row in rows if row.control is not None]
    worst, least = max(row.error for row in rows), min(controls, default=float("inf"))
    return Verification(tuple(rows), worst, least, spread, worst <= TOLERANCE and least >= CONTROL, trials)


def _batches(example_inputs: Sequence[Any], generator: torch.Generator) -> list[tuple[Any, ...]]:
    """Inputs in float64, as often as it takes to have seven rows."""
    rows = max((item.shape[0] for item in example_inputs if isinstance(item, Tensor) and item.ndim), default=1)
    batches = []
    for number in range(-(-LEAST_ROWS // max(rows, 1))):
        batch = []
        for item in example_inputs:
            if isinstance(item, Tensor) and item.is_floating_point():
                drawn = torch.randn(item.shape, generator=generator, dtype=torch.float64)
                batch.append(item.to(torch.float64) if number == 0 else drawn)
            else:
                batch.append(item)
        batches.append(tuple(batch))
    return batches
