"""What does a zoo's configuration say, and is it complete and possible?

The YAML files in ``configs/zoo`` have this form, and so has the mapping that :func:`metanet.datasets.build_zoo` takes.
Everything is checked here, before any network is trained: unknown keys, impossible values and empty ranges are refused
in one line.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from metanet.errors import ConfigError

from .images import check_data_options
from .ranges import Range, parse_range
from .table import Table, plain

__all__ = ["FamilyRanges", "OptimiserRanges", "SPLITS", "ZooConfig"]

SPLITS = ("train", "val", "test")
MAX_RUNS = 1_000_000
_LARGE = 1e6

# setting: lowest, highest, and the value when it is not given (None: it has to be given)
_FAMILIES: dict[str, dict[str, tuple[float, float, Any]]] = {
    "mlp": {
        "depth": (0, 64, None),
        "width": (1, 65536, None),
        "activation": (0, 0, None),
        "norm": (0, 0, "none"),
        "residual": (0, 0, False),
    },
    "cnn": {
        "depth": (1, 64, None),
        "width": (1, 4096, None),
        "activation": (0, 0, None),
        "norm": (0, 0, "none"),
        "residual": (0, 0, False),
        "strides": (1, 4, (1,)),
        "kernel": (1, 15, 3),
        "reduce": (0, 0, "stride"),
        "head": (0, 0, "average"),
    },
    "transformer": {
        "depth": (1, 64, None),
        "width": (1, 4096, None),
        "hidden": (1, 65536, None),
        "heads": (1, 4096, None),
        "activation": (0, 0, None),
        "norm": (0, 0, "layer"),
        "patch": (1, 4096, None),
        "readout": (0, 0, "mean"),
    },
    "gru": {
        "depth": (1, 64, None),
        "width": (1, 4096, None),
        "activation": (0, 0, "tanh"),
        "norm": (0, 0, "none"),
        "readout": (0, 0, "last"),
    },
}
# One entry per block, and 1 for deeper networks; height and width.
_LISTS = ("strides", "patch")
_TRAINING: dict[str, tuple[float, float, Any]] = {
    "steps": (1, 10_000_000, None),
    "data_share": (1e-6, 1.0, 1.0),
    "initial_scale": (0.0, 1e3, 1.0),
    "label_noise": (0.0, 1.0, 0.0),
}
_OPTIMISERS: dict[str, dict[str, tuple[float, float, Any]]] = {
    name: {
        "learning_rate": (0.0, _LARGE, None),
        "momentum": (0.0, 0.999999, momentum),
        "weight_decay": (0.0, _LARGE, 0.0),
    }
    for name, momentum in (("sgd", 0.0), ("adam", 0.9), ("adamw", 0.9))
}


@dataclass(frozen=True)
class FamilyRanges:
    """Declared ranges of one family of architectures; ``share`` of the architectures come from it."""

    share: float
    ranges: Mapping[str, Range]


@dataclass(frozen=True)
class OptimiserRanges:
    """Declared ranges of one optimiser's settings; a run uses it with probability ``share``."""

    share: float
    ranges: Mapping[str, Range]


@dataclass(frozen=True)
class ZooConfig:
    """Everything that decides what a zoo holds.

    Args:
        name: of the zoo.
        seed: the root of all randomness.
        runs: how many networks are trained.
        architectures: how many different architectures are drawn; runs take them in turn.
        children: share of the runs that go on from another run's last weights, with settings of their own.
        batch_size: images in a minibatch.
        group: most networks that are trained at once.
        data: name and options of the image set.
        snapshot_count: snapshots per run; the last is at the last step.
        snapshot_ratio: each snapshot's step over that of the one before.
        split: share of the runs in "train", "val" and "test".
        families: by name, "mlp", "cnn", "transformer" and "gru".
        training: ranges of "steps", "data_share", "initial_scale", "label_noise".
        optimisers: by name, "sgd", "adam" and "adamw".
    """

    name: str
    seed: int
    runs: int
    architectures: int
    children: float
    batch_size: int
    group: int
    data: Mapping[str, Any]
    snapshot_count: int
    snapshot_ratio: float
    split: Mapping[str, float]
    families: Mapping[str, FamilyRanges]
    training: Mapping[str, Range]
    optimisers: Mapping[str, OptimiserRanges]

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    @classmethod
    def from_mapping(cls, raw: object) -> ZooConfig:
        """The configuration written as ``raw``: a plain mapping or an OmegaConf one.

        Raises:
            ConfigError: naming the first setting that is unknown, missing or impossible.
        """
        if isinstance(raw, ZooConfig):
            return raw
        table = Table("", plain(raw))
        snapshots = table.table("snapshots")
        result = cls(
            name=table.text("name"),
            seed=table.integer("seed", 0, 2**63 - 1, 0),
            runs=table.integer("runs", 1, MAX_RUNS),
            architectures=table.integer("architectures", 1, 10_000),
            children=table.number("children", 0.0, 0.9, 0.0),
            batch_size=table.integer("batch_size", 2, 65536, 32),
            group=table.integer("group", 1, 4096, 32),
            data=check_data_options(table.take("data")),
            snapshot_count=snapshots.integer("count", 1, 1000),
            snapshot_ratio=snapshots.number("ratio", 1.01, 1000.0, 2.0),
            split=_split(table.table("split")),
            families={
                name: FamilyRanges(*_shared(part, _FAMILIES[name]))
                for name, part in table.named_tables("families", tuple(_FAMILIES)).items()
            },
            training=_ranges(table.table("training"), _TRAINING),
            optimisers={
                name: OptimiserRanges(*_shared(part, _OPTIMISERS[name]))
                for name, part in table.named_tables("optimisers", tuple(_OPTIMISERS)).items()
            },
        )
        snapshots.finish()
        table.finish()
        result._check()
        return result

    def _check(self) -> None:
        for kind, parts in (("families", self.families), ("optimisers", self.optimisers)):
            if sum(part.share for part in parts.values()) <= 0:
                raise ConfigError("all shares are 0", where=kind, hint="give at least one a share above 0")
        roots = self.runs - self.children_count
        if self.architectures > roots:
            raise ConfigError(
                f"{self.architectures} architectures for {roots} runs that start afresh",
                where="architectures",
                hint="lower architectures, or raise runs",
            )

    @property
    def children_count(self) -> int:
        """How many runs go on from another run."""
        return round(self.children * self.runs)

    def to_json(self) -> dict[str, Any]:
        """The complete configuration, defaults filled in, in the form that :meth:`from_mapping` reads."""

        def ranges(part: Mapping[str, Range]) -> dict[str, Any]:
            return {key: value.to_json() for key, value in part.items()}

        return {
            "name": self.name,
            "seed": self.seed,
            "runs": self.runs,
            "architectures": self.architectures,
            "children": self.children,
            "batch_size": self.batch_size,
            "group": self.group,
            "data": dict(self.data),
            "snapshots": {"count": self.snapshot_count, "ratio": self.snapshot_ratio},
            "split": dict(self.split),
            "families": {k: {"share": v.share, **ranges(v.ranges)} for k, v in self.families.items()},
            "training": ranges(self.training),
            "optimisers": {k: {"share": v.share, **ranges(v.ranges)} for k, v in self.optimisers.items()},
        }

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the complete configuration."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()


def _split(table: Table) -> dict[str, float]:
    shares = {name: table.number(name, 0.0, 1.0) for name in SPLITS}
    table.finish()
    total = sum(shares.values())
    if abs(total - 1.0) > 1e-6:
        raise ConfigError(f"train, val and test add up to {total:g}, expected 1", where=table.where)
    return shares


def _ranges(table: Table, known: Mapping[str, tuple[float, float, Any]]) -> dict[str, Range]:
    result: dict[str, Range] = {}
    for key, (low, high, default) in known.items():
        raw = table.take(key, default)
        if key in _LISTS:
            # The constant form is a list itself.
            raw = raw if isinstance(raw, Mapping) else {"choice": [raw]}
        result[key] = parse_range(table.path(key), raw, *((low, high) if high > low else ()))
    table.finish()
    return result


def _shared(table: Table, known: Mapping[str, tuple[float, float, Any]]) -> tuple[float, dict[str, Range]]:
    share = table.number("share", 0.0, _LARGE, 1.0)
    return share, _ranges(table, known)
