"""What network does a state dict belong to, said as plain data?

An :class:`Architecture` names a family and its options. It is a value: it compares, hashes, prints, goes to and from
JSON, and builds the module. Nothing in it is code, so it may come with a file. (A Python factory is code: see
``factory.py``, and only the user can name one.)
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from metanet.checkpoint.chains import CHAINS
from metanet.checkpoint.families import CNN, MLP, Family
from metanet.checkpoint.families_inr import SIREN
from metanet.checkpoint.families_recurrent import GRU
from metanet.checkpoint.families_transformer import TRANSFORMER
from metanet.checkpoint.families_zoo import ZOO_TRANSFORMER
from metanet.checkpoint.options import MAX_PARAMETERS
from metanet.errors import CheckpointError, clean

__all__ = ["FACTORY", "FAMILIES", "FORMAT", "Architecture"]

FORMAT = "metanet.architecture/1"
FACTORY = "factory"
FAMILIES: Mapping[str, Family] = MappingProxyType(
    {family.name: family for family in (MLP, CNN, TRANSFORMER, GRU, SIREN, ZOO_TRANSFORMER, CHAINS)}
)


def _frozen(value: Any) -> Any:
    if isinstance(value, Mapping):
        return MappingProxyType({key: _frozen(item) for key, item in value.items()})
    return tuple(_frozen(item) for item in value) if isinstance(value, list | tuple) else value


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


@dataclass(frozen=True, eq=False)
class Architecture:
    """A network as data: a family and its options, checked and completed with defaults.

    Args:
        family: a name in :data:`FAMILIES`.
        options: the family's options; unknown names, wrong types and absurd sizes are refused before memory is taken.
        provenance: where this knowledge comes from and what was assumed; no part of the value.

    Raises:
        CheckpointError: for anything that the family does not accept.

    >>> Architecture("mlp", {"inputs": 64, "widths": [32], "outputs": 10, "activation": "relu"})
    Architecture(mlp: inputs=64, widths=[32], outputs=10, activation=relu, norm=none, residual=False)
    """

    family: str
    options: Mapping[str, Any]
    provenance: str = "given by the user"
    _shapes: Mapping[str, tuple[int, ...]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.family, str) or self.family not in FAMILIES:
            raise CheckpointError(
                f"unknown architecture family {clean(repr(self.family), 60)}",
                hint="known families: " + ", ".join(FAMILIES) + "; or name a Python factory yourself with factory=",
            )
        options = FAMILIES[self.family].normalize(self.options)
        object.__setattr__(self, "options", _frozen(options))
        object.__setattr__(self, "_shapes", MappingProxyType(self._check_size()))

    def _check_size(self) -> dict[str, tuple[int, ...]]:
        count = 0
        state = self._skeleton().state_dict()
        for name, tensor in state.items():
            count += tensor.numel()
            if count > MAX_PARAMETERS:
                raise CheckpointError(
                    f"architecture family '{self.family}' needs more than {MAX_PARAMETERS} numbers",
                    tensor=name,
                    hint="correct the widths",
                )
        return {name: tuple(tensor.shape) for name, tensor in state.items()}

    def _skeleton(self) -> nn.Module:
        # Tensors on the meta device have shapes and take no memory.
        with torch.device("meta"):
            return FAMILIES[self.family].build(self.options)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every tensor in the state dict, in order, without taking memory for them."""
        return dict(self._shapes)

    def check_state(self, state: Mapping[str, Tensor]) -> None:
        """Compare names and shapes with those of the module.

        Raises:
            CheckpointError: with the first difference.
        """
        for name, tensor in state.items():
            if name not in self._shapes:
                close = [known for known in self._shapes if known not in state]
                hint = f"the architecture has '{close[0]}' instead" if close else "the architecture has nothing for it"
                if name.removeprefix("module.") in self._shapes:
                    hint = "the file was saved from DataParallel: take 'module.' off its names"
                raise CheckpointError(f"is not in the architecture {self!r:.80}", tensor=name, hint=hint)
            if tuple(tensor.shape) != self._shapes[name]:
                raise CheckpointError(
                    f"has shape {list(tensor.shape)}, the architecture expects {list(self._shapes[name])}",
                    tensor=name,
                    hint="correct the architecture, or load the file that belongs to it",
                )
        for name in self._shapes:
            if name not in state:
                raise CheckpointError(
                    "is in the architecture and not in the file", tensor=name, hint="correct the architecture"
                )

    def build(self, seed: int = 0) -> nn.Module:
        """A freshly initialised module in float32 on the CPU.

        Args:
            seed: of the initialisation; the global generators are left as they were.
        """
        with torch.random.fork_rng(devices=[]):
            torch.random.default_generator.manual_seed(seed)
            return FAMILIES[self.family].build(self.options)

    def example_inputs(self, batch: int = 7) -> tuple[Tensor, ...]:
        """Standard normal inputs, the same on every call.

        Args:
            batch: number of examples. Seven by default: a size that is rarely a width, so that axes are not confused.
        """
        generator = torch.Generator().manual_seed(0)
        shapes = FAMILIES[self.family].input_shapes(self.options)
        return tuple(torch.randn(batch, *shape, generator=generator) for shape in shapes)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hexadecimal hash of family and options."""
        value = {"format": FORMAT, "family": self.family, "options": _plain(self.options)}
        text = json.dumps(value, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Architecture) and self.fingerprint == other.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __reduce__(self) -> tuple[Any, ...]:
        return Architecture, (self.family, _plain(self.options), self.provenance)

    def __repr__(self) -> str:
        text = ", ".join(f"{key}={_plain(value)}" for key, value in self.options.items())
        return f"Architecture({self.family}: {clean(text, 300)})"

    def to_json(self) -> dict[str, Any]:
        """A JSON value that :meth:`from_json` reads back."""
        return {
            "format": FORMAT,
            "family": self.family,
            "options": _plain(self.options),
            "provenance": self.provenance,
        }

    @classmethod
    def from_json(cls, value: object, provenance: str | None = None) -> Architecture:
        """The architecture that a JSON value describes.

        Args:
            value: as made by :meth:`to_json`.
            provenance: replaces what stands in ``value``.

        Raises:
            CheckpointError: for anything else.
        """
        hint = f'write {{"format": "{FORMAT}", "family": ..., "options": {{...}}}}'
        if not isinstance(value, Mapping):
            raise CheckpointError(f"an architecture is a JSON object, found {type(value).__name__}", hint=hint)
        if value.get("format") != FORMAT:
            shown = clean(repr(value.get("format")), 60)
            raise CheckpointError(f"architecture format {shown}, expected '{FORMAT}'", hint=hint)
        if value.get("family") == FACTORY:
            options = value.get("options")
            name = clean(repr(options.get("factory")) if isinstance(options, Mapping) else "unnamed", 80)
            raise CheckpointError(
                f"the architecture is a Python factory ({name}), which is code and must not come from a file",
                hint="if you trust it, name it yourself with factory=",
            )
        unknown = [key for key in value if key not in ("format", "family", "options", "provenance")]
        if unknown:
            raise CheckpointError(f"unknown entry {clean(repr(unknown[0]), 60)} in an architecture", hint=hint)
        stated = value.get("provenance", "")
        if not isinstance(stated, str):
            raise CheckpointError(f"provenance is {clean(repr(stated), 60)}, expected text", hint=hint)
        return cls(
            value.get("family", ""), value.get("options", {}), provenance or clean(stated) or "architecture file"
        )
