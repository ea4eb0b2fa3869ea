"""Where do networks to learn from come from? Zoos: built, stored, verified and read."""

from .build import BuildProgress, build_zoo
from .config import ZooConfig
from .images import ImageData, load_digits_dataset, load_images, load_mnist_dataset
from .inr import SirenBatch, coordinates
from .inr_config import InrConfig
from .packaged import load_zoo_config, zoo_config_names
from .small_cnn_zoo import PublishedNetwork, read_small_cnn_zoo
from .verify import VerifyReport, verify_zoo
from .zoo import Index, Zoo, ZooEntry

__all__ = [
    "BuildProgress",
    "ImageData",
    "Index",
    "InrConfig",
    "PublishedNetwork",
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
    "read_small_cnn_zoo",
    "verify_zoo",
    "zoo_config_names",
]
