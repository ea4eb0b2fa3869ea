"""What is a metanetwork trained on that answers at every unit or every weight of a network?"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from metanet.errors import TaskError
from metanet.graph import GraphBatch, ParameterGraph, bad_values, collate
from metanet.tasks.splits import PARTS, SHARES, check_no_leak, split_by_group

LEVELS = ("node", "edge")


@dataclass(frozen=True)
class PlaceItem:
    """One network and what is known of its units or weights.

    Attributes:
        graph: The network.
        targets: By space (units) or tensor (weights), one number each; what is not named is not learned.
        simple: What a simple baseline says of the same places.
        group: What it shares with others; groups are never split.
        part: "train", "val" or "test" where whoever made the data has decided; None leaves it to `place_data`.
        name: How messages call it.
    """

    graph: ParameterGraph
    targets: Mapping[str, Tensor]
    simple: Mapping[str, Tensor]
    group: str
    part: str | None = None
    name: str = ""


@dataclass(frozen=True, eq=False)
class PlaceData:
    """Networks with a target at every unit or weight, in parts that share no group.

    Attributes:
        graphs: The networks.
        targets: One number for each place, by space or tensor.
        simple: What the simple baseline says of each place.
        groups: The group of each network.
        split: The part of each network.
        names: The name of each network.
        level: "node" or "edge".
        column: What the targets are.
        dropped: Name and reason of every network that was left out.
    """

    graphs: tuple[ParameterGraph, ...]
    targets: tuple[Mapping[str, Tensor], ...]
    simple: tuple[Mapping[str, Tensor], ...]
    groups: NDArray[np.str_]
    split: NDArray[np.str_]
    names: tuple[str, ...]
    level: str
    column: str
    dropped: tuple[tuple[str, str], ...] = ()
    _own: dict[Any, Any] = field(default_factory=dict, repr=False, init=False)

    def __post_init__(self) -> None:
        check_no_leak(self.groups, self.split)

    def __len__(self) -> int:
        return len(self.graphs)

    def part(self, name: str) -> NDArray[np.intp]:
        """The places of one part's networks."""
        return np.flatnonzero(self.split == name)

    @property
    def batch(self) -> GraphBatch:
        """All networks as one batch, collated once."""
        found: GraphBatch = self.remember("batch", lambda: collate(self.graphs))
        return found

    def flat(self, number: int) -> Tensor:
        """All targets of one network behind each other.

        Shapes:
            return: (places,)
        """
        return joined(self.targets[number], self.targets[number])

    def describe(self) -> dict[str, Any]:
        """Sizes and fingerprint as JSON."""
        sizes = {part: int(np.sum(self.split == part)) for part in PARTS}
        groups = {part: len(np.unique(self.groups[self.split == part])) for part in PARTS}
        places = sum(sum(value.numel() for value in target.values()) for target in self.targets)
        told = {"column": self.column, "level": self.level, "networks": sizes, "groups": groups, "places": places}
        return {**told, "dropped": len(self.dropped), "fingerprint": self.remember("fingerprint", self._fingerprint)}

    def _fingerprint(self) -> str:
        digest = hashlib.sha256("\x1f".join((*self.groups, *self.split, *self.names)).encode())
        for graph, targets in zip(self.graphs, self.targets, strict=True):
            digest.update(graph.topology.fingerprint.encode())
            for value in (*graph.values, *targets.values()):
                digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def remember(self, key: Any, make: Callable[[], Any]) -> Any:
        """What `make` gives, made once for these data."""
        if key not in self._own:
            self._own[key] = make()
        return self._own[key]

    def with_split(self, split: ArrayLike) -> PlaceData:
        """The same networks in other parts.

        Raises:
            TaskError: A group would be in two parts.
        """
        parts = np.asarray(split, dtype=np.str_)
        told = (self.names, self.level, self.column, self.dropped)
        return PlaceData(self.graphs, self.targets, self.simple, self.groups, parts, *told)


def joined(values: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> Tensor:
    """The values under the names of `like`, in its order, behind each other.

    Shapes:
        return: (places,)
    """
    return torch.cat([values[name].reshape(-1) for name in like])


def place_data(
    items: Iterable[PlaceItem],
    level: str,
    column: str,
    seed: int = 0,
    shares: Mapping[str, float] = SHARES,
    resplit: bool = False,
) -> PlaceData:
    """Put networks and the targets at their units or weights together.

    Networks with weights or targets that are not finite are left out, and recorded in `dropped` with the reason.

    Args:
        items: The networks.
        level: "node" for units, "edge" for weights.
        column: What the targets are called.
        seed: Seeds the split, where the items name no part.
        shares: Share of the groups in each part, where the items name no part.
        resplit: Split anew even where the items name their parts.

    Raises:
        TaskError: No usable network, an unknown level, a group in two parts, or only some items with a part.
    """
    if level not in LEVELS:
        raise TaskError(f"level {level!r}, expected one of {', '.join(LEVELS)}")
    kept: list[PlaceItem] = []
    dropped: list[tuple[str, str]] = []
    for number, item in enumerate(items):
        reason = _unusable(item)
        if reason:
            dropped.append((item.name or str(number), reason))
        else:
            kept.append(item)
    if not kept:
        raise TaskError(f"no usable network; {len(dropped)} dropped" + (f", first: {dropped[0]}" if dropped else ""))
    groups = np.array([str(item.group) for item in kept])
    split = _split([item.part for item in kept], groups, seed, shares, resplit)
    names = tuple(item.name or str(number) for number, item in enumerate(kept))
    graphs, targets = tuple(item.graph for item in kept), tuple(item.targets for item in kept)
    simple = tuple(item.simple for item in kept)
    return PlaceData(graphs, targets, simple, groups, split, names, level, column, tuple(dropped))


def _split(
    given: Sequence[str | None], groups: NDArray[np.str_], seed: int, shares: Mapping[str, float], resplit: bool
) -> NDArray[np.str_]:
    if resplit or all(part is None for part in given):
        return split_by_group(groups, np.random.default_rng(np.random.SeedSequence([seed, 0x5917])), shares)
    if any(part is None for part in given):
        raise TaskError(
            f"{given.count(None)} of {len(given)} networks have no part", hint="give all of them one, or none"
        )
    return np.array(given, dtype=np.str_)


def _unusable(item: PlaceItem) -> str:
    if reason := bad_values(item.graph):
        return reason
    for name, target in item.targets.items():
        if not bool(torch.isfinite(target).all()):
            return f"the target of {name} is not finite"
    if not sum(target.numel() for target in item.targets.values()):
        return "nothing in it has a target"
    return ""
