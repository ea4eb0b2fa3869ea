"""What does a zoo's configuration say, and is it complete and possible?

The YAML files in ``configs/zoo`` have this form, and so has the mapping that :func:`metanet.datasets.build_zoo` takes.
Everything is checked here, before any network is trained: unknown keys, impossible values and empty ranges are refused
in one line.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from metanet.errors import ConfigError, clean

from .images import check_data_options
from .ranges import Range, parse_range

__all__ = ["FamilyRanges", "OptimiserRanges", "SPLITS", "ZooConfig", "load_zoo_config", "zoo_config_names"]

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
}
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
        families: by name, "mlp" and "cnn".
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
        table = _Table("", _plain(raw))
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


def _plain(raw: object) -> object:
    # OmegaConf comes with hydra; a caller who passes plain mappings should not have to load it.
    if type(raw).__module__.startswith("omegaconf"):
        from omegaconf import OmegaConf

        return OmegaConf.to_container(raw, resolve=True)
    return raw


class _Table:
    """Reads a mapping key by key; :meth:`finish` refuses whatever nobody asked for."""

    def __init__(self, where: str, raw: object) -> None:
        if not isinstance(raw, Mapping):
            raise ConfigError(
                f"{clean(repr(raw), 60)}, expected a mapping",
                where=where or "zoo configuration",
                hint="see configs/zoo",
            )
        self.where, self._raw, self._read = where, raw, set[str]()

    def path(self, key: str) -> str:
        return f"{self.where}.{key}" if self.where else key

    def take(self, key: str, default: Any = None) -> Any:
        self._read.add(key)
        if key in self._raw:
            return self._raw[key]
        if default is None:
            raise ConfigError("is missing", where=self.path(key), hint="add it to the zoo's configuration")
        return default

    def text(self, key: str) -> str:
        value = self.take(key)
        if not isinstance(value, str) or not value or len(value) > 100 or not value.isprintable():
            raise ConfigError(f"{clean(repr(value), 60)}, expected a short name", where=self.path(key))
        return value

    def integer(self, key: str, low: int, high: int, default: int | None = None) -> int:
        value = self.take(key, default)
        if type(value) is not int or not low <= value <= high:
            expected = f"a whole number from {low} to {high}"
            raise ConfigError(f"{clean(repr(value), 60)}, expected {expected}", where=self.path(key))
        return value

    def number(self, key: str, low: float, high: float, default: float | None = None) -> float:
        value = self.take(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise ConfigError(
                f"{clean(repr(value), 60)}, expected a number from {low:g} to {high:g}", where=self.path(key)
            )
        return float(value)

    def table(self, key: str) -> _Table:
        return _Table(self.path(key), self.take(key))

    def named_tables(self, key: str, known: tuple[str, ...]) -> dict[str, _Table]:
        part = self.table(key)
        unknown = [name for name in part._raw if name not in known]
        if unknown:
            raise ConfigError(
                f"{clean(repr(unknown[0]), 60)} is unknown", where=part.where, hint=f"known: {', '.join(known)}"
            )
        if not part._raw:
            raise ConfigError("is empty", where=part.where, hint=f"give at least one of {', '.join(known)}")
        # In a fixed order, so that the order in a file changes nothing.
        return {name: _Table(part.path(name), part._raw[name]) for name in known if name in part._raw}

    def finish(self) -> None:
        unknown = [key for key in self._raw if key not in self._read]
        if unknown:
            hint = "known settings: " + ", ".join(sorted(self._read))
            raise ConfigError("unknown setting", where=self.path(clean(unknown[0], 60)), hint=hint)


def _split(table: _Table) -> dict[str, float]:
    shares = {name: table.number(name, 0.0, 1.0) for name in SPLITS}
    table.finish()
    total = sum(shares.values())
    if abs(total - 1.0) > 1e-6:
        raise ConfigError(f"train, val and test add up to {total:g}, expected 1", where=table.where)
    return shares


def _ranges(table: _Table, known: Mapping[str, tuple[float, float, Any]]) -> dict[str, Range]:
    result: dict[str, Range] = {}
    for key, (low, high, default) in known.items():
        raw = table.take(key, default)
        if key == "strides":
            # One entry per block, repeated from the left for deeper networks: the constant form is a list itself.
            raw = raw if isinstance(raw, Mapping) else {"choice": [raw]}
        result[key] = parse_range(table.path(key), raw, *((low, high) if high > low else ()))
    table.finish()
    return result


def _shared(table: _Table, known: Mapping[str, tuple[float, float, Any]]) -> tuple[float, dict[str, Range]]:
    share = table.number("share", 0.0, _LARGE, 1.0)
    return share, _ranges(table, known)


def zoo_config_names() -> list[str]:
    """The configurations that come with the package."""
    folder = importlib.resources.files("metanet.configs") / "zoo"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def load_zoo_config(name: str, **changes: Any) -> ZooConfig:
    """One of the configurations that come with the package, with some of its settings changed.

    Args:
        name: as in ``zoo=NAME`` on the command line.
        changes: new values for settings at the top level, for example ``runs=40``.

    Raises:
        ConfigError: if there is no such configuration, or the changes make it impossible.
    """
    from omegaconf import OmegaConf

    if name not in zoo_config_names():
        raise ConfigError(
            f"{clean(repr(name), 60)} is no zoo", where="zoo", hint="known: " + ", ".join(zoo_config_names())
        )
    text = (importlib.resources.files("metanet.configs") / "zoo" / f"{name}.yaml").read_text("utf-8")
    stated = OmegaConf.to_container(OmegaConf.create(text), resolve=True)
    return ZooConfig.from_mapping({**stated, **changes} if isinstance(stated, dict) else stated)
