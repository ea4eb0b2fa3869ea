"""What does a trained model say of the units or weights of these checkpoints, and how good is it on held-out ones?"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from metanet.errors import MetanetError, TaskError, TrainError
from metanet.graph import ParameterGraph, collate
from metanet.tasks.build import build_model
from metanet.tasks.coverage import Coverage
from metanet.tasks.evaluate import Evaluation, ModelScore
from metanet.tasks.place_task import FORMAT, PLACES_NAME, PlaceTask, place_answers
from metanet.tasks.places import PlaceData, joined
from metanet.tasks.predict import Readable, answer_each, read_graph
from metanet.tasks.targets import TargetTransform
from metanet.train import Artefact

_BATCH = 32
_SHOWN = 2000  # places of a report's plot
_NAMES = {"node": "norm", "edge": "magnitude"}


@dataclass(frozen=True)
class PlacePrediction:
    """What is said of one checkpoint's units or weights.

    Attributes:
        name: The file.
        values: By space or tensor, in the unit of the target; empty if refused.
        refused: Why nothing is said; empty otherwise.
        warning: What makes the values doubtful; empty where nothing does.
    """

    name: str
    values: Mapping[str, Tensor] = field(default_factory=dict)
    refused: str = ""
    warning: str = ""

    def to_json(self) -> dict[str, Any]:
        values = {name: value.tolist() for name, value in self.values.items()}
        return {"name": self.name, "values": values, "refused": self.refused, "warning": self.warning}


class PlaceModel:
    """A trained predictor of units or weights, read from its folder.

    Args:
        artefact: The folder, checked.

    Raises:
        TrainError: The folder is not finished or damaged.
        TaskError: It holds another kind of model.
    """

    def __init__(self, artefact: Artefact) -> None:
        if not artefact.holds(PLACES_NAME):
            raise TaskError("holds no predictor of units or weights", where=artefact.folder)
        record = artefact.values(PLACES_NAME)
        if record.get("format") != FORMAT:
            raise TaskError(
                f"format {record.get('format')!r}, expected {FORMAT!r}", where=artefact.folder / PLACES_NAME
            )
        self.level, self.column = str(record.get("level")), str(record.get("column"))
        self.transform = TargetTransform.from_json(record.get("transform") or {})
        self.coverage = Coverage.from_json(record.get("coverage") or {})
        self.validation: dict[str, Any] = record.get("validation") or {}
        model = build_model(
            artefact.config.get("model") or {}, 1, torch.Generator(), self.level, bool(record.get("invariant"))
        )
        try:
            model.load_state_dict(artefact.tensors())
        except RuntimeError as error:
            raise TrainError("the weights do not fit the configured model", where=artefact.folder) from error
        self.model: nn.Module = model.eval()
        self.runs = bool(model.config["effects"])

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> PlaceModel:
        """Read a model's folder."""
        return cls(Artefact.open(Path(folder)))

    def values(self, graphs: Sequence[ParameterGraph]) -> list[dict[str, Tensor]]:
        """What is said of every unit or weight, in the unit of the target.

        Shapes:
            return: per network (units,) by space, or the shape of each tensor
        """
        with torch.no_grad():
            rows = place_answers(self.model, collate(graphs), graphs)
        scale = self.transform
        return [{name: value * scale.deviation + scale.mean for name, value in row.items()} for row in rows]

    def predict(
        self, checkpoints: Iterable[tuple[str, Readable | MetanetError]], anyway: bool = False
    ) -> Iterator[PlacePrediction]:
        """One answer per checkpoint, in order; memory is needed for one batch only.

        Args:
            checkpoints: Name and checkpoint, or name and why it could not be read.
            anyway: Also predict for architectures that the model has not seen the like of, with a warning.
        """
        waiting: list[tuple[str, ParameterGraph | str, str]] = []
        for name, checkpoint in checkpoints:
            graph, warning = read_graph(self.coverage, checkpoint, anyway)
            if isinstance(graph, ParameterGraph) and graph.program is None and self.runs:
                graph, warning = "its operations are not known, and the model runs the network", ""
            waiting.append((name, graph, warning))
            if len(waiting) == _BATCH:
                yield from self._answers(waiting)
                waiting = []
        yield from self._answers(waiting)

    def _answers(self, waiting: Sequence[tuple[str, ParameterGraph | str, str]]) -> Iterator[PlacePrediction]:
        graphs = [graph for _, graph, _ in waiting if isinstance(graph, ParameterGraph)]
        rows = iter(answer_each(self.values, graphs))
        for name, graph, warning in waiting:
            if isinstance(graph, str):
                yield PlacePrediction(name, refused=graph)
            elif isinstance(found := next(rows), str):
                yield PlacePrediction(name, refused=found)
            else:
                yield PlacePrediction(name, found, warning=f"extrapolates: {warning}" if warning else "")


def evaluate_places(
    model: PlaceModel, task: PlaceTask, data: PlaceData, seed: int = 0, part: str = "test"
) -> Evaluation:
    """Measure a trained model on networks that it was not trained on, beside the simple baseline.

    Args:
        model: The trained model, as read from its folder.
        task: The task that it was trained for.
        data: The data that it was trained on.
        seed: Stands in the result.
        part: The part to test on.

    Raises:
        TaskError: The part is empty, or the model was trained on other targets.
    """
    places = data.part(part)
    if not len(places):
        raise TaskError(f"the part {part!r} is empty", hint="give it a share of the groups")
    if task.transform(data) != model.transform:
        raise TaskError("the model was trained on other targets than these", hint="use the data that it was trained on")
    ours, theirs = task.answers(model.model, data, places), task.baseline_answers(data, places)
    words = {"node": "incoming norm times outgoing norm of the unit", "edge": "size of the weight"}
    scores = (
        ModelScore("metanet", "model", "strict metanetwork on the parameter graph", task.measure(data, places, ours)),
        ModelScore(_NAMES[data.level], "baseline", words[data.level], task.measure(data, places, theirs)),
    )
    true = torch.cat([data.flat(i) for i in places]).numpy()
    said = torch.cat([joined(row, data.targets[i]) for i, row in zip(places, ours, strict=True)]).numpy()
    counts = [len(data.flat(i)) for i in places]
    owner = np.repeat(places, counts)
    kept = np.linspace(0, len(true) - 1, min(_SHOWN, len(true))).round().astype(int)
    return Evaluation(
        data.column,
        part,
        "tau",
        scores,
        tuple(data.names[i] for i in owner[kept]),
        tuple(str(group) for group in data.groups[owner[kept]]),
        tuple(float(value) for value in true[kept]),
        tuple(float(value) for value in model.transform.inverse(said[kept])),
        1.0,
        seed,
    )
