"""Do modules as users write them take edits, and are they whole after one that fails?"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import symmetry
from metanet import morph
from metanet.errors import PlanError
from metanet.morph import Compensation, Keep, Permute, Plan, Widen
from tests.morph.subjects import network, same
from tests.symmetry.models import draw, seeded

EXACT = 1e-10


class Attention(nn.Module):
    """One projection for queries, keys and values; every size is one attribute or derived from the stream."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.c_attn, self.c_proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.n_head, self.n_embd = heads, width

    def forward(self, x: Tensor) -> Tensor:
        batch, time, width = x.size()
        parts = self.c_attn(x).split(self.n_embd, dim=2)
        q, k, v = (p.view(batch, time, self.n_head, width // self.n_head).transpose(1, 2) for p in parts)
        out = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.c_proj(out.transpose(1, 2).contiguous().view(batch, time, width))


class Words(nn.Module):
    """A small language model in the manner of many."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(11, 8), nn.Parameter(torch.randn(5, 8))
        self.first, self.second, self.last = nn.LayerNorm(8), nn.LayerNorm(8), nn.LayerNorm(8)
        self.attention, self.up, self.down = Attention(8, 2), nn.Linear(8, 12), nn.Linear(12, 8)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.words(x) + self.places[: x.size(1)]
        x = x + self.attention(self.first(x))
        x = x + self.down(functional.gelu(self.up(self.second(x))))
        return self.head(self.last(x))


class Scaled(nn.Module):
    """Attention whose scores are divided by the root of whatever size its heads have."""

    def __init__(self) -> None:
        super().__init__()
        self.i, self.o, self.heads = nn.Linear(3, 6), nn.Linear(8, 3), 2
        self.q, self.k, self.v = (nn.Linear(6, 8) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.i(x)
        q, k, v = (layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        return self.o(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Experts(nn.Module):
    """A mixture whose experts' weights are stacked and contracted."""

    def __init__(self, width: int = 6, hidden: int = 4, experts: int = 3) -> None:
        super().__init__()
        self.stem, self.gate, self.out = nn.Linear(3, width), nn.Linear(width, experts), nn.Linear(width, 2)
        self.up, self.down = (
            nn.Parameter(torch.randn(experts, *sizes)) for sizes in ((width, hidden), (hidden, width))
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = torch.einsum("beh,ehd->bed", torch.einsum("bd,edh->beh", x, self.up).relu(), self.down)
        return self.out(x + (self.gate(x).softmax(-1).unsqueeze(-1) * y).sum(1))


def made(build: Callable[[], nn.Module], inputs: Tensor) -> tuple[nn.Module, tuple[Tensor], symmetry.SymmetrySpec]:
    model = seeded(build).double().eval()
    return model, (inputs,), symmetry.trace(model, (inputs,))


def query_units(spec: symmetry.SymmetrySpec) -> str:
    """The units inside heads that queries and keys write."""
    inside = (factor for factor in spec.linear if spec.within.get(factor.space))
    return next(factor.space for factor in inside if any(slot.tensor == "q.weight" for slot in factor.slots))


def test_a_stream_and_its_heads_change_in_one_plan() -> None:
    words = torch.randint(11, (7, 5), generator=torch.Generator().manual_seed(0))
    model, inputs, spec = made(Words, words)
    stream = next(space.name for space in spec.spaces if space.size == 8)
    with pytest.raises(PlanError, match="one size probably stands for several"):
        morph.apply(Widen(stream, [*range(8)] * 2), model, inputs, spec=spec)
    wide = morph.apply(morph.widen(spec, morph.to_sizes(spec, 2)), model, inputs, spec=spec)
    assert wide.error <= EXACT
    assert (wide.model.attention.n_head, wide.model.attention.n_embd) == (4, 16)
    narrow = morph.apply(morph.narrow(spec, model.state_dict(), morph.to_sizes(spec, 0.5)), model, inputs, spec=spec)
    assert (narrow.model.attention.n_head, narrow.model.attention.n_embd) == (1, 4)
    assert all(same(morph.undo(result), model) for result in (wide, narrow))


def test_scores_keep_their_scale() -> None:
    model, inputs, spec = made(Scaled, draw(7, 5, 3, dtype=torch.float64))
    units = query_units(spec)
    wide = morph.apply(Widen(units, [0, 1, 2, 3, 0]), model, inputs, spec=spec)
    assert wide.error <= EXACT
    assert same(morph.undo(wide), model)
    # Two units of which one writes nothing: it can be dropped, whatever the module divides by.
    with torch.no_grad():
        for layer in (model.q, model.k):
            for tensor in (layer.weight, layer.bias):
                tensor[[3, 7]] = 0
    assert morph.apply(Keep(units, [0, 1, 2]), model, inputs, spec=spec).error <= EXACT
    # Compensation brings back what depends on the rest.
    kept = Compensation([(draw(30, 5, 3, seed=2, dtype=torch.float64),)], ridge=1e-12)
    back = morph.apply(Keep(units, [0, 1, 2, 3]), wide.model, inputs, spec=wide.spec, compensation=kept)
    assert back.error < 1e-6


def test_hidden_units_of_stacked_experts() -> None:
    model, inputs, spec = made(Experts, draw(7, 3, dtype=torch.float64))
    hidden = next(space.name for space in spec.spaces if spec.within.get(space.name))
    wide = morph.apply(Widen(hidden, [0, 1, 2, 3, 3, 3]), model, inputs, spec=spec)
    assert wide.error <= EXACT
    assert same(morph.undo(wide), model)


def snapshot(model: nn.Module) -> list[object]:
    """Everything by identity: modules, tensors, and the values of plain attributes."""
    plain = [
        (path, key, value)
        for path, module in model.named_modules()
        for key, value in vars(module).items()
        if isinstance(value, int | float | str | tuple)
    ]
    ids = [(path, id(module), type(module)) for path, module in model.named_modules()]
    return [*ids, *((name, id(tensor)) for name, tensor in model.state_dict(keep_vars=True).items()), *plain]


@pytest.mark.usefixtures("traced_once")
@pytest.mark.parametrize("place", ["put_tensors", "_fix_layer", "output_shapes"])
def test_a_failure_in_the_middle_leaves_the_module_whole(monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    """Every call of a step of the work fails in turn."""
    model, inputs, spec = network("encoder layer")
    plan = Plan([Widen("stem", [*range(4)] * 2), Permute("layer.linear1", [5, 4, 3, 2, 1, 0]), morph.Drop("layer")])
    before, values = snapshot(model), {name: value.clone() for name, value in model.state_dict().items()}
    module: Any = importlib.import_module("metanet.morph.modules")
    real, calls, failing = getattr(module, place), [0], [0]

    def fails(*given: Any) -> Any:
        calls[0] += 1
        if calls[0] == failing[0]:
            raise MemoryError("planted")
        return real(*given)

    monkeypatch.setattr(module, place, fails)
    for _ in range(4):
        calls[0], failing[0] = 0, failing[0] + 1
        try:
            morph.apply(plan, model, inputs, spec=spec)
            assert failing[0] > calls[0] > 0  # it was done without that many calls
        except MemoryError:
            assert failing[0] <= calls[0]
        assert snapshot(model) == before
        assert all(torch.equal(value, values[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("name", "edit", "message"),
    [
        ("group norm, depthwise", Keep("layers.0#2", [[0], [1, 0]]), "units of 'layers.0#2'"),
        ("encoder layer", Keep("layer.self_attn.in_proj_weight.0#2", [[0, 1], [1, 2]]), "out of range"),
        ("lstm, two layers, both directions", None, "one hidden_size"),
        ("resnet", morph.Drop("4"), "only a block that keeps the shape"),
        ("resnet", morph.Swap("9", "relu"), "no module '9'"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_touched(
    name: str, edit: morph.Edit | None, message: str
) -> None:
    model, inputs, spec = network(name)
    before = snapshot(model)
    plan = [edit or Keep(spec.spaces[0].name, [0, 1])]
    with pytest.raises(PlanError) as caught:
        morph.apply(plan, model, inputs, spec=spec)
    assert message in str(caught.value)
    assert snapshot(model) == before


def test_queries_and_keys_that_depend_in_different_ways() -> None:
    """Exact where both sides are rebuilt, and only if each by its own matrix."""
    model, inputs, spec = made(Scaled, draw(7, 5, 3, dtype=torch.float64))
    units = query_units(spec)
    with torch.no_grad():
        for layer, mixture in ((model.q, [0.5, -1.0, 0.2]), (model.k, [-0.3, 0.1, 0.9])):
            for tensor in (layer.weight, layer.bias):
                for head in (0, 4):
                    tensor[head + 3] = sum(a * tensor[head + unit] for unit, a in enumerate(mixture))
    kept = Compensation([(draw(30, 5, 3, seed=2, dtype=torch.float64),)], ridge=1e-12)
    assert morph.apply(Keep(units, [0, 1, 2]), model, inputs, spec=spec).error > 1e-3
    assert morph.apply(Keep(units, [0, 1, 2]), model, inputs, spec=spec, compensation=kept).error < 1e-6
