"""On which inputs are two networks run: the user's own, cut into batches of rows, in a fixed random order?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from metanet.errors import ScoreError, clean
from metanet.score.probe_inputs import ProbeInputs

__all__ = ["Batch", "Inputs"]


@dataclass(frozen=True, eq=False)
class Batch:
    """Some of the inputs.

    Args:
        rows: their numbers among all inputs.
        positional: arguments of ``forward``.
        keywords: keyword arguments of ``forward``.
        labels: of these inputs.
    """

    rows: Tensor
    positional: tuple[Any, ...]
    keywords: Mapping[str, Any]
    labels: Tensor | None


@dataclass(frozen=True, eq=False)
class Inputs:
    """All inputs.

    Args:
        positional: arguments of ``forward``, whole.
        keywords: keyword arguments, whole.
        labels: one entry per input, first axis.
        count: number of inputs.
        axis: the axis of the arguments along which they lie.
        origin: where they come from, in words.
        made_up: whether they are no data.
    """

    positional: tuple[Any, ...]
    keywords: Mapping[str, Any]
    labels: Tensor | None
    count: int
    axis: int
    origin: str
    made_up: bool

    @classmethod
    def of(cls, given: Any, labels: Any, origin: str | None, axis: int) -> Inputs:
        """The user's inputs, checked.

        Args:
            given: a tensor or array; a tuple or list of arguments; a mapping of keyword arguments;
                :class:`ProbeInputs`; or an iterable of batches ``(inputs, labels)`` such as a ``DataLoader``, which is
                read once.
            labels: a tensor or array with one entry per input, or ``None``.
            origin: where they come from.
            axis: along which the inputs lie in the arguments.

        Raises:
            ScoreError: where there are none, or numbers of rows differ.
        """
        made_up = isinstance(given, ProbeInputs)
        if isinstance(given, ProbeInputs):
            origin, given = origin or given.origin, given.tensors()
        elif not isinstance(given, Tensor | np.ndarray | Mapping | Sequence) and isinstance(given, Iterable):
            given, loaded = _from_batches(given, axis)
            labels = loaded if labels is None else labels
        positional: tuple[Any, ...] = ()
        keywords: Mapping[str, Any] = {}
        if isinstance(given, Mapping):
            keywords = {str(name): _tensors(value) for name, value in given.items()}
        elif isinstance(given, Sequence) and not isinstance(given, str | bytes):
            positional = tuple(_tensors(value) for value in given)
        else:
            positional = (_tensors(given),)
        leaves = [leaf for leaf in pytree.tree_leaves((positional, dict(keywords))) if isinstance(leaf, Tensor)]
        if not leaves:
            raise ScoreError("no tensors among the inputs", hint="give the arguments of forward, inputs along axis 0")
        counts = {leaf.shape[axis] if leaf.ndim > axis else None for leaf in leaves}
        count = counts.pop()
        if counts or not count:
            shapes = ", ".join(str(list(leaf.shape)) for leaf in leaves)
            raise ScoreError(
                f"inputs of shapes {shapes}: expected the same number of inputs, at least one, along axis {axis}",
                hint="bind arguments that are the same for all inputs inside the module, or give batch_axis",
            )
        found = None if labels is None else _tensors(labels)
        if found is not None and (not isinstance(found, Tensor) or found.ndim == 0 or len(found) != count):
            shape = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ScoreError(f"labels {shape} for {count} inputs", hint="give one entry per input")
        named = origin or f"{count:,} inputs of the caller"
        return cls(positional, keywords, found, count, axis, named, made_up)

    def take(self, rows: Tensor) -> Batch:
        """Some of the inputs, in the order asked for."""

        def cut(leaf: Any) -> Any:
            return leaf.index_select(self.axis, rows.to(leaf.device)) if isinstance(leaf, Tensor) else leaf

        labels = None if self.labels is None else self.labels[rows.to(self.labels.device)]
        return Batch(rows, pytree.tree_map(cut, self.positional), pytree.tree_map(cut, dict(self.keywords)), labels)

    def batches(self, size: int, seed: int) -> Iterator[Batch]:
        """All inputs, in batches of equal size, in an order drawn by ``seed``.

        The order is random because similarity is averaged over batches: sorted inputs would make batches of one class.
        """
        order = torch.randperm(self.count, generator=torch.Generator().manual_seed(seed))
        pieces = -(-self.count // max(size, 1))
        for rows in order.tensor_split(pieces):
            yield self.take(rows)


def _tensors(value: Any) -> Any:
    def convert(leaf: Any) -> Any:
        if isinstance(leaf, np.ndarray):
            try:
                return torch.from_numpy(np.ascontiguousarray(leaf))
            except TypeError:
                raise ScoreError(f"an array of {clean(leaf.dtype, 40)}, expected numbers") from None
        return leaf.detach() if isinstance(leaf, Tensor) else leaf

    return pytree.tree_map(convert, value)


def _from_batches(batches: Iterable[Any], axis: int) -> tuple[tuple[Any, ...], Tensor | None]:
    """Batches put together again: ``inputs`` or ``(inputs, labels)`` each."""
    inputs, labels = [], []
    for batch in batches:
        pair = isinstance(batch, tuple | list)
        if (pair and len(batch) > 2) or not isinstance(batch[0] if pair else batch, Tensor):
            raise ScoreError(
                f"a batch is a {type(batch).__name__} with something else than (inputs, labels)",
                hint="give tensors of all inputs instead of a loader",
            )
        inputs.append(batch[0] if pair else batch)
        labels += [batch[1]] if pair and len(batch) == 2 else []
    if not inputs:
        raise ScoreError("no batches of inputs", hint="a loader that is empty, or was read before")
    return (torch.cat(inputs, axis),), torch.cat(labels) if labels else None
