"""Which weight changes leave a network's function alone? Derive the group of any model, act with it, verify it."""

from symmetry import testing
from symmetry.action import act
from symmetry.align import (
    Barrier,
    Universe,
    WidthMatching,
    align,
    align_many,
    barrier,
    interpolate,
    match_widths,
    repair,
)
from symmetry.analyze import SymmetryReport, analyze
from symmetry.elements import GroupElement
from symmetry.errors import SpecError, SymmetryError, TraceError
from symmetry.factors import LinearFactor, LinearSlot, ShiftFactor, ShiftStep, Slot
from symmetry.frames import canonicalize, gauge_distance
from symmetry.moments import act_fisher, act_gradient, act_optimizer
from symmetry.null_directions import NullDirections, null_directions
from symmetry.order import smooth, total_variation
from symmetry.spaces import Atom, Axis, Concat, Fixed, NeuronSpace, Product
from symmetry.spec import Factor, Pin, SymmetrySpec, TensorInfo
from symmetry.storage import load_element, save_element
from symmetry.trace import rule_table, trace
from symmetry.verify import Verification, verify

__all__ = [
    "Atom",
    "Axis",
    "Barrier",
    "Concat",
    "Factor",
    "Fixed",
    "GroupElement",
    "LinearFactor",
    "LinearSlot",
    "NeuronSpace",
    "NullDirections",
    "Pin",
    "Product",
    "ShiftFactor",
    "ShiftStep",
    "Slot",
    "SpecError",
    "SymmetryError",
    "SymmetryReport",
    "SymmetrySpec",
    "TensorInfo",
    "TraceError",
    "Universe",
    "Verification",
    "WidthMatching",
    "act",
    "act_fisher",
    "act_gradient",
    "act_optimizer",
    "align",
    "align_many",
    "analyze",
    "canonicalize",
    "gauge_distance",
    "barrier",
    "interpolate",
    "load_element",
    "match_widths",
    "repair",
    "null_directions",
    "rule_table",
    "save_element",
    "smooth",
    "testing",
    "total_variation",
    "trace",
    "verify",
]
