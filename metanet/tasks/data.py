"""What is a metanetwork trained on: graphs with a target each, their groups and their parts?"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from metanet.errors import TaskError
from metanet.graph import GraphBatch, ParameterGraph, bad_values, collate
from metanet.nn import layer_statistics
from metanet.tasks.splits import PARTS, SHARES, check_no_leak, split_by_group


@dataclass(frozen=True)
class PropertyItem:
    """One network and what is known of it.

    Attributes:
        graph: The network.
        target: A number, or a label (also true or false); None where it is not known.
        group: What it shares with others: its run, or the environment it was trained in. Groups are never split.
        part: "train", "val" or "test" where whoever made the data has decided; None leaves it to `property_data`.
        name: How messages call it.
    """

    graph: ParameterGraph
    target: float | str | bool | None
    group: str
    part: str | None = None
    name: str = ""


@dataclass(frozen=True, eq=False)
class PropertyData:
    """Networks with targets, in parts that share no group.

    Attributes:
        graphs: The networks.
        targets: One number or label each.
        groups: The group of each.
        split: The part of each.
        names: The name of each.
        column: What the targets are.
        dropped: Name and reason of every network that was left out.
    """

    graphs: tuple[ParameterGraph, ...]
    targets: NDArray[Any]
    groups: NDArray[np.str_]
    split: NDArray[np.str_]
    names: tuple[str, ...]
    column: str
    dropped: tuple[tuple[str, str], ...] = ()
    _shared: dict[str, Any] = field(default_factory=dict, repr=False)
    _own: dict[Any, Any] = field(default_factory=dict, repr=False, init=False)

    def __post_init__(self) -> None:
        check_no_leak(self.groups, self.split)

    def __len__(self) -> int:
        return len(self.graphs)

    @property
    def labelled(self) -> bool:
        """Whether the targets are labels and not numbers."""
        return self.targets.dtype.kind not in "fiu"

    def part(self, name: str) -> NDArray[np.intp]:
        """The places of one part's networks."""
        return np.flatnonzero(self.split == name)

    @property
    def batch(self) -> GraphBatch:
        """All networks as one batch, collated once; smaller batches are selected from it."""
        return self._once("batch", lambda: collate(self.graphs))

    @property
    def statistics(self) -> NDArray[np.float64]:
        """The permutation-invariant statistics of every network's layers.

        Shapes:
            return: (n, statistics)
        """
        return self._once("statistics", lambda: statistics_of(self.batch))

    @cached_property
    def fingerprint(self) -> str:
        """Hash of weights, targets, groups and parts."""
        digest = hashlib.sha256()
        for values in (self.targets.astype(str), self.groups, self.split, np.array(self.names)):
            digest.update("\x1f".join(values.tolist()).encode() + b"\x1e")
        for graph in self.graphs:
            digest.update(graph.topology.fingerprint.encode())
            for value in graph.values:
                digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def describe(self) -> dict[str, Any]:
        """Sizes and fingerprint as JSON."""
        sizes = {part: int(np.sum(self.split == part)) for part in PARTS}
        groups = {part: len(np.unique(self.groups[self.split == part])) for part in PARTS}
        return {
            "column": self.column,
            "networks": sizes,
            "groups": groups,
            "dropped": len(self.dropped),
            "fingerprint": self.fingerprint,
        }

    def with_split(self, split: ArrayLike) -> PropertyData:
        """The same networks in other parts; what was computed of them is shared.

        Raises:
            TaskError: A group would be in two parts.
        """
        return replace(self, split=np.asarray(split, dtype=np.str_))

    def subset(self, places: ArrayLike) -> PropertyData:
        """Some of the networks."""
        chosen = np.asarray(places, dtype=np.intp)
        shared: dict[str, Any] = {}
        if "batch" in self._shared:
            shared["batch"] = self._shared["batch"].select(torch.from_numpy(chosen))
        if "statistics" in self._shared:
            shared["statistics"] = self._shared["statistics"][chosen]
        return PropertyData(
            tuple(self.graphs[i] for i in chosen),
            self.targets[chosen],
            self.groups[chosen],
            self.split[chosen],
            tuple(self.names[i] for i in chosen),
            self.column,
            self.dropped,
            shared,
        )

    def remember(self, key: Any, make: Callable[[], Any]) -> Any:
        """What `make` gives, made once for these networks in these parts."""
        if key not in self._own:
            self._own[key] = make()
        return self._own[key]

    def _once(self, key: str, make: Callable[[], Any]) -> Any:
        if key not in self._shared:
            self._shared[key] = make()
        return self._shared[key]


def property_data(
    items: Iterable[PropertyItem],
    column: str,
    seed: int = 0,
    shares: Mapping[str, float] = SHARES,
    resplit: bool = False,
) -> PropertyData:
    """Put networks and their targets together.

    Networks with weights or targets that are not finite or not known are left out, and recorded in `dropped` with the
    reason.

    Args:
        items: The networks.
        column: What the targets are called.
        seed: Seeds the split, where the items name no part.
        shares: Share of the groups in each part, where the items name no part.
        resplit: Split anew even where the items name their parts.

    Raises:
        TaskError: No usable network, a group in two parts, or only some items with a part.
    """
    kept: list[PropertyItem] = []
    dropped: list[tuple[str, str]] = []
    for number, item in enumerate(items):
        reason = _unusable(item, column)
        if reason:
            dropped.append((item.name or str(number), reason))
        else:
            kept.append(item if item.name else replace(item, name=str(number)))
    if not kept:
        raise TaskError(f"no usable network; {len(dropped)} dropped" + (f", first: {dropped[0]}" if dropped else ""))
    numbers = [isinstance(item.target, int | float | np.number) and not isinstance(item.target, bool) for item in kept]
    wanted: list[Any] = [item.target for item in kept]
    targets = np.array([float(t) for t in wanted]) if all(numbers) else np.array([str(t) for t in wanted])
    groups = np.array([str(item.group) for item in kept])
    given = [item.part for item in kept]
    if resplit or all(part is None for part in given):
        split = split_by_group(groups, np.random.default_rng(np.random.SeedSequence([seed, 0x5917])), shares)
    elif any(part is None for part in given):
        raise TaskError(
            f"{given.count(None)} of {len(given)} networks have no part", hint="give all of them one, or none"
        )
    else:
        split = np.array(given, dtype=np.str_)
    names = tuple(item.name for item in kept)
    return PropertyData(tuple(i.graph for i in kept), targets, groups, split, names, column, tuple(dropped))


def statistics_of(batch: GraphBatch) -> NDArray[np.float64]:
    """The layer statistics of a batch as float64; the batch keeps them, so a model that reads them finds them there.

    Shapes:
        return: (n, statistics)
    """
    return layer_statistics(batch)[0].detach().cpu().to(torch.float64).numpy()


def flat_weights(graphs: Sequence[ParameterGraph], width: int | None = None) -> NDArray[np.float32]:
    """The raw weights of each network in the order of its state, behind each other, padded with zeros to one width.

    What is longer than a given `width` is cut: a network larger than all that were trained on.

    Shapes:
        return: (n, width)
    """
    rows = [
        torch.cat([tensor.reshape(-1).float() for tensor in graph.state().values() if tensor.is_floating_point()])
        for graph in graphs
    ]
    size = width if width is not None else max(len(row) for row in rows)
    flat = np.zeros((len(rows), size), dtype=np.float32)
    for place, row in enumerate(rows):
        flat[place, : min(size, len(row))] = row[:size].detach().cpu().numpy()
    return flat


def _unusable(item: PropertyItem, column: str) -> str:
    if item.target is None:
        return f"{column} is not known"
    if isinstance(item.target, float) and not np.isfinite(item.target):
        return f"{column} is {item.target}"
    return bad_values(item.graph)
