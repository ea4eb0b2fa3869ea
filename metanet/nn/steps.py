"""In which order do features travel through the tensors of an architecture? The steps of its data flow.

The parameter graph does not hold the operations between the tensors, only their order, so the flow is read from it:
what tensors write to a group is summed; when the next tensor reads the group, it is added to what stood there before
(a residual stream) and passes the activation met in that group.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal

from metanet.graph import Topology

__all__ = ["Step", "endings", "schedule"]


@dataclass(frozen=True, slots=True)
class Step:
    """One step of the flow: it makes one *slot*, the features of one group at one place of the flow, from others.

    Args:
        sort: "input" opens an input group; "settle" sums what was written to a group and applies its activation; "edge"
            sends through a block; "bias" adds one; "gain" scales each unit (a depthwise kernel); "norm" normalises.
        group: the group that it changes.
        writes: the slot that it makes.
        reads: the slots that it needs. An "edge" or "gain" with two adds what it sends to the second: the parts of one
            tensor are one entry.
        blocks: kind -> block number.
    """

    sort: Literal["input", "settle", "edge", "bias", "gain", "norm"]
    group: int
    writes: int
    reads: tuple[int, ...] = ()
    blocks: Mapping[str, int] = field(default_factory=dict)

    @property
    def block(self) -> int:
        """The only block of a step that has one."""
        return next(iter(self.blocks.values()))


class _Recorder:
    """Slots by group while the steps of a topology are written down."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.value: dict[int, int] = {}  # what stands in a group
        self.entries: dict[int, list[int]] = {}  # what was written since the group was last read
        self.writer: dict[int, str] = {}  # the tensor that wrote the last entry

    def add(self, sort: Literal["input", "settle", "edge", "bias", "gain", "norm"], group: int, *reads: int,
            **blocks: int) -> int:  # fmt: skip
        named = {kind.replace("__", "."): number for kind, number in blocks.items()}
        self.steps.append(Step(sort, group, len(self.steps), reads, named))
        return len(self.steps) - 1

    def settle(self, group: int) -> None:
        if group in self.entries:
            stood = [self.value[group]] if group in self.value else []
            self.value[group] = self.add("settle", group, *stood, *self.entries.pop(group))
            self.writer.pop(group, None)

    def write(self, sort: Literal["edge", "gain"], group: int, source: int, tensor: str, block: int) -> None:
        entries = self.entries.setdefault(group, [])
        if entries and self.writer.get(group) == tensor:
            entries[-1] = self.add(sort, group, source, entries[-1], block=block)
        else:
            entries.append(self.add(sort, group, source, block=block))
        self.writer[group] = tensor

    def change(self, sort: Literal["bias", "norm"], group: int, blocks: Mapping[str, int]) -> None:
        """Biases and norms act on what was written last; a norm of a group that was read already on what stands."""
        named = {kind.replace(".", "__"): number for kind, number in blocks.items()}
        if group in self.entries:
            self.entries[group][-1] = self.add(sort, group, self.entries[group][-1], **named)
        else:
            self.value[group] = self.add(sort, group, self.value[group], **named)


@lru_cache(maxsize=4096)
def schedule(topology: Topology) -> tuple[Step, ...]:
    """The steps of the flow of one architecture, ending with every group that was written; the slot of a step is its
    place.
    """
    flow = _Recorder()
    done: set[tuple[str, int]] = set()
    for number, one in enumerate(topology.groups):
        if one.depth < 0 and one.reads:
            flow.value[number] = flow.add("input", number)
    order = sorted(
        (*topology.edges, *topology.nodes), key=lambda i: (topology.layers[topology.blocks[i].layer].order, i)
    )
    for number in order:
        block = topology.blocks[number]
        group = block.groups[0]
        if block.level == "edge":
            source = block.groups[1]
            flow.settle(source)
            if source in flow.value:  # an initial state that is never written is zero
                flow.write("edge", group, flow.value[source], block.tensor, number)
        elif block.kind == "conv.weight":
            flow.settle(group)
            if group in flow.value:  # a depthwise layer replaces its stream
                flow.write("gain", group, flow.value.pop(group), block.tensor, number)
        elif block.kind == "bias" and group in flow.entries:
            flow.change("bias", group, {"bias": number})
        elif block.kind.startswith("norm.") and (group in flow.entries or group in flow.value):
            module = block.tensor.rpartition(".")[0]
            if (module, group) not in done:
                done.add((module, group))
                members = [topology.blocks[i] for i in topology.nodes]
                same = {
                    member.kind: i
                    for i, member in zip(topology.nodes, members, strict=True)
                    if member.groups[0] == group
                    and member.tensor.rpartition(".")[0] == module
                    and member.kind.startswith("norm.")
                }
                flow.change("norm", group, same)
    for group in list(flow.entries):
        flow.settle(group)
    return tuple(flow.steps)


@lru_cache(maxsize=4096)
def endings(topology: Topology) -> Mapping[int, int]:
    """The slot that stands in each group that was reached, at the end of the flow."""
    found: dict[int, int] = {}
    for step in schedule(topology):
        if step.sort in ("input", "settle") or (step.sort == "norm" and found.get(step.group) == step.reads[0]):
            found[step.group] = step.writes
    return found
