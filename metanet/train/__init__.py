"""How is a task trained: the loop, exact resume, logs and the folder of a trained model."""

from metanet.train.artefact import Artefact
from metanet.train.run import Trained, fit, train
from metanet.train.schedule import learning_rate
from metanet.train.settings import TrainerSettings
from metanet.train.task import Extras, Monitor, Task, TrainingData

__all__ = [
    "Artefact",
    "Extras",
    "Monitor",
    "Task",
    "Trained",
    "TrainerSettings",
    "TrainingData",
    "fit",
    "learning_rate",
    "train",
]
