"""Which biases stand right before a sine or cosine, so that half periods can be added to them?

sin(x + pi) = -sin x and cos(x + pi) = -cos x: a shift is a symmetry wherever what reads the function can take up the
sign. A whole period is one everywhere.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from symmetry.trace.export import Graph, Node, Ref
from symmetry.trace.rewrite import COPIES, VIEWS

__all__ = ["Sines", "sine_biases", "virtual"]

FUNCTIONS = ("aten.sin.default", "aten.cos.default")
PASSING = VIEWS | COPIES | {"aten.permute.default", "aten.transpose.int", "aten.t.default"}
PREFIX = "sine\0"


@dataclass(frozen=True, slots=True)
class Sines:
    """A bias that is only ever added right before sines.

    Args:
        nodes: the sines and cosines.
        half: what adds half a period to all of them.
    """

    nodes: tuple[str, ...]
    half: float


def virtual(tensor: str) -> str:
    """The name of the variable that says whether the outputs of a bias's sines change their sign."""
    return PREFIX + tensor


def is_virtual(name: str) -> bool:
    """Whether a variable belongs to the outputs of sines, not to a tensor."""
    return name.startswith(PREFIX)


def sine_biases(graph: Graph) -> dict[str, Sines]:
    """The biases, by their names in the state dict."""
    readers: dict[str, list[Node]] = {}
    for node in graph.nodes:
        for item in node.args:
            if isinstance(item, Ref):
                readers.setdefault(item.name, []).append(node)
    outputs = {reference.name for reference in graph.outputs}
    uses: dict[str, list[tuple[str, Node]]] = {}
    for place, tensor in graph.tensors.items():
        uses.setdefault(tensor, []).extend((place, node) for node in readers.get(place, []))
        if graph.users.get(place, 0) != len(readers.get(place, [])):
            uses[tensor].append((place, Node("", "", (), {}, (), False, "")))
    found = {}
    for tensor, places in uses.items():
        ends = [_sine(node, readers, outputs) if _is_bias(place, node) else None for place, node in places]
        known = [end for end in ends if end is not None]
        halves = {half for _, half in known}
        if known and len(known) == len(ends) and len(halves) == 1:
            found[tensor] = Sines(tuple(name for name, _ in known), halves.pop())
    return found


def _is_bias(place: str, node: Node) -> bool:
    """Whether a tensor is added in a node, as it is."""
    here = [number for number, item in enumerate(node.args) if isinstance(item, Ref) and item.name == place]
    if node.operation == "aten.add.Tensor":
        return len(here) == 1 and not node.kwargs
    return here == ([0] if node.operation == "aten.addmm.default" else [2]) and (
        node.operation in ("aten.addmm.default", "aten.convolution.default") and not node.kwargs
    )


def _sine(node: Node, readers: dict[str, list[Node]], outputs: set[str]) -> tuple[str, float] | None:
    """The only reader of a sum, if it is a sine behind fixed factors: its name and half its period."""
    frequency = 1.0
    while node.name not in outputs and len(readers.get(node.name, [])) == 1:
        (node,) = readers[node.name]
        if node.operation in FUNCTIONS:
            return node.name, math.pi / abs(frequency)
        if node.operation in ("aten.mul.Tensor", "aten.mul.Scalar", "aten.div.Tensor", "aten.div.Scalar"):
            numbers = [item for item in node.args if isinstance(item, int | float)]
            if len(numbers) != 1 or numbers[0] == 0 or (".div." in node.operation and node.args[1] != numbers[0]):
                return None
            frequency = frequency / numbers[0] if ".div." in node.operation else frequency * numbers[0]
        elif node.operation not in PASSING:
            return None
    return None
