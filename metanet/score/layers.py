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


class Recorder:
    """Records the layers of one network: the modules that hold parameters of their own, once for each call.

    Args:
        subject: the private copy.
        features: ``linear``: as they are. ``standard``: each divided by its standard deviation in the first batch, so
            that scaling a unit changes nothing. ``whitened``: a basis of what they span over the inputs, so that no
            invertible matrix changes anything; needs many more inputs in a batch than features.
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
            flat = rows_first(value, self.axes[name], rows).reshape(rows, -1).to(torch.float64)
            if not bool(torch.isfinite(flat).all()):
                self.left_out[name] = "it gives out something that is no number"
                return
            self.sizes[name] = flat.shape[1]
            prepared = self._prepared(name, flat)
            if prepared is not None:
                gram = prepared @ prepared.T
                into[name] = gram.fill_diagonal_(0.0).cpu()

        with self._listening(hear):
            yield

    def _prepared(self, name: str, flat: Tensor) -> Tensor | None:
        if self.features == "whitened":
            return self._basis(name, flat)
        if name not in self._fixed:
            # Fixed by the first batch (in random order), so that the estimate stays unbiased in the others.
            mean = flat.mean(0)
            scale = torch.ones_like(mean)
            if self.features == "standard":
                deviation = flat.std(0, correction=0)
                size = flat.square().mean(0).sqrt()
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
