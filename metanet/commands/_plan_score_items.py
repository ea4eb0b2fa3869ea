"""How do the networks of a zoo become what a predictor of plans' costs is trained on? Stacked, with their images."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from metanet.commands._zoo_data import lineage, network_name
from metanet.errors import ConfigError

if TYPE_CHECKING:
    from metanet.datasets import Zoo
    from metanet.tasks.plan_score import PlanScoreTask
    from metanet.tasks.plan_score_data import NetworkStack


def plan_score_stacks(zoo: Zoo, task: PlanScoreTask) -> Iterator[NetworkStack]:
    """The networks of a zoo, architecture by architecture, with images that none of them was trained on to measure on.

    Args:
        zoo: The zoo.
        task: Says how many images.

    Raises:
        ConfigError: The zoo's networks do not tell classes of images.
    """
    from metanet.checkpoint import Checkpoint, Source
    from metanet.tasks.plan_score_data import REFERENCE, NetworkStack

    if zoo.manifest["config"].get("data", {}).get("name") is None or any(
        a.family == "siren" for a in zoo.architectures
    ):
        raise ConfigError("the networks of this zoo do not tell classes of images", where=zoo.folder)
    images, groups = zoo.data, lineage(zoo)
    needed = task.images + REFERENCE
    if len(images.test_labels) < needed:
        hint = f"task.images={max(len(images.test_labels) - REFERENCE, 0)} or fewer"
        raise ConfigError(f"{len(images.test_labels)} test images, {needed} needed", hint=hint, where=zoo.folder)
    numbers: dict[int, list[int]] = {}
    for row, record in enumerate(zoo.index):
        numbers.setdefault(record["architecture"], []).append(row)
    for number, rows in numbers.items():
        architecture = zoo.architectures[number]
        stacked = zoo.stacked(rows)
        spec = Checkpoint(zoo[rows[0]].state, architecture, Source(zoo.folder, "safetensors")).spec
        shape = architecture.example_inputs()[0].shape[1:]
        # A perceptron reads an image as one row, a sequence model by rows.
        fitting, tested = (
            x.reshape(len(x), *shape) for x in (images.pool_images[: task.fitting], images.test_images[:needed])
        )
        records = [zoo.index[row] for row in rows]
        yield NetworkStack(
            architecture.build().eval(),
            spec,
            {name: value.to(torch.float32) if value.is_floating_point() else value for name, value in stacked.items()},
            tuple(groups[record["run"]] for record in records),
            tuple(record["split"] for record in records),
            tuple(network_name(record) for record in records),
            fitting,
            tested,
        )
