"""How does a user name the code that builds a network?

A factory is code, so only the user can name it, in a call or on the command line. No file can: an architecture file
with the family "factory" is refused.
"""

from __future__ import annotations

import hashlib
import importlib
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from metanet.checkpoint.architecture import FACTORY, FORMAT, Architecture
from metanet.errors import CheckpointError, clean

__all__ = ["FactoryArchitecture"]

_HINT = "a factory is a function without arguments that returns (model, example_inputs)"


def _find(name: str) -> Callable[[], Any]:
    if not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*", name):
        raise CheckpointError(f"factory '{clean(name, 80)}' is no 'package.module:function'", hint=_HINT)
    module_name, _, attribute = name.partition(":")
    try:
        found: Any = importlib.import_module(module_name)
    except ImportError as error:
        raise CheckpointError(f"factory '{name}': {clean(error, 120)}", hint="check the name and the path") from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise CheckpointError(f"factory '{name}': there is no '{part}'", hint="check the name")
        found = getattr(found, part)
    if not callable(found):
        raise CheckpointError(f"factory '{name}' is a {type(found).__name__}", hint=_HINT)
    return found


class FactoryArchitecture(Architecture):
    """A network that the user's own code builds.

    Args:
        factory: ``"package.module:function"``, or the function. It takes no arguments and returns ``(model,
            example_inputs)``,
            with example inputs that have seven or more examples along their first axis.

    Raises:
        CheckpointError: where the factory cannot be found, fails, or returns something else.
    """

    _make: Callable[[], Any]
    _inputs: tuple[Tensor, ...]
    _text: str

    def __init__(self, factory: str | Callable[[], Any]) -> None:
        name = factory if isinstance(factory, str) else f"{factory.__module__}:{factory.__qualname__}"
        object.__setattr__(self, "_make", _find(factory) if isinstance(factory, str) else factory)
        object.__setattr__(self, "family", FACTORY)
        object.__setattr__(self, "options", MappingProxyType({"factory": name}))
        object.__setattr__(self, "provenance", "a Python factory named by the user")
        model, inputs = self._call()
        shapes = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
        object.__setattr__(self, "_shapes", MappingProxyType(shapes))
        object.__setattr__(self, "_inputs", inputs)
        object.__setattr__(self, "_text", repr(model))

    def _call(self, seed: int = 0) -> tuple[nn.Module, tuple[Tensor, ...]]:
        with torch.random.fork_rng(devices=[]):
            torch.random.default_generator.manual_seed(seed)
            try:
                made = self._make()
            except Exception as error:
                text = f"factory '{self.options['factory']}' raised {type(error).__name__}: {clean(error, 120)}"
                raise CheckpointError(text, hint="correct the factory") from error
        match made:
            case (nn.Module() as model, Tensor() as single):
                return model.eval(), (single,)
            case (nn.Module() as model, (tuple() | list()) as inputs) if inputs and all(
                isinstance(value, Tensor) for value in inputs
            ):
                return model.eval(), tuple(inputs)
        raise CheckpointError(
            f"factory '{self.options['factory']}' returned a {type(made).__name__}, no model with example inputs",
            hint=_HINT,
        )

    def build(self, seed: int = 0) -> nn.Module:
        """The model that the factory makes, in eval mode."""
        return self._call(seed)[0]

    def example_inputs(self, batch: int = 7) -> tuple[Tensor, ...]:
        """The factory's own example inputs; ``batch`` is theirs."""
        return self._inputs

    @property
    def fingerprint(self) -> str:
        """Hexadecimal hash of the factory's name, the modules and the shapes of the tensors."""
        text = f"{self.options['factory']}\n{self._text}\n{sorted(self._shapes.items())}"
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)

    def __reduce__(self) -> tuple[Any, ...]:
        return FactoryArchitecture, (self.options["factory"],)

    def to_json(self) -> dict[str, Any]:
        """The factory's name; reading it back is refused, because the name of code must come from the user."""
        options: Mapping[str, Any] = dict(self.options)
        return {"format": FORMAT, "family": FACTORY, "options": options, "provenance": self.provenance}
