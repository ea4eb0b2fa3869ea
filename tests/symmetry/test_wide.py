"""Is the group of what people run the one derived by hand, and does it leave the function alone?"""

from __future__ import annotations

import pytest
import torch

import symmetry

from .models import Subject, group_of, seeded, traced
from .wide import WIDE


@pytest.mark.parametrize("subject", WIDE, ids=lambda subject: subject.name)
def test_group_and_proof(subject: Subject) -> None:
    model, inputs, spec = traced(subject)
    assert group_of(spec) == subject.group
    assert tuple(pin.operation for pin in spec.pinned) == subject.pinned
    proof = symmetry.verify(model, inputs, spec, trials=2)
    assert proof.passed, str(proof)
    assert proof.max_error <= 1e-10
    assert proof.control_error >= 1e-6
    assert {row.name for row in proof.table} >= {space.name for space in spec.spaces if space.size > 1}
    assert {row.name for row in proof.table} >= {factor.name for factor in spec.factors}
    # The same in float32, on the weights as they are.
    state = model.eval().state_dict(keep_vars=True)
    other = seeded(subject.build, seed=9).state_dict(keep_vars=True)
    acted = spec.act(spec.sample(torch.Generator().manual_seed(3)), state)
    with torch.no_grad():
        here, there, moved = (torch.func.functional_call(model, given, inputs) for given in (state, other, acted))
    assert float((moved - here).abs().max() / (there - here).square().mean().sqrt()) <= 1e-5
