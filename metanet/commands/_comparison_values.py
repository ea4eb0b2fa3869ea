"""What does the page of two networks side by side show? A morph or a score as plain values: cards, tables, figures."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from metanet.commands._space_values import space_values, unit_values

if TYPE_CHECKING:
    from metanet.morph.search import Point
    from metanet.morph.timing import Timing
    from metanet.score import OutputScore, Preservation
    from metanet.score.certificate import Certificate
    from symmetry import SymmetrySpec

__all__ = ["measures", "morph_values", "score_values"]

FORMAT = "metanet.comparison/1"
COSTS = {
    "parameters": "parameters",
    "stored": "numbers stored",
    "flops": "floating point operations for one input",
    "latency_ms": "milliseconds for one call",
}
# Edits on the page; what is beyond them is counted.
MOST_EDITS = 200


def morph_values(
    title: str,
    command: str,
    before: SymmetrySpec,
    point: Point,
    frontier: Sequence[Point],
    limit: str,
    budget: str,
    certificate: Certificate,
    timing: Timing,
) -> dict[str, Any]:
    """The values of a morph's page; see :mod:`metanet.report.comparison`."""
    morph = point.morph
    edits = [f"{edit}{'' if edit.exact else ' (approximate)'}" for edit in morph.plan]
    values = {
        "format": FORMAT,
        "title": title,
        "created": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "command": command,
        "names": ["before", "after"],
        "headline": _cards(certificate, timing),
        **_measured(certificate.preservation, ("before", "after")),
        "costs": [
            {"name": words, "before": certificate.before[name], "after": certificate.after.get(name)}
            for name, words in COSTS.items()
            if certificate.before.get(name) is not None
        ],
        "timing": {**timing.to_json(), "setting": timing.setting},
        "spaces": space_values(before, morph),
        "edits": edits[:MOST_EDITS],
        "more_edits": max(len(edits) - MOST_EDITS, 0),
        "edit_error": morph.error,
        "units": unit_values(before, morph),
        "uncompensated": list(morph.uncompensated),
        "frontier": {
            "limit": limit,
            "cost": budget,
            "points": [
                {
                    "chosen": each.morph.plan == morph.plan,
                    **each.cost.to_json(),
                    "amount": each.amount,
                    "kl": each.kl,
                    "agreement": each.agreement,
                    "error": each.error,
                }
                for each in frontier
            ],
        },
        "versions": dict(certificate.versions),
        "machine": _machine(),
    }
    return finite(values)


def score_values(
    names: tuple[str, str], counts: tuple[int, int], found: Preservation, failed: Sequence[str]
) -> dict[str, Any]:
    """The values of a score's page."""
    values = {
        "format": FORMAT,
        "title": f"{names[0]} (A) and {names[1]} (B)",
        "created": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "names": ["A", "B"],
        "headline": _score_cards(found, ("A", "B")),
        **_measured(found, ("A", "B")),
        "failed": list(failed),
        "costs": [{"name": "numbers stored", "before": counts[0], "after": counts[1]}],
        "machine": _machine(),
    }
    return finite(values)


def measures(output: OutputScore, names: tuple[str, str] = ("A", "B")) -> list[list[Any]]:
    """One row for each measure of an output of two networks of these names: name, value, interval."""
    a, b = names
    of = "of " if names == ("A", "B") else ""
    rows: list[list[Any]] = [["max error", output.max_error, None, None]]
    for name, estimate in (
        ("relative L2", output.relative_l2),
        (f"KL({a} || {b})", output.kl),
        (f"KL({b} || {a})", output.kl_reverse),
        ("agreement", output.agreement),
    ):
        if estimate is not None:
            rows.append([name, estimate.value, estimate.low, estimate.high])
    for name, values, change in (
        ("accuracy", output.accuracy, output.accuracy_change),
        ("loss", output.loss, output.loss_change),
    ):
        if values is not None and change is not None:
            rows += [[f"{name} {of}{a}", values[0], None, None], [f"{name} {of}{b}", values[1], None, None]]
            rows.append([f"{name} change", change.value, change.low, change.high])
    return rows


def _measured(found: Preservation, names: tuple[str, str]) -> dict[str, Any]:
    """What running both networks has shown."""
    return {
        "verdict": found.verdict,
        "error": found.error,
        "tolerance": found.tolerance,
        "dtype": found.dtype,
        "origin": found.origin,
        "inputs": found.inputs,
        "made_up": found.made_up,
        "confidence": found.confidence,
        "outputs": [{"name": output.name, "rows": measures(output, names)} for output in found.outputs],
        "barrier": found.barrier,
        "features": found.features,
        "layers": [
            {
                "before": layer.a,
                "after": layer.b,
                "sizes": list(layer.sizes),
                "cka": layer.cka.value,
                "low": layer.cka.low,
                "high": layer.cka.high,
            }
            for layer in found.layers
        ],
        "notes": list(found.notes),
    }


def _cards(certificate: Certificate, timing: Timing) -> list[dict[str, str]]:
    old, new = certificate.before["parameters"], certificate.after["parameters"]
    cards = [] if old is None or new is None else [_card("parameters", _times(new / old), f"{old:,.0f} to {new:,.0f}")]
    old, new = certificate.before["flops"], certificate.after["flops"]
    if old and new:
        cards.append(_card("operations for an input", _times(new / old), f"{old:,.0f} to {new:,.0f}"))
    ratio = timing.ratios[-1]
    told = f"{timing.calls[0].median:.3g} to {timing.calls[-1].median:.3g} ms; half of all rounds "
    cards.append(_card("latency", _times(ratio.median), f"{told}{_times(ratio.low)} to {_times(ratio.high)}"))
    return cards + _score_cards(certificate.preservation, ("before", "after"))


def _score_cards(found: Preservation, names: tuple[str, str]) -> list[dict[str, str]]:
    main, cards = found.main, []
    if main.agreement is not None:
        cards.append(_card("agreement", f"{main.agreement.value:.1%}", "of decisions are the same"))
    if main.kl is not None:
        cards.append(_card("divergence", f"{main.kl.value:.3g}", f"nats, KL({names[0]} || {names[1]})"))
    if main.accuracy is not None:
        old, new = main.accuracy
        cards.append(_card("accuracy", f"{new:.1%}", f"{names[0]}: {old:.1%}"))
    if main.kl is None:
        cards.append(_card("relative L2", f"{main.relative_l2.value:.2e}", "of the outputs' difference"))
    return cards


def _card(label: str, value: str, note: str) -> dict[str, str]:
    return {"label": label, "value": value, "note": note}


def _times(ratio: float) -> str:
    return f"×{ratio:.2f}" if ratio < 10 else f"×{ratio:.0f}"


def _machine() -> dict[str, Any]:
    return {"cores": os.cpu_count(), "architecture": platform.machine(), "system": platform.system()}


def finite(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values as JSON can hold them: infinities and NaN become nothing."""
    return {name: _finite(value) for name, value in values.items()}


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not abs(value) < float("inf") else value
