"""How does one object write the whole state of a network at any width? ``field(spec, sizes) -> state``.

What all kinds of field share stands here: which pieces there are, at which coordinates they are read, the scale of each
and the shares of what is read, tables, and constants. A kind of field says how the values of one piece follow from
coordinates (:meth:`Field.values`).
"""

from __future__ import annotations

import abc
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from metanet.errors import FieldError
from metanet.fields.fitting import check_sizes, check_spec
from metanet.fields.layout import Layout, Piece
from metanet.fields.parts import Table
from metanet.fields.places import Places, Sampling
from symmetry import SymmetrySpec

__all__ = ["Field"]


class Field(nn.Module, abc.ABC):
    """A function from sizes to a whole state; its parameters are what is stored in place of weights.

    Args:
        spec: of the architecture at full width.
        state: a network of full width: scales, constants, biases and gains start from it.
        sampling: how coordinates are laid out.

    Raises:
        FieldError: if the state does not fit, or the architecture cannot change its width.
    """

    kind: str

    def __init__(self, spec: SymmetrySpec, state: Mapping[str, Tensor], sampling: Sampling) -> None:
        super().__init__()
        spec.check(state)
        self.spec, self.sampling = spec, sampling
        self.layout = Layout(spec)
        for number, name in enumerate(self.layout.constants):
            self.register_buffer(f"constant_{number}", state[name].detach().clone())
        self.parts = nn.ModuleDict()
        self._kept: dict[tuple[str, int], Places] = {}

    def forward(
        self,
        spec: SymmetrySpec | None = None,
        sizes: Mapping[str, int] | None = None,
        noise: float = 0.0,
        generator: torch.Generator | None = None,
        draws: int = 1,
    ) -> dict[str, Tensor]:
        """The state of a network.

        Args:
            spec: of the architecture that is asked for, at any width; the field's own if ``None``.
            sizes: numbers of units by space; those of ``spec`` for spaces that are not named.
            noise: how far units stray from their coordinates, in spacings (see :class:`Sampling`).
            generator: of the noise.
            draws: over how many draws of the noise weights are averaged.

        Returns:
            Every entry of the state dict, with gradients to the field's parameters.

        Raises:
            FieldError: if the spec is of another architecture, or a size is impossible.
        """
        sized = dict(self.layout.full)
        if spec is not None and spec is not self.spec:
            check_spec(self.spec, spec)
            sized = {space.name: space.size for space in spec.spaces}
        if sizes is not None:
            check_sizes(self.spec, sizes)
            sized.update(sizes)
        if draws < 1:
            raise FieldError(f"{draws} draws", hint="expected at least 1")
        if not 0 <= noise < math.inf:
            raise FieldError(f"noise {noise}", hint="expected spacings, 0 or more")
        if not noise or draws == 1:
            return self._state(sized, noise, generator)
        found = [self._state(sized, noise, generator) for _ in range(draws)]
        return {
            name: torch.stack([state[name] for state in found]).mean(0) if first.is_floating_point() else first
            for name, first in found[0].items()
        }

    def _state(self, sizes: Mapping[str, int], noise: float, generator: torch.Generator | None) -> dict[str, Tensor]:
        places = {
            name: self._places(name, sizes[name], full) if not noise else
            self.sampling.places(sizes[name], full, noise, generator)
            for name, full in self.layout.full.items()
        }  # fmt: skip
        width = self.width(sizes)

        def written(piece: Piece) -> Tensor:
            found = self.values(piece, places, width)
            for dim, (space, reads) in enumerate(zip(piece.spaces, piece.reads, strict=True)):
                if reads and space is not None and not places[space].plain:
                    shape = [1] * found.ndim
                    shape[dim] = -1
                    found = found * places[space].shares.to(found).view(shape)
            return found.to(getattr(torch, self.spec.tensors[piece.tensor].dtype))

        constants = dict(zip(self.layout.constants, range(len(self.layout.constants)), strict=True))
        return self.layout.assemble(sizes, written, lambda name: self.get_buffer(f"constant_{constants[name]}"))

    def start_values(self, piece: Piece, state: Mapping[str, Tensor]) -> Tensor:
        """The values of a piece in a network of full width; in float32 at least, to learn from there."""
        values = self.layout.read(piece, state)
        return values.to(torch.promote_types(values.dtype, torch.float32))

    def places(self, piece: Piece, sizes: Mapping[str, int] | None = None) -> list[Places | None]:
        """Where the units of every leaf of a piece stand, at full width by default; ``None`` for a fixed one."""
        return [
            None if space is None else self._places(space, (sizes or {}).get(space, full), full)
            for space, full in zip(piece.spaces, piece.full, strict=True)
        ]

    def _places(self, space: str, size: int, full: int) -> Places:
        if (space, size) not in self._kept:
            self._kept[space, size] = self.sampling.places(size, full)
        return self._kept[space, size]

    def width(self, sizes: Mapping[str, int]) -> float:
        """How wide a network is as one number: the geometric mean, over spaces, of size over full size."""
        ratios = [math.log(sizes[name] / full) for name, full in self.layout.full.items() if full > 1]
        return math.exp(sum(ratios) / max(len(ratios), 1))

    @abc.abstractmethod
    def values(self, piece: Piece, places: Mapping[str, Places], width: float) -> Tensor:
        """The values of one piece, one dimension per leaf, before shares.

        Args:
            piece: which.
            places: of every space.
            width: see :meth:`width`.
        """

    @abc.abstractmethod
    def options(self) -> dict[str, Any]:
        """What the field is made with again, beside spec and sampling: JSON values."""

    def folded_state(self) -> dict[str, Tensor]:
        """The field's numbers as they are stored: tables times the scales that training keeps apart."""
        scaled = {f"parts.{key}.table": part.scale for key, part in self.parts.items() if isinstance(part, Table)}
        return {
            name: tensor * scaled.get(name, 1.0) if name in scaled else tensor
            for name, tensor in self.state_dict().items()
        }

    def fold(self) -> None:
        """Take the scales into the tables, in place; the same weights are written, bit by bit."""
        with torch.no_grad():
            for part in self.parts.values():
                if isinstance(part, Table):
                    part.table.mul_(part.scale)
                    part.scale = 1.0

    @property
    def stored(self) -> int:
        """How many numbers the field holds: all parameters, tables, scales, statistics and constants."""
        return sum(tensor.numel() for tensor in self.state_dict().values())

    def check_model(self, model: nn.Module) -> None:
        """Whether a module is of the field's architecture at full width.

        Raises:
            FieldError: with the first tensor, or axis of one, that differs.
        """
        state = model.state_dict()
        for name, info in self.spec.tensors.items():
            if name not in state:
                raise FieldError(f"{name}: the module has no such tensor", hint="the field is for another architecture")
            shape = tuple(state[name].shape)
            if shape != info.shape:
                pairs = enumerate(zip(shape, info.shape, strict=False))
                axis = next((number for number, (a, b) in pairs if a != b), min(len(shape), len(info.shape)))
                raise FieldError(
                    f"{name}, axis {axis}: the module has shape {list(shape)}, the field {list(info.shape)}",
                    hint="the field is for another architecture, or another full width",
                )
        extra = [name for name in state if name not in self.spec.tensors]
        if extra:
            raise FieldError(f"{extra[0]}: not written by the field", hint="the field is for another architecture")

    def statistics(self) -> Sequence[Piece]:
        """The pieces that are running statistics of batch norms."""
        return [piece for piece in self.layout.pieces if piece.kind in ("norm.running_mean", "norm.running_var")]

    def extra_repr(self) -> str:
        return f"{len(self.layout.pieces)} pieces of {len(self.spec.tensors)} tensors, {self.stored} numbers"


def start_scale(piece: Piece, values: Tensor) -> float:
    """The size of the values that a weight starts with, as a power of two, so that scaling by it loses nothing.

    It is that of the network that the field starts from. A weight that is all zeros there (a residual branch) starts
    like any other: ``sqrt(2 / fan_in)``, He et al. 2015.
    """
    size = float(values.double().square().mean().sqrt())
    return 2.0 ** round(math.log2(size if size > 0 else math.sqrt(2 / max(piece.fan_in, 1))))
