"""Which files hold networks, what is in them, and how do they go back to disk?"""

from metanet.checkpoint.architecture import FAMILIES, Architecture
from metanet.checkpoint.checkpoint import Checkpoint, load
from metanet.checkpoint.factory import FactoryArchitecture
from metanet.checkpoint.infer import infer
from metanet.checkpoint.readers import read
from metanet.checkpoint.save import save_checkpoint
from metanet.checkpoint.source import Raw, Source

__all__ = [
    "Architecture",
    "Checkpoint",
    "FAMILIES",
    "FactoryArchitecture",
    "Raw",
    "Source",
    "infer",
    "load",
    "read",
    "save_checkpoint",
]
