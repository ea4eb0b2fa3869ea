"""Where do networks to learn from come from? Zoos: built, stored, verified and read."""

from .build import BuildProgress, build_zoo
from .config import ZooConfig
from .images import ImageData, load_digits_dataset, load_images, load_mnist_dataset
from .inr import SirenBatch, coordinates
from .inr_config import InrConfig
from .packaged import load_zoo_config, zoo_config_names
from .verify import VerifyReport, verify_zoo
from .zoo import Index, Zoo, ZooEntry

__all__ = [
    "BuildProgress",
    "ImageData",
    "Index",
    "InrConfig",
    "SirenBatch",
    "VerifyReport",
    "Zoo",
    "ZooConfig",
    "ZooEntry",
    "build_zoo",
    "coordinates",
    "load_digits_dataset",
    "load_images",
    "load_mnist_dataset",
    "load_zoo_config",
    "verify_zoo",
    "zoo_config_names",
]
