"""What are all solutions of a sparse homogeneous linear system, exactly, over the rationals or over GF(2)?

Log-scales solve a system over the rationals, signs one over GF(2). Expressions are sparse dictionaries from variables
to coefficients; elimination is exact, so dimensions are exact integers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from typing import NamedTuple, TypeAlias

__all__ = ["Expression", "Field", "Variable", "complement", "null_space", "vanishes"]


class Variable(NamedTuple):
    """The unknown of one block of a tensor: its common factor, or (with a leaf) its differences along that leaf."""

    tensor: str
    block: int
    leaf: int | None = None


Expression: TypeAlias = dict[Variable, Fraction]


class Field:
    """Arithmetic of expressions over the rationals (``scale``) or GF(2) (``sign``)."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.binary = kind == "sign"

    def reduce(self, value: Fraction) -> Fraction:
        """The coefficient in the field; over GF(2) only integers have a meaning."""
        return Fraction(int(value) % 2) if self.binary else value

    def combine(
        self, first: Mapping[Variable, Fraction], second: Mapping[Variable, Fraction], times: int | Fraction = 1
    ) -> Expression:
        """``first + times * second``."""
        if not second:
            return dict(first)
        result = dict(first)
        for variable, coefficient in second.items():
            value = self.reduce(result.get(variable, Fraction(0)) + times * coefficient)
            if value:
                result[variable] = value
            else:
                result.pop(variable, None)
        return result

    def scaled(self, expression: Mapping[Variable, Fraction], times: int | Fraction) -> Expression:
        """``times * expression``."""
        found = {variable: self.reduce(times * coefficient) for variable, coefficient in expression.items()}
        return {variable: value for variable, value in found.items() if value}


def _eliminate(field: Field, rank: Mapping[Variable, int], rows: Iterable[Expression]) -> dict[Variable, Expression]:
    """Reduced row echelon form: for each pivot variable the expression of free variables that it equals.

    The latest variable of a row becomes its pivot, so that the free ones are those met first along the data flow.
    """
    solved: dict[Variable, Expression] = {}
    users: dict[Variable, set[Variable]] = {}
    for row in rows:
        current = dict(row)
        for variable in [variable for variable in row if variable in solved]:
            coefficient = current.pop(variable)
            current = field.combine(current, solved[variable], coefficient)
        if not current:
            continue
        pivot = max(current, key=rank.__getitem__)
        coefficient = current.pop(pivot)
        value = field.scaled(current, Fraction(-1) / coefficient)
        for user in users.pop(pivot, set()):
            times = solved[user].pop(pivot)
            solved[user] = field.combine(solved[user], value, times)
            for variable in value:
                _note(users.setdefault(variable, set()), user, variable in solved[user])
        solved[pivot] = value
        for variable in value:
            users.setdefault(variable, set()).add(pivot)
    return solved


def _place(variable: Variable) -> tuple[str, int, int]:
    """A total order of variables; the leaf may be missing."""
    return (variable.tensor, variable.block, -1 if variable.leaf is None else variable.leaf)


def _note(found: set[Variable], item: Variable, present: bool) -> None:
    (found.add if present else found.discard)(item)


def null_space(field: Field, variables: Sequence[Variable], rows: Iterable[Expression]) -> list[Expression]:
    """A basis of all assignments to ``variables`` under which every row is zero, one free variable set to 1 each."""
    solved = _eliminate(field, {variable: rank for rank, variable in enumerate(variables)}, rows)
    basis: dict[Variable, Expression] = {free: {free: Fraction(1)} for free in variables if free not in solved}
    for pivot, value in solved.items():
        for free, coefficient in value.items():
            basis[free][pivot] = coefficient
    return list(basis.values())


def vanishes(field: Field, rows: Iterable[Expression], vector: Mapping[Variable, Fraction]) -> bool:
    """Whether an assignment solves every row."""
    return all(
        not field.reduce(sum((c * vector.get(v, Fraction(0)) for v, c in row.items()), Fraction(0))) for row in rows
    )


def complement(field: Field, known: Iterable[Expression], candidates: Iterable[Expression]) -> list[Expression]:
    """Those candidates that, in order, are independent of the known vectors and of each other."""
    echelon: dict[Variable, Expression] = {}

    def residue(vector: Expression) -> Expression:
        rest = dict(vector)
        for pivot in list(echelon):
            if pivot in rest:
                rest = field.combine(rest, echelon[pivot], -rest[pivot])
        return rest

    def absorb(vector: Expression) -> bool:
        rest = residue(vector)
        if not rest:
            return False
        pivot = min(rest, key=_place)
        unit = field.scaled(rest, 1 / rest[pivot])
        for other, row in list(echelon.items()):
            if pivot in row:
                echelon[other] = field.combine(row, unit, -row[pivot])
        echelon[pivot] = unit
        return True

    for vector in known:
        absorb(vector)
    return [vector for vector in candidates if absorb(vector)]
