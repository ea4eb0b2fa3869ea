"""The networks that the tests of this folder edit, and how far apart two of them are."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn

import symmetry
from symmetry import SymmetrySpec
from symmetry.verify import generic_state
from tests.symmetry import families, models, transformers, wide
from tests.symmetry.models import Subject, seeded


def _all() -> dict[str, Subject]:
    found: dict[str, Subject] = {}
    for module in (families, models, wide, transformers):
        for value in vars(module).values():
            if isinstance(value, tuple) and value and isinstance(value[0], Subject):
                found |= {subject.name: subject for subject in value}
    return found


SUBJECTS = _all()


def network(name: str, seed: int = 0) -> tuple[nn.Module, tuple[Tensor, ...], SymmetrySpec]:
    """A network in general position, float64, with inputs and its spec."""
    subject, spec = SUBJECTS[name], spec_of(name)
    model = seeded(subject.build, seed).eval().to(torch.float64)
    generator = torch.Generator().manual_seed(seed)
    state = generic_state(spec, model.state_dict(), generator)
    model.load_state_dict(state)
    inputs = tuple(item.double() if item.is_floating_point() else item for item in subject.inputs())
    return model, inputs, spec


@cache
def spec_of(name: str) -> SymmetrySpec:
    subject = SUBJECTS[name]
    return symmetry.trace(seeded(subject.build).eval(), subject.inputs())


def same(a: nn.Module, b: nn.Module) -> bool:
    """Whether two modules hold the same bits under the same names."""
    one, other = a.state_dict(), b.state_dict()
    return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)
