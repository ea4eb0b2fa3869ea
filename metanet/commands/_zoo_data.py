"""How does a zoo become training data? Its networks as parameter graphs, with one column of its index as the target.

This bridge lies here because only the command line may know data sets and tasks at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from metanet.errors import ConfigError

if TYPE_CHECKING:
    from metanet.datasets import Zoo
    from metanet.tasks import PropertyItem

# Columns that no zoo stores: the difference of two others.
DERIVED: Mapping[str, tuple[str, str]] = {"generalisation_gap": ("train_accuracy", "test_accuracy")}


def zoo_items(zoo: Zoo, column: str) -> Iterator[PropertyItem]:
    """The networks of a zoo, each with its value of `column`, in the zoo's own split.

    Raises:
        ConfigError: The index has no such column, or its values are no targets.
    """
    from metanet.checkpoint import Checkpoint, Source
    from metanet.graph import ParameterGraph, program_of
    from metanet.tasks import PropertyItem

    names = (*zoo.index.names, *DERIVED)
    if column not in names:
        raise ConfigError(f"no column {column!r}", where=zoo.folder, hint=f"there are {', '.join(names)}")
    groups = lineage(zoo)
    for record, entry in zip(zoo.index, zoo, strict=True):
        target = column_value(record, column)
        # What is not known of a network (None) is left out by `property_data`, which records it.
        if target is not None and not isinstance(target, int | float | str):
            raise ConfigError(f"column {column!r} holds {target!r:.60}, no number or word", where=zoo.folder)
        checkpoint = Checkpoint(entry.state, entry.architecture, Source(zoo.folder / record["shard"], "safetensors"))
        graph = ParameterGraph.build(checkpoint.spec, checkpoint.state, program_of(entry.architecture))
        yield PropertyItem(graph, target, groups[record["run"]], entry.split, network_name(record))


def lineage(zoo: Zoo) -> dict[int, str]:
    """The group of every run: the run that it comes from.

    A run that goes on from another one's weights is its relative: both stand on one side of a split.
    """
    parents = {record["run"]: record["parent"] for record in (*zoo.index, *zoo.failures)}
    groups = {}
    for run in parents:
        group = run
        while parents.get(group) is not None:
            group = parents[group]
        groups[run] = str(group)
    return groups


def column_value(record: Mapping[str, Any], column: str) -> Any:
    """What the index says in a column, or what `DERIVED` makes of others; None where it is not known."""
    if column in record or column not in DERIVED:
        return record[column]
    one, two = (record.get(name) for name in DERIVED[column])
    return None if one is None or two is None else one - two


def network_name(record: Mapping[str, Any]) -> str:
    """How messages call a network of a zoo."""
    return f"run {record['run']}, step {record['step']}"
