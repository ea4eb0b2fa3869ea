"""What can a metanetwork be trained for? Tasks, their data, their measures, and the baselines beside them."""

from metanet.tasks.boosting import BoostedTrees, BoostingOptions, fit_trees
from metanet.tasks.build import build_model
from metanet.tasks.coverage import Coverage
from metanet.tasks.data import PropertyData, PropertyItem, flat_weights, property_data, statistics_of
from metanet.tasks.evaluate import Evaluation, ModelScore, evaluate, training_curves
from metanet.tasks.labelled import LabelledFolder, labelled_folder
from metanet.tasks.methods import (
    ConstantMethod,
    FlatMethod,
    LinearMethod,
    MetanetMethod,
    Method,
    Result,
    TreesMethod,
    average,
    measure_all,
)
from metanet.tasks.metrics import (
    Interval,
    accuracy,
    balanced_accuracy,
    bootstrap_interval,
    kendall_tau,
    majority_class,
    mean_absolute_error,
    r_squared,
)
from metanet.tasks.nested import OuterFold, Plan, nested_cross_validation
from metanet.tasks.place_predict import PlaceModel, PlacePrediction, evaluate_places
from metanet.tasks.place_task import EdgeTask, PlaceTask, UnitTask
from metanet.tasks.places import PlaceData, PlaceItem, place_data
from metanet.tasks.predict import Prediction, PropertyModel, predict
from metanet.tasks.property import PropertyTask
from metanet.tasks.registry import task_from_mapping
from metanet.tasks.splits import check_no_leak, group_folds, split_by_group
from metanet.tasks.targets import TargetTransform

__all__ = [
    "BoostedTrees",
    "BoostingOptions",
    "ConstantMethod",
    "Coverage",
    "EdgeTask",
    "Evaluation",
    "FlatMethod",
    "Interval",
    "LabelledFolder",
    "LinearMethod",
    "MetanetMethod",
    "Method",
    "ModelScore",
    "OuterFold",
    "PlaceData",
    "PlaceItem",
    "PlaceModel",
    "PlacePrediction",
    "PlaceTask",
    "Plan",
    "Prediction",
    "PropertyData",
    "PropertyItem",
    "PropertyModel",
    "PropertyTask",
    "Result",
    "TargetTransform",
    "TreesMethod",
    "UnitTask",
    "accuracy",
    "average",
    "balanced_accuracy",
    "bootstrap_interval",
    "build_model",
    "check_no_leak",
    "evaluate",
    "evaluate_places",
    "fit_trees",
    "flat_weights",
    "group_folds",
    "kendall_tau",
    "labelled_folder",
    "majority_class",
    "mean_absolute_error",
    "measure_all",
    "nested_cross_validation",
    "place_data",
    "predict",
    "property_data",
    "r_squared",
    "split_by_group",
    "statistics_of",
    "task_from_mapping",
    "training_curves",
]
