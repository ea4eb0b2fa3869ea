"""Half periods of sines: are they found where a sign can be taken up, and nowhere else?"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import symmetry

from .models import Activation, draw, mlp, seeded


class Frequencies(nn.Module):
    """A sine of a scaled sum, then a cosine: what is added to the first bias is divided by its frequency."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(2, 4), nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.cos(self.b(torch.sin(30 * self.a(x)))))


class SharedSine(nn.Module):
    """One layer applied twice, and a ReLU behind it that takes up no sign."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(2, 4), nn.Linear(4, 4), nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.sin(self.b(torch.sin(self.b(torch.sin(self.a(x))))))
        return self.c(torch.relu(x))


class Rectified(nn.Module):
    """A wave that only a ReLU reads.

    No sign is taken up behind it. For a cosine whole periods remain; for a sine the half period goes with a sign of
    what comes before, since sin(pi - z) = sin(z).
    """

    def __init__(self, wave: Callable[[Tensor], Tensor] = torch.cos) -> None:
        super().__init__()
        self.a, self.c, self.wave = nn.Linear(2, 4), nn.Linear(4, 1), wave

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.relu(self.wave(self.a(x))))


class BiasReadTwice(nn.Module):
    """A bias that is also read elsewhere cannot be shifted."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.c = nn.Linear(2, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.sin(self.a(x))) + self.a.bias


def siren() -> nn.Module:
    return mlp([3, 4, 4, 2], torch.sin)


CASES = {
    "siren": (siren, (7, 3), 8, [math.pi] * 2),
    "frequencies": (Frequencies, (7, 2), 9, [math.pi / 30, math.pi]),
    "shared": (SharedSine, (7, 2), 8, [math.pi] * 2),
    "rectified": (Rectified, (7, 2), 4, [2 * math.pi]),
    "rectified sine": (lambda: Rectified(torch.sin), (7, 2), 4, [math.pi]),
    "read twice": (BiasReadTwice, (7, 2), 0, []),
    "convolution": (
        lambda: nn.Sequential(nn.Conv2d(1, 3, 3), Activation(torch.sin), nn.Conv2d(3, 1, 3)),
        (7, 1, 6, 6),
        3,
        [math.pi],
    ),
    "width one": (lambda: nn.Sequential(nn.Linear(2, 1), Activation(torch.sin), nn.Linear(1, 2)), (7, 2), 1, [math.pi]),
    "tanh": (lambda: mlp([3, 4, 2], torch.tanh), (7, 3), 0, []),
}


@pytest.mark.parametrize("name", CASES)
def test_shifts_are_found_and_proved(name: str) -> None:
    build, shape, rank, steps = CASES[name]
    model, x = seeded(build), draw(*shape)
    spec = symmetry.trace(model, (x,), strict=True)
    assert spec.shift_rank == rank
    assert [step.step for factor in spec.shifts for step in factor.steps] == pytest.approx(steps)
    proof = symmetry.verify(model, (x,), spec, trials=4)
    assert proof.passed, str(proof)
    assert sum(row.kind == "shift" for row in proof.table) == len(spec.shifts)


@pytest.mark.parametrize("name", ["siren", "frequencies", "shared"])
def test_shifts_obey_the_laws_of_a_group(name: str) -> None:
    build, shape, _, _ = CASES[name]
    model = seeded(build).double()
    spec, state = symmetry.trace(model, (draw(*shape, dtype=torch.float64),)), model.state_dict()
    generator = torch.Generator().manual_seed(4)
    for _ in range(8):
        a, b, c = (spec.sample(generator) for _ in range(3))
        one, two = spec.act(a @ b, state), spec.act(a, spec.act(b, state))
        assert all(torch.allclose(one[key], two[key], rtol=0, atol=1e-12) for key in one)
        assert (a @ b) @ c == a @ (b @ c)
        assert ~a @ a == a @ ~a == spec.identity()
        assert symmetry.GroupElement.from_json(spec, a.to_json()) == a
    assert symmetry.SymmetrySpec.from_json(spec.to_json()) == spec


def test_half_a_period_where_no_sign_is_taken_up_is_found_out() -> None:
    from dataclasses import replace

    model, x = seeded(Rectified), draw(7, 2)
    spec = symmetry.trace(model, (x,))
    (shift,) = spec.shifts
    wrong = replace(spec, shifts=(replace(shift, steps=(replace(shift.steps[0], step=math.pi),)),))
    proof = symmetry.verify(model, (x,), wrong, trials=2)
    assert not proof.passed
    assert proof.max_error > 1e-3
