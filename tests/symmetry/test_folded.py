"""Orthogonal matrices on streams under RMSNorm, the gain folded into what is behind it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import symmetry

from .families import SwiGLU
from .models import draw, seeded


class HandWritten(nn.Module):
    """The norm spelled out with casts, as large models have it; two blocks on one stream, each with its own gain."""

    def __init__(self, width: int = 4, shared: bool = False) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(3, width), nn.Linear(width, 2)
        self.up = nn.ModuleList(nn.Linear(width, 5) for _ in range(2))
        self.down = nn.ModuleList(nn.Linear(5, width) for _ in range(2))
        self.gains = nn.ParameterList(nn.Parameter(torch.rand(width) + 0.5) for _ in range(3))
        self.shared = shared

    def norm(self, x: Tensor, gain: Tensor) -> Tensor:
        wide = x.to(torch.float32) if x.dtype == torch.bfloat16 else x
        return gain * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)).to(x.dtype)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for number in range(2):
            up = self.up[0 if self.shared else number]
            x = x + self.down[number](torch.relu(up(self.norm(x, self.gains[number]))))
        return self.head(self.norm(x, self.gains[2]))


class NormedTwice(nn.Module):
    """A norm of what another norm's gain has changed: no one matrix fits both sides of the first gain."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b, self.head = nn.Linear(3, 4), nn.RMSNorm(4), nn.RMSNorm(4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.b(self.a(self.stem(x))))


CASES = {"swiglu": (SwiGLU, 4), "hand-written": (HandWritten, 4), "narrow": (lambda: HandWritten(2), 2)}


@pytest.mark.parametrize("name", CASES)
def test_streams_are_turned(name: str) -> None:
    build, width = CASES[name]
    model, x = seeded(build), draw(7, 3)
    plain, folded = (symmetry.trace(model, (x,), strict=True, fold_gains=fold) for fold in (False, True))
    assert (plain.orthogonal_dimension, folded.orthogonal_dimension) == (0, width * (width - 1) // 2)
    assert folded.scale_dimension == plain.scale_dimension
    # The signs of the stream's units belong to the matrices; those of the gains stay.
    assert folded.sign_bits == plain.sign_bits - width
    proof = symmetry.verify(model, (x,), folded, trials=4)
    assert proof.passed, str(proof)
    assert [row.kind for row in proof.table].count("orthogonal") == 1


def test_the_laws_of_a_group_hold_with_gains_between() -> None:
    model = seeded(HandWritten).double()
    spec = symmetry.trace(model, (draw(7, 3, dtype=torch.float64),), fold_gains=True)
    state, generator = model.state_dict(), torch.Generator().manual_seed(2)
    for _ in range(6):
        a, b = spec.sample(generator), spec.sample(generator)
        one, two = spec.act(a @ b, state), spec.act(a, spec.act(b, state))
        assert all(torch.allclose(one[key], two[key], rtol=0, atol=1e-12) for key in one)
        back = spec.act(~a, spec.act(a, state))
        assert all(torch.allclose(back[key], state[key], rtol=0, atol=1e-12) for key in back)
        assert ~a @ a == spec.identity()
    assert symmetry.SymmetrySpec.from_json(spec.to_json()) == spec


@pytest.mark.parametrize("build", [NormedTwice, lambda: HandWritten(shared=True)], ids=["twice", "shared reader"])
def test_where_no_matrix_fits_there_is_none(build: type[nn.Module]) -> None:
    model, x = seeded(build), draw(7, 3)
    spec = symmetry.trace(model, (x,), fold_gains=True)
    assert spec.orthogonal_dimension == 0
    assert symmetry.verify(model, (x,), spec, trials=2).passed


def test_a_matrix_that_forgets_the_gain_is_found_out() -> None:
    from dataclasses import replace

    model, x = seeded(SwiGLU), draw(7, 3)
    spec = symmetry.trace(model, (x,), fold_gains=True)
    (factor,) = spec.linear
    wrong = replace(spec, linear=(replace(factor, slots=tuple(replace(slot, gain=None) for slot in factor.slots)),))
    proof = symmetry.verify(model, (x,), wrong, trials=2)
    assert not proof.passed
    assert proof.max_error > 1e-3


def test_a_gain_of_zero_is_refused() -> None:
    model, x = seeded(SwiGLU), draw(7, 3)
    spec, state = symmetry.trace(model, (x,), fold_gains=True), model.state_dict()
    state["n.weight"] = state["n.weight"] * torch.tensor([1.0, 0.0, 1.0, 1.0])
    with pytest.raises(symmetry.SpecError, match=r"n\.weight: a gain of zero"):
        spec.act(spec.sample(kinds=("orthogonal",)), state)
