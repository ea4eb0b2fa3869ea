"""Networks that read networks: the strict metanetwork, and statistics of layers as its strong simple rival."""

from metanet.nn.layer import MessageLayer
from metanet.nn.model import LEVELS, Metanet
from metanet.nn.quasi import GaugeHead, Moved
from metanet.nn.quasi_check import OrbitCheck, check_orbit, orbit_distance
from metanet.nn.quasi_refine import GaugeDescent, GaugeSearch
from metanet.nn.quasi_state import MovedState
from metanet.nn.responses import Responses
from metanet.nn.rich import RICH, rich_statistics
from metanet.nn.statistics import STATISTICS, bucket_statistics, layer_statistics
from metanet.nn.sweep_layer import SweepLayer
from metanet.nn.waves import Waves

__all__ = [
    "LEVELS",
    "RICH",
    "STATISTICS",
    "GaugeDescent",
    "GaugeHead",
    "GaugeSearch",
    "MessageLayer",
    "Metanet",
    "Moved",
    "MovedState",
    "OrbitCheck",
    "Responses",
    "SweepLayer",
    "Waves",
    "bucket_statistics",
    "check_orbit",
    "layer_statistics",
    "orbit_distance",
    "rich_statistics",
]
