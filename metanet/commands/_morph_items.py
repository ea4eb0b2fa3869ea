"""How do zoos become what a predictor of morphs is trained on: stacks of networks with the images they learned?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from metanet.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from metanet.checkpoint import Architecture
    from metanet.datasets import Zoo
    from metanet.tasks.morph_data import MorphItem

CLASSIFIERS = "classifiers"


def morph_items(zoo: Zoo) -> Iterator[MorphItem]:
    """The last snapshots of a zoo's runs, by architecture.

    Earlier snapshots are left out: nobody wants a half-trained network in another shape.

    Raises:
        ConfigError: The zoo's networks are no classifiers of images.
    """
    import numpy as np

    from metanet.checkpoint import Checkpoint, Source
    from metanet.commands._zoo_data import lineage, network_name
    from metanet.tasks.morph_data import MorphItem

    if zoo.kind != CLASSIFIERS:
        raise ConfigError(
            f"networks of a zoo of kind {zoo.kind!r}; morphs are learned on classifiers of images", where=zoo.folder
        )
    data, groups = zoo.data, lineage(zoo)
    last = {record["run"]: row for row, record in sorted(enumerate(zoo.index), key=lambda pair: pair[1]["step"])}
    places: dict[int, list[int]] = {}
    for row in sorted(last.values()):
        places.setdefault(zoo.index[row]["architecture"], []).append(row)
    for number, rows in sorted(places.items()):
        architecture, records = zoo.architectures[number], [zoo.index[row] for row in rows]
        states = zoo.stacked(rows)
        yield MorphItem(
            f"{zoo.folder.name}: {architecture!r}",
            architecture.build().eval(),
            Checkpoint(states, architecture, Source(zoo.folder, "safetensors")).spec,
            states,
            data.shape,
            as_read(architecture, data.pool_images),
            as_read(architecture, data.test_images),
            data.test_labels,
            np.array([groups[record["run"]] for record in records]),
            np.array([record["split"] for record in records]),
            tuple(network_name(record) for record in records),
        )


def as_read(architecture: Architecture, images: Tensor) -> Tensor:
    """Images in the shape that an architecture reads: perceptrons read them flat, sequence models by rows."""
    shape = architecture.example_inputs()[0].shape[1:]
    return images.reshape(len(images), *shape)
