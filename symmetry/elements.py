"""One element of a symmetry group, as a value: which permutation, scaling and sign, on which space?

Convention: ``act(g, theta)[i] = s[i] * theta[p[i]]``; ``p[i]`` is the old unit that stands at place ``i`` afterwards,
and the scaling is indexed by the new place. A matrix takes the place of a permutation where the spec has one: ``act(g,
theta)[i] = sum_j M[i, j] theta[j]``. ``a @ b`` acts with ``b`` first. A space that lies within others (the units inside
heads) has one permutation or matrix per unit of those; arrays then have the outer spaces in front, at their new places.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from symmetry.errors import SpecError

if TYPE_CHECKING:
    from symmetry.spec import LinearFactor, ShiftFactor, SymmetrySpec

__all__ = ["GroupElement"]


@dataclass(frozen=True, eq=False, repr=False)
class GroupElement:
    """An element of the group of one spec.

    Args:
        spec: the spec it belongs to.
        permutations: for every space an integer array of :meth:`SymmetrySpec.array_shape`.
        log_scales: for every scale factor the logarithms of its values, float64.
        flips: for every sign factor booleans; ``True`` flips.
        matrices: for every linear or orthogonal factor, by the name of its space, float64 matrices of shape
            ``(*outer, n, n)``; the identity where the argument leaves them out.
        shifts: for every shift factor integers; zero where the argument leaves them out.

    ``a @ b`` composes (``b`` acts first), ``~a`` inverts, ``a == b`` compares what the elements do: permutations and
    signs exactly, logarithms of scalings to 1e-9, matrices to 1e-9 of their largest entry.
    """

    spec: SymmetrySpec
    permutations: Mapping[str, Tensor]
    log_scales: Mapping[str, Tensor]
    flips: Mapping[str, Tensor]
    matrices: Mapping[str, Tensor] = field(default_factory=dict)
    shifts: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        spec = self.spec
        if not self.matrices and spec.linear:
            object.__setattr__(self, "matrices", _unit_matrices(spec))
        if not self.shifts and spec.shifts:
            zeros = {f.name: torch.zeros(spec.array_shape(f.space), dtype=torch.long) for f in spec.shifts}
            object.__setattr__(self, "shifts", zeros)
        _check("shifts", self.shifts, {f.name: spec.array_shape(f.space) for f in spec.shifts})
        _check("matrices", self.matrices, {f.space: (*spec.array_shape(f.space), f.size) for f in spec.linear})
        for factor in spec.linear:
            _check_matrix(factor, self.matrices[factor.space])
        expected = {space.name: spec.array_shape(space.name) for space in spec.permuted}
        _check("permutations", self.permutations, expected)
        for name, value in self.permutations.items():
            if not torch.equal(value.sort(-1).values, torch.arange(value.shape[-1]).expand(value.shape)):
                raise SpecError(f"permutations[{name!r}] is no permutation: each unit must occur exactly once")
        for kind, given in (("scale", self.log_scales), ("sign", self.flips)):
            _check(kind, given, {f.name: spec.array_shape(f.space) for f in spec.factors if f.kind == kind})

    @classmethod
    def identity(cls, spec: SymmetrySpec) -> GroupElement:
        """The neutral element of a spec."""
        return cls(
            spec,
            {s.name: torch.arange(s.size).expand(spec.array_shape(s.name)).clone() for s in spec.permuted},
            {
                f.name: torch.zeros(spec.array_shape(f.space), dtype=torch.float64)
                for f in spec.factors
                if f.kind == "scale"
            },
            {
                f.name: torch.zeros(spec.array_shape(f.space), dtype=torch.bool)
                for f in spec.factors
                if f.kind == "sign"
            },
        )

    @classmethod
    def sample(
        cls, spec: SymmetrySpec, generator: torch.Generator, kinds: set[str], scale_spread: float
    ) -> GroupElement:
        """Draw an element: permutations, signs and orthogonal matrices uniformly, log-scales normal with
        ``scale_spread``; invertible matrices as Q exp(D) R with Q, R orthogonal and D diagonal like log-scales.
        """
        neutral = cls.identity(spec)
        permutations, log_scales, flips = dict(neutral.permutations), dict(neutral.log_scales), dict(neutral.flips)
        if "permutation" in kinds:
            for name, value in permutations.items():
                permutations[name] = torch.rand(value.shape, generator=generator, dtype=torch.float64).argsort(-1)
        if "scale" in kinds:
            for name, value in log_scales.items():
                log_scales[name] = scale_spread * torch.randn(value.shape, generator=generator, dtype=torch.float64)
        if "sign" in kinds:
            for name, value in flips.items():
                flips[name] = torch.randint(0, 2, value.shape, generator=generator).bool()
        matrices = dict(neutral.matrices)
        for factor in spec.linear:
            if factor.kind in kinds:
                shape = matrices[factor.space].shape
                matrix = _orthogonal(shape, generator)
                if factor.kind == "linear":
                    logs = scale_spread * torch.randn(shape[:-1], generator=generator, dtype=torch.float64)
                    matrix = matrix * logs.exp().unsqueeze(-2) @ _orthogonal(shape, generator)
                matrices[factor.space] = matrix
        shifts = dict(neutral.shifts)
        if "shift" in kinds:
            for name, value in shifts.items():
                shifts[name] = torch.randint(-2, 3, value.shape, generator=generator)
        return cls(spec, permutations, log_scales, flips, matrices, shifts)

    def __matmul__(self, other: GroupElement) -> GroupElement:
        if not isinstance(other, GroupElement):
            return NotImplemented
        if other.spec != self.spec:
            raise SpecError("a @ b: the elements belong to different specs; expected two elements of one spec")
        space_of = {factor.name: factor.space for factor in self.spec.factors}
        return GroupElement(
            self.spec,
            {name: self.carry(name, value) for name, value in other.permutations.items()},
            {
                name: value + self.carry(space_of[name], other.log_scales[name])
                for name, value in self.log_scales.items()
            },
            {name: value ^ self.carry(space_of[name], other.flips[name]) for name, value in self.flips.items()},
            {name: value @ self._carry_outer(name, other.matrices[name]) for name, value in self.matrices.items()},
            {
                factor.name: self.shifts[factor.name]
                + self._sign_of(factor) * self.carry(factor.space, other.shifts[factor.name])
                for factor in self.spec.shifts
            },
        )

    def _sign_of(self, factor: ShiftFactor) -> Tensor:
        """The signs (-1 or 1) by which this element multiplies the bias that a factor shifts, one per integer."""
        from symmetry.action import bias_flips

        step = factor.steps[0]
        return 1 - 2 * bias_flips(self, step.tensor, step.block, factor.space).long()

    def __invert__(self) -> GroupElement:
        # With p = (outer, inner): the inverse undoes the outer places first, then each inner permutation at its old
        # place.
        spec = self.spec
        inverse: dict[str, Tensor] = {}
        for name in self._outer_first():
            value = self.permutations[name].argsort(-1)
            for dim, outer in enumerate(spec.within.get(name, ())):
                value = _gather(value, inverse[outer], dim, spec, name, outer, inverse)
            inverse[name] = value
        undo = GroupElement(spec, {space.name: inverse[space.name] for space in spec.permuted}, *_neutral_arrays(spec))
        space_of = {factor.name: factor.space for factor in spec.factors}
        return GroupElement(
            spec,
            undo.permutations,
            {name: -undo.carry(space_of[name], value) for name, value in self.log_scales.items()},
            {name: undo.carry(space_of[name], value) for name, value in self.flips.items()},
            {name: undo._carry_outer(name, torch.linalg.inv(value)) for name, value in self.matrices.items()},
            {f.name: -undo.carry(f.space, self._sign_of(f) * self.shifts[f.name]) for f in spec.shifts},
        )

    def carry(self, space: str | None, values: Tensor) -> Tensor:
        """Values per unit of a space (or per unit within outer spaces), in the places this element gives the units.

        Shapes:
            values: ``spec.array_shape(space)``; the result has the same shape.
        """
        if space is None or space not in {**self.permutations, **self.matrices}:
            return values
        if space in self.matrices:
            return self._carry_outer(space, values)
        return self._carry_outer(space, values).gather(-1, self.permutations[space])

    def _carry_outer(self, space: str, values: Tensor) -> Tensor:
        """Values per unit of the spaces that a space lies within (first dimensions), in the places those units get."""
        for dim, outer in enumerate(self.spec.within.get(space, ())):
            values = _gather(values, self.permutations[outer], dim, self.spec, space, outer, self.permutations)
        return values

    def _outer_first(self) -> list[str]:
        within = self.spec.within
        return sorted((space.name for space in self.spec.permuted), key=lambda name: len(within.get(name, ())))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, GroupElement) or self.spec != other.spec:
            return False
        if any(not torch.equal(value, other.permutations[name]) for name, value in self.permutations.items()):
            return False
        for name, value in self.matrices.items():
            if not torch.allclose(value, other.matrices[name], rtol=0, atol=1e-9 * float(value.abs().max())):
                return False
        if any(not torch.equal(value, other.shifts[name]) for name, value in self.shifts.items()):
            return False
        # Factors of a product axis may overlap (a constant on either side), so compare what they do to each block.
        from symmetry.action import multipliers

        for (logs, flips), (other_logs, other_flips) in zip(multipliers(self), multipliers(other), strict=True):
            if not torch.equal(flips, other_flips) or not torch.allclose(logs, other_logs, rtol=0, atol=1e-9):
                return False
        return True

    def __hash__(self) -> int:
        return hash((self.spec, tuple(tuple(value.flatten().tolist()) for value in self.permutations.values())))

    def __repr__(self) -> str:
        moved = sum(int((value != torch.arange(value.shape[-1])).sum()) for value in self.permutations.values())
        units = sum(value.numel() for value in self.permutations.values())
        scaled = sum(int((value != 0).sum()) for value in self.log_scales.values())
        flipped = sum(int(value.sum()) for value in self.flips.values())
        turned = sum(int((value != torch.eye(value.shape[-1])).any()) for value in self.matrices.values())
        matrices = f", {turned} of {len(self.matrices)} spaces under matrices" if self.matrices else ""
        shifted = sum(int((value != 0).sum()) for value in self.shifts.values())
        shifts = f", {shifted} shifts" if self.shifts else ""
        return f"GroupElement({moved} of {units} units moved, {scaled} scales, {flipped} signs{matrices}{shifts})"

    def to_json(self) -> dict[str, Any]:
        """A JSON value that :meth:`from_json` reads back (with the spec at hand)."""
        return {
            "format": "symmetry.element/1",
            "spec": self.spec.fingerprint,
            "permutations": {name: value.tolist() for name, value in self.permutations.items()},
            "log_scales": {name: value.tolist() for name, value in self.log_scales.items()},
            "flips": {name: value.tolist() for name, value in self.flips.items()},
            "matrices": {name: value.tolist() for name, value in self.matrices.items()},
            "shifts": {name: value.tolist() for name, value in self.shifts.items()},
        }

    @classmethod
    def from_json(cls, spec: SymmetrySpec, value: Mapping[str, Any]) -> GroupElement:
        """Read back what :meth:`to_json` wrote.

        Raises:
            SpecError: if it is something else, or belongs to another spec.
        """
        if value.get("format") != "symmetry.element/1" or value.get("spec") != spec.fingerprint:
            raise SpecError(
                "not the JSON of an element of this spec; expected format symmetry.element/1 and its fingerprint"
            )
        try:
            return cls(
                spec,
                {name: torch.tensor(item, dtype=torch.long) for name, item in value["permutations"].items()},
                {name: torch.tensor(item, dtype=torch.float64) for name, item in value["log_scales"].items()},
                {name: torch.tensor(item, dtype=torch.bool) for name, item in value["flips"].items()},
                {name: torch.tensor(item, dtype=torch.float64) for name, item in value.get("matrices", {}).items()},
                {name: torch.tensor(item, dtype=torch.long) for name, item in value.get("shifts", {}).items()},
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise SpecError(f"not the JSON of an element: {type(error).__name__}: {error}") from error


def _gather(
    values: Tensor,
    permutation: Tensor,
    dim: int,
    spec: SymmetrySpec,
    space: str,
    outer: str,
    permutations: Mapping[str, Tensor],
) -> Tensor:
    """Take ``values`` along ``dim`` in the order of an outer space's permutation, itself perhaps inside others."""
    frame = spec.within.get(space, ())
    shape = [1] * values.ndim
    for name in spec.within.get(outer, ()):
        shape[frame.index(name)] = spec.sizes[name]
    shape[dim] = spec.sizes[outer]
    index = permutation.reshape(shape).expand(*values.shape[:dim], shape[dim], *values.shape[dim + 1 :])
    return values.gather(dim, index)


def _neutral_arrays(spec: SymmetrySpec) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    neutral = GroupElement.identity(spec)
    return dict(neutral.log_scales), dict(neutral.flips)


def _unit_matrices(spec: SymmetrySpec) -> dict[str, Tensor]:
    return {
        f.space: torch.eye(f.size, dtype=torch.float64).expand(*spec.array_shape(f.space), f.size).clone()
        for f in spec.linear
    }


def _orthogonal(shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Orthogonal matrices drawn uniformly (Mezzadri 2007: QR of a Gaussian matrix, signs of R moved to Q)."""
    q, r = torch.linalg.qr(torch.randn(shape, generator=generator, dtype=torch.float64))
    return q * r.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)


def _check_matrix(factor: LinearFactor, value: Tensor) -> None:
    if value.dtype != torch.float64 or not bool(value.isfinite().all()):
        raise SpecError(f"matrices[{factor.space!r}]: dtype {value.dtype}, expected finite float64 values")
    if factor.kind == "orthogonal":
        defect = float((value @ value.mT - torch.eye(factor.size, dtype=torch.float64)).abs().max())
        if defect > 1e-8:
            raise SpecError(f"matrices[{factor.space!r}] is off from orthogonal by {defect:.1e}, expected at most 1e-8")


def _check(what: str, given: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]]) -> None:
    if set(given) != set(expected):
        odd = sorted(set(given) ^ set(expected))[0]
        raise SpecError(f"{what}: {odd!r} is {'unknown to' if odd in given else 'missing for'} the spec")
    for name, shape in expected.items():
        if tuple(given[name].shape) != shape:
            raise SpecError(f"{what}[{name!r}]: shape {tuple(given[name].shape)}, expected {shape}")
