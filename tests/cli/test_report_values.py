"""Does a training's report say what its boosted trees have really seen?"""

import pytest

from metanet.commands._report_values import FEATURES, model_row, verdict
from metanet.tasks import Evaluation, ModelScore
from metanet.tasks.property_trees import FEATURES as KNOWN


def evaluation(features):
    scores = [ModelScore("average", "model", "", {"tau": 0.8}), ModelScore("trees", "baseline", "", {"tau": 0.9})]
    return Evaluation("x", "test", "tau", tuple(scores), (), (), (), (), 0.25, 0, features)


@pytest.mark.parametrize("features", KNOWN)
def test_the_features_of_the_trees_are_called_by_their_name(features):
    result = evaluation(features)
    words = FEATURES[features]
    assert f"25% metanetwork and 75% gradient boosting on {words}, the share" in verdict(result)
    assert f"it is NOT the best: {words} + gradient boosting has 0.900" in verdict(result)
    assert model_row(result.models[1], result)["name"] == f"{words} + gradient boosting"
    assert ("layer statistics" in verdict(result)) == (features == "statistics")


def test_every_kind_of_features_has_a_name_of_its_own():
    assert set(FEATURES) == set(KNOWN)
    assert len(set(FEATURES.values())) == len(KNOWN)
