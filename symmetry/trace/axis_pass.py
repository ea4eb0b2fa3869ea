"""First walk over the graph: which axes of which values run over the same units?"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from symmetry.errors import TraceError
from symmetry.trace.axes import AxisNode, Reason, join, leaves, new_leaf, pin
from symmetry.trace.export import Graph, Node, Ref
from symmetry.trace.rules import rule_for

__all__ = ["AxisPass", "Value"]


@dataclass(slots=True)
class Value:
    """The axes of one tensor value.

    Args:
        dims: one axis per dimension.
        origin: the state-dict tensor it is a permuted or stretched view of, and which of that tensor's dimensions each
            one is (``None``: none of them).
        part: whether it is only a part of that tensor (a slice, one of the chunks of a fused layer).
    """

    dims: list[AxisNode]
    origin: tuple[str, tuple[int | None, ...]] | None = None
    part: bool = False

    def placed(self, places: Sequence[int | None]) -> tuple[str, tuple[int | None, ...]] | None:
        """The origin of a view whose dimensions are these of this value."""
        if self.origin is None:
            return None
        name, mine = self.origin
        return name, tuple(None if place is None else mine[place] for place in places)


@dataclass(slots=True)
class AxisPass:
    """Walks the graph, joins and cuts axes, and records what the second walk and the spec need.

    Args:
        graph: the exported graph.
        shapes: shape of every state-dict tensor that the graph knows.
        floating: the names of those that are floating point; others are pinned.
        strict: raise on an operation without a rule instead of pinning.
    """

    graph: Graph
    shapes: dict[str, tuple[int, ...]]
    floating: set[str]
    strict: bool = False
    values: dict[str, Value | tuple[Value | None, ...]] = field(default_factory=dict)
    tensors: dict[str, list[AxisNode]] = field(default_factory=dict)
    decisions: dict[str, Any] = field(default_factory=dict)
    kinds: dict[str, str] = field(default_factory=dict)
    roles: dict[str, dict[int, str]] = field(default_factory=dict)
    offsets: dict[str, list[float]] = field(default_factory=dict)
    activations: list[tuple[str, list[AxisNode]]] = field(default_factory=list)
    mixes: list[tuple[list[AxisNode], list[AxisNode]]] = field(default_factory=list)
    ruleless: set[str] = field(default_factory=set)
    constants: set[str] = field(default_factory=set)

    def run(self) -> None:
        """Walk every node once.

        Raises:
            TraceError: in strict mode, at the first operation without a rule.
        """
        for name, tensor in self.graph.tensors.items():
            # Tied weights arrive under one name each; two placeholders of one name would be one tensor.
            reason = None if tensor in self.floating else Reason("constant")
            dims = self.tensors.setdefault(tensor, [new_leaf(size, reason) for size in self.shapes[tensor]])
            self.values[name] = Value(dims, (tensor, tuple(range(len(dims)))))
        for number, (name, shape) in enumerate(self.graph.inputs.items()):
            dims = [new_leaf(size, Reason("input", f"input.{number}.{dim}")) for dim, size in enumerate(shape)]
            self.values[name] = Value(dims)
        for name, shape in self.graph.constants.items():
            self.values[name] = Value([new_leaf(size, Reason("constant")) for size in shape])
        self.constants = set(self.graph.constants)
        for node in self.graph.nodes:
            if all(reference.name in self.constants for reference in references(node)):
                self.constants.add(node.name)
            rule = rule_for(node.operation)
            self.values[node.name] = self.without_rule(node) if rule is None else rule.axes(self, node)
        for number, reference in enumerate(self.graph.outputs):
            value = self.values[reference.name]
            for item in value if isinstance(value, tuple) else (value,):
                for dim, axis in enumerate(item.dims if item is not None else ()):
                    pin(axis, Reason("output", f"output.{number}.{dim}"))

    def value(self, reference: Any) -> Value:
        """The axes of an argument that must be a tensor."""
        found = self.values[reference.name]
        if isinstance(found, tuple):
            raise TraceError(f"node {reference.name}: a tuple where a tensor was expected")
        return found

    def fresh(self, shape: Sequence[int] | None, reason: Reason | None = None) -> Value:
        """A value whose axes are tied to nothing, fixed if a reason is given."""
        return Value([new_leaf(size, reason) for size in shape or ()])

    def without_rule(self, node: Node, text: str = "has no rule") -> Value | tuple[Value | None, ...]:
        """Pin everything that an operation touches: sound, never complete."""
        if self.strict and not all(reference.name in self.constants for reference in references(node)):
            where = f" at {node.source}" if node.source else ""
            raise TraceError(
                f"{node.operation} (node {node.name}){where} {text}; trace with strict=False to pin the axes it touches"
            )
        self.ruleless.add(node.name)
        if all(reference.name in self.constants for reference in references(node)):
            # Masks, positions and tables computed on the way: nothing that a parameter could act on is lost.
            made = tuple(None if shape is None else self.fresh(shape, Reason("constant")) for shape in node.shapes)
            return made if node.several else made[0] or Value([])
        reason = Reason("operation", operation=node.operation, node=node.name, text=text, source=node.source)
        for reference in references(node):
            found = self.values[reference.name]
            for item in found if isinstance(found, tuple) else (found,):
                for axis in item.dims if item is not None else ():
                    pin(axis, reason)
        outputs = tuple(None if shape is None else self.fresh(shape, reason) for shape in node.shapes)
        if node.several:
            return outputs
        return outputs[0] or Value([])

    def is_fixed(self, axis: AxisNode) -> bool:
        """Whether nothing can permute an axis any more."""
        return all(leaf.reasons or leaf.size == 1 for leaf in leaves(axis))

    def pin_for(self, node: Node, axes: Sequence[AxisNode], text: str) -> None:
        """Pin axes because of what one operation does to them."""
        for axis in axes:
            pin(axis, Reason("operation", operation=node.operation, node=node.name, text=text, source=node.source))

    def broadcast(self, values: Sequence[Value]) -> list[AxisNode]:
        """Join the axes of values that are combined element by element; size-1 axes stretch.

        Returns the axes of the result.
        """
        result: list[AxisNode] = []
        for place in range(1, max((len(value.dims) for value in values), default=0) + 1):
            axes = [value.dims[-place] for value in values if len(value.dims) >= place]
            size = max(axis.size for axis in axes) if all(axis.size for axis in axes) else 0
            same = [axis for axis in axes if axis.size == size]
            for axis in same[1:]:
                join(same[0], axis)
            result.append(same[0])
        return result[::-1]

    def note(self, value: Value, kind: str, roles: dict[int, str]) -> None:
        """Record what a parameter is for: its kind, and the role of each of the value's dimensions."""
        if value.origin is not None:
            name, places = value.origin
            self.kinds.setdefault(name, kind)
            for dim, role in roles.items():
                place = places[dim]
                if place is not None:
                    self.roles.setdefault(name, {}).setdefault(place, role)


def references(node: Node) -> list[Ref]:
    """All nodes that an operation reads."""

    def walk(value: Any) -> list[Ref]:
        if isinstance(value, Ref):
            return [value]
        if isinstance(value, tuple):
            return list(itertools.chain.from_iterable(map(walk, value)))
        if isinstance(value, dict):
            return list(itertools.chain.from_iterable(map(walk, value.values())))
        return []

    return walk(node.args) + walk(dict(node.kwargs))
