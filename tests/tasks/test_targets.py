"""Do targets come back from the scale they are learned on?"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metanet.errors import TaskError
from metanet.tasks import TargetTransform

SHARES = st.lists(st.floats(0, 1), min_size=2, max_size=20)


@given(values=SHARES, name=st.sampled_from(["auto", "standard", "logit"]))
def test_there_and_back(values, name):
    transform = TargetTransform.fit(name, values)
    assert np.allclose(transform.inverse(transform.forward(values)), values, atol=1e-9)
    assert TargetTransform.from_json(transform.to_json()) == transform


@given(values=st.lists(st.floats(1e-6, 1e6), min_size=2, max_size=20))
def test_logarithm_there_and_back(values):
    transform = TargetTransform.fit("log", values)
    assert np.allclose(transform.inverse(transform.forward(values)), values, rtol=1e-9)


def test_scale_and_order():
    values = np.linspace(0.1, 0.99, 50)
    transform = TargetTransform.fit("auto", values)
    assert transform.name == "logit"
    learned = transform.forward(values)
    assert (learned.mean(), learned.std()) == (pytest.approx(0), pytest.approx(1))
    assert (np.diff(learned) > 0).all()
    assert TargetTransform.fit("auto", [1.5, 3.0]).name == "standard"
    assert TargetTransform.fit("auto", [0.0, 0.01]).name == "standard"
    assert TargetTransform.fit("auto", [1e-4, 0.1]).name == "log"


def test_inverse_stays_in_range():
    transform = TargetTransform.fit("logit", [0.0, 0.5, 1.0])
    assert transform.inverse([-1e9, 1e9]).tolist() == [0.0, 1.0]
    assert np.isfinite(TargetTransform.fit("log", [1.0, 10.0]).inverse([-1e9, 1e3])).all()


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("logit", [0.5, 1.5], "needs shares from 0 to 1"),
        ("log", [0.0, 1.0], "needs positive targets"),
        ("square", [1.0], "transform 'square'"),
        ("auto", [], "0 training targets"),
        ("auto", [1.0, float("nan")], "1 not finite"),
    ],
)
def test_what_does_not_fit_is_refused(name, values, message):
    with pytest.raises(TaskError, match=message):
        TargetTransform.fit(name, values)


def test_damaged_json_is_refused():
    good = TargetTransform.fit("auto", [0.1, 0.9]).to_json()
    for bad in ({}, {**good, "mean": "x"}, {**good, "name": "eval"}, {**good, "mean": float("inf")}):
        with pytest.raises(TaskError, match="not a target transform"):
            TargetTransform.from_json(bad)
