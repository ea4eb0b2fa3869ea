"""Branches, loops and sequences: the graph decides by values that are known, or by those met while running."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from metanet.checkpoint.onnx.proto import Node
from metanet.checkpoint.onnx.registry import operator
from metanet.errors import CheckpointError

# A loop that a file describes must end; honest ones run over time steps or beams.
MAX_LOOPS = 1_000_000


@operator("If", either=True)
def branch(run: Any, node: Node, condition: Any) -> Any:
    chosen = "then_branch" if run.truth(condition, node) else "else_branch"
    return tuple(run.subgraph(node, chosen, {}))


@operator("Loop", either=True)
def loop(run: Any, node: Node, limit: Any = None, condition: Any = None, *carried: Any) -> Any:
    body = run.graph_of(node, "body")
    most = MAX_LOOPS if limit is None else min(int(run.number(limit, node)), MAX_LOOPS)
    going = True if condition is None else run.truth(condition, node)
    values = list(carried)
    scanned: list[list[Any]] = [[] for _ in range(len(body.outputs) - 1 - len(values))]
    count = 0
    while going and count < most:
        names = [value.name for value in body.inputs]
        given = dict(zip(names, [np.array(count, np.int64), np.array(True), *values], strict=True))
        results = run.subgraph(node, "body", given)
        # A body that always goes on returns a constant; only a condition that matters is looked at.
        going = run.truth(results[0], node)
        values = results[1 : 1 + len(values)]
        for found, value in zip(scanned, results[1 + len(values) :], strict=True):
            found.append(value)
        count += 1
    return (*values, *(_stacked(run, found, 0) for found in scanned))


def _stacked(run: Any, values: list[Any], axis: int) -> Tensor:
    return torch.stack([run.as_tensor(value) for value in values], axis) if values else torch.empty(0)


@operator("Scan", either=True)
def scan(run: Any, node: Node, *given: Any) -> Any:
    if run.opset < 9:
        raise CheckpointError(f"{node} is of an opset before 9", hint="export the model with a newer opset")
    body = run.graph_of(node, "body")
    count = node.attributes["num_scan_inputs"]
    states, scans = list(given[: len(given) - count]), [run.as_tensor(x) for x in given[len(given) - count :]]
    outputs = len(body.outputs) - len(states)
    in_axes = node.attributes.get("scan_input_axes") or [0] * count
    out_axes = node.attributes.get("scan_output_axes") or [0] * outputs
    backward = node.attributes.get("scan_input_directions") or [0] * count
    backward_out = node.attributes.get("scan_output_directions") or [0] * outputs
    steps = scans[0].shape[in_axes[0]]
    names = [value.name for value in body.inputs]
    found: list[list[Any]] = [[] for _ in range(outputs)]
    for t in range(steps):
        parts = [x.select(a, steps - 1 - t if back else t) for x, a, back in zip(scans, in_axes, backward, strict=True)]
        results = run.subgraph(node, "body", dict(zip(names, [*states, *parts], strict=True)))
        states = results[: len(states)]
        for values, value in zip(found, results[len(states) :], strict=True):
            values.append(value)
    ordered = [values[::-1] if back else values for values, back in zip(found, backward_out, strict=True)]
    return (*states, *(_stacked(run, values, axis) for values, axis in zip(ordered, out_axes, strict=True)))


@operator("SequenceConstruct", either=True)
def sequence(run: Any, node: Node, *values: Any) -> Any:
    return [run.as_tensor(value) for value in values]


@operator("SequenceEmpty")
def empty_sequence(run: Any, node: Node) -> Any:
    return []


@operator("SequenceAt", either=True)
def sequence_at(run: Any, node: Node, values: Any, place: Any) -> Any:
    return values[int(run.number(place, node))]


@operator("SequenceInsert", either=True)
def sequence_insert(run: Any, node: Node, values: Any, value: Any, place: Any = None) -> Any:
    at = len(values) if place is None else int(run.number(place, node))
    return (
        [*values[:at], run.as_tensor(value), *values[at:]]
        if at >= 0
        else [*values[: len(values) + at], run.as_tensor(value), *values[len(values) + at :]]
    )


@operator("SequenceErase", either=True)
def sequence_erase(run: Any, node: Node, values: Any, place: Any = None) -> Any:
    at = (len(values) - 1 if place is None else int(run.number(place, node))) % len(values)
    return [*values[:at], *values[at + 1 :]]


@operator("SequenceLength", either=True)
def sequence_length(run: Any, node: Node, values: Any) -> Any:
    return np.array(len(values), np.int64)


@operator("ConcatFromSequence", either=True)
def concat_sequence(run: Any, node: Node, values: Any) -> Tensor:
    axis = node.attributes["axis"]
    return torch.stack(values, axis) if node.attributes.get("new_axis", 0) else torch.cat(values, axis)


@operator("SplitToSequence", either=True)
def split_to_sequence(run: Any, node: Node, x: Any, sizes: Any = None) -> Any:
    x = run.as_tensor(x)
    axis = node.attributes.get("axis", 0)
    if sizes is None:
        parts = torch.split(x, 1, axis)
        return [part if node.attributes.get("keepdims", 1) else part.squeeze(axis) for part in parts]
    chosen = np.asarray(run.wanted(sizes, node))
    return list(torch.split(x, int(chosen) if chosen.ndim == 0 else [int(n) for n in chosen], axis))
