"""Which model do the options of a configuration ask for?"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias, cast

import torch
from torch import nn

from metanet.errors import ConfigError, ModelError
from metanet.nn import Metanet

Level: TypeAlias = Literal["graph", "node", "edge", "state"]

# These are decided by the task or the trainer, not by the model's configuration.
_RESERVED = ("outputs", "level", "invariant", "seed", "generator")


def build_model(
    options: Mapping[str, Any],
    outputs: int,
    generator: torch.Generator,
    level: str = "graph",
    invariant: bool = False,
) -> Metanet:
    """A metanetwork with one answer per network, unit or weight.

    Args:
        options: `name: metanet` (or none) and the arguments of `metanet.nn.Metanet`.
        outputs: Numbers per network, unit or weight.
        generator: Source of the first weights.
        level: "graph", "node", "edge" or "state".
        invariant: Answers at weights are numbers, not changes.

    Raises:
        ConfigError: An unknown model or option, or one out of range.
    """
    given = dict(options)
    name = given.pop("name", "metanet")
    if name != "metanet":
        raise ConfigError(f"{name!r} given, there is only 'metanet'", where="model.name")
    known = [key for key in inspect.signature(Metanet).parameters if key not in _RESERVED]
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise ConfigError(f"no such option: {unknown[0]!r}", hint=f"there are {', '.join(known)}", where="model")
    try:
        return Metanet(outputs, cast(Level, level), **given, invariant=invariant, generator=generator)
    except ModelError as error:
        raise ConfigError(error.reason, hint=error.hint, where="model") from error


def prepare_model(model: nn.Module, batch: Any) -> None:
    """Let a model standardise its features by the training networks, if it wants to."""
    prepare = getattr(model, "fit_statistics", None)
    if prepare is not None:
        with torch.no_grad():
            prepare(batch)
