"""Is a function of weights invariant or equivariant? Errors over spread, beside a negative control.

For tests of metanetworks, in this project and elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from symmetry.elements import GroupElement
from symmetry.spec import KINDS, SymmetrySpec
from symmetry.verify import generic_state, negative_control, relative, single_factors

__all__ = ["EquivarianceRow", "EquivarianceTable", "equivariance_error"]

State: TypeAlias = Mapping[str, Tensor]
Output: TypeAlias = Tensor | Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class EquivarianceRow:
    """One factor: its kind and name, the largest error over spread, and the negative control."""

    kind: str
    name: str
    error: float
    control: float | None


@dataclass(frozen=True, slots=True)
class EquivarianceTable:
    """The outcome of :func:`equivariance_error`.

    Args:
        rows: one per factor, and one for the whole group.
        spread: root mean square difference between the outputs of different networks.
        max_error: largest error over spread.
        control_error: smallest negative control over spread.
    """

    rows: tuple[EquivarianceRow, ...]
    spread: float
    max_error: float
    control_error: float

    def __str__(self) -> str:
        lines = [
            f"error / spread {self.max_error:.1e}, negative control {self.control_error:.1e}, spread {self.spread:.1e}"
        ]
        lines += [
            f"  {row.kind:<12} {row.name:<40} error {row.error:.1e}  control "
            + ("-" if row.control is None else f"{row.control:.1e}")
            for row in self.rows
        ]
        return "\n".join(lines)


def equivariance_error(
    function: Callable[[dict[str, Tensor]], Output],
    spec: SymmetrySpec,
    state: State,
    trials: int = 8,
    kinds: Iterable[str] = KINDS,
    carry: Callable[[GroupElement, Output], Output] | None = None,
    dtype: torch.dtype = torch.float64,
    generator: torch.Generator | None = None,
) -> EquivarianceTable:
    """Measure ``|F(g theta) - g F(theta)|`` over the spread of F between different networks.

    Args:
        function: from a state to a tensor (then F should be invariant) or to a state-shaped mapping (then equivariant).
        spec: the group.
        state: a state of that spec; it is moved into general position.
        trials: random elements of the whole group; every factor alone is tried besides.
        kinds: the parts of the group that F should respect.
        carry: how an element acts on F's output; by default a tensor stays and a mapping is acted on like a state.
        dtype: what the states are cast to before F sees them.
        generator: source of randomness; a fresh one with seed 0 if ``None``.
    """
    generator, kinds = generator or torch.Generator().manual_seed(0), set(kinds)
    state = generic_state(spec, state, generator)
    carry = carry or _default_carry

    def run(given: State) -> Output:
        cast = {name: value.to(dtype) if value.is_floating_point() else value for name, value in given.items()}
        with torch.no_grad():
            return function(cast)

    reference = run(state)
    others = [run(generic_state(spec, state, generator, fresh=True)) for _ in range(2)]
    flat = _flat(reference)
    spread = float(torch.stack([_flat(other) - flat for other in others]).square().mean().sqrt())

    def error(given: State, expected: Tensor) -> float:
        return relative(_flat(run(given)), expected, spread or float("nan"))

    rows = []
    for kind, name, _, element in single_factors(spec, generator):
        if kind in kinds:
            expected = _flat(carry(element, reference))
            control = negative_control(spec, element, state, lambda given, e=expected: error(given, e), 1e-3)  # type: ignore[misc]
            rows.append(EquivarianceRow(kind, name, error(spec.act(element, state), expected), control))
    whole = 0.0
    for _ in range(trials):
        element = spec.sample(generator, kinds)
        whole = max(whole, error(spec.act(element, state), _flat(carry(element, reference))))
    rows.append(EquivarianceRow("all", "whole group", whole, None))
    controls = [row.control for row in rows if row.control is not None]
    return EquivarianceTable(tuple(rows), spread, max(row.error for row in rows), min(controls, default=float("inf")))


def _default_carry(element: GroupElement, output: Output) -> Output:
    return output if isinstance(output, Tensor) else element.spec.act(element, output)


def _flat(output: Output) -> Tensor:
    if isinstance(output, Tensor):
        return output.detach().reshape(-1).to(torch.float64)
    return torch.cat([value.detach().reshape(-1).to(torch.float64) for value in output.values()])
