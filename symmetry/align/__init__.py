"""How are two networks, or many, brought into the same basis, and how good is what lies between them?"""

from symmetry.align.barrier import Barrier, barrier, interpolate
from symmetry.align.many import Universe, align_many
from symmetry.align.pair import align
from symmetry.align.repair import repair
from symmetry.align.widths import WidthMatching, match_widths

__all__ = [
    "Barrier",
    "Universe",
    "WidthMatching",
    "align",
    "align_many",
    "barrier",
    "interpolate",
    "match_widths",
    "repair",
]
