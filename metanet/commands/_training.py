"""What does a composed configuration train, on what, and what is told of the result? Shared by `train` and `demo`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metanet.commands._morph_items import morph_items
from metanet.commands._place_items import place_items
from metanet.commands._plan_score_items import plan_score_stacks
from metanet.commands._terminal import progress
from metanet.commands._zoo_data import zoo_items
from metanet.errors import ConfigError

if TYPE_CHECKING:
    from metanet.datasets import Zoo
    from metanet.tasks import Evaluation, Method, PlaceData, PropertyData
    from metanet.tasks.inr_editing import EditingData
    from metanet.tasks.morph_data import MorphData
    from metanet.tasks.plan_score_data import PlanScoreData
    from metanet.tasks.registry import AnyTask
    from metanet.train import Trained, TrainerSettings


@dataclass(frozen=True)
class Training:
    """Everything that `metanet train` needs, made from its configuration.

    Attributes:
        task, data, model, settings: What the trainer is handed.
        folder: Where the model goes.
        zoo: The zoo that the data are from, if they are from one.
        config: The composed configuration.
    """

    task: AnyTask
    data: PropertyData | PlaceData | EditingData | PlanScoreData | MorphData
    model: Mapping[str, Any]
    settings: TrainerSettings
    folder: Path
    zoo: Zoo | None
    config: Mapping[str, Any]

    def run(self, overwrite: bool) -> Trained:
        """Train, or go on with a run that was killed."""
        from metanet.train import train

        return train(self.task, self.data, self.model, self.settings, self.folder, overwrite)

    def assess(self, baselines: Sequence[Method]) -> Evaluation:
        """Measure the trained model on the held-out part; tasks per unit or weight have their own baseline."""
        from metanet.tasks import PlaceData, PlaceModel, PlaceTask, PropertyModel, evaluate, evaluate_places
        from metanet.tasks.inr_editing import EditingData, InrEditingTask
        from metanet.tasks.inr_editing_score import EditingModel, evaluate_editing
        from metanet.tasks.morph_data import MorphData
        from metanet.tasks.morph_model import MorphModel
        from metanet.tasks.morph_score import evaluate_morph
        from metanet.tasks.morph_task import MorphTask
        from metanet.tasks.plan_score import PlanScoreTask
        from metanet.tasks.plan_score_data import PlanScoreData
        from metanet.tasks.plan_score_evaluate import evaluate_plan_scores
        from metanet.tasks.plan_score_predict import PlanScoreModel

        seed = self.settings.seed
        if isinstance(self.task, PlaceTask) or isinstance(self.data, PlaceData):
            if not (isinstance(self.task, PlaceTask) and isinstance(self.data, PlaceData)):
                raise ConfigError("the data are not those of the task", where="task")
            return evaluate_places(PlaceModel.open(self.folder), self.task, self.data, seed=seed)
        if isinstance(self.task, InrEditingTask) or isinstance(self.data, EditingData):
            if not isinstance(self.data, EditingData):
                raise ConfigError("the data are not those of the task", where="task")
            return evaluate_editing(EditingModel.open(self.folder), self.data, seed=seed)
        if isinstance(self.task, PlanScoreTask) or isinstance(self.data, PlanScoreData):
            if not isinstance(self.data, PlanScoreData):
                raise ConfigError("the data are not those of the task", where="task")
            return evaluate_plan_scores(PlanScoreModel.open(self.folder), self.data, seed=seed)
        if isinstance(self.task, MorphTask) or isinstance(self.data, MorphData):
            if not isinstance(self.data, MorphData):
                raise ConfigError("the data are not those of the task", where="task")
            return evaluate_morph(MorphModel.open(self.folder), self.data, seed=seed)
        return evaluate(PropertyModel.open(self.folder), self.task, self.data, baselines=baselines, seed=seed)


def prepare(config: Mapping[str, Any]) -> Training:
    """Read the data that a configuration names, and check the rest of it first.

    Raises:
        ConfigError: A setting is unknown, missing or impossible.
        ZooError: The zoo is not there or not finished.
    """
    from metanet.tasks import PlaceTask, PropertyTask, labelled_folder, place_data, property_data, task_from_mapping
    from metanet.tasks.encoding import with_labels
    from metanet.tasks.inr_editing import InrEditingTask, editing_data
    from metanet.tasks.morph_data import morph_data
    from metanet.tasks.morph_task import MorphTask
    from metanet.tasks.plan_score import PlanScoreTask
    from metanet.tasks.plan_score_data import plan_score_data
    from metanet.train import TrainerSettings

    task = task_from_mapping(config["task"])
    settings = TrainerSettings.from_mapping(config["trainer"])
    dataset = dict(config["dataset"])
    resplit, kind = bool(dataset.pop("resplit", False)), dataset.get("kind")
    zoo: Zoo | None = None
    if kind == "zoo":
        from metanet.datasets import Zoo as ZooOnDisk

        folders = dataset["folder"] if isinstance(dataset["folder"], list) else [dataset["folder"]]
        zoos = [ZooOnDisk.open(folder) for folder in folders]
        zoo = zoos[0]
        if isinstance(task, MorphTask):
            several = progress((item for one in zoos for item in morph_items(one)), "read networks", None)
            learned = morph_data(several)
            return Training(task, learned, config["model"], settings, Path(config["folder"]), zoo, config)
        if len(zoos) > 1:
            raise ConfigError(f"{len(zoos)} zoos given; only task=morph learns from several", where="dataset.folder")
        if isinstance(task, PlaceTask):
            places = progress(place_items(zoo, task), "run networks", len(zoo))
            found = place_data(places, task.level, task.column, seed=settings.seed, resplit=resplit)
            return Training(task, found, config["model"], settings, Path(config["folder"]), zoo, config)
        if isinstance(task, PlanScoreTask):
            stacks = progress(plan_score_stacks(zoo, task), "measure plans", len(zoo.architectures))
            scored = plan_score_data(stacks, task.plans, seed=settings.seed, resplit=resplit)
            return Training(task, scored, config["model"], settings, Path(config["folder"]), zoo, config)
        items = progress(zoo_items(zoo, task.column), "read networks", len(zoo))
    elif isinstance(task, PlaceTask | PlanScoreTask | MorphTask):
        name = task.describe()["task"]
        raise ConfigError(f"{kind!r} given, but task={name} runs networks of a zoo", where="dataset.kind")
    elif kind == "labelled_folder":
        folder = labelled_folder(dataset)
        items = progress(folder.items(task.column), "read networks", len(folder.rows()))
    else:
        raise ConfigError(f"{kind!r} given, expected zoo or labelled_folder", where="dataset.kind")
    data = property_data(items, task.column, seed=settings.seed, resplit=resplit)
    if isinstance(task, PropertyTask) and task.kind == "classification":
        data = with_labels(data)
    if isinstance(task, InrEditingTask):
        shown = editing_data(data, task)
        return Training(task, shown, config["model"], settings, Path(config["folder"]), zoo, config)
    return Training(task, data, config["model"], settings, Path(config["folder"]), zoo, config)
