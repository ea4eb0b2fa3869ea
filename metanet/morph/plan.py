"""What is a list of edits that can be printed, kept in a file, joined and done again on another network?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from metanet.errors import PlanError, clean
from metanet.morph.edits import Edit, edit_from_json
from symmetry import SymmetrySpec

__all__ = ["FORMAT", "Plan", "fingerprint"]

FORMAT = "metanet.plan/1"
MAX_EDITS = 10_000


def fingerprint(spec: SymmetrySpec) -> str:
    """What a plan knows an architecture by: its spec, whatever the dtype of its tensors."""
    return replace(spec, tensors={name: replace(info, dtype="") for name, info in spec.tensors.items()}).fingerprint


@dataclass(frozen=True)
class Plan:
    """Edits in the order in which they are done. A value: it compares, prints, and goes to and from JSON.

    Args:
        edits: see :mod:`metanet.morph`.
        fingerprint: :func:`fingerprint` of the architecture it is for; empty: any in which its names exist.

    ``first + second`` does the edits of ``first``, then those of ``second``.

    >>> from metanet.morph import Keep, Widen
    >>> plan = Plan([Widen("0", [0, 1, 0])]) + Plan([Keep("2", [0])])
    >>> print(plan)
    1  widen 0 to 3 units   exact
    2  keep 1 units of 2    approximate
    >>> Plan.from_json(plan.to_json()) == plan
    True
    """

    edits: tuple[Edit, ...] = ()
    fingerprint: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "edits", tuple(self.edits))
        for edit in self.edits:
            if not isinstance(edit, Edit):
                raise PlanError(f"{clean(repr(edit), 60)} in a plan is no edit", hint="use those of metanet.morph")

    @property
    def exact(self) -> bool:
        """Whether every edit claims to leave the function alone."""
        return all(edit.exact for edit in self.edits)

    def __len__(self) -> int:
        return len(self.edits)

    def __iter__(self) -> Iterator[Edit]:
        return iter(self.edits)

    def __add__(self, other: Plan) -> Plan:
        if not isinstance(other, Plan):
            return NotImplemented
        # What comes second is for what the first has made, whose layout nothing but running it tells.
        return Plan(self.edits + other.edits, self.fingerprint)

    def __str__(self) -> str:
        texts = [str(edit) for edit in self.edits]
        width, digits = max(map(len, texts), default=0), len(str(len(texts)))
        return "\n".join(
            f"{number:>{digits}}  {text:<{width}}   {'exact' if edit.exact else 'approximate'}"
            for number, (edit, text) in enumerate(zip(self.edits, texts, strict=True), 1)
        )

    def to_json(self) -> dict[str, Any]:
        """A JSON value that :meth:`from_json` reads back to an equal plan."""
        return {"format": FORMAT, "fingerprint": self.fingerprint, "edits": [edit.to_json() for edit in self.edits]}

    @classmethod
    def from_json(cls, value: object) -> Plan:
        """Read back what :meth:`to_json` wrote.

        Raises:
            PlanError: if the value is not the JSON of a plan.
        """
        if not isinstance(value, Mapping) or value.get("format") != FORMAT:
            found = value.get("format") if isinstance(value, Mapping) else type(value).__name__
            raise PlanError(f"not the JSON of a plan: format {clean(repr(found), 60)}, expected {FORMAT!r}")
        edits, fingerprint = value.get("edits"), value.get("fingerprint", "")
        if not isinstance(edits, list) or len(edits) > MAX_EDITS or not isinstance(fingerprint, str):
            raise PlanError(f"not the JSON of a plan: expected a list of at most {MAX_EDITS} edits and a fingerprint")
        return cls(tuple(edit_from_json(edit) for edit in edits), fingerprint)
