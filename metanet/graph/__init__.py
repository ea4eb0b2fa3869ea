"""What does a checkpoint look like as a graph? Nodes and blocks of edges, exact round trips, batches, PyG data."""

from metanet.graph.batch import Bucket, GraphBatch, collate
from metanet.graph.builder import KINDS
from metanet.graph.finite import bad_values
from metanet.graph.graph import ParameterGraph
from metanet.graph.program import InputForm, Program, program_of
from metanet.graph.topology import Block, Group, Layer, Topology, topology_of

__all__ = [
    "KINDS",
    "Block",
    "Bucket",
    "GraphBatch",
    "Group",
    "InputForm",
    "Layer",
    "ParameterGraph",
    "Program",
    "Topology",
    "bad_values",
    "collate",
    "program_of",
    "topology_of",
]
