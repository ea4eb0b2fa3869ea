"""How are boosted trees fitted, kept without pickle, and evaluated from their arrays alone?

scikit-learn grows the trees (Friedman 2001, 2002: stochastic gradient boosting); what is kept is a handful of arrays,
and the evaluation here is a few lines of numpy that agree with scikit-learn's to the last bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from metanet.errors import ConfigError, TaskError

_CHUNK = 2048


@dataclass(frozen=True)
class BoostingOptions:
    """How the trees are grown.

    Attributes:
        trees: Rounds of boosting.
        rate: What each round's tree counts.
        depth: Largest depth of a tree.
        subsample: Share of the examples that each tree sees.
        features: Share of the features that each split may choose from.
        leaf: Fewest examples in a leaf.

    Raises:
        ConfigError: An option is out of its range.
    """

    trees: int = 400
    rate: float = 0.04
    depth: int = 5
    subsample: float = 0.6
    features: float = 0.25
    leaf: int = 3

    def __post_init__(self) -> None:
        for name, good, expected in (
            ("trees", self.trees >= 1, "1 or more"),
            ("rate", 0 < self.rate <= 1, "above 0, at most 1"),
            ("depth", 1 <= self.depth <= 32, "from 1 to 32"),
            ("subsample", 0 < self.subsample <= 1, "above 0, at most 1"),
            ("features", 0 < self.features <= 1, "above 0, at most 1"),
            ("leaf", self.leaf >= 1, "1 or more"),
        ):
            if not good:
                raise ConfigError(f"{getattr(self, name)!r} given, expected {expected}", where=f"task.boosting.{name}")


@dataclass(frozen=True, eq=False)
class BoostedTrees:
    """An ensemble of trees as arrays; all nodes of all trees stand one after the other.

    Attributes:
        outputs: Columns of the answer: 1 for regression and two classes, else the number of classes.
        rate: Factor of each tree.
        base: What the answer is before the first tree.
        feature: Which feature a node asks for; negative at leaves.
        threshold: A node's left child is taken where the feature is at most this.
        left: Index of the left child.
        right: Index of the right child.
        value: What a leaf answers.
        roots: Index of each tree's root; tree t belongs to output `t % outputs`.
        inputs: Number of features.
    """

    outputs: int
    rate: float
    base: NDArray[np.float64]
    feature: NDArray[np.int64]
    threshold: NDArray[np.float64]
    left: NDArray[np.int64]
    right: NDArray[np.int64]
    value: NDArray[np.float64]
    roots: NDArray[np.int64]
    inputs: int

    def raw(self, features: ArrayLike) -> NDArray[np.float64]:
        """The sum of the trees: the prediction itself, or the scores of the classes.

        Shapes:
            features: (n, inputs)
            return: (n, outputs)
        """
        # Trees compare numbers of 32 bits, as they were when the thresholds were chosen.
        x = _matrix(features, self.inputs).astype(np.float32)
        parts = [self._raw(x[start : start + _CHUNK]) for start in range(0, len(x), _CHUNK)]
        return np.concatenate(parts) if parts else np.zeros((0, self.outputs))

    def _raw(self, x: NDArray[np.float32]) -> NDArray[np.float64]:
        node = np.repeat(self.roots[None], len(x), axis=0)
        rows = np.arange(len(x))[:, None]
        while True:
            asked = self.feature[node]
            inner = asked >= 0
            if not inner.any():
                break
            goes_left = x[rows, np.where(inner, asked, 0)] <= self.threshold[node]
            node = np.where(inner, np.where(goes_left, self.left[node], self.right[node]), node)
        answers = np.repeat(self.base[None], len(x), axis=0)
        leaves = self.value[node]
        for tree in range(len(self.roots)):
            # One after the other, as they were fitted: the same order of additions gives the same bits.
            answers[:, tree % self.outputs] += self.rate * leaves[:, tree]
        return answers

    def probabilities(self, features: ArrayLike) -> NDArray[np.float64]:
        """The probability of each class, for trees that were fitted to classes.

        Shapes:
            features: (n, inputs)
            return: (n, classes)
        """
        raw = self.raw(features)
        if self.outputs == 1:
            positive = 1 / (1 + np.exp(-np.clip(raw[:, 0], -700, 700)))
            return np.stack([1 - positive, positive], axis=1)
        powers = np.exp(raw - raw.max(axis=1, keepdims=True))
        return powers / powers.sum(axis=1, keepdims=True)

    def tensors(self) -> dict[str, Tensor]:
        """Everything as tensors, for a safetensors file."""
        names = ("base", "feature", "threshold", "left", "right", "value", "roots")
        arrays = {name: torch.from_numpy(np.ascontiguousarray(getattr(self, name))) for name in names}
        scalars = torch.tensor([self.outputs, self.inputs, self.rate], dtype=torch.float64)
        return {**arrays, "outputs_inputs_rate": scalars}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> BoostedTrees:
        """The trees that `tensors` told of, checked so that evaluation ends and stays inside the arrays.

        Raises:
            TaskError: Not such tensors.
        """
        try:
            arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
            outputs, inputs, rate = arrays.pop("outputs_inputs_rate").tolist()
            trees = cls(outputs=int(outputs), inputs=int(inputs), rate=float(rate), **arrays)
            size = len(trees.value)
            inner = np.flatnonzero(trees.feature >= 0)
            good = (
                all(len(getattr(trees, name)) == size for name in ("feature", "threshold", "left", "right"))
                and trees.base.shape == (trees.outputs,)
                and trees.feature.max(initial=-1) < trees.inputs
                and trees.roots.min(initial=0) >= 0
                and trees.roots.max(initial=-1) < size
                # Children stand behind their parents, so a walk cannot go in circles.
                and all(((child[inner] > inner) & (child[inner] < size)).all() for child in (trees.left, trees.right))
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise TaskError(f"not the arrays of boosted trees ({error!r})") from error
        if not good:
            raise TaskError("not the arrays of boosted trees: indices out of range")
        return trees


def fit_trees(
    features: ArrayLike,
    targets: ArrayLike,
    classes: int,
    seed: int,
    options: BoostingOptions | None = None,
    weights: ArrayLike | None = None,
) -> BoostedTrees:
    """Boosted trees for numbers (`classes=0`) or for class numbers from 0 to `classes - 1`.

    Args:
        features: What is known of each example.
        targets: What is to be predicted.
        classes: Number of classes; 0 for regression.
        seed: Decides which examples and features each tree sees.
        options: How the trees are grown.
        weights: What each example counts.

    Shapes:
        features: (n, inputs)
        targets, weights: (n,)

    Raises:
        TaskError: Features that are not finite, fewer than two examples, or a class without any.
    """
    x, y = _matrix(features, None), np.asarray(targets)
    if len(x) < 2 or len(x) != len(y):
        raise TaskError(f"{len(x)} examples with {len(y)} targets: expected at least two, and as many")
    options = options or BoostingOptions()
    if classes and len(np.unique(y)) != classes:
        raise TaskError(
            f"training examples of {len(np.unique(y))} classes, expected all {classes}",
            hint="use other groups or folds",
        )
    model = _grower(classes, seed, options)
    base = np.zeros(classes if classes > 2 else 1)
    if not classes:
        base[0] = float(np.mean(y))
        y = y - base[0]
    model.fit(x, y, sample_weight=weights)
    return _arrays(model, base, x.shape[1], options.rate)


def _grower(classes: int, seed: int, options: BoostingOptions) -> Any:
    from sklearn.ensemble import GradientBoostingClassifier, GradientBoostingRegressor

    shared: dict[str, Any] = {
        "init": "zero",
        "n_estimators": options.trees,
        "learning_rate": options.rate,
        "max_depth": options.depth,
        "subsample": options.subsample,
        "max_features": options.features,
        "min_samples_leaf": options.leaf,
        "random_state": seed % 2**32,
    }
    return GradientBoostingClassifier(**shared) if classes else GradientBoostingRegressor(**shared)


def _arrays(model: Any, base: NDArray[np.float64], inputs: int, rate: float) -> BoostedTrees:
    parts: dict[str, list[NDArray[Any]]] = {key: [] for key in ("feature", "threshold", "left", "right", "value")}
    roots, size = [], 0
    for stage in model.estimators_:
        for grown in stage:
            tree = grown.tree_
            parts["feature"].append(tree.feature.astype(np.int64))
            parts["threshold"].append(tree.threshold.astype(np.float64))
            parts["left"].append(tree.children_left.astype(np.int64) + size)
            parts["right"].append(tree.children_right.astype(np.int64) + size)
            parts["value"].append(tree.value[:, 0, 0].astype(np.float64))
            roots.append(size)
            size += tree.node_count
    joined = {key: np.concatenate(value) for key, value in parts.items()}
    return BoostedTrees(len(base), rate, base, roots=np.array(roots, np.int64), inputs=inputs, **joined)


def _matrix(features: ArrayLike, inputs: int | None) -> NDArray[np.float64]:
    x = np.asarray(features, dtype=np.float64)
    if x.ndim != 2 or (inputs is not None and x.shape[1] != inputs):
        raise TaskError(f"features of shape {x.shape}, expected (n, {inputs if inputs is not None else 'inputs'})")
    # Trees read 32 bits; what is larger would become infinite there.
    limit = float(np.finfo(np.float32).max)
    if not np.isfinite(x).all():
        raise TaskError("features hold NaN or infinities", hint="leave out networks whose weights are not finite")
    return np.clip(x, -limit, limit)
