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

__all__ = ["drop_checks", "fold_numbers", "fuse_rms_norms", "permuted_places", "take_apart", "view_groups"]

Groups: TypeAlias = list[tuple[list[int], list[int]]]

VIEWS = {
    f"aten.{name}"
    for name in (
        "view.default", "reshape.default", "_unsafe_view.default", "unsqueeze.default", "squeeze.dims", "squeeze.dim",
        "squeeze.default", "flatten.using_ints",
    )
}  # fmt: skip
MOVES = VIEWS | {
    f"aten.{name}"
    for name in (
        "permute.default", "transpose.int", "t.default", "expand.default", "slice.Tensor", "select.int", "cat.default",
        "clone.default", "contiguous.default", "alias.default", "detach.default", "repeat.default",
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
            elif user.operation == "aten.slice.Tensor":
                at = int(user.args[1] if len(user.args) > 1 else 0) % len(shape)
                if at == dim and len(user.args) < 5:
                    yield [(user, dim)]
                    continue
                where = dim if at != dim else None
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
            for name, first, count in self._selected(end, at):
                made = _Chain(f"{name}.apart", source)
                if merged != self.shapes[source.name]:
                    made.add("aten.view.default", (merged,), merged)
                cut = (*merged[:dim], count * rest, *merged[dim + 1 :])
                made.add("aten.slice.Tensor", (dim, first * rest, (first + count) * rest), cut)
                whole = (*new[:dim], count, *new[dim + 1 :])
                made.add("aten.view.default", (whole,), whole)
                for number, (step, _) in enumerate(steps):
                    after = list(self.shapes[step.name])
                    after[path[number + 1][1]] = count
                    args = (tuple(after),) if step.operation in VIEWS else step.args[1:]
                    operation = "aten.view.default" if step.operation in VIEWS else step.operation
                    made.add(operation, args, tuple(after))
                last = made.nodes[-1].shapes[0] or ()
                if end.operation == "aten.slice.Tensor":
                    made.add("aten.alias.default", (), last, name)
                else:
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

    def _selected(self, end: Node, at: int) -> list[tuple[str, int, int]]:
        """The names of the selected values, the first entry of each and how many."""
        size = self.shapes[end.args[0].name][at]
        if end.operation == "aten.unbind.int":
            return [(user.name, int(user.args[1]), 1) for user in self.users.get(end.name, [])]
        if end.operation == "aten.select.int":
            return [(end.name, int(end.args[2]) % size, 1)]
        start = end.args[2] if len(end.args) > 2 else None
        first = 0 if start is None else min(max(int(start) + size * (int(start) < 0), 0), size)
        return [(end.name, first, self.shapes[end.name][at])]


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


def fold_numbers(graph: Graph) -> None:
    """Rewrite a graph in place: whoever reads a piece of a constant that is one number everywhere gets its own.

    The initial states of all layers of a recurrent network are slices of one tensor of zeros; the layers' units have
    nothing else in common, and would be tied by it.
    """
    numbers: dict[str, float] = dict.fromkeys(graph.zeros, 0.0)
    shapes = {node.name: node.shapes[0] for node in graph.nodes if not node.several} | graph.constants
    nodes: list[Node] = []

    def own(value: Any, user: str) -> Any:
        if isinstance(value, Ref) and value.name in numbers:
            name = f"{user}.number{len(nodes)}"
            shape = tuple(shapes[value.name] or ())
            nodes.append(Node(name, "aten.full.default", (shape, numbers[value.name]), {}, (shape,), False, ""))
            graph.users[name] = 1
            return Ref(name)
        if isinstance(value, tuple):
            return tuple(own(item, user) for item in value)
        return {key: own(item, user) for key, item in value.items()} if isinstance(value, Mapping) else value

    for node in graph.nodes:
        read = {reference.name for reference in _references((node.args, dict(node.kwargs)))}
        number = _number(node)
        if node.operation in MOVES and not node.several and read and read <= set(numbers):
            found = {numbers[name] for name in read}
            number = found.pop() if len(found) == 1 else None
        if number is not None and node.shapes[0] is not None:
            numbers[node.name] = number
            nodes.append(node)
        else:
            made = replace(node, args=own(node.args, node.name), kwargs=own(dict(node.kwargs), node.name))
            nodes.append(made)
    graph.nodes = nodes


def fuse_rms_norms(graph: Graph) -> None:
    """Rewrite a graph in place: ``x * rsqrt(mean(x^2) + eps)``, times a gain or not, becomes one operation.

    Its arguments are x and the gain. Spelled out, the product of x with something made of x looks non-linear.
    """
    by_name = {node.name: node for node in graph.nodes}
    tensors = set(graph.tensors)
    users: dict[str, list[Node]] = {}
    for node in graph.nodes:
        for reference in _references((node.args, dict(node.kwargs))):
            users.setdefault(reference.name, []).append(node)

    def behind(value: Any, *operations: str) -> Node | None:
        """The node that makes a value, if it is one of these operations and nobody else reads it."""
        node = by_name.get(value.name) if isinstance(value, Ref) else None
        return node if node is not None and node.operation in operations and len(users[node.name]) == 1 else None

    def statistic(value: Any, x: Ref) -> bool:
        root = behind(value, "aten.rsqrt.default")
        added = behind(root.args[0], "aten.add.Tensor", "aten.add.Scalar") if root else None
        mean = behind(added.args[0], "aten.mean.dim") if added and not isinstance(added.args[1], Ref) else None
        if mean is None or len(mean.args) < 3 or not mean.args[2]:
            return False
        square = behind(mean.args[0], "aten.pow.Tensor_Scalar", "aten.mul.Tensor")
        ndim = len(square.shapes[0] or ()) if square else 0
        if square is None or [dim % ndim for dim in mean.args[1]] != [ndim - 1]:
            return False
        return square.args == ((x, 2) if square.operation.startswith("aten.pow") else (x, x))

    made: dict[str, Node] = {}
    for node in graph.nodes:
        if node.operation == "aten.mul.Tensor" and all(isinstance(item, Ref) for item in node.args):
            for x, other in (node.args, node.args[::-1]):
                if statistic(other, x):
                    made[node.name] = replace(node, operation="symmetry.rms_norm", args=(x, None), kwargs={})
    for name, node in list(made.items()):
        last, steps = node, [name]
        while len(users.get(last.name, [])) == 1 and users[last.name][0].operation == "aten._to_copy.default":
            last = users[last.name][0]
            steps.append(last.name)
        after = users[last.name][0] if len(users.get(last.name, [])) == 1 else None
        gains = [item for item in after.args if isinstance(item, Ref) and item.name in tensors] if after else []
        if after is not None and after.operation == "aten.mul.Tensor" and len(gains) == 1:
            made[after.name] = replace(after, operation="symmetry.rms_norm", args=(node.args[0], gains[0]), kwargs={})
            for step in steps:
                made[step] = replace(by_name[step], operation="")
    graph.nodes = [made.get(node.name, node) for node in graph.nodes]
    graph.nodes = _alive([node for node in graph.nodes if node.operation], graph)


def _alive(nodes: list[Node], graph: Graph) -> list[Node]:
    """The nodes that some output still needs."""
    needed = {reference.name for reference in graph.outputs}
    kept = []
    for node in reversed(nodes):
        if node.name in needed:
            kept.append(node)
            needed |= {reference.name for reference in _references((node.args, dict(node.kwargs)))}
    return kept[::-1]


def drop_checks(graph: Graph) -> None:
    """Rewrite a graph in place: assertions about dtypes and shapes go; they compute nothing."""
    kept = []
    for node in graph.nodes:
        if node.operation.startswith("aten._assert") and not graph.users.get(node.name, 0):
            for reference in _references((node.args, dict(node.kwargs))):
                graph.users[reference.name] -= 1
        else:
            kept.append(node)
    graph.nodes = kept


def _number(node: Node) -> float | None:
    """The number that a constant has everywhere."""
    name = node.operation.removeprefix("aten.").split(".")[0]
    if name in ("zeros", "zeros_like", "new_zeros", "ones", "ones_like", "new_ones"):
        return 0.0 if "zeros" in name else 1.0
    place = {"full": 1, "full_like": 1, "new_full": 2, "scalar_tensor": 0}.get(name)
    given = None if place is None else node.args[place]
    return float(given) if isinstance(given, int | float) else None


def take_apart(graph: Graph) -> None:
    """Rewrite a graph in place: every view whose new leading axis is only ever selected becomes slices."""
    _Rewriter(graph).run()
