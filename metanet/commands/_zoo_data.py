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


def zoo_items(zoo: Zoo, column: str) -> Iterator[PropertyItem]:
    """The networks of a zoo, each with its value of `column`, in the zoo's own split.

    Raises:
        ConfigError: The index has no such column, or its values are no targets.
    """
    from metanet.checkpoint import Checkpoint, Source
    from metanet.graph import ParameterGraph
    from metanet.tasks import PropertyItem

    if column not in zoo.index.names:
        raise ConfigError(f"no column {column!r}", where=zoo.folder, hint=f"there are {', '.join(zoo.index.names)}")
    parents = {record["run"]: record["parent"] for record in (*zoo.index, *zoo.failures)}
    for record, entry in zip(zoo.index, zoo, strict=True):
        target = record[column]
        # What is not known of a network (None) is left out by `property_data`, which records it.
        if target is not None and not isinstance(target, int | float | str):
            raise ConfigError(f"column {column!r} holds {target!r:.60}, no number or word", where=zoo.folder)
        checkpoint = Checkpoint(entry.state, entry.architecture, Source(zoo.folder / record["shard"], "safetensors"))
        graph = ParameterGraph.build(checkpoint.spec, checkpoint.state)
        # A run that goes on from another one's weights is its relative: both stand on one side of a split.
        group = record["run"]
        while parents.get(group) is not None:
            group = parents[group]
        yield PropertyItem(graph, target, str(group), entry.split, network_name(record))


def network_name(record: Mapping[str, Any]) -> str:
    """How messages call a network of a zoo."""
    return f"run {record['run']}, step {record['step']}"
