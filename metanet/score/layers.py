"""What do the layers of a network give out, as Gram matrices over the inputs of a batch?

Only Gram matrices are kept, one for each layer, made while the network runs: memory does not grow with the inputs, and
large feature maps are never held together.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.utils import _pytree as pytree

from metanet.score.measures import row_axis, rows_first
from metanet.score.subjects import Subject

__all__ = ["FEATURES", "Recorder"]

FEATURES = ("standard", "linear", "whitened")
# Below this share of its own size a feature does not vary but is rounded.
CONSTANT = 1e-10


def first_tensor(value: Any) -> Tensor | None:
    """The first tensor of real numbers in what a module gives out."""
    leaves = (leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor) and leaf.is_floating_point())
    return next(leaves, None)


def _unit_axis(module: nn.Module, value: Tensor) -> int:
    """Which axis of a module's output, counted from the end, holds its units."""
    channels = isinstance(module, _ConvNd | _NormBase | nn.GroupNorm) and value.ndim > 1
    return 1 - value.ndim if channels else -1


def _by_unit(square: Tensor, shape: torch.Size, unit_axis: int) -> Tensor:
    """The root of the mean over a unit's positions, for every feature.

    A single position may hardly vary (the border of an image): divided by its own spread it would outweigh all others.
    """
    if len(shape) < 2:
        return square.sqrt()
    found = square.reshape(shape)
    others = [axis for axis in range(-len(shape), 0) if axis != unit_axis]
    return found.mean(others, keepdim=True).sqrt().expand(shape).reshape(-1)


class Recorder:
    """Records the layers of one network: the modules that hold parameters of their own, once for each call.

    Args:
        subject: the private copy.
        features: ``linear``: as they are. ``standard``: those of a unit (one number, or the positions of a channel)
            divided by its spread in the first batch, so that scaling a unit changes nothing. ``whitened``: a basis of
            what they span over the inputs, so that no invertible matrix changes anything; needs many more inputs in a
            batch than features.
    """

    def __init__(self, subject: Subject, features: str) -> None:
        self.subject = subject
        self.features = features
        self.modules = {
            name: module
            for name, module in subject.model.named_modules()
            if name and any(True for _ in module.parameters(recurse=False))
        }
        self.axes: dict[str, int] = {}
        self.sizes: dict[str, int] = {}
        self.left_out: dict[str, str] = {}
        self._fixed: dict[str, tuple[Tensor, Tensor]] = {}

    @contextmanager
    def _listening(self, heard: Any) -> Iterator[None]:
        calls: dict[str, int] = {}

        def listener(name: str) -> Any:
            def hear(module: nn.Module, arguments: Any, output: Any) -> None:
                calls[name] = calls.get(name, 0) + 1
                value = first_tensor(output)
                if value is not None:
                    heard(name if calls[name] == 1 else f"{name}#{calls[name]}", value)

            return hear

        handles = [module.register_forward_hook(listener(name)) for name, module in self.modules.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def shapes(self, into: dict[str, tuple[int, ...]]) -> Iterator[None]:
        """While the block runs, the shape of what each layer gives out goes ``into`` a mapping."""
        with self._listening(lambda name, value: into.__setitem__(name, tuple(value.shape))):
            yield

    def settle(self, full: dict[str, tuple[int, ...]], fewer: dict[str, tuple[int, ...]] | None, rows: int) -> None:
        """Find the axis of the inputs of every layer from its shapes for ``rows`` inputs and for one fewer."""
        for name, shape in full.items():
            axis = row_axis(shape, None if fewer is None else fewer.get(name, ()), rows)
            if axis is None:
                self.left_out[name] = f"its output {list(shape)} has no axis of the inputs"
            else:
                self.axes[name] = axis

    @contextmanager
    def grams(self, into: dict[str, Tensor], rows: int) -> Iterator[None]:
        """While the block runs on ``rows`` inputs, the Gram matrix of each layer goes ``into`` a mapping.

        Shapes:
            each (inputs, inputs) float64 on the CPU, with a diagonal of zeros.
        """

        def hear(name: str, value: Tensor) -> None:
            if name not in self.axes or name in self.left_out:
                return
            shaped = rows_first(value, self.axes[name], rows).to(torch.float64)
            flat = shaped.reshape(rows, -1)
            if not bool(torch.isfinite(flat).all()):
                self.left_out[name] = "it gives out something that is no number"
                return
            self.sizes[name] = flat.shape[1]
            prepared = self._prepared(name, flat, shaped.shape[1:], _unit_axis(self._module(name), value))
            if prepared is not None:
                gram = prepared @ prepared.T
                into[name] = gram.fill_diagonal_(0.0).cpu()

        with self._listening(hear):
            yield

    def _module(self, name: str) -> nn.Module:
        return self.modules[name if name in self.modules else name.rpartition("#")[0]]

    def _prepared(self, name: str, flat: Tensor, shape: torch.Size, unit_axis: int) -> Tensor | None:
        if self.features == "whitened":
            return self._basis(name, flat)
        if name not in self._fixed:
            # Fixed by the first batch (in random order), so that the estimate stays unbiased in the others.
            mean = flat.mean(0)
            scale = torch.ones_like(mean)
            if self.features == "standard":
                deviation = _by_unit(flat.var(0, correction=0), shape, unit_axis)
                size = _by_unit(flat.square().mean(0), shape, unit_axis)
                scale = torch.where(deviation > CONSTANT * size, 1.0 / deviation, 0.0)
            self._fixed[name] = mean, scale
        mean, scale = self._fixed[name]
        return (flat - mean) * scale

    def _basis(self, name: str, flat: Tensor) -> Tensor | None:
        vectors, values, _ = torch.linalg.svd(flat - flat.mean(0), full_matrices=False)
        kept = vectors[:, values > 1e-9 * values.amax()] if bool((values > 0).any()) else vectors[:, :0]
        if 2 * kept.shape[1] > len(flat):
            self.left_out[name] = f"{kept.shape[1]} directions in batches of {len(flat)} inputs are too many to whiten"
            return None
        return kept
