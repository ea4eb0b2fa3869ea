"""Which matrices bring a network to its canonical form?

Along a space of n units with any invertible matrix, the blocks that take M form the columns of A (n x m), those that
take its inverse transpose the rows of B (k x n): ``A -> M A``, ``B -> B M^-1``; only the row space of A, the column
space of B and the product B A are determined by the function. All other factors are canonical by now, so m and k are
fixed numbers of known positions.

- ``unit``: the rows of A become the orthonormal basis of their span that a QR decomposition against fixed generic
  columns picks out. If A has rank a < n, the other n - a directions are chosen so that B takes them to an orthonormal
  basis, made the same way, of what it reaches beyond B A, and the rest to zero.
- ``balanced``: with ``B A = U S V^T`` of rank n, A becomes ``S^1/2 V^T`` and B ``U S^1/2``; this is also the smallest
  sum of squares (Baldi and Hornik 1989; Ziyin, Wang and Wu 2024). Of lower rank: as ``unit``.
- orthogonal M: ``A Z = Q R`` with fixed generic Z and a positive diagonal of R; M is ``Q^T``.

Blocks that have another space of matrices, not yet settled, count through their product over that space.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from symmetry.frames.parts import Part, product
from symmetry.spec import LinearFactor, SymmetrySpec

__all__ = ["canonical_matrix"]

SEED = 20_261
MOST_PRODUCTS = 1024


def canonical_matrix(
    spec: SymmetrySpec,
    parts: Sequence[Part],
    factor: LinearFactor,
    settled: set[str],
    gauge: str,
    tolerance: float,
) -> tuple[Tensor, bool]:
    """The matrices of one factor that bring a state to the canonical gauge; all but later matrices are canonical.

    Args:
        spec: the spec.
        parts: the state's parts.
        factor: the factor.
        settled: spaces whose matrices are canonical already.
        gauge: ``unit`` or ``balanced``.
        tolerance: singular values below this, relative to the largest, count as zero.

    Returns:
        Shape (*outer, n, n), float64; and whether the blocks determine them.
    """
    shape = spec.array_shape(factor.space)
    open_parts = [(part, _open(part, settled)) for part in parts]
    mine = [(part, dims) for part, dims in open_parts if factor.space in {part.names[dim] for dim in dims}]
    clean = [part for part, dims in mine if len(dims) == 1]
    every = clean if len(clean) == len(mine) else None
    found = torch.empty(int(np.prod(shape[:-1], dtype=np.int64)), factor.size, factor.size, dtype=torch.float64)
    determined = True

    def full(columns: np.ndarray, rows: np.ndarray) -> bool:
        if factor.kind == "orthogonal":
            return _rank(np.concatenate([columns, rows], 1), tolerance) == factor.size
        return any(_rank(blocks, tolerance) == factor.size for blocks in (columns, rows))

    for copy in range(len(found)):
        columns, rows = _stack(clean, factor, copy)
        enough = full(columns, rows)
        if every is None and not enough:
            every = _through([part for part, _ in open_parts], factor.space, settled)
        readers = rows
        if every is not None:
            columns, rows = _stack(every, factor, copy)
            readers = _stack([part for part, _ in mine], factor, copy, twice=False)[1]
            enough = full(columns, rows)
        determined &= enough
        if factor.kind == "orthogonal":
            found[copy] = _orthogonal(np.concatenate([columns, rows], 1), tolerance)
        else:
            found[copy] = _invertible(columns, rows.T, readers.T, gauge, tolerance)
    return found.reshape(*shape, factor.size), determined


def _open(part: Part, settled: set[str]) -> list[int]:
    return [dim for dim in part.matrices if part.names[dim] not in settled]


def _stack(parts: Sequence[Part], factor: LinearFactor, copy: int, twice: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """What takes M and what takes its inverse transpose, in one copy of the space: shapes (n, m) and (n, k)."""
    found: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for part in parts:
        leaves = [leaf for leaf in part.matrices if part.names[leaf] == factor.space]
        for leaf in leaves if twice or len(leaves) == 1 else []:
            dims = part.dims(leaf)
            front = part.values.movedim(dims, tuple(range(len(dims))))
            flat = front.reshape(-1, factor.size, front[(0,) * len(dims)].numel())
            found[bool(part.matrices[leaf])].append(flat[copy if len(flat) > 1 else 0].numpy())
    columns, rows = (np.concatenate([np.zeros((factor.size, 0)), *some], 1) for some in found)
    return columns, rows


def _through(parts: Sequence[Part], space: str, settled: set[str]) -> list[Part]:
    """Parts with the space once and no other open one: products over all other open spaces take the place of blocks."""
    found = list(parts)
    while True:
        others = (part.names[dim] for part in found for dim in _open(part, settled) if part.names[dim] != space)
        gone = next(others, None)
        if gone is None:
            return [part for part in found if len(_open(part, settled)) == 1]
        leaves = [(part, [dim for dim in _open(part, settled) if part.names[dim] == gone]) for part in found]
        single = [(part, dims[0]) for part, dims in leaves if len(dims) == 1]
        found = [part for part, dims in leaves if not dims]
        found += [made for number, made in zip(range(MOST_PRODUCTS), _products(single), strict=False)]


def _products(single: Sequence[tuple[Part, int]]) -> Iterator[Part]:
    for index, (one, first) in enumerate(single):
        for other, second in single[index:]:
            flags = (one.matrices[first], other.matrices[second])
            if flags in ((False, True), (None, None)):
                yield product(one, first, other, second)
            elif flags == (True, False):
                yield product(other, second, one, first)


@lru_cache(maxsize=64)
def _generic(rows: int, columns: int) -> np.ndarray:
    """A fixed matrix in general position."""
    return np.random.default_rng([SEED, rows, columns]).normal(size=(rows, columns))


def _rank(matrix: np.ndarray, tolerance: float) -> int:
    if not matrix.size:
        return 0
    long = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T
    values = np.linalg.svd(np.linalg.qr(long, mode="r"), compute_uv=False)
    return int((values > tolerance * values[0]).sum()) if values[0] > 0 else 0


def _positive_qr(matrix: np.ndarray) -> np.ndarray:
    """The orthogonal factor of a QR decomposition with a positive diagonal of R."""
    q, r = np.linalg.qr(matrix)
    found: np.ndarray = q * np.where(np.diagonal(r) < 0, -1.0, 1.0)
    return found


def _span(matrix: np.ndarray, tolerance: float, scale: float = 0.0) -> np.ndarray:
    """An orthonormal basis of the column space, as columns; it depends on nothing but that space.

    Args:
        matrix: any columns.
        tolerance: relative to the largest singular value, or to ``scale`` if that is larger.
        scale: see there.
    """
    if not matrix.size:
        return matrix[:, :0]
    if matrix.shape[0] > matrix.shape[1]:
        # Many positions, few units: a QR decomposition first leaves a small matrix to decompose.
        q, r = np.linalg.qr(matrix)
        small, values, _ = np.linalg.svd(r)
        u = q @ small
    else:
        u, values, _ = np.linalg.svd(matrix, full_matrices=False)
    u = u[:, values > tolerance * max(values[0], scale)]
    return u @ _positive_qr(u.T @ _generic(len(u), u.shape[1])) if u.shape[1] else u


def _complement(matrix: np.ndarray, size: int) -> np.ndarray:
    """Orthonormal columns that complete independent ones to a basis."""
    if not matrix.shape[1]:
        return np.eye(size)
    u, _, _ = np.linalg.svd(matrix, full_matrices=True)
    found: np.ndarray = u[:, matrix.shape[1] :]
    return found


def _kernel(matrix: np.ndarray, tolerance: float) -> np.ndarray:
    if not matrix.shape[0]:
        return np.eye(matrix.shape[1])
    _, values, vt = np.linalg.svd(matrix, full_matrices=True)
    rank = int((values > tolerance * values[0]).sum()) if len(values) and values[0] > 0 else 0
    found: np.ndarray = vt[rank:].T
    return found


def _invertible(columns: np.ndarray, rows: np.ndarray, readers: np.ndarray, gauge: str, tolerance: float) -> Tensor:
    """M for A = ``columns`` (n x m) and B = ``rows`` (k x n); ``readers``: all rows, through open spaces too."""
    size = len(columns)
    if gauge == "balanced" and columns.shape[1] >= size and len(rows) >= size:
        _, values, vt = np.linalg.svd(rows @ columns, full_matrices=False)
        if values[size - 1] > tolerance * values[0]:
            right = _separate(vt[:size].T, values[:size], tolerance)
            basis = columns @ right / np.sqrt(values[:size])
            return torch.from_numpy(np.linalg.inv(basis))
    orthonormal = _span(columns.T, tolerance)
    basis = columns @ orthonormal
    if basis.shape[1] < size and len(rows):
        reached = rows @ basis
        image, _, _ = np.linalg.svd(reached, full_matrices=False)
        image = image[:, : _rank(reached, tolerance)]
        beyond = _span(rows - image @ (image.T @ rows), tolerance, float(np.linalg.norm(rows, 2)))
        basis = np.concatenate([basis, np.linalg.pinv(rows, rcond=tolerance) @ beyond], 1)
    if basis.shape[1] < size:
        # What nothing reads, then anything: no block that is settled by now can tell.
        unread = _kernel(readers, tolerance)
        for extra in (unread, np.eye(size)):
            outside = extra - basis @ np.linalg.pinv(basis) @ extra if basis.shape[1] else extra
            _, values, vt = np.linalg.svd(outside, full_matrices=False)
            basis = np.concatenate([basis, extra @ vt[values > 1e-6].T], 1)[:, :size]
    return torch.from_numpy(np.linalg.inv(basis))


def _separate(vectors: np.ndarray, values: np.ndarray, tolerance: float) -> np.ndarray:
    """Singular vectors without their free signs, and a fixed basis where singular values are equal."""
    found = vectors.copy()
    starts = [0, *(np.nonzero(-np.diff(values) > tolerance * values[0])[0] + 1), len(values)]
    for start, stop in itertools.pairwise(starts):
        some = vectors[:, start:stop]
        found[:, start:stop] = some @ _positive_qr(some.T @ _generic(len(some), stop - start))
    return found


def _orthogonal(columns: np.ndarray, tolerance: float) -> Tensor:
    size = len(columns)
    u, values, _ = (
        np.linalg.svd(columns, full_matrices=False) if columns.size else (np.zeros((size, 0)), np.zeros(0), 0)
    )
    u = u[:, values > tolerance * values[0]] if len(values) and values[0] > 0 else u[:, :0]
    # Within the span of the columns: QR against generic mixtures of them; outside, nothing settled can tell.
    inside = u @ _positive_qr(u.T @ (columns @ _generic(columns.shape[1], u.shape[1]))) if u.shape[1] else u
    return torch.from_numpy(np.concatenate([inside, _complement(inside, size)], 1).T.copy())
