"""What if a file holds tensors and nothing says what is computed with them?

The tensors are still worth reading. Whatever needs the function (the spec, the model, example inputs) says why it is
not known and what to do.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NoReturn

from torch import Tensor, nn

from metanet.checkpoint.architecture import FORMAT, Architecture
from metanet.errors import CheckpointError

__all__ = ["UNKNOWN", "UnknownArchitecture"]

UNKNOWN = "unknown"


class UnknownArchitecture(Architecture):
    """Stands where an architecture would stand, and explains why there is none.

    Args:
        reason: why the function of the tensors is not known; raised by everything that needs it.
        state: the tensors that were read; others of the same names and shapes fit.
    """

    reason: CheckpointError

    def __init__(self, reason: CheckpointError, state: Mapping[str, Tensor]) -> None:
        object.__setattr__(self, "reason", reason)
        object.__setattr__(self, "family", UNKNOWN)
        object.__setattr__(self, "options", MappingProxyType({}))
        object.__setattr__(self, "provenance", "the file does not say it")
        shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
        object.__setattr__(self, "_shapes", MappingProxyType(shapes))

    def _refuse(self) -> NoReturn:
        default = (
            "name a Python factory, a function that returns (model, example_inputs), with factory=; "
            "or give the architecture with architecture="
        )
        raise CheckpointError(
            f"what is computed with its tensors is not known: {self.reason.reason}",
            hint=self.reason.hint if "factory=" in self.reason.hint else default,
            file=self.reason.file,
            tensor=self.reason.tensor,
        )

    def build(self, seed: int = 0) -> nn.Module:
        """Raises:
        CheckpointError: always.
        """
        self._refuse()

    def example_inputs(self, batch: int = 7) -> tuple[Tensor, ...]:
        """Raises:
        CheckpointError: always.
        """
        self._refuse()

    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (self.reason.reason, self.reason.hint, self.reason.file, self.reason.tensor, dict(self._shapes))

    def __repr__(self) -> str:
        return "UnknownArchitecture()"

    @property
    def fingerprint(self) -> str:
        """Raises:
        CheckpointError: always.
        """
        self._refuse()

    def to_json(self) -> dict[str, Any]:
        """That it is unknown; reading it back is refused."""
        return {"format": FORMAT, "family": UNKNOWN, "options": {}, "provenance": self.provenance}


def _again(reason: str, hint: str, file: str, tensor: str | None, shapes: dict[str, Any]) -> UnknownArchitecture:
    made = UnknownArchitecture(CheckpointError(reason, hint=hint, file=file, tensor=tensor), {})
    object.__setattr__(made, "_shapes", MappingProxyType(shapes))
    return made
