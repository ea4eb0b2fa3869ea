"""How well does a trained metanetwork change pictures, beside leaving them alone and one change for all?"""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor, nn

from metanet.errors import TaskError, TrainError
from metanet.graph import Bucket, GraphBatch
from metanet.nn.steered import Steered
from metanet.tasks.evaluate import Evaluation, ModelScore
from metanet.tasks.inr_editing import EDITING_NAME, FORMAT, EditingData, InrEditingTask, pixel_grid, rendered
from metanet.train import Artefact, TrainerSettings
from metanet.train.loop import run_epochs

__all__ = ["EditingModel", "SameEdit", "evaluate_editing", "refitted_error", "same_edit"]

_REFITTED = 64  # networks whose best picture is looked for by fitting them again
_SETTINGS = TrainerSettings(epochs=4, learning_rate=1e-2, weight_decay=0.0, patience=0, progress=False)


class SameEdit(nn.Module):
    """The same change of the weights for every network: what is known without looking at one.

    Args:
        bucket: networks of the one architecture that it is for.
    """

    def __init__(self, bucket: Bucket) -> None:
        super().__init__()
        self.names = tuple(bucket.state())
        state = bucket.state().values()
        self.sizes = tuple(float(value.square().mean().sqrt()) for value in state)
        self.changes = nn.ParameterList(nn.Parameter(torch.zeros(value.shape[1:])) for value in state)

    def forward(self, batch: GraphBatch) -> list[dict[str, Tensor]]:
        """One change per network, by name."""
        told = zip(self.names, self.changes, self.sizes, strict=True)
        same = {name: change * size for name, change, size in told}
        return [same] * len(batch)


def same_edit(task: InrEditingTask, data: EditingData, seed: int = 0) -> SameEdit:
    """The best change that is the same for all networks, by descent on the training part.

    Raises:
        TaskError: The networks have several architectures.
    """
    if len(data.batch.buckets) != 1:
        raise TaskError(f"{len(data.batch.buckets)} architectures; one change for all needs one")
    model = SameEdit(data.batch.buckets[0])
    run_epochs(task, data, model, _SETTINGS, seed)
    return model


def refitted_error(data: EditingData, part: str = "test", steps: int = 200, rate: float = 1e-3) -> float:
    """The mean error that some networks reach when they are fitted to the wanted pictures, each by itself.

    No metanetwork: how well these architectures can show these pictures at all, from the weights that they have.

    Args:
        data: The networks and the wanted pictures.
        part: Whose; the first 64 are taken.
        steps: Steps of Adam, with a rate that falls to zero.
        rate: The highest rate.
    """
    places = torch.from_numpy(data.part(part)[:_REFITTED])
    batch, grid = data.batch.select(places), pixel_grid(data.side)
    errors = []
    for bucket in batch:
        state = {name: value.clone().requires_grad_() for name, value in bucket.state().items()}
        wanted = data.wanted[places][bucket.index]
        optimizer = torch.optim.Adam(state.values(), lr=rate)
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = rate * (1 - step / steps)
            optimizer.zero_grad(set_to_none=True)
            # The sum over networks: each has its own gradient.
            (rendered(bucket, state, grid) - wanted).square().mean(1).sum().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        with torch.no_grad():
            errors.append((rendered(bucket, state, grid) - wanted).square().mean(1))
    return float(torch.cat(errors).mean())


class EditingModel:
    """A trained editor of pictures, read from its folder.

    Args:
        artefact: The folder, checked.

    Raises:
        TrainError: The folder is not finished or damaged.
        TaskError: It holds another kind of model.
    """

    def __init__(self, artefact: Artefact) -> None:
        if not artefact.holds(EDITING_NAME) or artefact.values(EDITING_NAME).get("format") != FORMAT:
            raise TaskError("holds no editor of pictures", where=artefact.folder)
        self.task = InrEditingTask.from_mapping(artefact.config.get("task") or {})
        options = artefact.config.get("model") or {}
        model = self.task.editor(options, torch.Generator())
        try:
            model.load_state_dict(artefact.tensors())
        except RuntimeError as error:
            raise TrainError("the weights do not fit the configured model", where=artefact.folder) from error
        self.model: nn.Module = model.eval()

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> EditingModel:
        """Read a model's folder."""
        return cls(Artefact.open(Path(folder)))


def evaluate_editing(model: EditingModel, data: EditingData, seed: int = 0, part: str = "test") -> Evaluation:
    """Measure a trained editor on networks that it was not trained on.

    The metric, "improvement", is the share of the error that is taken away: 1 - error / error of unchanged networks.

    Args:
        model: The editor, as read from its folder.
        data: The data that it was trained on.
        seed: Seeds the search for the one change for all.
        part: The part to test on.

    Raises:
        TaskError: The part is empty.
    """
    task = model.task
    places = torch.from_numpy(data.part(part))
    unchanged = task.error(None, data, part)
    ours = task.error(model.model, data, part)
    theirs = task.error(same_edit(task, data, seed), data, part)
    fitted = refitted_error(data, part)

    def score(name: str, kind: str, words: str, error: float) -> ModelScore:
        return ModelScore(name, kind, words, {"improvement": 1 - error / unchanged, "mse": error})

    networks = data.networks
    steered = isinstance(model.model, Steered)
    words = "learned steps along gradients" if steered else "strict metanetwork, one change per weight"
    return Evaluation(
        "picture",
        part,
        "improvement",
        (
            score("metanet", "model", words, ours),
            score("identity", "baseline", "networks as they are", unchanged),
            score("same", "baseline", "the best change that is the same for all networks", theirs),
            score("refit", "part", "no metanetwork: fitted to the wanted picture itself, 200 steps each", fitted),
        ),
        tuple(networks.names[i] for i in places.tolist()),
        tuple(str(networks.groups[i]) for i in places.tolist()),
        (),
        (),
        1.0,
        seed,
    )
