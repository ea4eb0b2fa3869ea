"""Is an architecture unlike those of the training part refused, with the name of what does not fit?"""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from metanet.errors import TaskError
from metanet.tasks import Coverage
from tests.graph.specs import SPECS
from tests.nn.cases import case


def test_what_was_seen_is_accepted_before_and_after_storage():
    seen = [case("cnn").spec, case("mlp relu").spec]
    coverage = Coverage.of(seen)
    again = Coverage.from_json(json.loads(json.dumps(coverage.to_json())))
    assert again == coverage
    assert [again.refusal(spec) for spec in seen] == ["", ""]


@pytest.mark.parametrize(
    ("seen", "other", "reason"),
    [
        ("mlp relu", "mlp tanh", "activation 'tanh', the model was trained on relu"),
        ("mlp relu", "cnn", "tensors of kind 'conv.weight'"),
        ("cnn", "batch norm", "tensors of kind 'norm.bias'"),
        ("transformer", "siren", "activation 'sin'"),
    ],
)
def test_what_was_not_seen_is_refused_by_name(seen, other, reason):
    assert reason in Coverage.of([case(seen).spec]).refusal(case(other).spec)


def test_a_new_factor_is_refused_by_name():
    coverage = replace(Coverage.of([case("mlp relu").spec]), factors=Coverage.of([SPECS["mlp"]()]).factors)
    assert coverage.factors == ("permutation",)
    assert coverage.refusal(case("mlp relu").spec) == (
        "symmetry 'scale' of space 0, the model was trained on permutation"
    )


def test_more_kernel_positions_are_refused_by_name():
    spec = case("cnn").spec
    record = Coverage.of([spec]).to_json()
    record["positions"] = {"listed": [1, 4], "low": 1, "high": 4}
    reason = Coverage.from_json(record).refusal(spec)
    assert reason == "9 kernel positions in 0.weight, the model was trained on 1, 4"


def test_records_that_do_not_tell_are_read():
    record = Coverage.of([case("cnn").spec]).to_json()
    del record["factors"], record["positions"]
    coverage = Coverage.from_json(record)
    assert coverage.factors is None
    assert coverage.positions is None
    assert coverage.refusal(case("cnn").spec) == ""
    with pytest.raises(TaskError, match="not the coverage of a model"):
        Coverage.from_json({"kinds": []})
