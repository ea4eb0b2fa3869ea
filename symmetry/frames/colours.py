"""What tells the units of a network apart, however they are numbered?

Colour refinement with numbers in place of colours (Weisfeiler and Leman 1968): each unit's features are updated from
the weights that touch it and the features at their other ends, until no more units can be told apart. Fixed axes,
whose positions are known to the outside world, start from fixed generic numbers. A space that matrices act on has no
units that could have features of their own: it carries vectors, made linearly by the blocks that take M and read by
those that take its inverse transpose, so what arrives behind it does not depend on the matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from symmetry.frames.parts import Part
from symmetry.spec import SymmetrySpec

__all__ = ["CHANNELS", "Features", "Vectors", "classes", "contract", "refine", "vectors"]

CHANNELS = 3
MOST_ROUNDS = 12
SEED = 20_260

Features = Mapping[str, Tensor]
Vectors = dict[tuple[str, bool | None], Tensor]


@lru_cache(maxsize=256)
def _positions(size: int) -> Tensor:
    """Generic numbers for the positions of a fixed axis; shape (size, CHANNELS)."""
    return torch.from_numpy(np.random.default_rng([SEED, size]).uniform(0.5, 1.5, (size, CHANNELS)))


@lru_cache(maxsize=8192)
def _mixing(*key: int) -> tuple[Tensor, Tensor]:
    """Generic numbers that tell one leaf of one part from the others: a matrix and offsets."""
    drawn = np.random.default_rng([SEED + 1, *key]).uniform(0.5, 1.5, (CHANNELS + 1, CHANNELS))
    return torch.from_numpy(drawn[1:]), torch.from_numpy(drawn[0])


def contract(
    part: Part, values: Tensor, target: int | None, features: Features, carried: Vectors | None = None
) -> Tensor | None:
    """Sum a part against the features of all its leaves but one.

    Args:
        part: the part.
        values: its values, perhaps changed.
        target: the leaf whose units receive; ``None`` sums over all leaves.
        features: by space, shape (*outer, n, CHANNELS); what is missing counts as a fixed axis.
        carried: vectors of the spaces that matrices act on; ``None``: those leaves count alike (norms).

    Returns:
        Shape (*outer, n, CHANNELS), or ``None`` where a vector that is needed is not there.
    """
    letters = [chr(ord("a") + dim) for dim in range(values.ndim)]
    operands: list[tuple[int, str, Tensor]] = []
    for leaf, name in enumerate(part.names):
        if leaf == target:
            continue
        dims = part.dims(leaf)
        if leaf in part.matrices:
            if carried is None:
                continue
            flag = part.matrices[leaf]
            vector = carried.get((str(name), None if flag is None else not flag))
            if vector is None:
                return None
            operand = vector
        elif name is not None and name in features:
            operand = features[name]
        else:
            operand, dims = _positions(values.shape[leaf]), (leaf,)
        operands.append((values.shape[leaf], "".join(letters[dim] for dim in dims) + "Z", operand))
    operands.sort(key=lambda item: -item[0])
    output = "" if target is None else "".join(letters[dim] for dim in part.dims(target))
    if not operands:
        summed = torch.einsum(f"{''.join(letters)}->{output}", values)
        return summed.unsqueeze(-1).expand(*summed.shape, CHANNELS)
    equation = ",".join(["".join(letters), *(subscript for _, subscript, _ in operands)])
    return torch.einsum(f"{equation}->{output}Z", values, *(operand for _, _, operand in operands))


def vectors(parts: Sequence[Part], features: Features, values: Callable[[Part], Tensor]) -> Vectors:
    """The vectors that spaces under matrices carry: forward along the data flow for M, backward for its inverse."""
    found: Vectors = {}
    indexed = list(enumerate(parts))
    for backward, order in ((False, indexed), (True, indexed[::-1])):
        for index, part in order:
            for leaf, flag in part.matrices.items():
                if bool(flag) == backward:
                    message = contract(part, values(part), leaf, features, found)
                    if message is not None:
                        key = (str(part.names[leaf]), flag)
                        message = message * _mixing(index, leaf)[1]
                        found[key] = found[key] + message if key in found else message
    return found


def refine(
    spec: SymmetrySpec,
    parts: Sequence[Part],
    marks: Features | None = None,
    squares: bool = False,
    tolerance: float = 1e-7,
) -> dict[str, Tensor]:
    """Features of every unit that do not depend on how units are numbered.

    Args:
        spec: the spec.
        parts: the parts of a state.
        marks: numbers to start from, by space; shape (*outer, n).
        squares: see only the squares of weights, which signs do not change; invertible matrices then hide a part.
        tolerance: units whose features differ by less, relative to their root mean square, are alike.

    Returns:
        By permuted space, shape (*outer, n, CHANNELS), root mean square 1.
    """
    shapes = {space.name: spec.array_shape(space.name) for space in spec.permuted}
    if squares:
        parts = [part for part in parts if all(flag is None for flag in part.matrices.values())]
    # A fixed axis may carry factors, but its positions tell its units apart already.
    features = {name: torch.ones(*shape, CHANNELS, dtype=torch.float64) for name, shape in shapes.items()}
    if marks:
        features.update({name: features[name] + mark.unsqueeze(-1) for name, mark in marks.items()})
    count = 0
    for _ in range(MOST_ROUNDS):
        carried = None if squares else vectors(parts, features, _plain)
        new = {name: value @ _mixing(number)[0] for number, (name, value) in enumerate(features.items())}
        for index, part in enumerate(parts):
            for leaf, name in enumerate(part.names):
                if name in new and leaf not in part.matrices:
                    message = contract(part, part.values.square() if squares else part.values, leaf, features, carried)
                    if message is not None:
                        matrix, offset = _mixing(index, leaf)
                        new[name] = new[name] + (_unit_size(message) + offset).asinh() @ matrix
        features = {name: _unit_size(value) for name, value in new.items()}
        before, count = count, sum(int(classes(f, tolerance).max()) + 1 for f in features.values())
        if count == before or count == sum(int(np.prod(shape)) for shape in shapes.values()):
            break
    return features


def _plain(part: Part) -> Tensor:
    return part.values


def _unit_size(values: Tensor) -> Tensor:
    size = values.square().mean().sqrt()
    return values / size if bool(size > 0) else values


def classes(features: Tensor, tolerance: float) -> Tensor:
    """Number units by their features, equal numbers where these agree; larger features get larger numbers.

    Shapes:
        features: (..., n, CHANNELS); the result is (..., n), integers.
    """
    flat = features.reshape(-1, features.shape[-1]).numpy()
    labels = np.zeros(len(flat), dtype=np.int64)
    for channel in flat.T:
        order = np.lexsort((channel, labels))
        new = (np.diff(labels[order]) > 0) | (np.diff(channel[order]) > tolerance)
        labels[order] = np.concatenate([[0], np.cumsum(new)])
    return torch.from_numpy(labels).reshape(features.shape[:-1])
