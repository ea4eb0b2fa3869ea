"""What does a trained model say of these checkpoints, and of which does it refuse to speak?"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from metanet.errors import MetanetError, TaskError, TrainError
from metanet.graph import GraphBatch, ParameterGraph, bad_values, collate, program_of
from metanet.tasks.boosting import BoostedTrees
from metanet.tasks.build import build_model
from metanet.tasks.coverage import Coverage
from metanet.tasks.data import PropertyData
from metanet.tasks.encoding import Encoding
from metanet.tasks.inverted import Inverted, feature_matrix
from metanet.tasks.property import FORMAT, INPUTS_NAME, PROPERTY_NAME, TREES_NAME, outputs_of
from metanet.tasks.property_trees import tree_scores
from metanet.train import Artefact
from symmetry import SymmetryError, SymmetrySpec

_BATCH = 256
# Tasks whose trained models are property predictors, whatever they were trained with.
PROPERTY_TASKS = ("property", "inr_classification")


class Readable(Protocol):
    """What is needed of a checkpoint."""

    @property
    def spec(self) -> SymmetrySpec: ...

    @property
    def state(self) -> Mapping[str, Tensor]: ...


@dataclass(frozen=True)
class Prediction:
    """What is said of one checkpoint.

    Attributes:
        name: The file.
        value: A number in the unit of the column, or a label; None if refused.
        probabilities: Of each class; empty for numbers.
        refused: Why nothing is said; empty otherwise.
        warning: What makes the value doubtful; empty where nothing does.
    """

    name: str
    value: float | str | None
    probabilities: Mapping[str, float] = field(default_factory=dict)
    refused: str = ""
    warning: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class PropertyModel:
    """A trained property predictor, read from its folder.

    Args:
        artefact: The folder, checked.

    Raises:
        TrainError: The folder is not finished or damaged.
        TaskError: It holds another kind of model.
    """

    def __init__(self, artefact: Artefact) -> None:
        task = artefact.config.get("task")
        if not isinstance(task, dict) or task.get("task") not in PROPERTY_TASKS:
            raise TaskError("holds no property predictor", where=artefact.folder)
        record = artefact.values(PROPERTY_NAME)
        if record.get("format") != FORMAT:
            raise TaskError(
                f"format {record.get('format')!r}, expected {FORMAT!r}", where=artefact.folder / PROPERTY_NAME
            )
        self.column = str(record.get("column"))
        self.encoding = Encoding.from_json(record.get("encoding") or {})
        self.coverage = Coverage.from_json(record.get("coverage") or {})
        self.validation: dict[str, Any] = record.get("validation") or {}
        self.share = float(record.get("share", 1.0))
        self.model = self._model(artefact)
        self.features = str(record.get("features", "statistics"))
        self.inverted = None
        if self.features == "inverted":
            stored = artefact.tensors(INPUTS_NAME) if artefact.holds(INPUTS_NAME) else {}
            self.inverted = Inverted.from_tensors(stored)
        self.trees = BoostedTrees.from_tensors(artefact.tensors(TREES_NAME)) if artefact.holds(TREES_NAME) else None

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> PropertyModel:
        """Read a model's folder."""
        return cls(Artefact.open(Path(folder)))

    def _model(self, artefact: Artefact) -> nn.Module:
        model = build_model(artefact.config.get("model") or {}, self.encoding.outputs, torch.Generator())
        try:
            model.load_state_dict(artefact.tensors())
        except RuntimeError as error:
            raise TrainError("the weights do not fit the configured model", where=artefact.folder) from error
        return model.eval()

    def scores(self, graphs: Sequence[ParameterGraph]) -> NDArray[np.float64]:
        """Scores of graphs that the model can read: standardised numbers, or probabilities.

        Shapes:
            return: (n, outputs)
        """
        return next(iter(self._parts(collate(graphs)).values()))

    def parts(self, data: PropertyData) -> dict[str, NDArray[np.float64]]:
        """Scores of the model and of what it consists of: "average" (if it is one), "metanet" and "trees".

        Shapes:
            return: (n, outputs) each
        """
        return self._parts(data.batch)

    def _parts(self, batch: GraphBatch) -> dict[str, NDArray[np.float64]]:
        ours = self.encoding.scores(outputs_of(self.model, batch))
        if self.trees is None:
            return {"metanet": ours}
        theirs = tree_scores(self.encoding, self.trees, feature_matrix(batch, self.features, self.inverted))
        return {"average": self.share * ours + (1 - self.share) * theirs, "metanet": ours, "trees": theirs}

    def predict(
        self, checkpoints: Iterable[tuple[str, Readable | MetanetError]], anyway: bool = False
    ) -> Iterator[Prediction]:
        """One prediction per checkpoint, in order; memory is needed for one batch only.

        Args:
            checkpoints: Name and checkpoint, or name and why it could not be read.
            anyway: Also predict for architectures that the model has not seen the like of, with a warning.
        """
        waiting: list[tuple[str, ParameterGraph | Prediction, str]] = []
        for name, checkpoint in checkpoints:
            graph, warning = read_graph(self.coverage, checkpoint, anyway)
            said = Prediction(name, None, refused=graph) if isinstance(graph, str) else graph
            waiting.append((name, said, warning))
            if len(waiting) == _BATCH:
                yield from self._answers(waiting)
                waiting = []
        yield from self._answers(waiting)

    def _answers(self, waiting: list[tuple[str, ParameterGraph | Prediction, str]]) -> Iterator[Prediction]:
        graphs = [graph for _, graph, _ in waiting if isinstance(graph, ParameterGraph)]
        scores = iter(answer_each(self.scores, graphs))
        for name, graph, warning in waiting:
            if isinstance(graph, Prediction):
                yield graph
                continue
            found = next(scores)
            if isinstance(found, str):
                yield Prediction(name, None, refused=found)
                continue
            row = found[None]
            if not np.isfinite(row).all():
                yield Prediction(name, None, refused="the model's answer is not finite: its weights are out of range")
                continue
            value = self.encoding.decode(row)[0]
            chances = dict(zip(self.encoding.classes, map(float, row[0]), strict=True)) if self.encoding.classes else {}
            said = str(value) if self.encoding.classes else float(value)
            yield Prediction(name, said, chances, warning=f"extrapolates: {warning}" if warning else "")


Row = TypeVar("Row")


def answer_each(
    answer: Callable[[Sequence[ParameterGraph]], Iterable[Row]], graphs: Sequence[ParameterGraph]
) -> list[Row | str]:
    """An answer for every graph, or why the model cannot read it; one that it cannot read does not stop the others.

    Args:
        answer: One answer per graph, for all at once.
        graphs: The graphs.
    """
    try:
        return list(answer(graphs)) if graphs else []
    except MetanetError as error:
        if len(graphs) == 1:
            return [str(error)]
    middle = len(graphs) // 2
    return [row for half in (graphs[:middle], graphs[middle:]) for row in answer_each(answer, half)]


def read_graph(
    coverage: Coverage, checkpoint: Readable | MetanetError, anyway: bool
) -> tuple[ParameterGraph | str, str]:
    """The graph of a checkpoint and what makes answers about it doubtful; or why nothing is said of it.

    Args:
        coverage: What the model was trained on.
        checkpoint: The checkpoint, or the error that reading it raised.
        anyway: Accept architectures that the model has not seen the like of.
    """
    if isinstance(checkpoint, MetanetError):
        return str(checkpoint), ""
    try:
        spec, state = checkpoint.spec, checkpoint.state
        reason = coverage.refusal(spec)
        if reason and not anyway:
            return f"architecture not readable: {reason}", ""
        # What runs the network needs its operations; a checkpoint of unknown architecture has none.
        architecture = getattr(checkpoint, "architecture", None)
        program = None if architecture is None else program_of(architecture)
        graph = ParameterGraph.build(spec, state, program)
        return bad_values(graph) or graph, reason
    except (MetanetError, SymmetryError) as error:
        return str(error), ""


def predict(
    folder: str | os.PathLike[str],
    checkpoints: Iterable[tuple[str, Readable | MetanetError]],
    anyway: bool = False,
) -> list[Prediction]:
    """What the model in a folder says of checkpoints, in order.

    Args:
        folder: Where `metanet train` put the model.
        checkpoints: Name and checkpoint, or name and the error that reading it raised.
        anyway: Also predict for architectures that the model has not seen the like of, with a warning.
    """
    return list(PropertyModel.open(folder).predict(checkpoints, anyway))
