"""How does a zoo become training data with a target at every unit or weight? By running its networks."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from metanet.errors import ConfigError

if TYPE_CHECKING:
    from metanet.checkpoint import Architecture
    from metanet.datasets import Zoo
    from metanet.tasks import PlaceItem, PlaceTask


def place_items(zoo: Zoo, task: PlaceTask, names: Collection[str] | None = None) -> Iterator[PlaceItem]:
    """The networks of a zoo with what the task's target is at each of their units or weights, in the zoo's own split.

    With `target=change` the last snapshot of a run has no later one, and is left out.

    Args:
        zoo: The zoo.
        task: What is measured.
        names: Only these networks; None takes all.

    Raises:
        ConfigError: The task needs images or labels that the zoo does not have.
    """
    from metanet.checkpoint import Checkpoint, Source
    from metanet.commands._zoo_data import lineage, network_name
    from metanet.graph import ParameterGraph, program_of
    from metanet.tasks import PlaceItem
    from metanet.tasks.effects import unit_effects, unit_norms, weight_changes, weight_saliency, weight_sizes

    inputs, labels = _examples(zoo, task)
    runs: dict[int, Callable[[Mapping[str, Tensor]], Tensor]] = {}
    last = {record["run"]: number for number, record in sorted(enumerate(zoo.index), key=lambda pair: pair[1]["step"])}
    groups = lineage(zoo)
    for number, (record, entry) in enumerate(zip(zoo.index, zoo, strict=True)):
        if task.target == "change" and last[record["run"]] == number:
            continue
        if names is not None and network_name(record) not in names:
            continue
        if record["architecture"] not in runs:
            runs[record["architecture"]] = _runner(entry.architecture, inputs)
        run = runs[record["architecture"]]
        checkpoint = Checkpoint(entry.state, entry.architecture, Source(zoo.folder / record["shard"], "safetensors"))
        graph = ParameterGraph.build(checkpoint.spec, checkpoint.state, program_of(entry.architecture))
        if task.target in ("removal", "loss"):
            found = unit_effects(graph, run, labels if task.target == "loss" else None)
            simple = unit_norms(graph)
        elif task.target == "saliency":
            found, simple = weight_saliency(graph, run, labels), weight_sizes(graph)
        else:
            found = weight_changes(graph, zoo[last[record["run"]]].state)
            zero = {name: torch.zeros_like(value) for name, value in checkpoint.state.items()}
            simple = weight_changes(graph, zero)  # towards zero: the weight itself, with its sign turned
        yield PlaceItem(graph, found, simple, groups[record["run"]], entry.split, network_name(record))


def _examples(zoo: Zoo, task: PlaceTask) -> tuple[Tensor | None, Tensor]:
    """Images of the zoo's test set with their classes; no images where networks get inputs of their own shape."""
    from metanet.datasets.images import IMAGE_SETS, load_images

    if task.inputs == "smooth" and task.target == "removal":
        return None, torch.zeros(task.examples, dtype=torch.int64)
    if task.inputs == "smooth":
        raise ConfigError(f"target={task.target} needs classes: 'smooth' inputs have none", where="task.inputs")
    options: Any = zoo.manifest["config"].get("data")
    if not isinstance(options, Mapping) or options.get("name") not in IMAGE_SETS:
        raise ConfigError(
            "the zoo's networks were not trained on images with classes", hint="task.inputs=smooth", where=zoo.folder
        )
    images = load_images(options)
    count = min(task.examples, len(images.test_labels))
    return images.test_images[:count], images.test_labels[:count]


def _runner(architecture: Architecture, inputs: Tensor | None) -> Callable[[Mapping[str, Tensor]], Tensor]:
    """Runs states of one architecture on the examples, in the precision of the state."""
    from metanet.nn.rich_inputs import smooth_inputs

    module: nn.Module = architecture.build().eval()
    shape = architecture.example_inputs()[0].shape[1:]
    given = smooth_inputs(shape, 64) if inputs is None else inputs
    if given.shape[1:] != shape:
        given = given.reshape(len(given), *shape)  # a perceptron reads an image as one row, a sequence model by rows

    def run(state: Mapping[str, Tensor]) -> Tensor:
        like = next(value for value in state.values() if value.is_floating_point())
        answers: Tensor = functional_call(module, dict(state), (given.to(like.dtype),))
        return answers.reshape(len(given), -1)

    return run
