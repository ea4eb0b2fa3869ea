"""What do boosted trees say of the same property, on which features, and how is their share in the average chosen?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from metanet.tasks.boosting import BoostedTrees, BoostingOptions, fit_trees
from metanet.tasks.data import PropertyData
from metanet.tasks.encoding import Encoding
from metanet.tasks.inverted import Inverted, feature_matrix, invert

if TYPE_CHECKING:
    from metanet.tasks.property import PropertyTask

FEATURES = ("statistics", "rich", "responses", "inverted")


def fit_property_trees(
    task: PropertyTask, data: PropertyData, seed: int, options: BoostingOptions | None = None
) -> BoostedTrees:
    """Boosted trees on the task's features of the training part; grown as the task says, or as `options` say."""
    encoding, places = task.encoding(data), data.part("train")
    targets, weights = encoding.encode(data.targets[places]), task.class_weights(data)
    each = None if weights is None else weights.numpy()[targets]
    return fit_trees(
        features_of(task, data, seed)[places],
        targets,
        len(encoding.classes),
        seed,
        options or task.boosting,
        weights=each,
    )


def inverted_inputs(task: PropertyTask, data: PropertyData, seed: int) -> Inverted | None:
    """The inputs that the training networks agree on, made once; None for features that do without.

    Where the target is a share (an accuracy), the networks with the larger ones are asked, else all alike.
    """
    if task.features != "inverted":
        return None

    def make() -> Inverted:
        places = data.part("train")
        transform = task.encoding(data).transform
        shares = transform is not None and transform.name == "logit"
        goodness = data.targets[places].astype(float) if shares else None
        return invert(data.batch.select(places.tolist()), goodness, seed)

    found: Inverted = data.remember(("inverted", seed), make)
    return found


def features_of(task: PropertyTask, data: PropertyData, seed: int) -> NDArray[np.float64]:
    """What boosted trees see of every network of the data.

    Shapes:
        return: (n, features)
    """
    inverted = inverted_inputs(task, data, seed)
    key = ("features", task.features, seed if inverted is not None else 0)
    found: NDArray[np.float64] = data.remember(key, lambda: feature_matrix(data.batch, task.features, inverted))
    return found


def tree_scores(encoding: Encoding, trees: BoostedTrees, statistics: NDArray[np.float64]) -> NDArray[np.float64]:
    """Scores of boosted trees on the same scale as the metanetwork's.

    Shapes:
        statistics: (n, statistics)
        return: (n, 1) for numbers, (n, classes) for classes
    """
    return trees.probabilities(statistics) if encoding.classes else trees.raw(statistics)


def choose_share(
    encoding: Encoding, ours: NDArray[np.float64], theirs: NDArray[np.float64], true: NDArray[Any]
) -> float:
    """The share of the first scores in the average that fits the validation part best.

    The squared error on the scale of learning (for classes: of the probabilities) decides, with a pull to one half as
    strong as the validation part itself: that part is small, and an even average is hard to beat.

    Shapes:
        ours, theirs: (n, outputs)
    """
    wanted = encoding.encode(true)
    target = np.eye(len(encoding.classes))[wanted] if encoding.classes else wanted[:, None]
    difference = ours - theirs
    pull = float(np.square(difference).sum())
    top = float((difference * (target - theirs)).sum()) + 0.5 * pull
    bottom = 2 * pull
    return float(np.clip(top / bottom, 0, 1)) if bottom > 0 else 0.5
