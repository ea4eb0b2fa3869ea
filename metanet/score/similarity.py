"""How alike are the representations of two layers? Debiased linear centred kernel alignment, over batches.

CKA (Kornblith et al., Similarity of neural network representations revisited, 2019) is HSIC(K, L) over the geometric
mean of HSIC(K, K) and HSIC(L, L). Each HSIC is the unbiased estimator of Song et al., Feature selection via dependence
maximization, 2012, equation 5, averaged over batches as in Nguyen, Raghu and Kornblith, Do wide and deep networks learn
the same things?, 2021, section 3: unbiased for any size of batch, in constant memory.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from metanet.score.intervals import normal_quantile
from metanet.score.values import Estimate

__all__ = ["LEAST_ROWS", "Similarities", "pairs_in_order", "similarity_matrix"]

# Leaving one of five out still leaves the four that the estimator needs.
LEAST_ROWS = 5


def _scaled(product: Tensor, first: Tensor, second: Tensor, both: Tensor, n: int) -> Tensor:
    """Song et al., equation 5, from tr(KL), 1'K1, 1'L1 and 1'KL1 of matrices without diagonal."""
    return (product + first * second / ((n - 1) * (n - 2)) - 2.0 * both / (n - 2)) / (n * (n - 3))


def hsic(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """The unbiased HSIC of two Gram matrices without diagonal, and how much each input adds to it.

    The second is the jackknife pseudo-value of each input minus the estimate; its mean square over the number of inputs
    estimates the variance.

    Shapes:
        (inputs, inputs) each; results () and (inputs,).
    """
    n = len(left)
    products = (left * right).sum(1)
    one, two = left.sum(1), right.sum(1)
    total, first, second, both = products.sum(), one.sum(), two.sum(), one @ two
    value = _scaled(total, first, second, both, n)
    without = _scaled(
        total - 2.0 * products,
        first - 2.0 * one,
        second - 2.0 * two,
        both - one * two - left @ two - right @ one + products,
        n - 1,
    )
    return value, (n - 1) * (value - without)


def centred(gram: Tensor) -> Tensor:
    """The U-centred matrix (Szekely and Rizzo, 2014, section 2): inner products of two are n (n - 3) times HSIC."""
    n = len(gram)
    rows = gram.sum(1)
    found = gram - (rows[:, None] + rows[None, :]) / (n - 2) + rows.sum() / ((n - 1) * (n - 2))
    return found.fill_diagonal_(0.0)


def similarity_matrix(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> Tensor:
    """CKA of every layer of one network with every layer of another, on one batch; 0 for layers that do not vary.

    Shapes:
        (layers of the one, layers of the other).
    """

    def directions(grams: Mapping[str, Tensor]) -> Tensor:
        flat = torch.stack([centred(gram.clone()).reshape(-1) for gram in grams.values()])
        return flat / flat.norm(dim=1, keepdim=True).clamp(min=1e-300)

    return directions(left) @ directions(right).T


def pairs_in_order(similarity: Tensor) -> list[tuple[int, int]]:
    """Pairs of layers that never cross, with the largest sum of similarities; layers may stay alone.

    Source: Needleman and Wunsch, A general method applicable to the search for similarities, 1970, without penalties.
    """
    rows, columns = similarity.shape
    values = similarity.tolist()
    best = [[0.0] * (columns + 1) for _ in range(rows + 1)]
    for i in range(rows):
        for j in range(columns):
            best[i + 1][j + 1] = max(best[i][j] + values[i][j], best[i][j + 1], best[i + 1][j])
    pairs = []
    i, j = rows, columns
    while i and j:
        if best[i][j] == best[i - 1][j]:
            i -= 1
        elif best[i][j] == best[i][j - 1]:
            j -= 1
        else:
            i, j = i - 1, j - 1
            pairs.append((i, j))
    return pairs[::-1]


class Similarities:
    """CKA of pairs of layers, batch by batch.

    Args:
        pairs: names of the layers of the first network and of the second.
    """

    def __init__(self, pairs: list[tuple[str, str]]) -> None:
        self.pairs = pairs
        self.batches: dict[tuple[str, str], int] = dict.fromkeys(pairs, 0)
        self._sums: dict[tuple[str, str], Tensor] = {}
        self._parts: dict[tuple[str, str], list[Tensor]] = {pair: [] for pair in pairs}

    def add(self, left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> None:
        """Take the Gram matrices of one batch into account."""
        own_left: dict[str, tuple[Tensor, Tensor]] = {}
        own_right: dict[str, tuple[Tensor, Tensor]] = {}
        for pair in self.pairs:
            one, two = pair
            if one not in left or two not in right or len(left[one]) < LEAST_ROWS:
                continue
            if one not in own_left:
                own_left[one] = hsic(left[one], left[one])
            if two not in own_right:
                own_right[two] = hsic(right[two], right[two])
            found = [hsic(left[one], right[two]), own_left[one], own_right[two]]
            values = torch.stack([value for value, _ in found])
            self._sums[pair] = self._sums.get(pair, torch.zeros(3, dtype=torch.float64)) + values
            self._parts[pair].append(torch.stack([part for _, part in found]))
            self.batches[pair] += 1

    def estimate(self, pair: tuple[str, str], confidence: float) -> Estimate | None:
        """CKA with a jackknife interval (on Fisher's z); ``None`` where a layer does not vary over the inputs."""
        if not self.batches[pair]:
            return None
        joint, one, two = (self._sums[pair] / self.batches[pair]).tolist()
        if not (one > 0 and two > 0):
            return None
        value = min(joint / math.sqrt(one * two), 1.0)
        parts = torch.cat(self._parts[pair], 1)
        scale = math.sqrt(one * two)
        influence = parts[0] / scale - value * (parts[1] / (2 * one) + parts[2] / (2 * two))
        error = float(influence.square().sum().sqrt()) / parts.shape[1]
        if abs(value) >= 1.0 - 1e-12:
            return Estimate(value, value, value, "jackknife")
        reach = normal_quantile(0.5 + confidence / 2.0) * error / (1.0 - value * value)
        middle = math.atanh(max(value, -1.0 + 1e-12))
        return Estimate(value, math.tanh(middle - reach), math.tanh(middle + reach), "jackknife")
