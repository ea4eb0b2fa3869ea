"""Which networks does a configuration stand for: what is drawn for each run, and which are trained together?

One root seed spawns every generator. A run's settings, first weights and order of images come from its own seed, which
depends on the root seed and the run's number only: more groups, or other ones, leave them as they were.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from metanet.checkpoint import Architecture
from metanet.errors import ConfigError, MetanetError

from .config import SPLITS, FamilyRanges, ZooConfig
from .images import ImageData

__all__ = ["Draw", "Group", "RunSettings", "draw_zoo"]

# First entry of every spawn key: what the generator is for. Changing one changes every zoo.
_ARCHITECTURES, _SPLIT, _RUN = 0, 1, 2
_TRIES = 50


@dataclass(frozen=True)
class RunSettings:
    """Everything that was drawn for one run.

    Args:
        run: its number.
        seed: of its generators.
        architecture: its number in :attr:`Draw.architectures`.
        parent: the run whose last weights it goes on from, if any.
        split: "train", "val" or "test"; a child is where its parent is.
        steps: how many steps it is trained for.
        snapshot_steps: after which of them its weights are kept; the last is ``steps``.
        data_share: share of the pool that it sees.
        label_noise: share of its labels that are replaced by random ones.
        initial_scale: of its first weights, over 1 / sqrt(fan-in).
        optimiser: "sgd", "adam" or "adamw".
        learning_rate: of the optimiser.
        momentum: of sgd; the first beta of adam and adamw.
        weight_decay: in the gradient for sgd and adam, apart from it for adamw.
    """

    run: int
    seed: int
    architecture: int
    parent: int | None
    split: str
    steps: int
    snapshot_steps: tuple[int, ...]
    data_share: float
    label_noise: float
    initial_scale: float
    optimiser: str
    learning_rate: float
    momentum: float
    weight_decay: float

    def generators(self) -> tuple[np.random.SeedSequence, np.random.SeedSequence]:
        """Seeds for the first weights and for everything about the data."""
        _, initial, data = np.random.SeedSequence(self.seed).spawn(3)
        return initial, data


@dataclass(frozen=True)
class Group:
    """Runs of one architecture that are trained at once: the unit of work, of storage and of resuming."""

    number: int
    architecture: int
    runs: tuple[int, ...]
    children: tuple[int, ...]

    @property
    def name(self) -> str:
        """As in file names."""
        return f"group-{self.number:05d}"


@dataclass(frozen=True)
class Draw:
    """All that a configuration stands for, before anything is trained."""

    architectures: tuple[Architecture, ...]
    runs: tuple[RunSettings, ...]
    groups: tuple[Group, ...]

    def work(self, group: Group) -> int:
        """Network-steps in a group."""
        return sum(self.runs[run].steps for run in (*group.runs, *group.children))


def _generator(seed: int, *key: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


def _largest_remainder(shares: list[float], total: int) -> list[int]:
    exact = [share / sum(shares) * total for share in shares]
    counts = [int(value) for value in exact]
    rest = sorted(range(len(exact)), key=lambda i: (counts[i] - exact[i], i))
    for i in rest[: total - sum(counts)]:
        counts[i] += 1
    return counts


def _options(family: str, drawn: Mapping[str, Any], widths: tuple[int, ...], data: ImageData) -> dict[str, Any]:
    channels, height, _ = data.shape
    rest = {key: value for key, value in drawn.items() if key != "depth"} | {"outputs": data.classes}
    match family:
        case "mlp":
            return {"inputs": int(np.prod(data.shape)), "widths": widths, **rest}
        case "cnn":
            rest["strides"] = (*drawn["strides"], *[1] * len(widths))[: len(widths)]
        case "transformer":
            # All blocks share one stream; what was drawn for each block is the width between its two linear layers.
            return {"channels": channels, "size": height, "width": widths[0], "hidden": widths[1:], **rest}
    return {"channels": channels, "size": height, "widths": widths, **rest}


def _widths(
    name: str, family: FamilyRanges, drawn: Mapping[str, Any], generator: np.random.Generator
) -> tuple[int, ...]:
    """All widths of one architecture; of a transformer, first that of the stream."""
    width, depth = family.ranges["width"], drawn["depth"]
    if name == "mlp" and drawn["residual"]:
        return (width.draw(generator),) * depth
    if name == "transformer":
        return (width.draw(generator), *(family.ranges["hidden"].draw(generator) for _ in range(depth)))
    return tuple(width.draw(generator) for _ in range(depth))


def _draw_family(
    name: str, family: FamilyRanges, count: int, data: ImageData, generator: np.random.Generator
) -> list[Architecture]:
    # Every choice comes equally often, so that a dozen architectures already cover what was declared.
    columns = {k: r.draw_many(generator, count) for k, r in family.ranges.items() if k not in ("width", "hidden")}
    seen: list[Architecture] = []
    for i in range(count):
        drawn = {key: values[i] for key, values in columns.items()}
        for _ in range(_TRIES):
            widths = _widths(name, family, drawn, generator)
            try:
                architecture = Architecture(name, _options(name, drawn, widths, data), provenance="drawn for a zoo")
            except MetanetError as error:
                raise ConfigError(error.reason, where=f"families.{name}", hint="narrow the range") from error
            if architecture not in seen:
                break
        # Ranges that hold fewer different architectures than were asked for give some of them twice.
        seen.append(architecture)
    return seen


def _draw_architectures(config: ZooConfig, data: ImageData) -> tuple[Architecture, ...]:
    generator = _generator(config.seed, _ARCHITECTURES)
    counts = _largest_remainder([part.share for part in config.families.values()], config.architectures)
    drawn: list[Architecture] = []
    for (name, family), count in zip(config.families.items(), counts, strict=True):
        drawn += _draw_family(name, family, count, data, generator)
    return tuple(drawn)


def _assign_splits(config: ZooConfig, roots: int) -> list[str]:
    # Stratified: the runs of one architecture spread over the splits as the shares say.
    generator = _generator(config.seed, _SPLIT)
    result = [""] * roots
    given = dict.fromkeys(SPLITS, 0)
    count = 0
    for architecture in range(config.architectures):
        for run in generator.permutation(np.arange(architecture, roots, config.architectures)).tolist():
            count += 1
            split = max(SPLITS, key=lambda name: (config.split[name] * count - given[name], -SPLITS.index(name)))
            given[split] += 1
            result[run] = split
    return result


def _snapshot_steps(config: ZooConfig, steps: int) -> tuple[int, ...]:
    exact = (steps / config.snapshot_ratio**k for k in range(config.snapshot_count))
    return tuple(sorted({max(1, round(value)) for value in exact}))


def _draw_run(config: ZooConfig, run: int, parent_of: list[str]) -> RunSettings:
    key = np.random.SeedSequence(config.seed, spawn_key=(_RUN, run))
    # 53 bits: readers of JSON that know only floats still get the exact number.
    seed = int(key.generate_state(1, np.uint64)[0] >> np.uint64(11))
    generator = np.random.default_rng(np.random.SeedSequence(seed).spawn(3)[0])
    training = {name: config.training[name].draw(generator) for name in config.training}
    shares = np.array([part.share for part in config.optimisers.values()])
    optimiser = list(config.optimisers)[int(generator.choice(len(shares), p=shares / shares.sum()))]
    settings = {k: float(r.draw(generator)) for k, r in config.optimisers[optimiser].ranges.items()}
    roots = len(parent_of)
    architecture = run % config.architectures
    parent = None
    if run >= roots:
        candidates = range(architecture, roots, config.architectures)
        parent = candidates[int(generator.integers(len(candidates)))]
    return RunSettings(
        run=run,
        seed=seed,
        architecture=architecture,
        parent=parent,
        split=parent_of[run if parent is None else parent],
        steps=training["steps"],
        snapshot_steps=_snapshot_steps(config, training["steps"]),
        data_share=float(training["data_share"]),
        label_noise=float(training["label_noise"]),
        initial_scale=float(training["initial_scale"]),
        optimiser=optimiser,
        **settings,
    )


def _group(config: ZooConfig, runs: tuple[RunSettings, ...]) -> tuple[Group, ...]:
    groups: list[Group] = []
    for architecture in range(config.architectures):
        own = [run for run in runs if run.architecture == architecture]
        roots = [run.run for run in own if run.parent is None]
        parts = -(-len(roots) // config.group)
        for part in range(parts):
            members = tuple(roots[part::parts])
            children = tuple(run.run for run in own if run.parent in members)
            groups.append(Group(len(groups), architecture, members, children))
    return tuple(groups)


def draw_zoo(config: ZooConfig, data: ImageData) -> Draw:
    """Every architecture, run and group of a zoo.

    Args:
        config: what to draw from.
        data: decides the sizes of inputs and outputs.

    Raises:
        ConfigError: if a range allows an architecture that cannot be built on this data.
    """
    splits = _assign_splits(config, config.runs - config.children_count)
    runs = tuple(_draw_run(config, run, splits) for run in range(config.runs))
    return Draw(_draw_architectures(config, data), runs, _group(config, runs))
