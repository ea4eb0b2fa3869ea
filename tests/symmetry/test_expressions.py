"""Are null spaces exact? Against dense linear algebra, over the rationals and over GF(2)."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from symmetry.trace.expressions import Field, Variable, complement, null_space, vanishes

VARIABLES = [Variable("t", number) for number in range(5)]
rows = st.lists(st.lists(st.integers(-2, 2), min_size=5, max_size=5), max_size=6)


def sparse(field: Field, row: list[int]) -> dict[Variable, Fraction]:
    found = {v: field.reduce(Fraction(c)) for v, c in zip(VARIABLES, row, strict=True)}
    return {v: c for v, c in found.items() if c}


@settings(max_examples=150, deadline=None)
@given(rows)
def test_rational_null_space(matrix: list[list[int]]) -> None:
    field = Field("scale")
    system = [sparse(field, row) for row in matrix]
    basis = null_space(field, VARIABLES, system)
    rank = np.linalg.matrix_rank(np.array(matrix, dtype=float)) if matrix else 0
    assert len(basis) == 5 - rank
    assert all(vanishes(field, system, vector) for vector in basis)
    assert len(complement(field, [], basis)) == len(basis)
    assert complement(field, basis, basis) == []


@settings(max_examples=150, deadline=None)
@given(rows)
def test_binary_null_space(matrix: list[list[int]]) -> None:
    field = Field("sign")
    system = [sparse(field, row) for row in matrix]
    basis = null_space(field, VARIABLES, system)
    solutions = sum(
        all(sum(c * b for c, b in zip(row, bits, strict=True)) % 2 == 0 for row in matrix)
        for bits in itertools.product((0, 1), repeat=5)
    )
    assert 2 ** len(basis) == solutions
    assert all(vanishes(field, system, vector) for vector in basis)
    assert len(complement(field, basis[:1], basis)) == max(len(basis) - 1, 0)


def test_a_vector_outside_does_not_vanish() -> None:
    field = Field("scale")
    assert not vanishes(field, [{VARIABLES[0]: Fraction(1)}], {VARIABLES[0]: Fraction(1)})
