"""Which task does a configuration mean?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from metanet.errors import ConfigError
from metanet.tasks.property import PropertyTask

TASKS = {"property": PropertyTask.from_mapping}


def task_from_mapping(options: Mapping[str, Any]) -> PropertyTask:
    """The task that `options["task"]` names, with the other options.

    Raises:
        ConfigError: No such task, or options that do not fit it.
    """
    name = options.get("task")
    if name not in TASKS:
        raise ConfigError(f"{name!r} given, expected one of {', '.join(TASKS)}", where="task.task")
    return TASKS[str(name)](options)
