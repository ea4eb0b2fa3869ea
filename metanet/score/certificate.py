"""What was done to a network, what became of its function, and what does it cost now? One value for all of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from metanet.errors import ScoreError, clean
from metanet.score.preservation import Preservation

__all__ = ["Certificate"]

FORMAT = "metanet.certificate/1"


@dataclass(frozen=True)
class Certificate:
    """What was done, how well the function is kept, and the cost before and after.

    Args:
        plan: the JSON value of the plan.
        preservation: measured by running both networks.
        before: cost of the old network, by name: ``parameters``, ``stored``, ``flops``, ``latency_ms``.
        after: of the new one.
        versions: of the programs that measured.
    """

    plan: Mapping[str, Any]
    preservation: Preservation
    before: Mapping[str, float | None]
    after: Mapping[str, float | None]
    versions: Mapping[str, str]

    @property
    def verdict(self) -> str:
        """``exact``, ``approximate`` or ``not finite``."""
        return self.preservation.verdict

    def __str__(self) -> str:
        lines = [str(self.preservation), ""]
        for name, old in self.before.items():
            new = self.after.get(name)
            if old is not None and new is not None:
                share = f"  ({new / old:.0%})" if old else ""
                lines.append(f"{name:<12} {old:>14,.6g} -> {new:>14,.6g}{share}")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """A JSON value that :meth:`from_json` reads back."""
        return {
            "format": FORMAT,
            "verdict": self.verdict,
            "plan": dict(self.plan),
            "preservation": self.preservation.to_json(),
            "before": dict(self.before),
            "after": dict(self.after),
            "versions": dict(self.versions),
        }

    @classmethod
    def from_json(cls, value: object) -> Certificate:
        """Read back what :meth:`to_json` wrote.

        Raises:
            ScoreError: if the value is no certificate.
        """
        if not isinstance(value, Mapping) or value.get("format") != FORMAT:
            given = value.get("format") if isinstance(value, Mapping) else type(value).__name__
            raise ScoreError(f"no certificate: format {clean(repr(given), 60)}, expected '{FORMAT}'")
        parts = {name: value.get(name) for name in ("plan", "before", "after", "versions")}
        wrong = [name for name, part in parts.items() if not isinstance(part, Mapping)]
        if wrong:
            raise ScoreError(f"damaged certificate: '{wrong[0]}' is no object", hint="morph the network again")
        found = cls(preservation=Preservation.from_json(value.get("preservation")), **parts)  # type: ignore[arg-type]
        if value.get("verdict") != found.verdict:
            raise ScoreError(
                f"damaged certificate: verdict {clean(repr(value.get('verdict')), 40)} above a preservation that is "
                f"{found.verdict}",
                hint="morph the network again",
            )
        return found
