"""How does a zoo become training data? Its networks as parameter graphs, with one column of its index as the target.

This bridge lies here because only the command line may know data sets and tasks at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from metanet.errors import ConfigError

if TYPE_CHECKING:
    from metanet.datasets import Zoo
    from metanet.graph import ParameterGraph
    from metanet.tasks import PropertyItem

# Columns that no zoo stores: the difference of two others.
DERIVED: Mapping[str, tuple[str, str]] = {"generalisation_gap": ("train_accuracy", "test_accuracy")}

# Networks that are read at once: a few megabytes of the usual zoos.
_AT_ONCE = 2048


def zoo_items(zoo: Zoo, column: str) -> Iterator[PropertyItem]:
    """The networks of a zoo, each with its value of `column`, in the zoo's own split.

    Raises:
        ConfigError: The index has no such column, or its values are no targets.
    """
    from metanet.tasks import PropertyItem

    names = (*zoo.index.names, *DERIVED)
    if column not in names:
        raise ConfigError(f"no column {column!r}", where=zoo.folder, hint=f"there are {', '.join(names)}")
    groups = lineage(zoo)
    for first in range(0, len(zoo), _AT_ONCE):
        rows = range(first, min(first + _AT_ONCE, len(zoo)))
        for row, graph in zip(rows, zoo_graphs(zoo, rows), strict=True):
            record = zoo.index[row]
            target = column_value(record, column)
            # What is not known of a network (None) is left out by `property_data`, which records it.
            if target is not None and not isinstance(target, int | float | str):
                raise ConfigError(f"column {column!r} holds {target!r:.60}, no number or word", where=zoo.folder)
            yield PropertyItem(graph, target, groups[record["run"]], record["split"], network_name(record))


def zoo_graphs(zoo: Zoo, rows: Sequence[int]) -> list[ParameterGraph]:
    """The networks in these rows as graphs, with the operations of their architectures; read architecture by
    architecture, many at once.
    """
    from metanet.checkpoint import Checkpoint, Source
    from metanet.graph import ParameterGraph, program_of

    places: dict[int, list[int]] = {}
    for place, row in enumerate(rows):
        places.setdefault(zoo.index[row]["architecture"], []).append(place)
    found: dict[int, ParameterGraph] = {}
    for number, chosen in places.items():
        architecture = zoo.architectures[number]
        states = zoo.stacked([rows[place] for place in chosen])
        spec = Checkpoint(states, architecture, Source(zoo.folder, "safetensors")).spec
        found.update(zip(chosen, ParameterGraph.build_many(spec, states, program_of(architecture)), strict=True))
    return [found[place] for place in range(len(rows))]


def lineage(zoo: Zoo) -> dict[int, str]:
    """The group of every run: the image that its networks are, or else the run that it comes from.

    Two networks of one image, or a run and the one that goes on from its weights, are relatives: they stand on one side
    of a split.
    """
    records = (*zoo.index, *zoo.failures)
    parents = {record["run"]: record["parent"] for record in records}
    images = {record["run"]: record["image"] for record in records if record.get("image") is not None}
    groups = {}
    for run in parents:
        group = run
        while parents.get(group) is not None:
            group = parents[group]
        groups[run] = f"image {images[group]}" if group in images else str(group)
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
