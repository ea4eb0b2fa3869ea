"""How is a network brought into another shape, and what did that do to its function?"""

from metanet.morph.apply import Morph, Record, apply, undo
from metanet.morph.choose import importance, narrow, narrow_by_obs, resizable, to_sizes, widen
from metanet.morph.compensate import Compensation, obs_order
from metanet.morph.cost import Cost, cost
from metanet.morph.edits import Edit, Keep, Merge, ModuleEdit, SpaceEdit, StateEdit, Widen, Written
from metanet.morph.folder import open_folder, restore, save, undo_folder
from metanet.morph.forms import ConvToLinear, Factorise, Join
from metanet.morph.moves import Permute, Rescale
from metanet.morph.norms import Fold, recalibrate
from metanet.morph.plan import Plan
from metanet.morph.structure import Deepen, Drop, Insert, Swap
from metanet.morph.written import written

__all__ = [
    "Compensation",
    "ConvToLinear",
    "Cost",
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
    "Written",
    "apply",
    "cost",
    "importance",
    "narrow",
    "narrow_by_obs",
    "obs_order",
    "open_folder",
    "recalibrate",
    "resizable",
    "restore",
    "save",
    "to_sizes",
    "undo",
    "undo_folder",
    "widen",
    "written",
]
