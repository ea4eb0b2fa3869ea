"""How is a network of a field made in a millisecond, where a search runs a hundred of them?

An ordinary module takes long: its attributes are set to the new sizes and, where there is a choice, it is traced to see
whether they were the right ones. Most modules never read them: a copy of the module of full width, with tensors of
other shapes in it, is the same network. Whether that holds is seen by running both.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from metanet.fields.field import Field
from metanet.fields.generate import Skeletons
from metanet.morph.modules import put_tensors
from metanet.morph.running import evaluating

__all__ = ["Drafts"]


class Drafts:
    """Makes networks of a field.

    Args:
        field: that writes them.
        model: of the field's architecture at full width.
        example_inputs: one entry per argument of ``forward``.
    """

    def __init__(self, field: Field, model: nn.Module, example_inputs: Sequence[Any]) -> None:
        self.field, self.model, self.example_inputs = field, model, tuple(example_inputs)
        self.skeletons = Skeletons(model, field.spec, example_inputs, most=16)
        self.hold = True

    def make(self, sizes: Mapping[str, int]) -> nn.Module:
        """A network of some sizes, in eval mode: a draft while drafts hold.

        Raises:
            FieldError: if there is no network of these sizes.
        """
        if not self.hold:
            return self.exact(sizes)
        made = copy.deepcopy(self.model).eval()
        put_tensors(made, self._state(sizes))
        try:
            self._run(made)
        except (RuntimeError, ValueError, TypeError, IndexError, AssertionError):
            return self.exact(sizes)
        return made

    def exact(self, sizes: Mapping[str, int]) -> nn.Module:
        """The network itself, as :func:`metanet.fields.materialise` makes it.

        Raises:
            FieldError: if there is no network of these sizes.
        """
        state = self._state(sizes)
        made = copy.deepcopy(self.skeletons.get(state, sizes))
        put_tensors(made, state)
        return made.eval()

    def check(self, sizes: Mapping[str, int]) -> bool:
        """Run both at some sizes; where they differ, drafts are not used from here on."""
        if self.hold:
            pairs = zip(*(self._run(made) for made in (self.make(sizes), self.exact(sizes))), strict=False)
            self.hold = all(a.shape == b.shape and torch.allclose(a, b, equal_nan=True) for a, b in pairs)
        return self.hold

    def _run(self, model: nn.Module) -> list[Tensor]:
        with evaluating(model):
            return [leaf for leaf in pytree.tree_leaves(model(*self.example_inputs)) if isinstance(leaf, Tensor)]

    def _state(self, sizes: Mapping[str, int]) -> dict[str, Tensor]:
        with torch.no_grad():
            return self.field(None, sizes)
