"""How is a layer written in another form: as a matrix, as a product of two, as one again?"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from metanet.errors import PlanError
from metanet.morph.blocks import ConvMatrix, same_kind_of_map
from metanet.morph.edits import ModuleEdit
from metanet.morph.structure import find, observe, replace_module

__all__ = ["ConvToLinear", "Factorise", "Join"]

MAX_MATRIX = 200_000_000


@dataclass(frozen=True)
class ConvToLinear(ModuleEdit):
    """A convolution as its exact matrix on maps of the size that it reads with the example inputs.

    Args:
        module: name of a convolution, transposed or not, that always reads maps of one size.
    """

    module: str
    kind: ClassVar[str] = "conv_to_linear"
    exact: ClassVar[bool] = True

    def restructure(self, model: nn.Module, example_inputs: Sequence[Any]) -> None:
        """See :class:`ModuleEdit`."""
        layer: Any = find(model, self.module)
        if not isinstance(layer, nn.modules.conv._ConvNd):
            raise PlanError(f"{type(layer).__name__} is no convolution", where=self.module, hint="name a convolution")
        given, out = observe(model, self.module, example_inputs)
        inputs, outputs = given[0].numel(), out[0].numel()
        if inputs * outputs > MAX_MATRIX:
            raise PlanError(
                f"its matrix of {outputs:,} x {inputs:,} numbers is too large",
                where=self.module,
                hint="use smaller maps",
            )
        plain = copy.deepcopy(layer)
        with torch.no_grad():
            if plain.bias is not None:
                plain.bias.zero_()
            # Column j of the matrix is the answer to the j-th unit vector.
            units = torch.eye(inputs, dtype=given.dtype, device=given.device).reshape(inputs, *given.shape[1:])
            matrix = torch.cat([plain(chunk) for chunk in units.split(256)]).reshape(inputs, outputs).T
            made = nn.Linear(inputs, outputs, bias=layer.bias is not None, device=given.device, dtype=given.dtype)
            made.weight.copy_(matrix)
            if layer.bias is not None:
                made.bias.copy_(layer.bias.repeat_interleave(outputs // len(layer.bias)))
        replace_module(model, self.module, ConvMatrix(made, tuple(out.shape[1:])))

    def __str__(self) -> str:
        return f"write {self.module} as a matrix"


@dataclass(frozen=True)
class Factorise(ModuleEdit):
    """A linear layer or convolution as a product of two, by its singular values.

    Source: Eckart and Young, 1936: no matrix of that rank is nearer to the weights. A convolution becomes one with
    ``rank`` channels and a pointwise one.

    Args:
        module: name of a linear layer or a convolution without groups.
        rank: units between both factors; or
        energy: the smallest rank that keeps this share of the sum of squared singular values.
    """

    module: str
    rank: int | None = None
    energy: float | None = None
    kind: ClassVar[str] = "factorise"
    exact: ClassVar[bool] = False

    def restructure(self, model: nn.Module, example_inputs: Sequence[Any]) -> None:
        """See :class:`ModuleEdit`."""
        layer = self._layer(model)
        convolution = not isinstance(layer, nn.Linear)
        weight = layer.weight.detach()
        u, s, vh = torch.linalg.svd(weight.flatten(1).double(), full_matrices=False)
        rank = self._rank(s)
        root = s[:rank].sqrt()
        inner, outer = copy.deepcopy(layer), same_kind_of_map(layer, rank, weight.shape[0])
        inner.weight = nn.Parameter((root[:, None] * vh[:rank]).reshape(rank, *weight.shape[1:]).to(weight))
        inner.bias = None
        if convolution:
            inner.out_channels = rank
        else:
            inner.out_features = rank
        made: Any = outer
        with torch.no_grad():
            made.weight.copy_((u[:, :rank] * root).reshape(made.weight.shape))
        made.bias = None if layer.bias is None else nn.Parameter(layer.bias.detach().clone())
        replace_module(model, self.module, nn.Sequential(OrderedDict(inner=inner, outer=made)))

    def resolved(self, model: nn.Module) -> Factorise:
        """With a rank in place of an energy."""
        singular = torch.linalg.svdvals(self._layer(model).weight.detach().flatten(1).double())
        return Factorise(self.module, self._rank(singular))

    def _layer(self, model: nn.Module) -> Any:
        layer: Any = find(model, self.module)
        convolution = isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d) and layer.groups == 1
        if not convolution and not isinstance(layer, nn.Linear):
            raise PlanError(
                f"{type(layer).__name__} cannot be factorised",
                where=self.module,
                hint="name a linear layer or a convolution without groups",
            )
        return layer

    def _rank(self, singular: Tensor) -> int:
        if (self.rank is None) == (self.energy is None):
            raise PlanError("factorise takes a rank or an energy", where=self.module, hint="give one of them")
        if self.rank is not None:
            if not 1 <= self.rank <= len(singular):
                raise PlanError(f"rank {self.rank}, expected 1 to {len(singular)}", where=self.module)
            return self.rank
        if self.energy is None or not 0 < self.energy <= 1:
            raise PlanError(f"energy {self.energy}, expected above 0 and at most 1", where=self.module)
        kept = singular.square().cumsum(0) / singular.square().sum()
        return int((kept < self.energy - 1e-12).sum()) + 1

    def __str__(self) -> str:
        return f"factorise {self.module} to " + (f"rank {self.rank}" if self.rank else f"energy {self.energy}")


@dataclass(frozen=True)
class Join(ModuleEdit):
    """Two linear layers in a row, with nothing between them, as one: what :class:`Factorise` has made, put together.

    Args:
        module: name of a Sequential of two linear layers, or of a convolution and a pointwise convolution.
    """

    module: str
    kind: ClassVar[str] = "join"
    exact: ClassVar[bool] = True

    def restructure(self, model: nn.Module, example_inputs: Sequence[Any]) -> None:
        """See :class:`ModuleEdit`."""
        pair = find(model, self.module)
        parts: list[Any] = list(pair.children())
        linear = len(parts) == 2 and all(isinstance(part, nn.Linear) for part in parts)
        convolutions = len(parts) == 2 and all(isinstance(part, nn.Conv1d | nn.Conv2d | nn.Conv3d) for part in parts)
        pointwise = convolutions and (
            set(parts[1].kernel_size) == {1}
            and set(parts[1].stride) == {1}
            and not any(parts[1].padding)
            and parts[1].groups == 1
            and parts[0].groups == 1
        )
        if not isinstance(pair, nn.Sequential) or not (linear or pointwise):
            raise PlanError("is no Sequential of two linear layers", where=self.module, hint="name such a pair")
        first, second = parts
        joined, weight = copy.deepcopy(first), first.weight.detach()
        outer = second.weight.detach().flatten(1).double()
        joined.weight = nn.Parameter((outer @ weight.flatten(1).double()).reshape(-1, *weight.shape[1:]).to(weight))
        if linear:
            joined.out_features = second.out_features
        else:
            joined.out_channels = second.out_channels
        bias = None if second.bias is None else second.bias.detach().double()
        if first.bias is not None:
            moved = outer @ first.bias.detach().double()
            bias = moved if bias is None else bias + moved
        joined.bias = None if bias is None else nn.Parameter(bias.to(weight))
        replace_module(model, self.module, joined)

    def __str__(self) -> str:
        return f"join the two layers of {self.module}"
