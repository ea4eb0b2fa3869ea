"""In which order of its units do a network's weights vary least from one unit to the next?

The total variation of a network is the sum, over its spaces, of the Euclidean distances between the weight vectors of
neighbouring units; a unit's weight vector is everything indexed by it: what it reads, what it writes, its bias and
norm. The order of one space does not change the distances of another, so each space is a problem of its own: a shortest
Hamiltonian path through its units. This is the step that weight fields need (NeuMeta, Yang, Zhou and Wang 2024,
section 3.3): a function of a continuous unit coordinate can only fit weights that vary smoothly.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from symmetry.action import leaf_name, tensor_blocks
from symmetry.elements import GroupElement
from symmetry.errors import SpecError
from symmetry.spec import SymmetrySpec

__all__ = ["path_length", "shortest_path", "smooth", "total_variation"]

SOLVERS = ("numpy", "fast-tsp")
EXACT_UP_TO = 9
STARTS = 4
MANY = 300
MOST_SWEEPS = 200
LARGEST_INTEGER_DISTANCE = 65535


def total_variation(spec: SymmetrySpec, state: Mapping[str, Tensor], space: str | None = None) -> float:
    """How much the weights vary between neighbouring units: summed distances of consecutive units' weight vectors.

    Args:
        spec: the spec of the architecture.
        state: the network.
        space: one permuted space, or ``None`` for the sum over all of them.

    Raises:
        SpecError: if the state has other names or shapes or holds values that are not finite, or the space is unknown.
    """
    spec.check(state)
    names = [found.name for found in spec.permuted]
    if space is not None and space not in names:
        raise SpecError(f"space={space!r}: not permuted by the spec; expected one of {', '.join(names[:8]) or 'none'}")
    return sum(_variation(spec, state, name) for name in names if space in (None, name))


def smooth(
    spec: SymmetrySpec, state: Mapping[str, Tensor], solver: str = "numpy", seconds: float = 0.2
) -> GroupElement:
    """The permutation of every space that makes the total variation small; ``spec.act`` applies it.

    Each space is ordered along a short Hamiltonian path: exact up to nine units, else nearest neighbour from several
    starts and the given order, each improved by 2-opt and by moving stretches of up to three units. The result is never
    worse than the given order. Units inside others (heads) are ordered after those, one path for each of them.

    Args:
        spec: the spec of the architecture.
        state: the network.
        solver: ``numpy`` (deterministic), or ``fast-tsp`` (the optional package, limited by time, hence not
            deterministic; its path is improved and compared like the others).
        seconds: for ``fast-tsp``, per path.

    Raises:
        SpecError: if the state has other names or shapes or holds values that are not finite, for an unknown solver or
            one that is not installed.
    """
    spec.check(state)
    if solver not in SOLVERS:
        raise SpecError(f"solver={solver!r}: unknown; expected one of {', '.join(SOLVERS)}")
    element = spec.identity()
    for family in _families(spec):
        # Distances between heads depend on the order inside them, so no step is sure to help: keep the best choice.
        best = (sum(_variation(spec, state, space) for space in family), element.permutations)
        trial = element
        for place, space in enumerate(family):
            skipping = trial
            for start in (trial, element) if place else (trial,):
                found = _order(spec, spec.act(start, state), space, solver, seconds) @ start
                moved = spec.act(found, state)
                length = sum(_variation(spec, moved, name) for name in family)
                if length < best[0]:
                    best, skipping = (length, found.permutations), found
            trial = skipping
        element = GroupElement(spec, **{**_arrays(element), "permutations": dict(best[1])})
    return element


def path_length(distances: np.ndarray, order: np.ndarray) -> float:
    """Sum of the distances between consecutive places of an order."""
    return float(distances[order[:-1], order[1:]].sum())


def shortest_path(distances: np.ndarray, solver: str = "numpy", seconds: float = 0.2) -> np.ndarray:
    """An order of the points with a short path through all of them; never longer than the given order.

    Args:
        distances: symmetric, not negative; shape (n, n).
        solver: see :func:`smooth`.
        seconds: see :func:`smooth`.

    Returns:
        Integers of shape (n,). Of a path and its reverse, the one that starts at the lower point.
    """
    count = len(distances)
    given = np.arange(count)
    if count <= 2:
        return given
    if count <= EXACT_UP_TO:
        found = [_exact(distances)]
    else:
        starts = [given, *_nearest_neighbours(distances)]
        if solver == "fast-tsp":
            starts.append(_fast_tsp(distances, seconds))
        starts.sort(key=lambda order: path_length(distances, order))
        found = [_improve(distances, order) for order in starts[: STARTS if count <= MANY else 2]]
    best = min(found, key=lambda order: path_length(distances, order))
    if path_length(distances, best) >= path_length(distances, given):
        return given
    return best if best[0] < best[-1] else best[::-1].copy()


def _arrays(element: GroupElement) -> dict[str, Any]:
    return {name: value for name, value in vars(element).items() if name != "spec"}


def _families(spec: SymmetrySpec) -> Iterator[list[str]]:
    """Permuted spaces with those that lie within them, outer first."""
    names = [space.name for space in spec.permuted if space.size > 1]
    family = {name: {name} for name in names}
    for inner in names:
        for outer in spec.within.get(inner, ()):
            if outer in family:
                merged = family[inner] | family[outer]
                family.update(dict.fromkeys(merged, merged))
    done: set[str] = set()
    for name in names:
        if name not in done:
            done |= family[name]
            yield sorted(family[name], key=lambda space: (len(spec.within.get(space, ())), names.index(space)))


def _order(spec: SymmetrySpec, state: Mapping[str, Tensor], space: str, solver: str, seconds: float) -> GroupElement:
    neutral = spec.identity()
    shape = spec.array_shape(space)
    distances = _distances(spec, state, space).reshape(-1, shape[-1], shape[-1])
    orders = np.stack([shortest_path(part, solver, seconds) for part in distances])
    permutations = {**neutral.permutations, space: torch.from_numpy(orders).reshape(shape)}
    return GroupElement(spec, **{**_arrays(neutral), "permutations": permutations})


def _unit_rows(spec: SymmetrySpec, state: Mapping[str, Tensor], space: str) -> Iterator[Tensor]:
    """Everything that is indexed by a space, a block at a time; shape (copies, n, rest), float64."""
    shape = spec.array_shape(space)
    for name, info in spec.tensors.items():
        if info.tied_to is not None or not state[name].is_floating_point():
            continue
        for block in tensor_blocks(spec.axes[name]):
            names = [leaf_name(leaf) for leaf in block.leaves]
            for dim in (dim for dim, leaf in enumerate(names) if leaf == space):
                values = block.read(state[name].detach().to("cpu", torch.float64))
                if not bool(values.isfinite().all()):
                    raise SpecError(f"{name}: holds values that are not finite; an order needs a finite state")
                front = [names.index(outer) for outer in spec.within.get(space, ())] + [dim]
                yield values.movedim(front, list(range(len(front)))).reshape(math.prod(shape[:-1]), shape[-1], -1)


def _variation(spec: SymmetrySpec, state: Mapping[str, Tensor], space: str) -> float:
    squares: Tensor | float = 0.0
    for rows in _unit_rows(spec, state, space):
        squares = squares + rows.diff(dim=1).square().sum(-1)
    return float(squares.sqrt().sum()) if isinstance(squares, Tensor) else 0.0


def _distances(spec: SymmetrySpec, state: Mapping[str, Tensor], space: str) -> np.ndarray:
    shape = spec.array_shape(space)
    total = torch.zeros(math.prod(shape[:-1]), shape[-1], shape[-1], dtype=torch.float64)
    for rows in _unit_rows(spec, state, space):
        # Differences do not change if the mean goes, and the products below lose fewer digits.
        rows = rows - rows.mean(1, keepdim=True)
        squares = rows.square().sum(-1)
        total += (squares[:, :, None] + squares[:, None, :] - 2 * rows @ rows.mT).clamp_min(0)
    found: np.ndarray = ((total + total.mT) / 2).sqrt().numpy()
    return found


def _exact(distances: np.ndarray) -> np.ndarray:
    """Shortest path by dynamic programming over subsets (Held and Karp 1962); for a handful of points."""
    count = len(distances)
    cost = np.full((1 << count, count), np.inf)
    before = np.zeros((1 << count, count), dtype=np.int64)
    cost[1 << np.arange(count), np.arange(count)] = 0.0
    for subset in range(1, 1 << count):
        for last in (last for last in range(count) if not subset >> last & 1):
            step = cost[subset] + distances[:, last]
            larger = subset | 1 << last
            previous = int(step.argmin())
            if step[previous] < cost[larger, last]:
                cost[larger, last], before[larger, last] = step[previous], previous
    subset = (1 << count) - 1
    order = [int(cost[subset].argmin())]
    while len(order) < count:
        previous = int(before[subset, order[-1]])
        subset ^= 1 << order[-1]
        order.append(previous)
    return np.array(order)


def _nearest_neighbours(distances: np.ndarray) -> Iterator[np.ndarray]:
    """Greedy paths from a few far-out points: the ends of a good path are seldom in the middle."""
    count = len(distances)
    for start in np.argsort(-distances.sum(0), kind="stable")[:STARTS]:
        order, free = [int(start)], np.ones(count, dtype=bool)
        free[start] = False
        while len(order) < count:
            order.append(int(np.where(free, distances[order[-1]], np.inf).argmin()))
            free[order[-1]] = False
        yield np.array(order)


def _improve(distances: np.ndarray, order: np.ndarray) -> np.ndarray:
    """2-opt and Or-opt until neither helps.

    A dummy city at distance zero from all closes the path to a tour; place 0 holds it and never moves. For each place
    all partners are tried at once, and the best one is taken. A city where nothing helped is tried again when a
    neighbour of it has changed, and once more before the end.
    """
    count = len(distances)
    padded = np.zeros((count + 1, count + 1))
    padded[:-1, :-1] = distances
    tour = np.concatenate([[count], order, [count]])
    least = 1e-12 * max(float(distances.max()), 1e-300)
    awake = np.ones(count + 1, dtype=bool)
    for _ in range(MOST_SWEEPS):
        everywhere, improved = bool(awake.all()), False
        for place in range(1, count + 1):
            city = tour[place]
            if awake[city]:
                changed = _reverse_from(padded, tour, place, least)
                for length in (1, 2, 3):
                    if not changed and place + length <= count + 1:
                        changed = _move_stretch(padded, tour, place, length, least)
                awake[city] = False
                awake[list(changed)] = True
                improved |= bool(changed)
        if not awake[:-1].any():
            if everywhere and not improved:
                break
            awake[:] = True
    return tour[1:-1]


def _reverse_from(distances: np.ndarray, tour: np.ndarray, place: int, least: float) -> tuple[int, ...]:
    """Reverse the stretch from ``place`` to the end that helps most; the cities at its ends, none if nothing helps."""
    before, first, ends, after = tour[place - 1], tour[place], tour[place:-1], tour[place + 1 :]
    gain = distances[before, first] + distances[ends, after] - distances[before, ends] - distances[first, after]
    best = int(gain.argmax())
    if gain[best] <= least:
        return ()
    changed = (before, first, ends[best], after[best])
    tour[place : place + best + 1] = tour[place : place + best + 1][::-1].copy()
    return changed


def _move_stretch(distances: np.ndarray, tour: np.ndarray, place: int, length: int, least: float) -> tuple[int, ...]:
    """Put a short stretch between two neighbours elsewhere, where it helps most, turned if that is better."""
    stretch = tour[place : place + length].copy()
    rest = np.concatenate([tour[:place], tour[place + length :]])
    left, right = rest[:-1], rest[1:]
    freed = (
        distances[tour[place - 1], stretch[0]]
        + distances[stretch[-1], tour[place + length]]
        - distances[tour[place - 1], tour[place + length]]
    )
    gap = distances[left, right]
    straight = distances[left, stretch[0]] + distances[stretch[-1], right] - gap
    turned = distances[left, stretch[-1]] + distances[stretch[0], right] - gap
    added = np.minimum(straight, turned)
    best = int(added.argmin())
    if freed - added[best] <= least:
        return ()
    changed = (left[best], right[best], stretch[0], stretch[-1], tour[place - 1], tour[place + length])
    if turned[best] < straight[best]:
        stretch = stretch[::-1]
    tour[:] = np.concatenate([rest[: best + 1], stretch, rest[best + 1 :]])
    return changed


def _fast_tsp(distances: np.ndarray, seconds: float) -> np.ndarray:
    """The path that the optional package finds; it takes integers of sixteen bits."""
    try:
        import fast_tsp  # type: ignore[import-not-found, import-untyped, unused-ignore]
    except ImportError as error:
        raise SpecError(
            "solver='fast-tsp': the package is not installed; expected `pip install fast-tsp`, or solver='numpy'"
        ) from error
    count = len(distances)
    padded = np.zeros((count + 1, count + 1), dtype=np.int64)
    padded[:-1, :-1] = np.rint(distances * (LARGEST_INTEGER_DISTANCE / max(float(distances.max()), 1e-300)))
    tour = np.array(fast_tsp.find_tour(padded, duration_seconds=seconds))
    dummy = int((tour == count).argmax())
    return np.concatenate([tour[dummy + 1 :], tour[:dummy]])
