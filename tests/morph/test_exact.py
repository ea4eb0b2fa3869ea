"""Is what claims to be exact exact, on a hundred random networks of the families whose groups are known by hand?"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch import Tensor

from metanet import morph
from metanet.errors import PlanError
from metanet.morph import ConvToLinear, Deepen, Fold, Insert, Permute, Rescale, Widen
from metanet.morph.choose import normed_spaces
from metanet.morph.function import outputs
from metanet.morph.resize import Resizing
from symmetry import SymmetrySpec
from tests.morph.subjects import network, same

SEEDS = 6
EXACT = 1e-10
# Edits of modules that each family can take; those of spaces are drawn.
FAMILIES: dict[str, tuple[morph.Edit, ...]] = {
    "mlp relu": (Deepen("2"), Insert("0", hidden=3)),
    "mlp tanh": (Deepen("4", "tanh", residual=True),),
    "conv, batch norm": (Fold("4"), ConvToLinear("3"), Deepen("7")),
    "resnet": (Fold("4.down.1"), ConvToLinear("4.conv1"), Deepen("5.conv1")),
    "group norm, depthwise": (ConvToLinear("layers.2"), Deepen("layers.3")),
    "u-net": (ConvToLinear("up"), Deepen("c", residual=True)),
    "mixer": (Fold("n2"), Deepen("t2", "gelu", residual=True, hidden=2)),
    "encoder layer": (Insert("layer", activation="gelu"),),
    "lstm": (Deepen("head", "tanh", residual=True),),
    "gru": (Insert("head"),),
    "swiglu": (Fold("n"), Deepen("d", "silu", residual=True)),
    "deep linear": (Deepen("1", "identity"), Deepen("2", "silu", residual=True)),
    "lora": (Insert("layers.0.base"),),
    "shared weights, relu": (Deepen("m"), Deepen("m", residual=True)),
    "shared weights, tanh": (Deepen("m", "tanh", residual=True),),
    "prelu": (Deepen("layers.2", residual=True),),
    "layer norm": (Deepen("layers.3", residual=True),),
    "conv, pooling": (ConvToLinear("3"), Deepen("8")),
}


class Undivided(Widen):
    """The planted error: what is read of copies is not divided among them."""

    def resizing(self, spec: SymmetrySpec) -> Resizing:
        return Resizing(self.space, super().resizing(spec).source)


@cache
def living(name: str) -> list[int]:
    """The first seeds whose network answers different inputs differently: a dead one is kept by any edit."""
    seeds: list[int] = []
    for seed in range(4 * SEEDS):
        model, inputs, _ = network(name, seed)
        out = outputs(model, [inputs]).reshape(len(inputs[0]), -1)
        if len(seeds) < SEEDS and float(out.std(0).max()) > 1e-2 * float(out.abs().max()):
            seeds.append(seed)
    return seeds


def widened(spec: SymmetrySpec, generator: torch.Generator, kind: type[Widen] = Widen) -> list[Widen]:
    """All spaces one and a half times as wide, with drawn shares; twice under a norm, where copies must be even."""
    edits, normed = [], normed_spaces(spec)
    for space in (space for space in spec.spaces if space.size > 1):
        order = torch.randperm(space.size, generator=generator)
        source = torch.cat([order, order[: space.size if space.name in normed else (space.size + 1) // 2]])
        if space.name in normed:
            edits.append(kind(space.name, source))
            continue
        share = torch.rand(len(source), generator=generator, dtype=torch.float64) + 0.1
        total = torch.zeros(space.size, dtype=torch.float64).index_add_(0, source, share)
        edits.append(kind(space.name, source, share / total[source]))
    return edits


def moved(spec: SymmetrySpec, generator: torch.Generator) -> tuple[list[morph.Edit], list[morph.Edit]]:
    """All spaces in another order, and all scale factors drawn."""
    orders = [
        Permute(space.name, torch.rand(spec.array_shape(space.name), generator=generator).argsort(-1))
        for space in spec.spaces
    ]
    scales: dict[str, Tensor] = {
        name: torch.rand(value.shape, generator=generator, dtype=torch.float64) + 0.5
        for name, value in spec.identity().log_scales.items()
    }
    return list(orders), [Rescale(name, value) for name, value in scales.items()]


def test_there_are_a_hundred_networks(record_property: Callable[[str, object], None]) -> None:
    """No two of them alike."""
    weights = {
        (name, tuple(next(iter(network(name, seed)[0].parameters())).flatten().tolist()))
        for name in FAMILIES
        for seed in living(name)
    }
    record_property("networks", len(weights))
    assert len(weights) >= 100
    kinds = {type(edit) for edits in FAMILIES.values() for edit in edits}
    assert kinds == {Fold, ConvToLinear, Deepen, Insert}


@pytest.mark.usefixtures("traced_once")
@pytest.mark.parametrize("name", FAMILIES)
def test_exact_edits_are_exact(name: str, record_property: Callable[[str, object], None]) -> None:
    worst, done = 0.0, 0
    for seed in living(name):
        model, inputs, spec = network(name, seed)
        generator = torch.Generator().manual_seed(seed)
        wider = widened(spec, generator)
        orders, scales = moved(spec, generator)
        plans: list[list[morph.Edit]] = [list(wider), orders, scales, *([edit] for edit in FAMILIES[name])]
        for plan in plans:
            if not plan:
                continue  # a network without scale factors
            result = morph.apply(plan, model, inputs, spec=spec)
            assert result.exact
            worst, done = max(worst, result.error), done + 1
            if seed == living(name)[0]:
                assert same(morph.undo(result), model)
        # The control: the same edit with one line of its mathematics left out is caught.
        with pytest.raises(PlanError, match="of their spread"):
            morph.apply(widened(spec, generator, Undivided), model, inputs, spec=spec)
    record_property("edits", done)
    record_property("worst error over spread", worst)
    assert worst <= EXACT
