"""Is the derived group the one known by hand, and does it leave the function alone?"""

from __future__ import annotations

import math

import pytest
import torch

import symmetry

from .families import FACTS
from .models import SUBJECTS, Subject, conv_bn, draw, group_of, resnet, seeded, traced


@pytest.fixture(params=SUBJECTS + FACTS, ids=lambda subject: subject.name)
def subject(request: pytest.FixtureRequest) -> Subject:
    return request.param


def test_group_and_proof(subject: Subject) -> None:
    model, inputs, spec = traced(subject)
    assert group_of(spec) == subject.group
    assert spec.pinned == ()
    proof = symmetry.verify(model, inputs, spec, trials=4)
    assert proof.passed, str(proof)
    assert proof.max_error <= 1e-10
    assert proof.control_error >= 1e-6
    assert {row.kind for row in proof.table} >= {"all"}


def test_float32_and_the_whole_group(subject: Subject) -> None:
    model, (x,), spec = traced(subject)
    model.eval()
    state = model.state_dict()
    generator = torch.Generator().manual_seed(3)
    other = seeded(subject.build, seed=9).state_dict()

    def outputs(given: dict[str, torch.Tensor]) -> torch.Tensor:
        made = torch.func.functional_call(model, given, (x,))
        return torch.cat([item.flatten() for item in made]) if isinstance(made, tuple) else made.flatten()

    with torch.no_grad():
        reference = outputs(state)
        spread = (outputs(other) - reference).square().mean().sqrt()
        moved = outputs(spec.act(spec.sample(generator), state))
    assert float((moved - reference).abs().max() / spread) <= 1e-5


def test_frozen_buffers_are_permuted_but_not_scaled() -> None:
    model, x = seeded(conv_bn), draw(7, 2, 4, 4)
    spec = symmetry.trace(model, (x,), frozen_buffers=True)
    assert (spec.permutation_order, spec.scale_dimension) == (2880, 9)
    assert symmetry.verify(model, (x,), spec, trials=2).passed


def test_the_spec_depends_on_the_architecture_alone() -> None:
    x = draw(7, 3, 8, 8)
    first, second = (symmetry.trace(seeded(resnet, seed), (x,)) for seed in (0, 1))
    assert first == second
    assert hash(first) == hash(second)
    assert first != symmetry.trace(seeded(conv_bn), (draw(7, 2, 4, 4),))


def test_order_is_an_exact_integer() -> None:
    model = seeded(lambda: torch.nn.Sequential(torch.nn.Linear(2, 300), torch.nn.ReLU(), torch.nn.Linear(300, 2)))
    assert symmetry.trace(model, (draw(7, 2),)).permutation_order == math.factorial(300)


@pytest.mark.parametrize("planted", ["permutation", "scale", "sign"])
def test_a_wrong_spec_is_found_out(planted: str) -> None:
    """Verification must fail for a group that is too large: a tied space cut loose, a scale or sign let through."""
    from symmetry.spec import Factor, Slot, SymmetrySpec

    model, x = seeded(SUBJECTS[0 if planted != "scale" else 1].build), draw(7, 3)
    spec = symmetry.trace(model, (x,))
    axes, factors, spaces = dict(spec.axes), spec.factors, spec.spaces
    if planted == "permutation":
        loose = symmetry.NeuronSpace("loose", 4)
        axes["0.bias"], spaces = (symmetry.Atom(loose),), (*spaces, loose)
    else:
        slots = (Slot("0.weight", 0, 0, 1), Slot("0.bias", 0, 0, 1), Slot("2.weight", 0, 1, -1))
        factors = (*factors, Factor("wrong", planted, "0", 4, slots))
    wrong = SymmetrySpec(spaces, axes, spec.tensors, {}, factors)
    proof = symmetry.verify(model, (x,), wrong, trials=2)
    assert not proof.passed
    assert proof.max_error > 1e-3
