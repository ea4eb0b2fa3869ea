"""How does one continuous field hold a network at every width? ``field(spec, sizes) -> state``."""

from metanet.fields.conditioned import ConditionedField
from metanet.fields.descriptor import DescriptorField, Task, train_family
from metanet.fields.distil import Recipe, certify, distil
from metanet.fields.field import Field
from metanet.fields.fitting import sizes_of, varying
from metanet.fields.folder import StoredField, open_field, quantised, save_field
from metanet.fields.generate import Skeletons, materialise
from metanet.fields.knots import KnotsField
from metanet.fields.mlp import MlpField
from metanet.fields.order import ordered
from metanet.fields.places import Sampling
from metanet.fields.settings import FieldSettings
from metanet.fields.statistics import estimate
from metanet.fields.training import Training, train

__all__ = [
    "ConditionedField",
    "DescriptorField",
    "Field",
    "FieldSettings",
    "KnotsField",
    "MlpField",
    "Recipe",
    "Sampling",
    "Skeletons",
    "StoredField",
    "Task",
    "Training",
    "certify",
    "distil",
    "estimate",
    "materialise",
    "open_field",
    "ordered",
    "quantised",
    "save_field",
    "sizes_of",
    "train",
    "train_family",
    "varying",
]
