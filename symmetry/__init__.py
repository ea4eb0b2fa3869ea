"""Which weight changes leave a network's function alone? Derive the group of any model, act with it, verify it."""

from symmetry.action import act
from symmetry.elements import GroupElement
from symmetry.errors import SpecError, SymmetryError, TraceError
from symmetry.spaces import Atom, Axis, Concat, Fixed, NeuronSpace, Product
from symmetry.spec import Factor, Pin, SymmetrySpec, TensorInfo
from symmetry.trace import trace

__all__ = [
    "Atom",
    "Axis",
    "Concat",
    "Factor",
    "Fixed",
    "GroupElement",
    "NeuronSpace",
    "Pin",
    "Product",
    "SpecError",
    "SymmetryError",
    "SymmetrySpec",
    "TensorInfo",
    "TraceError",
    "act",
    "trace",
]
