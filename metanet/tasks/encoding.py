"""How do targets become what a model is trained on, and its outputs what a user reads?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from metanet.errors import TaskError
from metanet.tasks.targets import TargetTransform

if TYPE_CHECKING:
    from metanet.tasks.data import PropertyData


@dataclass(frozen=True)
class Encoding:
    """Numbers on a standardised scale, or labels as class numbers.

    *Scores* are what models are compared and averaged on: standardised numbers (n, 1), or probabilities (n, classes).

    Attributes:
        classes: The labels in sorted order; empty for numbers.
        transform: The scale of numbers; None for labels.
    """

    classes: tuple[str, ...]
    transform: TargetTransform | None

    @classmethod
    def fit(cls, data: PropertyData, kind: str, transform: str) -> Encoding:
        """The encoding that the training part asks for.

        Raises:
            TaskError: Numbers wanted and labels given, a single class, or a class that only later parts have.
        """
        targets = data.targets[data.part("train")]
        if not len(targets):
            raise TaskError("the training part is empty", hint="give it a share of the groups")
        if kind == "regression" and data.labelled:
            raise TaskError(f"{data.column} holds labels such as {targets[0]!r}", hint="set task.kind=classification")
        if kind == "regression" or (kind == "auto" and not data.labelled):
            return cls((), TargetTransform.fit(transform, targets))
        classes = tuple(sorted({_label(value) for value in targets}))
        if len(classes) > max(2, len(targets) // 2):
            raise TaskError(f"{len(classes)} classes for {len(targets)} networks", hint="set task.kind=regression")
        later = sorted({_label(value) for value in data.targets} - set(classes))
        if later:
            raise TaskError(f"class {later[0]!r} of {data.column} has no training example", hint="use another split")
        if len(classes) < 2:
            raise TaskError(f"{data.column} is {classes[0]!r} throughout the training part: nothing to learn")
        return cls(classes, None)

    @property
    def outputs(self) -> int:
        """Number of outputs that a model needs."""
        return len(self.classes) or 1

    def encode(self, targets: ArrayLike) -> NDArray[Any]:
        """Targets as float32 numbers of the scale, or int64 class numbers.

        Shapes:
            targets: (n,)
            return: (n,)
        """
        values = np.asarray(targets)
        if self.transform is not None:
            return self.transform.forward(values).astype(np.float32)
        places = {label: place for place, label in enumerate(self.classes)}
        return np.array([places[_label(value)] for value in values], dtype=np.int64)

    def scores(self, outputs: NDArray[Any]) -> NDArray[np.float64]:
        """A model's outputs as scores: numbers as they are, logits as probabilities.

        Shapes:
            outputs: (n, outputs)
            return: the same
        """
        values = np.asarray(outputs, dtype=np.float64)
        if not self.classes:
            return values
        powers = np.exp(values - values.max(axis=1, keepdims=True))
        return powers / powers.sum(axis=1, keepdims=True)

    def decode(self, scores: NDArray[np.float64]) -> NDArray[Any]:
        """Scores as numbers in the user's unit, or as labels.

        Shapes:
            scores: (n, outputs)
            return: (n,)
        """
        if self.transform is not None:
            return self.transform.inverse(scores[:, 0])
        return np.array(self.classes)[np.argmax(scores, axis=1)]

    def to_json(self) -> dict[str, Any]:
        return {"classes": list(self.classes), "transform": self.transform.to_json() if self.transform else None}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Encoding:
        """The encoding that `to_json` told of.

        Raises:
            TaskError: Not such a value.
        """
        try:
            transform = TargetTransform.from_json(value["transform"]) if value["transform"] is not None else None
            encoding = cls(tuple(map(str, value["classes"])), transform)
        except (KeyError, TypeError) as error:
            raise TaskError(f"not an encoding of targets ({error!r})") from error
        if bool(encoding.classes) == (transform is not None):
            raise TaskError("not an encoding of targets: expected either classes or a transform")
        return encoding


def with_labels(data: PropertyData) -> PropertyData:
    """The same data with labels in place of numbers that stand for classes, as the digits of a picture do."""
    if data.labelled:
        return data
    return replace(data, targets=np.array([_label(value) for value in data.targets]))


def _label(value: Any) -> str:
    # A column of whole numbers used as classes reads 3, not 3.0.
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
