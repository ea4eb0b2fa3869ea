"""How far are two networks' functions apart? Both are run on the same inputs."""

from metanet.score.compare import compare
from metanet.score.many import ManyScores, compare_many
from metanet.score.preservation import Preservation
from metanet.score.probe_inputs import InputDescription, ProbeInputs
from metanet.score.subjects import Comparable
from metanet.score.values import Estimate, LayerSimilarity, Line, OutputScore

__all__ = [
    "compare",
    "compare_many",
    "Preservation",
    "ManyScores",
    "OutputScore",
    "LayerSimilarity",
    "Line",
    "Estimate",
    "InputDescription",
    "ProbeInputs",
    "Comparable",
]
