"""Which axes of which values run over the same units? Union-find over axes that can be cut into products and parts.

An axis starts as one leaf. Views cut it into a row-major product (channels x pixels), concatenations and slices into
parts. When two axes turn out to be the same, their cuts are brought to a common refinement and their leaves are
joined; where no common refinement exists, all leaves involved are pinned, which can only make the group smaller.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

__all__ = [
    "AxisNode",
    "Reason",
    "join",
    "leaves",
    "new_concat",
    "new_leaf",
    "new_product",
    "pin",
    "root",
    "split_concat",
    "split_product",
]

_numbers = itertools.count()


@dataclass(frozen=True, slots=True)
class Reason:
    """Why an axis is fixed.

    Args:
        kind: ``input``, ``output``, ``constant``, ``position`` (a kernel's or image's own places) or ``operation``.
        label: for inputs and outputs their name, which the fixed axis then carries.
        operation, node, text, source: for ``operation``: what pinned it, where, and why.
    """

    kind: str
    label: str = ""
    operation: str = ""
    node: str = ""
    text: str = ""
    source: str = ""


class AxisNode:
    """One axis in the union-find: a leaf, a product or a concatenation of further nodes."""

    __slots__ = ("children", "kind", "number", "parent", "reasons", "size")

    def __init__(
        self, size: int, kind: str = "leaf", children: Sequence[AxisNode] = (), reasons: Sequence[Reason] = ()
    ) -> None:
        self.size, self.kind, self.children, self.reasons = size, kind, list(children), list(reasons)
        self.parent: AxisNode | None = None
        self.number = next(_numbers)

    def __repr__(self) -> str:
        return f"AxisNode({self.kind}, {self.size})"


def new_leaf(size: int, reason: Reason | None = None) -> AxisNode:
    """A new axis, tied to nothing; fixed if a reason is given."""
    return AxisNode(size, reasons=() if reason is None else (reason,))


def new_product(factors: Sequence[AxisNode]) -> AxisNode:
    """The row-major product of axes; a single factor is returned as it is.

    Factors of 1 are left out: a product of one axis with ones is that axis, and could else become a part of itself.
    """
    factors = [factor for factor in factors if factor.size > 1] or list(factors[:1])
    if len(factors) == 1:
        return factors[0]
    return AxisNode(math.prod(factor.size for factor in factors), "product", factors)


def new_concat(parts: Sequence[AxisNode]) -> AxisNode:
    """Axes end to end; a single part is returned as it is."""
    if len(parts) == 1:
        return parts[0]
    return AxisNode(sum(part.size for part in parts), "concat", parts)


def root(node: AxisNode) -> AxisNode:
    """The representative of an axis (with path compression)."""
    top = node
    while top.parent is not None:
        top = top.parent
    while node.parent is not None:
        node.parent, node = top, node.parent
    return top


def leaves(node: AxisNode) -> Iterator[AxisNode]:
    """The leaf representatives of an axis, in order."""
    node = root(node)
    if node.kind == "leaf":
        yield node
    else:
        for child in node.children:
            yield from leaves(child)


def factors(node: AxisNode) -> list[AxisNode]:
    """The axis as a flat list of factors, none of which is itself a product; size-1 leaves included."""
    node = root(node)
    if node.kind != "product":
        return [node]
    return [factor for child in node.children for factor in factors(child)]


def parts(node: AxisNode) -> list[AxisNode]:
    """The axis as a flat list of parts, none of which is itself a concatenation."""
    node = root(node)
    if node.kind != "concat":
        return [node]
    return [part for child in node.children for part in parts(child)]


def pin(node: AxisNode, reason: Reason) -> None:
    """Fix every leaf of an axis."""
    for leaf in leaves(node):
        if reason not in leaf.reasons:
            leaf.reasons.append(reason)


def _clash(*nodes: AxisNode) -> None:
    """Two cuts of one axis that have no common refinement."""
    reason = Reason("operation", operation="view", text="two layouts of one axis cut it at places that do not nest")
    for node in nodes:
        pin(node, reason)


def _become(node: AxisNode, kind: str, children: list[AxisNode]) -> None:
    """Turn a leaf into a product or concatenation; its children inherit why it is fixed."""
    for child in children:
        for reason in node.reasons:
            pin(child, reason)
    node.kind, node.children, node.reasons = kind, children, []


def split_product(node: AxisNode, sizes: Sequence[int]) -> list[AxisNode]:
    """Cut an axis into a row-major product of the given sizes; refines it in place and returns one axis per size."""
    node = root(node)
    if math.prod(sizes) != node.size:
        raise ValueError(f"axis of {node.size} cut into {tuple(sizes)}")
    big = [size for size in sizes if size > 1]
    if not big:
        # One unit: the last factor is the axis itself, the others are mere ones.
        return [*(new_leaf(1) for _ in sizes[:-1]), node] if sizes else []
    if len(big) <= 1:
        groups = [node]
    elif node.kind == "leaf":
        groups = [new_leaf(size) for size in big]
        _become(node, "product", list(groups))
    elif node.kind == "concat":
        groups = _split_equal_parts(node, big)
    else:
        groups = _split_factors(node, big)
    result, rest = [], iter(groups)
    for size in sizes:
        result.append(next(rest) if size > 1 else new_leaf(1))
    return result


def _split_factors(node: AxisNode, sizes: list[int]) -> list[AxisNode]:
    """Common refinement of a product's factors with the requested sizes."""
    pending, groups = [factor for factor in factors(node) if factor.size > 1], []
    for size in sizes:
        group: list[AxisNode] = []
        while (have := math.prod(f.size for f in group)) < size:
            factor = root(pending.pop(0))
            need = size // have if size % have == 0 else 0
            if need and factor.size <= need and need % factor.size == 0:
                group.append(factor)
            elif need and factor.size % need == 0:
                first, second = split_product(factor, [need, factor.size // need])
                group.append(first)
                pending.insert(0, second)
            else:
                _clash(node)
                reason = next(leaves(node)).reasons[-1]
                return [new_leaf(each, reason) for each in sizes]
        groups.append(new_product(group))
    return groups


def _split_equal_parts(node: AxisNode, sizes: list[int]) -> list[AxisNode]:
    """A concatenation viewed as a product: exact only if its parts are equal, tied and counted by the first factor."""
    pieces, reason = parts(node), Reason("operation", operation="view", text="a concatenation is viewed as a product")
    if all(piece.size == pieces[0].size for piece in pieces) and sizes[0] == len(pieces):
        for piece in pieces[1:]:
            join(pieces[0], piece)
        return [new_leaf(sizes[0], reason), *split_product(pieces[0], sizes[1:])]
    pin(node, reason)
    return [new_leaf(size, reason) for size in sizes]


def split_concat(node: AxisNode, sizes: Sequence[int]) -> list[AxisNode]:
    """Cut an axis into consecutive parts of the given sizes (each at least 1); refines it in place."""
    node = root(node)
    if sum(sizes) != node.size:
        raise ValueError(f"axis of {node.size} cut into parts {tuple(sizes)}")
    if len(sizes) == 1:
        return [node]
    if node.kind == "leaf":
        pieces = [new_leaf(size) for size in sizes]
        _become(node, "concat", list(pieces))
        return pieces
    if node.kind == "product":
        inner = factors(node)[1:]
        width = math.prod(factor.size for factor in inner)
        if all(size % width == 0 for size in sizes):
            outer = split_concat(factors(node)[0], [size // width for size in sizes])
            return [new_product([piece, *inner]) for piece in outer]
        _clash(node)
        reason = next(leaves(node)).reasons[-1]
        return [new_leaf(size, reason) for size in sizes]
    pending, result = parts(node), []
    for size in sizes:
        group: list[AxisNode] = []
        while (have := sum(piece.size for piece in group)) < size:
            piece = root(pending.pop(0))
            if piece.size > size - have:
                first, second = split_concat(piece, [size - have, piece.size - (size - have)])
                pending.insert(0, second)
                piece = first
            group.append(piece)
        result.append(new_concat(group))
    return result


def join(first: AxisNode, second: AxisNode) -> None:
    """Two axes are one: bring their cuts to a common refinement and join their leaves."""
    first, second = root(first), root(second)
    if first is second:
        return
    if first.size != second.size:
        raise ValueError(f"axes of {first.size} and {second.size} cannot be one")
    if first.kind == "leaf" or second.kind == "leaf":
        if first.kind != "leaf":
            first, second = second, first
        for reason in first.reasons:
            pin(second, reason)
        first.parent = second
        return
    if first.kind == second.kind == "product":
        cut = split_product(second, [factor.size for factor in factors(first) if factor.size > 1])
        pairs = list(zip([factor for factor in factors(first) if factor.size > 1], cut, strict=True))
    elif first.kind == second.kind == "concat":
        cut = split_concat(second, [part.size for part in parts(first)])
        pairs = list(zip(parts(first), cut, strict=True))
    else:
        # A product on one side, a concatenation on the other: the axis stays whole and fixed.
        _clash(first, second)
        reasons = [reason for leaf in (*leaves(first), *leaves(second)) for reason in leaf.reasons]
        first.kind, first.children, first.reasons = "leaf", [], list(dict.fromkeys(reasons))
        second.parent = first
        return
    for mine, other in pairs:
        join(mine, other)
