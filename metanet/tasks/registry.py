"""Which task does a configuration mean?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from metanet.errors import ConfigError
from metanet.tasks.inr import InrClassificationTask
from metanet.tasks.inr_editing import InrEditingTask
from metanet.tasks.morph_task import MorphTask
from metanet.tasks.place_task import EdgeTask, PlaceTask, UnitTask
from metanet.tasks.plan_score import PlanScoreTask
from metanet.tasks.property import PropertyTask

AnyTask: TypeAlias = PropertyTask | PlaceTask | InrEditingTask | PlanScoreTask | MorphTask

TASKS: Mapping[str, Callable[[Mapping[str, Any]], AnyTask]] = {
    "property": PropertyTask.from_mapping,
    "inr_classification": InrClassificationTask.from_mapping,
    "inr_editing": InrEditingTask.from_mapping,
    "unit": UnitTask.from_mapping,
    "edge": EdgeTask.from_mapping,
    "plan_score": PlanScoreTask.from_mapping,
    "morph": MorphTask.from_mapping,
}


def task_from_mapping(options: Mapping[str, Any]) -> AnyTask:
    """The task that `options["task"]` names, with the other options.

    Raises:
        ConfigError: No such task, or options that do not fit it.
    """
    name = options.get("task")
    if name not in TASKS:
        raise ConfigError(f"{name!r} given, expected one of {', '.join(TASKS)}", where="task.task")
    return TASKS[str(name)](options)
