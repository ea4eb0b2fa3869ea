"""How is a network brought into another shape, and what did that do to its function?"""

from metanet.morph.apply import Morph, Record, apply, undo
from metanet.morph.edits import Edit, Keep, Merge, ModuleEdit, Permute, Rescale, SpaceEdit, StateEdit, Widen
from metanet.morph.norms import Fold, recalibrate
from metanet.morph.plan import Plan
from metanet.morph.structure import ConvToLinear, Deepen, Drop, Factorise, Insert, Join, Swap

__all__ = [
    "ConvToLinear",
    "Deepen",
    "Drop",
    "Edit",
    "Factorise",
    "Fold",
    "Insert",
    "Join",
    "Keep",
    "Merge",
    "ModuleEdit",
    "Morph",
    "Permute",
    "Plan",
    "Record",
    "Rescale",
    "SpaceEdit",
    "StateEdit",
    "Swap",
    "Widen",
    "apply",
    "recalibrate",
    "undo",
]
