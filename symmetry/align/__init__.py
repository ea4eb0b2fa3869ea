"""How are two networks, or many, brought into the same basis, and how far apart are they then?"""

from symmetry.align.pair import align

__all__ = ["align"]
