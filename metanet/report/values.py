"""Are these the values of a report, and is each of them of the kind that the page draws?

`report.json` is plain JSON. A key without a mark in its shape may be absent and is then left out of the page; what is
there must have the shape declared in `SHAPES`, so that a damaged file is refused by name, not drawn by halves.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from metanet.errors import MetanetError
from metanet.io import read_json

REPORT_FORMAT = "metanet.report/1"
COMPARISON_FORMAT = "metanet.comparison/1"
MAX_POINTS = 200_000

Json = dict[str, Any]


class ReportError(MetanetError):
    """The values of a report are missing, damaged or of another format."""


# The shape of the values. A type is that type (int stands for any whole number, float for any finite number or null);
# [x] is a list of x; {"name": x} are known keys, of which those ending in "!" must be there; {str: x} are free keys.
_NUMBER = float
_SIZE = {"runs": int, "networks": int}
SHAPE: Json = {
    "format!": str,
    "title!": str,
    "subtitle": str,
    "created": str,
    "seconds": _NUMBER,
    "command": str,
    "verdict": str,
    "headline": [{"label!": str, "value!": str, "note": str}],
    "target": {"column": str, "label": str, "share": bool},
    "metric": {"label!": str, "explanation": str},
    "groups": str,
    "zoo": {
        "name": str,
        "data": str,
        "runs": int,
        "failed_runs": int,
        "networks": int,
        "parameters": [int],
        "families": {str: int},
        "seconds": _NUMBER,
        "steps_per_s": _NUMBER,
        "split": {str: _SIZE},
        "values": [_NUMBER],
    },
    "models": [
        {
            "name!": str,
            "kind!": str,
            "description": str,
            "score!": _NUMBER,
            "interval": [_NUMBER],
            "r2": _NUMBER,
            "mae": _NUMBER,
            "accuracy": _NUMBER,
            "seconds": _NUMBER,
            "best": bool,
            "chosen": bool,
        }
    ],
    "predictions": {"model!": str, "true!": [_NUMBER], "predicted!": [_NUMBER], "group": [str]},
    "training": {"epochs!": [int], "best_epoch": int, "curves!": {str: {str: [_NUMBER]}}},
    "unseen": {
        "file!": str,
        "bytes": int,
        "architecture": str,
        "parameters": int,
        "how": str,
        "predicted": _NUMBER,
        "measured": _NUMBER,
        "measured_on": str,
        "seen": str,
        "symmetry": {
            "summary": [[str]],
            "table": {"columns!": [str], "rows!": [[object]]},
            "notes": [str],
            "verification": {"passed!": bool, "trials": int, "max_error": _NUMBER, "control_error": _NUMBER},
        },
    },
    "configuration": {str: object},
    "seeds": {str: object},
    "versions": {str: object},
    "machine": {str: object},
}

# Two networks side by side: a morph, or a score.
_SPREAD = {"median!": _NUMBER, "low!": _NUMBER, "high!": _NUMBER}
COMPARISON: Json = {
    "format!": str,
    "title!": str,
    "created": str,
    "command": str,
    "names!": [str],
    "headline": [{"label!": str, "value!": str, "note": str}],
    "verdict!": str,
    "error": _NUMBER,
    "tolerance": _NUMBER,
    "dtype": str,
    "origin": str,
    "inputs": int,
    "made_up": bool,
    "confidence": _NUMBER,
    "outputs": [{"name": str, "rows!": [[object]]}],
    "barrier": _NUMBER,
    "features": str,
    "layers": [{"before!": str, "after!": str, "sizes!": [int], "cka": _NUMBER, "low": _NUMBER, "high": _NUMBER}],
    "notes": [str],
    "failed": [str],
    "costs": [{"name!": str, "before": _NUMBER, "after": _NUMBER}],
    "timing": {"setting!": str, "calls!": [_SPREAD], "ratios!": [_SPREAD], "rounds": int, "batch": int, "threads": int},
    "spaces": [
        {
            "name!": str,
            "before": int,
            "after": int,
            "kind!": str,
            "within": str,
            "until": str,
            "last": str,
            "times": int,
        }
    ],
    "edits": [str],
    "more_edits": int,
    "edit_error": _NUMBER,
    "units": [
        {
            "space!": str,
            "before": int,
            "kept": int,
            "gone": str,
            "merged": [str],
            "readers": int,
            "rebuilt": [{"unit!": str, "sources!": [{"unit!": str, "coefficient": _NUMBER}]}],
            "more": int,
        }
    ],
    "uncompensated": [str],
    "frontier": {
        "limit": str,
        "cost": str,
        "points!": [
            {
                "chosen": bool,
                "amount": _NUMBER,
                "parameters": int,
                "stored": int,
                "flops": int,
                "latency_ms": _NUMBER,
                "kl": _NUMBER,
                "agreement": _NUMBER,
                "error": _NUMBER,
            }
        ],
    },
    "versions": {str: object},
    "machine": {str: object},
}
SHAPES: dict[str, Json] = {REPORT_FORMAT: SHAPE, COMPARISON_FORMAT: COMPARISON}


def load_values(folder: str | os.PathLike[str]) -> Json:
    """The checked values of `report.json` in `folder` (or of that file itself).

    Raises:
        ReportError: There is no such file, or it is not the values of a report.
    """
    path = Path(folder)
    file = path / "report.json" if path.is_dir() else path
    if not file.is_file():
        hint = "give a folder that `metanet demo`, `metanet train` or `metanet morph` has written"
        raise ReportError("no report.json here", where=path, hint=hint)
    try:
        values = read_json(file)
    except (ValueError, OSError) as error:
        hint = "run the command that wrote it again"
        raise ReportError(f"cannot be read as JSON: {error}", where=file, hint=hint) from None
    return check_values(values, where=file)


def check_values(values: Any, where: str | os.PathLike[str] = "report values") -> Json:
    """`values`, if they are what the page can draw.

    Raises:
        ReportError: Naming the first entry that is not, with what was expected.
    """

    def refuse(entry: str, reason: str) -> None:
        hint = "the shape is declared in metanet.report.values"
        raise ReportError(f"{entry or 'the whole'}: {reason}", where=where, hint=hint)

    if not isinstance(values, Mapping):
        refuse("", f"expected an object, got {type(values).__name__}")
    shape = SHAPES.get(str(values.get("format")))
    if shape is None:
        known = " or ".join(map(repr, SHAPES))
        refuse("format", f"expected {known}, got {values.get('format')!r:.80}")
    _check(values, shape, "", refuse)
    predictions = values.get("predictions")
    if predictions:
        lengths = {len(predictions[key]) for key in ("true", "predicted", "group") if predictions.get(key) is not None}
        if len(lengths) > 1:
            refuse("predictions", f"lists of different lengths {sorted(lengths)}")
    training = values.get("training")
    if training:
        for panel, lines in training["curves"].items():
            for name, line in lines.items():
                epochs = len(training["epochs"])
                if len(line) != epochs:
                    refuse(f"training.curves.{panel}.{name}", f"{len(line)} values for {epochs} epochs")
    return dict(values)


def complete(value: Any, shape: Any = None) -> Any:
    """`value` with every declared key that is absent set to None, so that the template may ask for any."""
    shape = SHAPES[value["format"]] if shape is None else shape
    if value is None or not isinstance(shape, list | dict):
        return value
    if isinstance(shape, list):
        return value if shape[0] in (str, int, float, object) else [complete(item, shape[0]) for item in value]
    if str in shape:
        return {key: complete(item, shape[str]) for key, item in value.items()}
    return {key.rstrip("!"): complete(value.get(key.rstrip("!")), inner) for key, inner in shape.items()}


def _check(value: Any, shape: Any, entry: str, refuse: Any) -> None:
    if value is None or shape is object:
        return
    if isinstance(shape, list):
        if not isinstance(value, list | tuple):
            refuse(entry, f"expected a list, got {type(value).__name__}")
        if len(value) > MAX_POINTS:
            refuse(entry, f"{len(value)} entries, more than {MAX_POINTS}")
        for i, item in enumerate(value):
            _check(item, shape[0], f"{entry}[{i}]", refuse)
    elif isinstance(shape, dict):
        if not isinstance(value, Mapping):
            refuse(entry, f"expected an object, got {type(value).__name__}")
        if str in shape:
            for key, item in value.items():
                _check(item, shape[str], f"{entry}.{key}", refuse)
            return
        for key, inner in shape.items():
            name = key.rstrip("!")
            if key.endswith("!") and value.get(name) is None:
                refuse(f"{entry}.{name}".lstrip("."), "is missing")
            _check(value.get(name), inner, f"{entry}.{name}".lstrip("."), refuse)
    elif not _is_a(value, shape):
        refuse(entry, f"expected {shape.__name__}, got {value!r:.80}")


def _is_a(value: Any, kind: type) -> bool:
    if kind in (int, float):
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        return number and (kind is float or float(value).is_integer())
    return isinstance(value, kind)
