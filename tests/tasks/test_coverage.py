"""Is an architecture unlike those of the training part refused, with the name of what does not fit?"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

import symmetry
from metanet.errors import TaskError
from metanet.graph import ParameterGraph, bad_values, collate
from metanet.nn import Metanet
from metanet.tasks import Coverage
from metanet.tasks.predict import answer_each
from tests.graph.specs import SPECS
from tests.nn.cases import case
from tests.symmetry.models import draw, mlp, seeded


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


def test_a_network_that_the_model_cannot_read_does_not_stop_the_others():
    module = seeded(lambda: mlp([3, 4, 3, 2], None)).double()
    chain = ParameterGraph.build(symmetry.trace(module, (draw(7, 3, dtype=torch.float64),)), module.state_dict())
    one = case("mlp relu")
    graphs = [ParameterGraph.build(one.spec, one.state(seed)) for seed in range(3)]
    net = Metanet(symmetry="full", hidden=8, layers=1, statistics=False).double()

    def answer(given: Sequence[ParameterGraph]) -> list[float]:
        with torch.no_grad():
            return net(collate(given, torch.float64)).flatten().tolist()

    found = answer_each(answer, [graphs[0], chain, *graphs[1:]])
    assert found[1] == (
        "space '0' of linear matrices is not determined by tensors of its own; use symmetry='permutation'"
    )
    assert [found[0], *found[2:]] == pytest.approx(answer(graphs), rel=1e-12)
    assert answer_each(answer, []) == []


def test_values_that_no_network_computes_with_are_told_by_tensor():
    one = case("batch norm")
    state = one.state(0)
    assert bad_values(ParameterGraph.build(one.spec, state)) == ""
    state["0.weight"].view(-1)[:3] = float("inf")
    state["4.bias"][0] = float("nan")
    state["1.running_var"][1] = -1.0
    shape = tuple(state["0.weight"].shape)
    assert bad_values(ParameterGraph.build(one.spec, state)) == (
        f"NaN or infinities in 0.weight (3 of {torch.Size(shape).numel()} values), "
        f"4.bias (1 of {len(state['4.bias'])} values); "
        f"negative variances in 1.running_var (1 of {len(state['1.running_var'])} values)"
    )
