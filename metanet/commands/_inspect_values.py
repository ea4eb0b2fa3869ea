"""What does the page of `metanet inspect` show? A file's analysis as plain values: cards, tables and a figure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from metanet.checkpoint import Checkpoint
    from symmetry import NullDirections, SymmetryReport, SymmetrySpec, Verification
    from symmetry.spaces import Atom, Fixed

KINDS = {"permutation": "permuted", "linear": "linear", "orthogonal": "orthogonal"}


def page_values(
    checkpoint: Checkpoint,
    report: SymmetryReport,
    facts: Sequence[tuple[str, str]],
    summary: Sequence[tuple[str, str]],
    verification: Verification | None,
    null: NullDirections | None,
) -> dict[str, Any]:
    """The values of one page; see `metanet.report.inspect`."""
    from symmetry.analyze import describe_conditions

    return {
        "format": "metanet.inspect/1",
        "title": checkpoint.source.path.name,
        "facts": [list(row) for row in facts],
        "cards": [{"label": label, "value": value} for label, value in summary],
        "figure": figure_values(checkpoint.spec, report),
        "spaces": [
            {
                "name": group[0].name,
                "last": group[-1].name if len(group) > 1 else None,
                "count": len(group),
                "size": group[0].size,
                "kind": KINDS[group[0].group],
                "words": group[0].words,
                "found": not group[0].clean,
                "condition": describe_conditions([space.matrix for space in group if space.matrix is not None]),
                "gauge": gauge_words([space.gauge for space in group if space.gauge is not None]),
            }
            for group in report.repeated()
        ],
        "others": report.others(),
        "pinned": [
            {
                "operation": pin.operation,
                "node": pin.node,
                "source": pin.source,
                "tensors": list(pin.tensors),
                "reason": pin.reason,
            }
            for pin in report.pinned
        ],
        "not_finite": list(report.not_finite),
        "null_directions": None if null is None else null.to_json(),
        "verification": None
        if verification is None
        else {
            "passed": verification.passed,
            "trials": verification.trials,
            "max_error": verification.max_error,
            "control_error": verification.to_json()["control_error"],
        },
        "tensors": [
            {
                "name": name,
                "shape": " × ".join(map(str, info.shape)) or "one number",
                "kind": info.kind,
                "axes": ", ".join(str(axis) for axis in checkpoint.spec.axes[name]),
            }
            for name, info in checkpoint.spec.tensors.items()
        ],
    }


def gauge_words(values: Sequence[float]) -> str:
    """How far scalings are from the canonical ones, as factors: 1 is the canonical gauge."""
    if not values:
        return ""
    low, high = math.exp(min(values)), math.exp(max(values))
    return f"×{low:.2f}" if f"{low:.2f}" == f"{high:.2f}" else f"×{low:.2f} to ×{high:.2f}"


def figure_values(spec: SymmetrySpec, report: SymmetryReport) -> dict[str, Any]:
    """Spaces, inputs and outputs, and for every weight what it reads and writes, along the data flow."""
    from symmetry.analyze import known_roles

    roles = known_roles(spec)
    nodes: dict[str, dict[str, Any]] = {
        space.name: {
            "name": space.name,
            "size": space.size,
            "kind": KINDS[space.group],
            "within": space.within[-1] if space.within else None,
            "words": space.words,
        }
        for space in report.spaces
    }
    rows: list[dict[str, Any]] = []
    for name in sorted(spec.tensors, key=lambda name: spec.tensors[name].order):
        info = spec.tensors[name]
        if info.tied_to is not None or info.kind == "unused":
            continue
        ends: dict[str, list[str]] = {"in": [], "out": []}
        touched: list[str] = []
        for axis, role in zip(spec.axes[name], roles[name], strict=True):
            for leaf in axis.leaves():
                node = _node(leaf, nodes)
                if node is not None:
                    touched.append(node)
                    for side in ("in", "out") if role == "unit" else (role,):
                        if side in ends and node not in ends[side]:
                            ends[side].append(node)
        if not touched:
            continue
        wide = sum(size > 1 for size in info.shape) > 1
        if rows and not (wide and (ends["in"] or ends["out"])):
            _attach(rows[-1], name, info.kind)
            continue
        tied = [other for other, its in spec.tensors.items() if its.tied_to == name]
        rows.append(
            {
                "tensor": name,
                "shape": "×".join(map(str, info.shape)),
                "reads": ends["in"],
                "writes": ends["out"],
                "tied": tied,
                "with": [],
            }
        )
    used = {node for row in rows for side in ("reads", "writes") for node in row[side]}
    outer = {nodes[name]["within"] for name in used}
    return {"nodes": [node for name, node in nodes.items() if name in used | outer], "rows": rows}


def _node(leaf: Atom | Fixed, nodes: dict[str, dict[str, Any]]) -> str | None:
    """The node that a leaf belongs to; inputs and outputs become nodes when they are met."""
    from symmetry.spaces import Atom

    if isinstance(leaf, Atom):
        return leaf.space.name
    if leaf.name is None or not leaf.name.startswith(("input.", "output.")):
        return None
    kind = leaf.name.split(".")[0]
    nodes.setdefault(
        leaf.name, {"name": leaf.name, "size": leaf.size, "kind": kind, "within": None, "words": f"{leaf.size} {kind}s"}
    )
    return leaf.name


def _attach(row: dict[str, Any], name: str, kind: str) -> None:
    """Tensors with one axis of units (biases, norms) stand beside the weight before them."""
    label = "norm" if kind.startswith("norm.") else "bias" if kind == "bias" else name.rpartition(".")[2]
    if label not in row["with"]:
        row["with"].append(label)
