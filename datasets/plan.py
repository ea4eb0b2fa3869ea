"""What does a configuration stand for: the networks of a zoo, whether they classify images or are images themselves?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metanet.checkpoint import Architecture

from .config import ZooConfig
from .draw import Draw, Group, draw_zoo
from .group import build_group
from .images import ImageData
from .inr_config import KIND, InrConfig
from .inr_zoo import InrDraw, build_inr_group, draw_inrs
from .table import plain

__all__ = ["Config", "Plan", "parse_config", "plan_zoo"]

Config = ZooConfig | InrConfig

# Steps of a small multilayer perceptron that take as long as one step of a network of the family.
_COSTS: Mapping[str, float] = {"cnn": 8.0, "siren": 0.3, "transformer": 20.0, "gru": 10.0}


def parse_config(raw: object) -> Config:
    """The configuration written as ``raw``; its ``kind`` says which one.

    Raises:
        ConfigError: naming the first setting that is unknown, missing or impossible.
    """
    if isinstance(raw, ZooConfig | InrConfig):
        return raw
    raw = plain(raw)
    if isinstance(raw, Mapping) and raw.get("kind") == KIND:
        return InrConfig.from_mapping(raw)
    return ZooConfig.from_mapping(raw)


@dataclass(frozen=True)
class Plan:
    """Everything that a build does, group by group."""

    config: Config
    data: ImageData
    draw: Draw | InrDraw

    @property
    def architectures(self) -> tuple[Architecture, ...]:
        """Of all networks."""
        return self.draw.architectures

    @property
    def groups(self) -> tuple[Group, ...]:
        """The units of work."""
        return self.draw.groups

    @property
    def runs(self) -> int:
        """How many networks are trained."""
        return len(self.draw.runs)

    def work(self, group: Group) -> int:
        """Network-steps in a group."""
        return self.draw.work(group)

    def cost(self, group: Group) -> float:
        """How long a group takes, in steps of a small multilayer perceptron."""
        return self.work(group) * _COSTS.get(self.architectures[group.architecture].family, 1.0)

    def build(self, group: Group, folder: Path, progress: Callable[[int], None]) -> int:
        """Train, measure and write one group; returns how many runs failed."""
        if isinstance(self.draw, InrDraw):
            return build_inr_group(self.draw, group, self.data, folder, progress)
        config: Any = self.config
        return build_group(config, self.draw, group, self.data, folder, progress)


def plan_zoo(config: Config, data: ImageData) -> Plan:
    """Draw every network of a zoo.

    Raises:
        ConfigError: if a range allows an architecture that cannot be built on this data.
    """
    draw: Draw | InrDraw = draw_inrs(config, data) if isinstance(config, InrConfig) else draw_zoo(config, data)
    return Plan(config, data, draw)
