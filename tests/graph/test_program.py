"""Does a program run what the module computes, for many networks at once, and does it refuse what it cannot run?"""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from metanet.checkpoint import Architecture
from metanet.checkpoint.families_inr import Siren
from metanet.errors import GraphError
from metanet.graph import ParameterGraph, Program, collate, program_of
from symmetry import trace
from tests.symmetry.families import Recurrent
from tests.symmetry.models import draw, mlp, seeded

X = draw(7, 3)


class Counting(nn.Module):
    """Token ids that are also compared."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(5, 3)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return (self.words(ids) * (ids > 0)[..., None]).mean(1)


def stacked(modules: list[nn.Module]) -> dict[str, torch.Tensor]:
    return {name: torch.stack([m.state_dict()[name] for m in modules]) for name in modules[0].state_dict()}


def test_a_chain_needs_no_vmap_and_gives_the_same():
    modules = [seeded(lambda: Siren(3, (5, 4), 2, 7.0, 9.0), seed).double() for seed in range(3)]
    plan = Program.of(modules[0], (X,)).plan(4, torch.float64)
    assert [(layer.weight, layer.factor) for layer in plan.chain] == [
        ("layers.0.weight", 9.0), ("layers.1.weight", 7.0), ("layers.2.weight", 1.0),
    ]  # fmt: skip
    probes, seen = draw(4, 3, dtype=torch.float64), []

    def mix(rank: int, x: torch.Tensor) -> torch.Tensor:
        seen.append(rank)
        return x + x.roll(1, -1) * (rank + 1)

    (fast,) = plan.run(stacked(modules), (probes,), mix)
    (slow,) = dataclasses.replace(plan, chain=()).run(stacked(modules), (probes,), mix)
    torch.testing.assert_close(fast, slow, rtol=0, atol=1e-12)
    assert seen == [0, 1, 0, 1]
    (still,) = plan.run(stacked(modules), (probes,), None)
    assert (still - fast).abs().max() > 1e-3


def test_probes_stand_on_the_axis_that_depends_on_them():
    module = seeded(lambda: Recurrent(nn.GRU))
    inputs = draw(7, 2, 3)
    plan = Program.of(module, (inputs,)).plan(4)  # as many probes as hidden units: sizes alone would not tell
    axes = {step.axis for step in plan.steps if step.rank >= 0}
    assert axes == {1}  # torch's cell has time, then examples, then units
    assert plan.depth == 6
    assert not plan.chain


def test_fingerprints_tell_operations_apart():
    relu, tanh = (Program.of(seeded(lambda f=f: mlp([3, 4, 2], f)), (X,)) for f in (torch.relu, torch.tanh))
    assert relu.fingerprint != tanh.fingerprint
    assert relu.fingerprint == Program.of(seeded(lambda: mlp([3, 4, 2], torch.relu), 1), (X,)).fingerprint


def test_equal_architectures_share_a_program_and_nothing_is_built_before_it_is_used(monkeypatch):
    options = {"inputs": 3, "widths": [4], "outputs": 2, "activation": "relu"}
    one, two = (Architecture("mlp", options) for _ in range(2))
    monkeypatch.setattr(Architecture, "build", lambda *_: pytest.fail("built too early"))
    program = program_of(one)
    assert program is program_of(two)
    assert program.fingerprint == one.fingerprint


def test_the_state_of_a_bucket_is_the_state_that_the_graphs_were_built_from():
    modules = [seeded(lambda: Recurrent(nn.LSTM), seed) for seed in range(2)]
    inputs = (draw(7, 2, 3),)
    spec, program = trace(modules[0].eval(), inputs), Program.of(modules[0], inputs)
    batch = collate([ParameterGraph.build(spec, m.state_dict(), program) for m in modules]).select([1, 0])
    state = batch.buckets[0].to(dtype=torch.float64).state()
    wanted = stacked(modules[::-1])
    assert state.keys() == wanted.keys()
    assert all(torch.equal(state[name].float(), wanted[name]) for name in wanted)
    assert batch.buckets[0].program is program


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda p, s: p.run(s, ()), "no input given"),
        (lambda p, s: p.run(s, (draw(4, 5),)), r"expected \[\(4, 3\)\]"),
        (lambda p, s: p.run(s, (draw(1, 3),)), "at least 2"),
        (lambda p, s: p.run({"0.weight": s["0.weight"]}, (X,)), "0.bias: is used by the network"),
        (lambda p, s: Program.of(Counting(), (torch.ones(7, 4).long(),)).plan(3), "only token ids that go straight"),
        (lambda p, s: Program.of(nn.Bilinear(3, 3, 2), (X, X[:5])).plan(3), r"first axes of \[5, 7\]"),
    ],
)
def test_what_cannot_be_run_is_refused(call, reason):
    module = seeded(lambda: mlp([3, 4, 2], torch.relu))
    with pytest.raises(GraphError, match=reason):
        call(Program.of(module, (X,)), stacked([module]))
