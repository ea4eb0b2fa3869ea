"""Is the whole group respected where factors only meet each other: rotary pairs, normed queries, orthogonal spaces?"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import symmetry
from metanet.errors import ModelError
from metanet.nn.frames.signs import Signs
from symmetry.testing import equivariance_error
from tests.nn.cases import batch_of, case
from tests.nn.test_full import LIMIT, answer, carry, make
from tests.nn.trained import trained
from tests.symmetry.models import draw, seeded
from tests.symmetry.transformers import Llama, QKNorm, Slopes


class NormedQueries(QKNorm):
    """The subject with a residual stream, which leaves no space of matrices behind the output projection."""

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.stem(x))
        q, k, v = (
            layer(x).view(*x.shape[:2], self.heads, self.units).transpose(1, 2) for layer in (self.q, self.k, self.v)
        )
        y = functional.scaled_dot_product_attention(self.nq(q), self.nk(k), v)
        return self.head(torch.tanh(x + self.o(y.transpose(1, 2).flatten(2))).mean(1))


SUBJECTS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "llama": (Llama, torch.arange(35).reshape(7, 5) % 6),
    "normed queries": (NormedQueries, draw(7, 5, 3, dtype=torch.float64)),
}


@pytest.fixture(scope="module", params=SUBJECTS)
def subject(request):
    build, inputs = SUBJECTS[request.param]
    module = seeded(build).double().eval()
    return symmetry.trace(module, (inputs,)), module.state_dict()


@pytest.mark.parametrize("level", ["graph", "node", "state"])
def test_signs_that_only_meet_each_other(subject, level):
    spec, state = subject
    net = make(level, gauge="balanced")
    table = equivariance_error(partial(answer, net, spec), spec, state, trials=2, carry=carry)
    assert table.max_error < LIMIT, table
    signs = [row.control for row in table.rows if row.kind == "sign"]
    assert len(signs) > 3
    assert min(signs) > 1e-5


def test_without_pairs_they_are_refused(subject, monkeypatch):
    """Negative control: it is the pairs of factors that settle them."""
    spec, state = subject
    monkeypatch.setattr(Signs, "_pairs", lambda self, blocks: False)
    from metanet.nn.frames import check_frame

    with pytest.raises(ModelError, match=r"sign factor '.*q' is not settled by the tensors it acts on"):
        check_frame.__wrapped__(batch_of(spec, [state]).buckets[0].topology)


def test_a_network_without_such_weights_keeps_its_signs(subject):
    """Zero queries in one network of a batch do not change what is settled for the others."""
    spec, state = subject
    dead = {key: torch.zeros_like(value) if ".q." in f".{key}" else value for key, value in state.items()}
    assert any(not bool((value != 0).any()) for value in dead.values())
    net = make("graph")
    with torch.no_grad():
        both, alone = net(batch_of(spec, [state, dead])), net(batch_of(spec, [state]))
    assert bool(both.isfinite().all())
    torch.testing.assert_close(both[:1], alone, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("level", ["graph", "node"])
def test_orthogonal_spaces_and_matrices_behind_gains(level):
    one = case("folded gains")
    assert {factor.kind for factor in one.spec.linear} == {"orthogonal"}
    table = equivariance_error(partial(answer, make(level), one.spec), one.spec, one.state(0), trials=2, carry=carry)
    assert table.max_error < LIMIT, table


@pytest.mark.parametrize("build", [QKNorm, Slopes])
def test_what_has_no_frame_is_refused_in_one_line_that_says_what_to_do(build):
    module = seeded(build).double().eval()
    spec = symmetry.trace(module, (draw(7, 5, 3, dtype=torch.float64),))
    with pytest.raises(ModelError, match=r"^space '.*' of linear matrices .*; use symmetry='permutation'$"):
        make()(batch_of(spec, [module.state_dict()]))


DEFECTS = {
    "a dead unit in the queries": ("query", slice(1, 2)),
    "a dead unit in the values": ("value", slice(1, 2)),
    "a head without values": ("value", slice(0, 4)),
    "no queries at all": ("query", slice(None)),
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_heads_of_less_than_full_rank(defect):
    """Directions that do not reach the function count as zero, so answers per network stay invariant."""
    one = trained("transformer")
    part, units = DEFECTS[defect]
    state = {key: value.clone() for key, value in one.states[0].items()}
    for kind in ("weight", "bias"):
        state[f"blocks.0.attention.{part}.{kind}"][units] = 0
    moved = one.spec.act(one.spec.sample(torch.Generator().manual_seed(2)), state)
    for gauge in ("rms", "balanced"):
        with torch.no_grad():
            answers = make(gauge=gauge)(batch_of(one.spec, [state, moved, one.states[1]])).flatten()
            changed = make("state", gauge=gauge)(batch_of(one.spec, [state]))[0]
        assert abs(float(answers[0] - answers[1])) < LIMIT * float((answers[0] - answers[2]).abs()), gauge
        assert all(bool(value.isfinite().all()) for value in changed.values())


def test_directions_lost_in_rounding_hardly_count():
    """A head with singular values down to 1e-9 of the largest, moved and rounded to float32: nothing jumps."""
    one = trained("transformer")
    state = {key: value.clone() for key, value in one.states[0].items()}
    for part in ("query", "key"):
        weight = state[f"blocks.0.attention.{part}.weight"]
        for head in (weight[:4], weight[4:]):
            left, size, right = torch.linalg.svd(head, full_matrices=False)
            head.copy_(left @ (size * torch.logspace(0, -4.5, 4, dtype=torch.float64)).diag() @ right)
        state[f"blocks.0.attention.{part}.bias"].zero_()
    moved = one.spec.act(one.spec.sample(torch.Generator().manual_seed(2), kinds=("linear",)), state)
    single = [{key: value.float() for key, value in given.items()} for given in (state, moved, one.states[1])]
    with torch.no_grad():
        answers = make()(batch_of(one.spec, single)).flatten()
        exact = make()(batch_of(one.spec, [state, moved])).flatten()
    spread = float((answers[0] - answers[2]).abs())
    assert abs(float(exact[0] - exact[1])) < 1e-8 * spread
    assert abs(float(answers[0] - answers[1])) < 1e-2 * spread
