"""On what is a predictor of morphs trained: stacks of networks, and images that their function is compared on?"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from metanet.errors import PlanError, TaskError
from metanet.morph.batched import Masked
from metanet.tasks.splits import PARTS, check_no_leak
from symmetry import SymmetrySpec

__all__ = ["MorphData", "MorphGroup", "MorphItem", "morph_data"]


@dataclass(frozen=True, eq=False)
class MorphItem:
    """Networks of one architecture that learned one set of images.

    Args:
        name: how messages call them.
        model: a module of the architecture.
        spec: its spec.
        states: their weights, stacked.
        shape: of an image: channels, rows, columns.
        images: what their function is compared on in training, as the module reads them.
        test_images: what it is compared on afterwards.
        test_labels: their classes.
        groups: what each network shares with others: its run.
        split: the part of each.
        names: of each.

    Shapes:
        states (networks, ...), images and test_images (n, *input), test_labels (n,)
    """

    name: str
    model: nn.Module
    spec: SymmetrySpec
    states: Mapping[str, Tensor]
    shape: tuple[int, ...]
    images: Tensor
    test_images: Tensor
    test_labels: Tensor
    groups: NDArray[np.str_]
    split: NDArray[np.str_]
    names: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class MorphGroup:
    """A :class:`MorphItem` that can be narrowed.

    Attributes:
        item: the networks.
        masked: runs and narrows stacks of them.
        kept: the networks whose values are finite.
    """

    item: MorphItem
    masked: Masked
    kept: NDArray[np.intp]

    def part(self, name: str) -> NDArray[np.intp]:
        """Rows of one part's networks."""
        return self.kept[self.item.split[self.kept] == name]

    def rows(self, places: NDArray[np.intp] | Tensor) -> dict[str, Tensor]:
        """The weights of some networks, stacked."""
        index = torch.as_tensor(places)
        return {name: value[index] for name, value in self.item.states.items()}


@dataclass(frozen=True, eq=False)
class MorphData:
    """Networks of several architectures, with the images that they learned.

    Attributes:
        groups: the networks, by architecture and set of images.
        dropped: name and reason of whatever was left out.
    """

    groups: tuple[MorphGroup, ...]
    dropped: tuple[tuple[str, str], ...] = ()

    def __len__(self) -> int:
        return sum(len(group.kept) for group in self.groups)

    def part(self, name: str) -> NDArray[np.intp]:
        """Numbers of one part's networks, counted through all groups."""
        found, before = [], 0
        for group in self.groups:
            found.append(before + np.flatnonzero(group.item.split[group.kept] == name))
            before += len(group.kept)
        return np.concatenate(found)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of an image. Networks that read it flat get it reshaped."""
        return self.groups[0].item.shape

    @cached_property
    def kinds(self) -> tuple[str, ...]:
        """The sets of images that the networks learned, by the names of their zoos; alike images are one."""
        return tuple(sorted({self._kind_of[id(group)] for group in self.groups}))

    @cached_property
    def _kind_of(self) -> dict[int, str]:
        seen: dict[tuple[float, float], str] = {}
        found = {}
        for group in self.groups:
            images = group.item.images
            key = float(images.double().mean()), float(images.double().square().mean())
            found[id(group)] = seen.setdefault(key, group.item.name.partition(":")[0])
        return found

    def kind(self, number: int) -> int:
        """Which of the kinds a group learned."""
        return self.kinds.index(self._kind_of[id(self.groups[number])])

    @cached_property
    def fingerprint(self) -> str:
        """Hash of weights, images, groups and parts."""
        digest = hashlib.sha256()
        for group in self.groups:
            item = group.item
            for words in (item.groups[group.kept], item.split[group.kept]):
                digest.update("\x1f".join(words.tolist()).encode() + b"\x1e")
            for value in (*group.rows(group.kept).values(), item.images, item.test_images, item.test_labels):
                digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def describe(self) -> dict[str, Any]:
        """Sizes and fingerprint as JSON."""
        return {
            "networks": {part: len(self.part(part)) for part in PARTS},
            "architectures": [group.item.name for group in self.groups],
            "input": list(self.shape),
            "dropped": len(self.dropped),
            "fingerprint": self.fingerprint,
        }


def morph_data(items: Iterable[MorphItem]) -> MorphData:
    """Networks whose values are finite, and architectures that can be narrowed; the rest is recorded as dropped.

    Raises:
        TaskError: if nothing is left, a run is in two parts, or images differ in their number of values.
    """
    groups: list[MorphGroup] = []
    dropped: list[tuple[str, str]] = []
    for item in items:
        try:
            masked = Masked(item.model, item.spec)
        except PlanError as error:
            dropped.append((item.name, error.reason))
            continue
        good = torch.stack([v.flatten(1).isfinite().all(1) for v in item.states.values() if v.is_floating_point()])
        finite = good.all(0).numpy()
        dropped += [(f"{item.name}, {item.names[i]}", "values are not finite") for i in np.flatnonzero(~finite)]
        if finite.any():
            groups.append(MorphGroup(item, masked, np.flatnonzero(finite)))
    if not groups:
        raise TaskError(f"no network can be narrowed; {len(dropped)} left out" + (f", {dropped[0]}" if dropped else ""))
    for name in {group.item.name.partition(":")[0] for group in groups}:
        same = [g for g in groups if g.item.name.partition(":")[0] == name]
        check_no_leak(
            np.concatenate([g.item.groups[g.kept] for g in same]), np.concatenate([g.item.split[g.kept] for g in same])
        )
    shapes = sorted({group.item.shape for group in groups})
    if len(shapes) > 1:
        raise TaskError(f"images of shapes {', '.join(map(str, shapes))}", hint="train one model for each")
    return MorphData(tuple(groups), tuple(dropped))
