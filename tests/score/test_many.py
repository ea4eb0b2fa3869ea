"""Does scoring thousands of pairs at once say what scoring them one by one says?"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import metanet
from metanet.checkpoint import Checkpoint, Source
from metanet.errors import ScoreError
from metanet.score import compare, compare_many
from tests.symmetry import families, models

COLUMNS = ("max_error", "error", "relative_l2", "kl", "kl_reverse", "agreement")


def checkpoint(family: str, seed: int, **options: Any) -> Checkpoint:
    architecture = metanet.Architecture(family, {"outputs": 3, "activation": "relu", **options})
    generator = torch.Generator().manual_seed(seed)
    state = {
        k: v + 0.3 * torch.rand(v.shape, generator=generator) if v.is_floating_point() else v
        for k, v in architecture.build(seed).state_dict().items()
    }
    return Checkpoint(state, architecture, Source(Path("x"), "safetensors"))


def pairs_of(kind: str) -> tuple[list[tuple[Any, Any]], torch.Tensor]:
    """Pairs of two sizes of a family, some of which share their first network, and inputs."""
    generator = torch.Generator().manual_seed(0)
    if kind == "mlp":
        wide = [checkpoint("mlp", seed, inputs=5, widths=[8, 6]) for seed in range(5)]
        narrow = [checkpoint("mlp", seed, inputs=5, widths=[4]) for seed in range(9)]
        inputs = torch.randn(50, 5, generator=generator)
    elif kind == "cnn":
        options = {"channels": 1, "size": 8, "norm": "batch", "strides": [2, 1]}
        wide = [checkpoint("cnn", seed, widths=[6, 6], residual=True, **options) for seed in range(5)]
        narrow = [checkpoint("cnn", seed, widths=[4, 3], **options) for seed in range(9)]
        inputs = torch.randn(50, 1, 8, 8, generator=generator)
    else:
        subject = next(s for s in families.FACTS if s.name == kind)
        model = models.seeded(subject.build)
        states = [models.seeded(subject.build, seed).state_dict() for seed in range(14)]
        wide, narrow = ([(model, state) for state in some] for some in (states[:5], states[5:]))  # type: ignore[misc]
        inputs = torch.randn(50, *subject.shape[1:], generator=generator)
    return [(wide[i // 2], b) for i, b in enumerate(narrow)], inputs


@pytest.mark.parametrize("kind", ["mlp", "cnn", "encoder layer", "swiglu", "tied linear autoencoder"])
def test_equal_to_the_loop(kind: str) -> None:
    pairs, inputs = pairs_of(kind)
    labels = torch.arange(50) % 2 if kind in ("mlp", "cnn") else None
    read = "classes" if labels is not None else "values"
    found = compare_many(pairs, inputs, labels, kind=read, batch=20, memory=200_000)
    assert found.groups == 1
    assert len(found) == 9
    for number, pair in enumerate(pairs):
        one = compare(*pair, inputs, labels, kind=read, layers=None, line=0, resamples=0)
        row = found.row(number)
        for name in COLUMNS:
            value = getattr(one.main, name, None)
            assert (value is None) == (name not in row)
            if value is not None:
                assert row[name] == pytest.approx(float(value), abs=1e-10), name
        if labels is not None:
            assert one.main.accuracy == pytest.approx((row["accuracy_a"], row["accuracy_b"]), abs=1e-10)
            assert row["loss_change"] == pytest.approx(float(one.main.loss_change), abs=1e-10)  # type: ignore[arg-type]
    # Negative control: pairs differ from each other.
    assert float(found["max_error"].std()) > 1e-3


def test_chunks_and_groups_make_no_difference() -> None:
    first, inputs = pairs_of("mlp")
    wider = [(a, checkpoint("mlp", seed, inputs=5, widths=[4, 4, 4])) for seed, (a, _) in enumerate(first)]
    mixed = [pair for both in zip(first, wider, strict=True) for pair in both]
    whole = compare_many(mixed, inputs)
    assert whole.groups == 2
    for memory in (1, 100_000):
        small = compare_many(mixed, inputs, memory=memory)
        for name, column in whole.columns.items():
            assert torch.allclose(small[name], column, atol=1e-12, equal_nan=True), name
    alone = compare_many(first, inputs)
    assert torch.allclose(whole["kl"][::2], alone["kl"], atol=1e-12)


def test_large_networks_are_run_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs, inputs = pairs_of("cnn")
    small = compare_many(pairs, inputs)
    monkeypatch.setattr("metanet.score.stacks.LARGE", 1000)
    large = compare_many(pairs, inputs)
    assert not any("one by one" in note for note in small.notes)
    assert any("one by one" in note for note in large.notes)
    for name, column in small.columns.items():
        assert torch.allclose(large[name], column, atol=1e-10), name


def test_standard_errors() -> None:
    pairs, inputs = pairs_of("mlp")
    found = compare_many(pairs, inputs)
    one = compare(*pairs[0], inputs, layers=None, line=0, resamples=2000, interval="percentile").main.kl
    assert one is not None
    assert one.low is not None
    half = (one.high - one.low) / 2  # type: ignore[operator]
    assert float(found["kl_standard_error"][0]) * 1.96 == pytest.approx(half, rel=0.2)


def test_exact_and_broken_pairs_are_told_apart() -> None:
    pairs, inputs = pairs_of("mlp")
    a = pairs[0][0]
    moved = a.spec.act(a.spec.sample(torch.Generator().manual_seed(0)), {k: v.double() for k, v in a.state.items()})
    same = Checkpoint(moved, a.architecture, a.source)
    broken = Checkpoint({k: v * torch.nan for k, v in a.state.items()}, a.architecture, a.source)
    other = pairs[4][0]
    found = compare_many([(a, same), (a, broken), (a, other)], inputs)
    assert found["exact"].tolist() == [1.0, 0.0, 0.0]
    assert found["not_finite_b"].tolist() == [0.0, 50.0, 0.0]
    assert found["agreement"][1] == 0
    assert found["kl"][1] == torch.inf
    assert compare_many([(a, same)], inputs, dtype=torch.float32)["exact"].tolist() == [0.0]


def test_bare_modules_and_made_up_inputs() -> None:
    one, two = (models.seeded(lambda: models.mlp([3, 4, 2], torch.relu), seed) for seed in (0, 1))
    inputs = torch.randn(30, 3, generator=torch.Generator().manual_seed(0))
    found = compare_many([(one, two), (one, one), (two, one)], inputs)
    assert found.groups == 3
    assert found["kl"][0] == found["kl_reverse"][2]
    assert found["max_error"][1] == 0
    pairs, _ = pairs_of("cnn")
    made_up = compare_many(pairs[:2], seed=1, kind="values")
    assert made_up.made_up
    assert "not data" in made_up.origin
    assert "kl" not in made_up.columns


def test_bad_input() -> None:
    pairs, inputs = pairs_of("mlp")
    with pytest.raises(ScoreError, match="no pairs"):
        compare_many([], inputs)
    with pytest.raises(ScoreError, match="pair 1 is a int"):
        compare_many([pairs[0], 3], inputs)  # type: ignore[list-item]
    with pytest.raises(ScoreError, match="pair 0: network a does not run"):
        compare_many(pairs, torch.zeros(20, 6))
    a = pairs[0][0]
    damaged = Checkpoint({k: v[:3] for k, v in a.state.items()}, a.architecture, a.source)
    with pytest.raises(ScoreError, match=r"pair 1, network b: 'layers.0.weight' has shape \[3, 5\] in the state"):
        compare_many([(a, a), (a, damaged)], inputs)
    with pytest.raises(ScoreError, match="no column 'cka'"):
        compare_many(pairs[:1], inputs)["cka"]


class Asks(nn.Module):
    """Looks at what it computes, which no stack of networks can."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.layer(x)
        return h if float(h.sum()) > 0 else -h


@pytest.mark.parametrize("build", [Asks, lambda: nn.LSTM(5, 3), nn.Tanh])
def test_networks_that_cannot_be_stacked_are_run_one_by_one(build: Callable[[], nn.Module]) -> None:
    model = models.seeded(build)
    states = [{k: v + seed for k, v in model.state_dict().items()} for seed in range(4)]
    pairs = [((model, states[seed]), (model, states[3])) for seed in range(3)]
    inputs = torch.randn(20, 4, 5, generator=torch.Generator().manual_seed(0))
    if build is Asks:
        inputs = inputs[:, 0]
    found = compare_many(pairs, inputs, kind="values", batch=20)
    assert any("one by one" in note for note in found.notes) == (build is not nn.Tanh)
    for number, pair in enumerate(pairs):
        one = compare(*pair, inputs, kind="values", layers=None, line=0, resamples=0, batch=20)
        assert found["max_error"][number] == pytest.approx(one.max_error, abs=1e-12)
