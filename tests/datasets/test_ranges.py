"""Do ranges draw only what they declare, and refuse what they cannot mean?"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metanet.datasets.ranges import Range, parse_range
from metanet.errors import ConfigError


@st.composite
def ranges(draw: st.DrawFn) -> Range:
    kind = draw(st.sampled_from(["choice", "uniform", "log_uniform", "integer", "log_integer"]))
    if kind == "choice":
        values = draw(st.lists(st.sampled_from(["relu", "tanh", 1, 2.5, True]), min_size=1, unique_by=repr))
        return parse_range("x", {"choice": values})
    if kind in ("integer", "log_integer"):
        numbers = st.integers(1 if kind.startswith("log") else -50, 10**6)
    else:
        numbers = st.floats(1e-6 if kind.startswith("log") else -1e6, 1e6)
    return parse_range("x", {kind: sorted([draw(numbers), draw(numbers)])})


@settings(deadline=None)
@given(ranges(), st.integers(0, 2**32))
def test_a_draw_lies_in_its_range_and_repeats(declared: Range, seed: int) -> None:
    values = declared.draw_many(np.random.default_rng(seed), 20)
    assert all(value in declared for value in values)
    assert values == declared.draw_many(np.random.default_rng(seed), 20)


@settings(deadline=None)
@given(ranges())
def test_a_range_survives_json(declared: Range) -> None:
    assert parse_range("x", declared.to_json()) == declared


def test_membership_can_fail() -> None:
    assert 3 not in parse_range("x", {"integer": [1, 2]})
    assert 1.5 not in parse_range("x", {"integer": [1, 2]})
    assert True not in parse_range("x", {"integer": [1, 2]})
    assert "sin" not in parse_range("x", {"choice": ["relu"]})


def test_choices_come_equally_often() -> None:
    values = parse_range("x", {"choice": ["a", "b", "c"]}).draw_many(np.random.default_rng(0), 31)
    counts = sorted(values.count(name) for name in "abc")
    assert counts == [10, 10, 11]
    assert len(set(values[:3])) == 3


def test_logarithmic_draws_spread_over_decades() -> None:
    values = np.array(parse_range("x", {"log_uniform": [1e-4, 1.0]}).draw_many(np.random.default_rng(0), 4000))
    shares = np.histogram(np.log10(values), bins=[-4, -3, -2, -1, 0])[0] / 4000
    np.testing.assert_allclose(shares, 0.25, atol=0.04)
    uniform = np.array(parse_range("x", {"uniform": [1e-4, 1.0]}).draw_many(np.random.default_rng(0), 4000))
    assert (uniform < 1e-3).mean() < 0.02


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({}, "exactly one of"),
        ({"uniform": [0, 1], "choice": [1]}, "exactly one of"),
        ({"normal": [0, 1]}, "exactly one of"),
        ({"uniform": [1, 0]}, "lowest <= highest"),
        ({"uniform": [0, float("inf")]}, "both finite"),
        ({"uniform": [0, float("nan")]}, "lowest <= highest"),
        ({"uniform": [0]}, "two numbers"),
        ({"uniform": ["0", "1"]}, "two numbers"),
        ({"uniform": "01"}, "expected a list"),
        ({"integer": [0, 1.5]}, "two whole numbers"),
        ({"integer": [False, True]}, "two whole numbers"),
        ({"log_uniform": [0, 1]}, "more than 0"),
        ({"choice": []}, "0 choices"),
        ({"choice": [1, 1]}, "listed twice"),
        ({"uniform": [0, 2]}, "outside 0 to 1"),
        (2, "outside 0 to 1"),
    ],
)
def test_refusals_are_one_line_with_the_place(raw: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        parse_range("training.momentum", raw, low=0, high=1)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("training.momentum: ")
