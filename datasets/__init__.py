"""Where do networks to learn from come from? Zoos: built, stored, verified and read."""

from .build import BuildProgress, build_zoo
from .config import ZooConfig
from .images import ImageData, load_digits_dataset, load_images, load_mnist_dataset
from .importing import LAYOUTS, import_zoo, read_layout
from .inr import SirenBatch, coordinates
from .inr_config import InrConfig
from .inr_folders import read_inr_folders
from .packaged import load_zoo_config, zoo_config_names
from .published import PublishedNetwork, PublishedZoo
from .small_cnn_zoo import read_small_cnn_zoo
from .transformer_zoo import read_transformer_zoo
from .verify import VerifyReport, verify_zoo
from .zoo import Index, Zoo, ZooEntry

__all__ = [
    "BuildProgress",
    "ImageData",
    "Index",
    "InrConfig",
    "LAYOUTS",
    "PublishedNetwork",
    "PublishedZoo",
    "SirenBatch",
    "VerifyReport",
    "Zoo",
    "ZooConfig",
    "ZooEntry",
    "build_zoo",
    "coordinates",
    "import_zoo",
    "load_digits_dataset",
    "load_images",
    "load_mnist_dataset",
    "load_zoo_config",
    "read_inr_folders",
    "read_layout",
    "read_small_cnn_zoo",
    "read_transformer_zoo",
    "verify_zoo",
    "zoo_config_names",
]
