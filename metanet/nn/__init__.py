"""Networks that read networks: the strict metanetwork, and statistics of layers as its strong simple rival."""

from metanet.nn.layer import MessageLayer
from metanet.nn.model import LEVELS, Metanet
from metanet.nn.responses import Responses
from metanet.nn.rich import RICH, rich_statistics
from metanet.nn.statistics import STATISTICS, bucket_statistics, layer_statistics
from metanet.nn.sweep_layer import SweepLayer

__all__ = [
    "LEVELS",
    "RICH",
    "STATISTICS",
    "MessageLayer",
    "Metanet",
    "Responses",
    "SweepLayer",
    "bucket_statistics",
    "layer_statistics",
    "rich_statistics",
]
