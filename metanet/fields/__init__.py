"""How does one continuous field hold a network at every width? ``field(spec, sizes) -> state``."""

from metanet.fields.field import Field
from metanet.fields.fitting import sizes_of, varying
from metanet.fields.generate import Skeletons, materialise
from metanet.fields.knots import KnotsField
from metanet.fields.mlp import MlpField
from metanet.fields.places import Sampling

__all__ = ["Field", "KnotsField", "MlpField", "Sampling", "Skeletons", "materialise", "sizes_of", "varying"]
