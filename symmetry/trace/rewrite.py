"""Fused projections taken apart: a view into [3, heads, units] whose first entry is then selected is three slices.

Left as they are, the 3 in front would tie queries, keys and values to each other: they would be one product axis, and
the group of each would be lost. Read as slices, the axis becomes a concatenation of three independent ones.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from symmetry.trace.export import Graph, Node, Ref

__all__ = ["take_apart", "view_groups"]

Groups: TypeAlias = list[tuple[list[int], list[int]]]

VIEWS = {
    f"aten.{name}"
    for name in (
        "view.default", "reshape.default", "_unsafe_view.default", "unsqueeze.default", "squeeze.dims", "squeeze.dim",
        "squeeze.default", "flatten.using_ints",
    )
}  # fmt: skip
COPIES = {f"aten.{name}.default" for name in ("clone", "contiguous", "detach", "alias")}


def view_groups(old: Sequence[int], new: Sequence[int]) -> Groups:
    """Which old dimensions hold the same elements as which new ones, cut as finely as the sizes allow.

    Size-1 dimensions pair with each other where they stand in line and otherwise join the group beside them.
    """
    groups: Groups = []
    i = j = 0
    while i < len(old) or j < len(new):
        mine, theirs = [], []
        if i < len(old) and j < len(new) and old[i] == new[j]:
            mine, theirs, i, j = [i], [j], i + 1, j + 1
        elif i < len(old) and old[i] == 1:
            mine, i = [i], i + 1
        elif j < len(new) and new[j] == 1:
            theirs, j = [j], j + 1
        else:
            mine, theirs, a, b = [i], [j], old[i], new[j]
            i, j = i + 1, j + 1
            while a != b:
                if a < b:
                    mine.append(i)
                    a, i = a * old[i], i + 1
                else:
                    theirs.append(j)
                    b, j = b * new[j], j + 1
        groups.append((mine, theirs))
    return groups


def permuted_places(node: Node, ndim: int) -> list[int]:
    """Which old dimension stands at each place after a permute, transpose or t."""
    if node.operation == "aten.permute.default":
        return [place % ndim for place in node.args[1]]
    places = list(range(ndim))
    if node.operation == "aten.transpose.int":
        first, second = (place % ndim for place in node.args[1:3])
        places[first], places[second] = second, first
    elif ndim == 2:
        places = [1, 0]
    return places


@dataclass
class _Rewriter:
    graph: Graph
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    users: dict[str, list[Node]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for node in self.graph.nodes:
            if not node.several and node.shapes[0] is not None:
                self.shapes[node.name] = node.shapes[0]
            for reference in _references((node.args, dict(node.kwargs))):
                self.users.setdefault(reference.name, []).append(node)
        self.outputs = {reference.name for reference in self.graph.outputs}

    def run(self) -> None:
        for node in list(self.graph.nodes):
            if node.operation in VIEWS and isinstance(node.args[0], Ref) and node.args[0].name in self.shapes:
                self._view(node)

    def _view(self, node: Node) -> None:
        old, new = self.shapes[node.args[0].name], self.shapes.get(node.name, ())
        if 0 in new:
            return
        for mine, theirs in view_groups(old, new):
            for place, dim in enumerate(theirs if len(mine) == 1 else []):
                rest = math.prod(new[other] for other in theirs[place + 1 :])
                paths = list(self._paths(node, dim)) if new[dim] > 1 and rest > 1 else [None]
                if paths and all(path is not None for path in paths):
                    self._rewrite(node, theirs, place, [path for path in paths if path is not None])
                    return

    def _paths(self, node: Node, dim: int) -> Iterator[list[tuple[Node, int]] | None]:
        """All ways from a value to a selection along ``dim``: nodes and where ``dim`` stands in their input.

        A way to anything else is ``None``.
        """
        if node.name in self.outputs:
            yield None
        for user in self.users.get(node.name, []):
            shape, after = self.shapes[node.name], self.shapes.get(user.name)
            where: int | None = None
            if user.operation in ("aten.select.int", "aten.unbind.int"):
                at = int(user.args[1] if len(user.args) > 1 else 0) % len(shape)
                if at == dim:
                    yield [(user, dim)]
                    continue
            elif user.operation in COPIES:
                where = dim
            elif user.operation in ("aten.permute.default", "aten.transpose.int", "aten.t.default"):
                where = permuted_places(user, len(shape)).index(dim)
            elif user.operation in VIEWS and after is not None and 0 not in after:
                where = next((t[0] for m, t in view_groups(shape, after) if m == [dim] and len(t) == 1), None)
            if where is None:
                yield None
                continue
            for path in self._paths(user, where):
                yield None if path is None else [(user, dim), *path]

    def _rewrite(self, node: Node, theirs: list[int], place: int, paths: list[list[tuple[Node, int]]]) -> None:
        """Put a slice, a view and the path's own steps in the place of every selection."""
        new, source = self.shapes[node.name], node.args[0]
        dim, inner = theirs[place], theirs[place + 1 :]
        rest = math.prod(new[other] for other in inner)
        merged = tuple(size for at, size in enumerate(new[:dim])) + (new[dim] * rest,) + new[inner[-1] + 1 :]
        gone, fresh = {node.name}, dict[str, list[Node]]()
        for path in paths:
            *steps, (end, at) = path
            gone.update(step.name for step, _ in steps)
            for name, number in self._selected(end):
                made = _Chain(f"{name}.apart", source)
                if merged != self.shapes[source.name]:
                    made.add("aten.view.default", (merged,), merged)
                cut = (*merged[:dim], rest, *merged[dim + 1 :])
                made.add("aten.slice.Tensor", (dim, number * rest, (number + 1) * rest), cut)
                whole = (*new[:dim], 1, *new[dim + 1 :])
                made.add("aten.view.default", (whole,), whole)
                for step, _ in steps:
                    after = list(self.shapes[step.name])
                    tracked = path[[s for s, _ in path].index(step) + 1][1]
                    after[tracked] = 1
                    view = step.operation in VIEWS
                    made.add(
                        "aten.view.default" if view else step.operation,
                        (tuple(after),) if view else step.args[1:],
                        tuple(after),
                    )
                last = made.nodes[-1].shapes[0] or ()
                made.add("aten.select.int", (at, 0), (*last[:at], *last[at + 1 :]), name)
                made.nodes = [replace(item, source=node.source) for item in made.nodes]
                fresh[name] = made.nodes
            if end.operation == "aten.unbind.int":
                gone.add(end.name)
        self.graph.nodes = [
            item for old in self.graph.nodes for item in (fresh.get(old.name, [old]) if old.name not in gone else [])
        ]
        for chain in fresh.values():
            for item in chain:
                self.shapes[item.name] = item.shapes[0] or ()
                self.graph.users.setdefault(item.name, 1)

    def _selected(self, end: Node) -> list[tuple[str, int]]:
        """The names of the selected values and which entry each is."""
        if end.operation == "aten.select.int":
            size = self.shapes[end.args[0].name][int(end.args[1]) % len(self.shapes[end.args[0].name])]
            return [(end.name, int(end.args[2]) % size)]
        return [(user.name, int(user.args[1])) for user in self.users.get(end.name, [])]


@dataclass
class _Chain:
    """Nodes that each read the one before."""

    base: str
    source: Ref
    nodes: list[Node] = field(default_factory=list)

    def add(self, operation: str, args: tuple[Any, ...], shape: tuple[int, ...], name: str | None = None) -> None:
        name = name or f"{self.base}{len(self.nodes)}"
        self.nodes.append(Node(name, operation, (self.source, *args), {}, (shape,), False, ""))
        self.source = Ref(name)


def _references(value: Any) -> Iterator[Ref]:
    if isinstance(value, Ref):
        yield value
    elif isinstance(value, tuple):
        for item in value:
            yield from _references(item)
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _references(item)


def take_apart(graph: Graph) -> None:
    """Rewrite a graph in place: every view whose new leading axis is only ever selected becomes slices."""
    _Rewriter(graph).run()
