"""Is CKA what its definition says, unbiased, and blind to what it should be blind to?"""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from metanet.score import compare
from metanet.score.similarity import centred, hsic, pairs_in_order, similarity_matrix
from tests.symmetry.models import mlp, seeded


def gram(x: Tensor) -> Tensor:
    return (x @ x.T).fill_diagonal_(0.0)


def drawn(rows: int, width: int, seed: int) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_definition(left: Tensor, right: Tensor) -> float:
    """The U-statistic over all ordered fours of different inputs (Song et al. 2012, theorem 3 written out)."""
    n = len(left)
    fours = torch.tensor(list(itertools.permutations(range(n), 4))).T
    i, j, q, r = fours
    return float((left[i, j] * (right[i, j] + right[q, r] - 2.0 * right[i, q])).mean())


def test_against_the_definition() -> None:
    x, y = drawn(8, 3, 0), drawn(8, 5, 1)
    y[:, :2] += x[:, :2]
    value, influence = hsic(gram(x), gram(y))
    assert float(value) == pytest.approx(by_definition(gram(x), gram(y)), rel=1e-10)
    # Leaving an input out, by doing it.
    for number in range(8):
        kept = [i for i in range(8) if i != number]
        without, _ = hsic(gram(x[kept]), gram(y[kept]))
        assert float(influence[number]) == pytest.approx(7 * float(value - without), rel=1e-9)
    # The inner product of U-centred matrices is the same number.
    product = float((centred(gram(x)) * centred(gram(y))).sum()) / (8 * 5)
    assert product == pytest.approx(float(value), rel=1e-10)


def test_unrelated_features_have_similarity_zero_on_average() -> None:
    values, biased = [], []
    for seed in range(200):
        x, y = drawn(20, 30, 2 * seed), drawn(20, 30, 2 * seed + 1)
        joint, one, two = (hsic(gram(u), gram(v))[0] for u, v in ((x, y), (x, x), (y, y)))
        values.append(float(joint / (one * two).sqrt()))
        c, d = ((u - u.mean(0)) @ (u - u.mean(0)).T for u in (x, y))
        biased.append(float((c * d).sum() / (c.norm() * d.norm())))
    mean = torch.tensor(values).mean()
    assert abs(float(mean)) < 4 * float(torch.tensor(values).std()) / 200**0.5
    # Negative control: the plain estimator sees more than half of a similarity between unrelated features.
    assert torch.tensor(biased).mean() > 0.5


def test_features_that_are_the_same() -> None:
    """What each preparation of features is blind to, and what it is not."""
    inputs = drawn(120, 6, 5)
    one = seeded(lambda: mlp([6, 8, 3], torch.relu)).double()
    turned = torch.linalg.qr(drawn(8, 8, 1)).Q
    stretched = torch.diag(torch.linspace(0.1, 3.0, 8, dtype=torch.float64))
    skewed = drawn(8, 8, 2)

    def similarity(matrix: Tensor, features: str) -> float:
        first: nn.Linear = one[0]  # type: ignore[assignment]
        changed = nn.Linear(6, 8).double()
        with torch.no_grad():
            changed.weight.copy_(matrix @ first.weight)
            changed.bias.copy_(matrix @ first.bias)
        found = compare(nn.Sequential(first), nn.Sequential(changed), inputs, kind="values", features=features)
        return found.layers[0].cka.value

    order = torch.eye(8, dtype=torch.float64)[torch.randperm(8, generator=torch.Generator().manual_seed(0))]
    expected = {
        "linear": (order, turned, 2.5 * turned),
        "standard": (order, stretched, order @ stretched),
        "whitened": (order, turned, stretched, skewed),
    }
    for features, matrices in expected.items():
        for matrix in matrices:
            assert similarity(matrix, features) == pytest.approx(1.0, abs=1e-9)
    assert similarity(stretched, "linear") < 0.98
    assert similarity(skewed, "standard") < 0.98


def test_pairs_never_cross() -> None:
    similarity = torch.tensor([[0.9, 0.1, 0.1, 0.1], [0.1, 0.2, 0.8, 0.1], [0.1, 0.9, 0.2, 0.7]])
    assert pairs_in_order(similarity) == [(0, 0), (1, 2), (2, 3)]
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        values = torch.rand(3, 4, generator=generator)
        best = max(
            sum(float(values[i, j]) for i, j in zip(rows, columns, strict=True))
            for size in range(4)
            for rows in itertools.combinations(range(3), size)
            for columns in itertools.combinations(range(4), size)
        )
        pairs = pairs_in_order(values)
        assert pairs == sorted(pairs)
        assert sum(float(values[pair]) for pair in pairs) == pytest.approx(best)


def test_matrix_of_similarities() -> None:
    grams = {name: gram(drawn(30, 4, seed)) for seed, name in enumerate("abc")}
    found = similarity_matrix(grams, grams)
    assert torch.allclose(found.diagonal(), torch.ones(3, dtype=torch.float64))
    joint, one, two = (hsic(grams[u], grams[v])[0] for u, v in (("a", "b"), ("a", "a"), ("b", "b")))
    assert float(found[0, 1]) == pytest.approx(float(joint / (one * two).sqrt()))


def test_what_cannot_be_compared_is_left_out_and_named() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.still, self.first, self.flat, self.last = (
                nn.Linear(2, 2),
                nn.Linear(3, 4),
                nn.Linear(4, 4),
                nn.Linear(4, 2),
            )

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.flat(self.first(x))) + self.still(torch.ones(1, 2).to(x)).sum()

    model = seeded(Odd)
    found = compare(model, model, drawn(40, 3, 0))
    assert [layer.a for layer in found.layers] == ["first", "flat", "last"]
    assert any("'still' of network a" in note and "no axis of the inputs" in note for note in found.notes)
    few = compare(model, model, drawn(4, 3, 0))
    assert few.layers == ()
    assert any("batches of at least 5" in note for note in few.notes)
    wide = compare(model, model, drawn(6, 3, 0), features="whitened")
    assert all(layer.a != "flat" or layer.sizes == (4, 4) for layer in wide.layers)


def test_sequences_folded_into_the_batch() -> None:
    """A layer that sees (batch * time, features) has the inputs along its first axis, five rows for each."""

    class Folded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(3, 4), nn.Linear(20, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.first(x.reshape(-1, 3)).reshape(len(x), -1))

    model = seeded(Folded)
    found = compare(model, model, drawn(40, 15, 0).reshape(40, 5, 3))
    assert [(layer.a, layer.sizes) for layer in found.layers] == [("first", (20, 20)), ("last", (2, 2))]
    assert found.exact


def test_positions_that_hardly_vary_do_not_outweigh_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """A corner that is as good as dark in the first batch, and lit in a few images after it."""
    dark = drawn(600, 64, 0).reshape(600, 1, 8, 8)
    dark[:, :, :4] = 0.0
    order = torch.randperm(600, generator=torch.Generator().manual_seed(0))  # that of `seed=0`
    lit = dark.clone()
    lit[order[:200], 0, 0, 0] = 1e-6 * drawn(200, 1, 4)[:, 0]
    lit[order[200::40], 0, 0, 0] = 1.0

    def network() -> nn.Module:
        return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Flatten(), nn.Linear(256, 3))

    one, two = seeded(network), seeded(network, 1)

    def similarity(images: Tensor, features: str = "standard") -> float:
        found = compare(one, two, images, batch=200, kind="values", features=features, line=0)
        return found.layers[0].cka.value

    value = similarity(lit)
    assert value == pytest.approx(similarity(dark), abs=0.01)
    assert value < 0.95
    # Negative control: each position over its own spread.
    with monkeypatch.context() as patch:
        patch.setattr("metanet.score.layers._by_unit", lambda square, shape, unit_axis: square.sqrt())
        assert similarity(lit) > 0.999
    # Scaling whole channels makes no difference, but to linear features.
    linear = similarity(lit, "linear")
    with torch.no_grad():
        for parameter in two[0].parameters():  # type: ignore[index]
            parameter[1] *= 100.0
            parameter[2] *= -0.01
    assert similarity(lit) == pytest.approx(value)
    assert abs(similarity(lit, "linear") - linear) > 0.01
