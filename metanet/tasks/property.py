"""Predict a number or a class of a network from its weights: what is learned, measured and kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from metanet.errors import ConfigError, TaskError
from metanet.graph import GraphBatch
from metanet.tasks import metrics
from metanet.tasks.batches import by_architecture, random_batches
from metanet.tasks.boosting import BoostingOptions
from metanet.tasks.build import build_model, prepare_model
from metanet.tasks.coverage import Coverage
from metanet.tasks.data import PropertyData
from metanet.tasks.encoding import Encoding
from metanet.tasks.options import check_options
from metanet.tasks.property_trees import (
    FEATURES,
    choose_share,
    features_of,
    fit_property_trees,
    inverted_inputs,
    tree_scores,
)
from metanet.train import Extras, Monitor

PROPERTY_NAME, TREES_NAME, INPUTS_NAME = "property.json", "trees.safetensors", "inputs.safetensors"
FORMAT = "metanet.property/1"
KINDS = ("auto", "regression", "classification")
LOSSES = ("huber", "squared")
_CHUNK = 256


@dataclass(frozen=True)
class PropertyTask:
    """Predict one column of an index.

    Attributes:
        column: The column; the data are made for it.
        kind: "regression", "classification", or "auto": labels are classes, numbers are numbers.
        transform: Scale on which numbers are learned, see `TargetTransform`.
        batch: Networks per step, about.
        chunk: Networks of one architecture that go together, about: larger is faster and mixes less.
        objective: For numbers: "huber" (linear beyond one deviation: broken networks do not rule) or "squared".
        rank: Weight of an additional loss on the order of the pairs in a batch; 0 for none.
        balanced: For labels: every class counts the same in the loss, however rare it is.
        jitter: In training every weight is multiplied by 1 + jitter times a normal number, drawn anew at every step: it
            keeps a model with few networks to learn from from knowing them by heart. The statistics stay as they are.
        best_by: Validation metric that chooses the epoch; "auto" takes the loss.
        ensemble: Also fit boosted trees on `features`, and average both.
        features: What the trees see: "statistics" of the layers; "rich": statistics in the canonical gauge, which the
            whole group leaves alone; "responses": also answers to random smooth inputs; "inverted": also answers to
            inputs that the better training networks agree on. What runs networks needs graphs with their program.
        share: Share of the metanetwork in the average; -1 chooses it on the validation part.
        boosting: How the trees are grown.
    """

    column: str
    kind: str = "auto"
    transform: str = "auto"
    batch: int = 48
    chunk: int = 16
    objective: str = "huber"
    rank: float = 0.0
    balanced: bool = False
    jitter: float = 0.3
    best_by: str = "auto"
    ensemble: bool = True
    features: str = "statistics"
    share: float = -1.0
    boosting: BoostingOptions = field(default_factory=BoostingOptions)

    def __post_init__(self) -> None:
        for name, good, expected in (
            ("kind", self.kind in KINDS, f"one of {', '.join(KINDS)}"),
            ("objective", self.objective in LOSSES, f"one of {', '.join(LOSSES)}"),
            ("features", self.features in FEATURES, f"one of {', '.join(FEATURES)}"),
            ("batch", self.batch >= 1, "1 or more"),
            ("chunk", self.chunk >= 1, "1 or more"),
            ("rank", self.rank >= 0, "0 or more"),
            ("jitter", 0 <= self.jitter < 1, "from 0 to below 1"),
            ("share", self.share == -1 or 0 <= self.share <= 1, "from 0 to 1, or -1 to choose it"),
        ):
            if not good:
                raise ConfigError(f"{getattr(self, name)!r} given, expected {expected}", where=f"task.{name}")

    @classmethod
    def from_mapping(cls, options: Mapping[str, Any]) -> PropertyTask:
        """The task of a configuration.

        Raises:
            ConfigError: Unknown keys, or values of the wrong type or out of range.
        """
        given = {key: value for key, value in options.items() if key not in ("name", "task", "boosting")}
        boosting = BoostingOptions(**check_options(BoostingOptions, options.get("boosting") or {}, "task.boosting"))
        return cls(**check_options(cls, given, "task"), boosting=boosting)

    @property
    def monitor(self) -> Monitor:
        name = "val_loss" if self.best_by == "auto" else self.best_by
        return Monitor(name, name not in ("val_loss", "val_mae"))

    def describe(self) -> dict[str, Any]:
        return {"task": "property", **asdict(self)}

    def encoding(self, data: PropertyData) -> Encoding:
        """How the targets of these data are learned; decided by the training part alone."""
        return data.remember(
            ("encoding", self.kind, self.transform), lambda: Encoding.fit(data, self.kind, self.transform)
        )

    def model(self, data: PropertyData, options: Mapping[str, Any], generator: torch.Generator) -> nn.Module:
        model = build_model(options, self.encoding(data).outputs, generator)
        prepare_model(model, data.batch.select(data.part("train").tolist()))
        return model

    def batches(self, data: PropertyData, generator: torch.Generator) -> Sequence[Tensor]:
        groups = data.remember("by architecture", lambda: by_architecture(data.graphs, data.part("train").tolist()))
        return random_batches(groups, self.batch, self.chunk, generator)

    def loss(self, model: nn.Module, data: PropertyData, batch: Tensor, generator: torch.Generator) -> Tensor:
        device = next(model.parameters()).device
        targets = self.targets(data)[batch].to(device)
        outputs = model(jittered(data.batch.select(batch), self.jitter, generator).to(device))
        return self.loss_of(outputs, targets, self.class_weights(data))

    def class_weights(self, data: PropertyData) -> Tensor | None:
        """What each class counts in the loss: the mean over the training part is one; None where all count the same.

        Shapes:
            return: (classes,)
        """
        encoding = self.encoding(data)
        if not (self.balanced and encoding.classes):
            return None
        counts = np.bincount(encoding.encode(data.targets[data.part("train")]), minlength=encoding.outputs)
        return torch.from_numpy(counts.sum() / (len(counts) * counts)).float()

    def targets(self, data: PropertyData) -> Tensor:
        """All targets as they are learned: numbers on the scale, or class numbers.

        Shapes:
            return: (n,)
        """
        encoding = self.encoding(data)
        return data.remember(("targets", encoding), lambda: torch.from_numpy(encoding.encode(data.targets)))

    def loss_of(self, outputs: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
        """The loss of outputs against encoded targets.

        Args:
            outputs: What the model says.
            targets: What is true.
            weights: What each class counts.

        Shapes:
            outputs: (n, outputs)
            targets: (n,)
        """
        if not targets.is_floating_point():
            each = nn.functional.cross_entropy(outputs, targets, reduction="none")
            return each.mean() if weights is None else (each * weights.to(each)[targets]).mean()
        values, wanted = outputs[:, 0], targets.to(outputs.dtype)
        error = (
            nn.functional.huber_loss(values, wanted) if self.objective == "huber" else (values - wanted).square().mean()
        )
        if not self.rank:
            return error
        # A pair's loss is that of a logistic regression on the difference (RankNet, Burges et al. 2005).
        sign = torch.sign(wanted[:, None] - wanted[None])
        pairs = nn.functional.softplus(-2 * sign * (values[:, None] - values[None])) * sign.abs()
        return error + self.rank * pairs.sum() / sign.abs().sum().clamp(min=1)

    def metrics(self, model: nn.Module, data: PropertyData) -> dict[str, float]:
        return self.validate(outputs_of(model, data.batch.select(data.part("val").tolist())), data)

    def validate(self, outputs: NDArray[np.float32], data: PropertyData) -> dict[str, float]:
        """Loss and metrics of a model's outputs for the validation part.

        Shapes:
            outputs: (networks of the validation part, outputs)

        Raises:
            TaskError: The validation part is empty.
        """
        places = data.part("val")
        if not len(places):
            raise TaskError("the validation part is empty", hint="give it a share of the groups")
        targets = self.targets(data)[torch.from_numpy(places)]
        loss = float(self.loss_of(torch.from_numpy(outputs), targets, self.class_weights(data)))
        return {"val_loss": loss, **self.measure(data, places, self.encoding(data).scores(outputs), "val_")}

    def measure(
        self, data: PropertyData, places: NDArray[np.intp], scores: NDArray[np.float64], prefix: str = ""
    ) -> dict[str, float]:
        """The metrics of some scores at some places."""
        true, encoding = data.targets[places], self.encoding(data)
        predicted = encoding.decode(scores)
        if encoding.classes:
            found = {
                "balanced_accuracy": metrics.balanced_accuracy(predicted, true),
                "accuracy": metrics.accuracy(predicted, true),
            }
        else:
            found = {
                "tau": metrics.kendall_tau(scores[:, 0], true),
                "r2": metrics.r_squared(predicted, true),
                "mae": metrics.mean_absolute_error(predicted, true),
            }
        return {prefix + name: value for name, value in found.items()}

    def complete(self, model: nn.Module, data: PropertyData, generator: torch.Generator) -> Extras:
        encoding, val = self.encoding(data), data.part("val")
        train = [data.graphs[i].spec for i in data.part("train")]
        scores = encoding.scores(outputs_of(model, data.batch.select(val.tolist())))
        record: dict[str, Any] = {
            "format": FORMAT,
            "column": self.column,
            "encoding": encoding.to_json(),
            "coverage": Coverage.of(train).to_json(),
            "validation": {"metanet": _finite(self.measure(data, val, scores))},
            "share": 1.0,
            "features": self.features,
        }
        if not self.ensemble:
            return Extras({}, {PROPERTY_NAME: record})
        seed = int(torch.randint(2**31, (1,), generator=generator))
        trees = fit_property_trees(self, data, seed)
        inverted = inverted_inputs(self, data, seed)
        others = tree_scores(encoding, trees, features_of(self, data, seed)[val])
        share = self.share if self.share >= 0 else choose_share(encoding, scores, others, data.targets[val])
        average = share * scores + (1 - share) * others
        record["share"] = share
        record["validation"]["trees"] = _finite(self.measure(data, val, others))
        record["validation"]["average"] = _finite(self.measure(data, val, average))
        tensors = {TREES_NAME: trees.tensors()}
        if inverted is not None and inverted.inputs:
            tensors[INPUTS_NAME] = inverted.tensors()
        return Extras(tensors, {PROPERTY_NAME: record})


def jittered(batch: GraphBatch, deviation: float, generator: torch.Generator) -> GraphBatch:
    """A batch whose weights are multiplied by random factors around one; what was computed of it before is kept.

    Args:
        batch: The networks.
        deviation: Standard deviation of the factors; 0 gives the batch back.
        generator: Where the factors come from.
    """
    if not deviation:
        return batch

    def shaken(value: Tensor | None) -> Tensor | None:
        if value is None:
            return None
        noise = torch.randn(value.shape, generator=generator, dtype=value.dtype)
        # A factor stays positive: a variance must not change its sign.
        return value * (1 + deviation * noise).clamp(min=0.1)

    buckets = (replace(bucket, values=tuple(map(shaken, bucket.values))) for bucket in batch)
    return GraphBatch(tuple(buckets), batch.size)


def outputs_of(model: nn.Module, batch: GraphBatch) -> NDArray[np.float32]:
    """What a model says of a batch of any size, computed in chunks.

    Shapes:
        return: (n, outputs)
    """
    device = next(model.parameters()).device
    parts = []
    with torch.no_grad():
        for start in range(0, len(batch), _CHUNK):
            part = batch.select(range(start, min(start + _CHUNK, len(batch)))).to(device)
            parts.append(model(part).cpu().numpy())
    return np.concatenate(parts)


def _finite(values: Mapping[str, float]) -> dict[str, float | None]:
    return {name: value if np.isfinite(value) else None for name, value in values.items()}
