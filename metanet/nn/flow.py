"""What happens when features travel through a network's own weights, in the order of its data flow?

The parameter graph does not hold the operations between the tensors, only their order, so the flow is read from it:
what tensors write to a group is summed; when the next tensor reads the group, it is added to what stood there before
(a residual stream) and passes the activation met in that group. For plain chains of linear layers this is the network
itself; for convolutions it is its response to constant or plane-wave images away from the border. It only uses sums
over units and functions shared by all units of a group, so it is exactly permutation-equivariant.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

from metanet.graph import Bucket, Topology

__all__ = ["POINTWISE", "Step", "propagate", "schedule"]

Measure: TypeAlias = Literal["value", "absolute", "square"]

POINTWISE: Mapping[str, Callable[[Tensor], Tensor]] = {
    "relu": functional.relu,
    "tanh": torch.tanh,
    "gelu": functional.gelu,
    "sin": torch.sin,
    "sigmoid": torch.sigmoid,
    "silu": functional.silu,
    "leaky_relu": functional.leaky_relu,
    "elu": functional.elu,
    "softplus": functional.softplus,
    "abs": torch.abs,
}
"""Activations that the flow applies; where a group meets several the first counts, any other acts as the identity."""


@dataclass(frozen=True, slots=True)
class Step:
    """One step of the flow.

    Args:
        sort: "settle" a group before it is read; send through an "edge" block; add a "bias"; scale each unit ("gain": a
            depthwise kernel); apply a "norm".
        group: the group that it changes.
        source: the group that an edge reads.
        blocks: kind -> block number.
    """

    sort: Literal["settle", "edge", "bias", "gain", "norm"]
    group: int
    source: int = -1
    blocks: Mapping[str, int] = field(default_factory=dict)


@lru_cache(maxsize=4096)
def schedule(topology: Topology) -> tuple[Step, ...]:
    """The steps of the flow of one architecture, ending with every group that was written."""
    steps: list[Step] = []
    open_groups: dict[int, None] = {}  # written since they were last read
    known = {number for number, group in enumerate(topology.groups) if group.depth < 0 and group.reads}
    done: set[tuple[str, int]] = set()

    def settle(group: int) -> None:
        if group in open_groups:
            steps.append(Step("settle", group))
            del open_groups[group]
            known.add(group)

    flow = sorted(
        (*topology.edges, *topology.nodes), key=lambda i: (topology.layers[topology.blocks[i].layer].order, i)
    )
    for number in flow:
        block = topology.blocks[number]
        group = block.groups[0]
        if block.level == "edge":
            source = block.groups[1]
            settle(source)
            if source in known:  # an initial state that is never written is zero
                steps.append(Step("edge", group, source, {block.kind: number}))
                open_groups[group] = None
        elif block.kind == "conv.weight":
            settle(group)
            if group in known:
                steps.append(Step("gain", group, blocks={block.kind: number}))
                open_groups[group] = None
        elif block.kind == "bias" and group in open_groups:
            steps.append(Step("bias", group, blocks={block.kind: number}))
        elif block.kind.startswith("norm.") and group in open_groups | dict.fromkeys(known):
            module = (block.tensor.rpartition(".")[0], group)
            if module not in done:
                done.add(module)
                same = [i for i in topology.nodes if topology.blocks[i].groups[0] == group]
                members = {
                    topology.blocks[i].kind: i
                    for i in same
                    if topology.blocks[i].tensor.rpartition(".")[0] == module[0]
                }
                steps.append(Step("norm", group, blocks={k: i for k, i in members.items() if k.startswith("norm.")}))
    for group in list(open_groups):
        settle(group)
    return tuple(steps)


def propagate(
    bucket: Bucket,
    inputs: Callable[[int, int], Tensor],
    kernel: Callable[[int], Tensor],
    measure: Measure = "value",
    settled: Callable[[int, Tensor], Tensor] | None = None,
) -> dict[int, Tensor]:
    """Send features through the networks of a bucket.

    Args:
        bucket: networks of one architecture.
        inputs: number and size of an input group -> its features ``(size, k)``.
        kernel: number of a block -> the weight of each of its kernel positions in every channel, ``(features, k)``.
        measure: "value" runs the network; "absolute" and "square" carry non-negative features through absolute or
        squared
            weights, without biases and activations: sums over paths (Neyshabur et al. 2015, "Norm-based capacity
            control").
        settled: called with each group and its features when they are complete; returns what travels on.

    Shapes:
        returns ``(B, units, k)`` by group, for every group that was reached.
    """
    topology = bucket.topology
    like = next((value for value in bucket.values if value is not None), None)
    value: dict[int, Tensor] = {}
    pending: dict[int, list[Tensor]] = {}  # what was written and not yet read; biases and norms act on the last entry
    writer: dict[int, str] = {}  # the tensor that wrote that entry: its parts are one entry

    def weights(number: int) -> Tensor:
        raw = bucket.value(number)
        return raw if measure == "value" else raw.abs() if measure == "absolute" else raw.square()

    for number, one in enumerate(topology.groups):
        if one.depth < 0 and one.reads and like is not None:
            value[number] = inputs(number, one.size).to(like).expand(len(bucket), -1, -1)
    for step in schedule(topology):
        group = step.group
        if step.sort == "settle":
            total = sum(pending.pop(group), start=value.get(group, torch.zeros(())))
            writer.pop(group, None)
            if measure == "value":
                total = _activate(topology.groups[group].activations, total).clamp(-1e6, 1e6)
            value[group] = settled(group, total) if settled is not None else total
            continue
        if step.sort == "norm":
            if group in pending:
                pending[group][-1] = _normalise(step, bucket, pending[group][-1], measure)
            else:
                value[group] = _normalise(step, bucket, value[group], measure)
            continue
        block = next(iter(step.blocks.values()))
        if step.sort == "edge":
            sent = _send(weights(block), value[step.source], kernel(block))
        elif step.sort == "gain":
            sent = value[group] * (weights(block) @ kernel(block).to(value[group]))
            value.pop(group, None)  # a depthwise layer replaces its stream
        elif measure == "value":
            sent = bucket.value(block)[..., :1]
        else:
            continue
        entries = pending.setdefault(group, [])
        tensor = topology.blocks[block].tensor
        if entries and (step.sort == "bias" or writer.get(group) == tensor):
            entries[-1] = entries[-1] + sent
        else:
            entries.append(sent)
            writer[group] = tensor
    return value


def _send(weight: Tensor, x: Tensor, kernel: Tensor) -> Tensor:
    """``sum_s sum_p w[t, s, p] a[p, k] x[s, k]``."""
    if weight.shape[-1] == 1:
        return torch.bmm(weight.squeeze(-1), x) * kernel.to(x)[0]
    return torch.einsum("btsp,pk,bsk->btk", weight, kernel.to(x), x)


def _activate(names: tuple[str, ...], x: Tensor) -> Tensor:
    known = [name for name in names if name in POINTWISE]
    return POINTWISE[known[0]](x) if known else x


def _normalise(step: Step, bucket: Bucket, x: Tensor, measure: Measure) -> Tensor:
    """Batch norm by its running statistics; without them, over the units (LayerNorm)."""
    blocks = step.blocks
    gain = bucket.value(blocks["norm.weight"])[..., :1] if "norm.weight" in blocks else None
    offset = bucket.value(blocks["norm.bias"])[..., :1] if "norm.bias" in blocks else None
    scale = None
    if "norm.running_var" in blocks:
        eps = bucket.topology.blocks[blocks["norm.running_var"]].offset or 1e-5
        scale = (bucket.value(blocks["norm.running_var"])[..., :1].clamp(min=0) + eps).rsqrt()
    if measure != "value":
        for factor in (gain, scale):
            if factor is not None:
                x = x * (factor.abs() if measure == "absolute" else factor.square())
        return x
    if scale is not None:
        mean = bucket.value(blocks["norm.running_mean"])[..., :1] if "norm.running_mean" in blocks else 0.0
        x = (x - mean) * scale
    else:
        x = functional.layer_norm(x.transpose(1, 2), (x.shape[1],)).transpose(1, 2)
    x = x * gain if gain is not None else x
    return x + offset if offset is not None else x
