"""What is measured while two networks run, batch by batch?"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from metanet.errors import ScoreError, clean
from metanet.score.inputs import Batch
from metanet.score.intervals import Resamples
from metanet.score.measures import Moments, Reading, columns, measure, rows_first
from metanet.score.pairing import Output, Pair
from metanet.score.similarity import LEAST_ROWS, Similarities, pairs_in_order, similarity_matrix
from metanet.score.subjects import tensor_leaves
from metanet.score.values import LayerSimilarity, OutputScore

__all__ = ["Run"]


class Run:
    """All batches of one comparison."""

    def __init__(self, pair: Pair, readings: list[Reading], layers: str | Mapping[str, str] | None) -> None:
        self.pair, self.readings, self.layers = pair, readings, layers
        self.rows: list[Tensor] = []
        self.batches: list[list[dict[str, Tensor]]] = [[] for _ in readings]
        self.moments = [Moments() for _ in readings]
        self.similar: Similarities | None = None

    def add(self, batch: Batch) -> None:
        """Run both networks on a batch."""
        pair, rows = self.pair, len(batch.rows)
        grams: tuple[dict[str, Tensor], dict[str, Tensor]] = ({}, {})
        answers = []
        for number, subject in enumerate((pair.a, pair.b)):
            if pair.recorders is None or rows < LEAST_ROWS:
                made = subject.run(batch.positional, batch.keywords)
            else:
                with pair.recorders[number].grams(grams[number], rows):
                    made = subject.run(batch.positional, batch.keywords)
            answers.append(tensor_leaves(made))
        self.rows.append(batch.rows)
        for number, (output, reading) in enumerate(zip(pair.outputs, self.readings, strict=True)):
            sides = [
                rows_first(answers[side][output.numbers[side]][1], output.axes[side], rows).cpu() for side in (0, 1)
            ]
            found = measure(sides[0], sides[1], reading, batch.labels if number == 0 else None)
            self.batches[number].append(found)
            self.moments[number].add(sides[0])
        if grams[0] and grams[1]:
            if self.similar is None:
                self.similar = Similarities(_pairs(self.layers, *grams))
            self.similar.add(*grams)

    def scores(self, resamples: int, confidence: float, seed: int, method: str) -> tuple[OutputScore, ...]:
        """Every output's score."""
        return tuple(
            _score(
                output, reading, columns(batches), torch.cat(self.rows), moments, (resamples, confidence, seed, method)
            )
            for output, reading, batches, moments in zip(
                self.pair.outputs, self.readings, self.batches, self.moments, strict=True
            )
        )

    def similarities(self, confidence: float) -> tuple[LayerSimilarity, ...]:
        """CKA of the matched layers."""
        if self.similar is None or self.pair.recorders is None:
            return ()
        one, two = self.pair.recorders
        found = ((pair, self.similar.estimate(pair, confidence)) for pair in self.similar.pairs)
        return tuple(
            LayerSimilarity(*pair, (one.sizes[pair[0]], two.sizes[pair[1]]), cka)
            for pair, cka in found
            if cka is not None
        )

    def notes(self) -> list[str]:
        """What was left out."""
        if self.pair.recorders is None:
            return []
        if self.similar is None:
            return [f"similarity of layers: needs batches of at least {LEAST_ROWS} inputs and layers with parameters"]
        left = [
            f"layer {name!r} of network {'ab'[side]}: {reason}"
            for side, recorder in enumerate(self.pair.recorders)
            for name, reason in recorder.left_out.items()
        ]
        still = [pair for pair in self.similar.pairs if self.similar.estimate(pair, 0.95) is None]
        left += [f"layer {one!r}: does not vary over these inputs" for one, _ in still]
        return left[:6] + ([f"and {len(left) - 6} more layers are left out"] if len(left) > 6 else [])


def _pairs(
    layers: str | Mapping[str, str] | None, left: Mapping[str, Tensor], right: Mapping[str, Tensor]
) -> list[tuple[str, str]]:
    """Which layer of the one network stands against which of the other."""
    one, two = list(left), list(right)
    if isinstance(layers, Mapping):
        for name, known in [*((n, one) for n in layers), *((n, two) for n in layers.values())]:
            if name not in known:
                raise ScoreError(
                    f"layers: no layer {clean(repr(name), 60)}", hint=f"there are {clean(', '.join(known), 200)}"
                )
        return list(layers.items())
    if layers == "name" or (layers == "auto" and set(one) == set(two)):
        return [(name, name) for name in one if name in right]
    if len(one) == len(two):
        return list(zip(one, two, strict=True))
    return [(one[i], two[j]) for i, j in pairs_in_order(similarity_matrix(left, right))]


def _score(
    output: Output,
    reading: Reading,
    found: dict[str, Tensor],
    rows: Tensor,
    moments: Moments,
    settings: tuple[int, float, int, str],
) -> OutputScore:
    resamples, confidence, seed, method = settings
    for name in ("right", "loss"):
        if f"{name}_a" in found:
            found[f"{name}_change"] = found[f"{name}_b"] - found[f"{name}_a"]
    drawn = Resamples(found, resamples, confidence, seed, method)
    worst = int(found["error"].argmax())

    def pair(name: str) -> tuple[float, float] | None:
        return (float(found[f"{name}_a"].mean()), float(found[f"{name}_b"].mean())) if f"{name}_a" in found else None

    return OutputScore(
        name=output.name,
        kind=reading.kind,
        class_axis=reading.class_axis,
        shape=output.shape,
        max_error=float(found["error"][worst]),
        worst=int(rows[worst]),
        spread=float(moments.spread),
        size=float(moments.size),
        relative_l2=drawn.root_ratio("square", "norm"),
        kl=drawn.mean("kl") if "kl" in found else None,
        kl_reverse=drawn.mean("kl_reverse") if "kl" in found else None,
        agreement=drawn.agreement("agreement") if "agreement" in found else None,
        accuracy=pair("right"),
        accuracy_change=drawn.change("right_a", "right_b", "right_change") if "right_a" in found else None,
        loss=pair("loss"),
        loss_change=drawn.mean("loss_change") if "loss_a" in found else None,
        not_finite=(int(found["broken_a"].sum()), int(found["broken_b"].sum())),
    )
