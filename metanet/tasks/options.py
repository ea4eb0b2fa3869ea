"""Do these options of a configuration fit the fields of a dataclass?"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from metanet.errors import ConfigError


def check_options(kind: type[Any], options: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The options, if each is a field of `kind` and of the type of its default.

    Raises:
        ConfigError: Naming the first option that is not.
    """
    fields = {field.name: field for field in dataclasses.fields(kind)}
    result: dict[str, Any] = {}
    for key, value in options.items():
        if key not in fields:
            raise ConfigError(f"no such setting: {key!r}", hint=f"there are {', '.join(fields)}", where=where)
        default = fields[key].default
        wanted = str if default is dataclasses.MISSING else type(default)
        if wanted is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if not isinstance(value, wanted) or (wanted is int and isinstance(value, bool)):
            raise ConfigError(
                f"{value!r} given, expected {_NAMES.get(wanted, wanted.__name__)}", where=f"{where}.{key}"
            )
        result[key] = value
    return result


def task_options(kind: type[Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a task's configuration for its dataclass, without the names by which it was found.

    Raises:
        ConfigError: Naming the first option that does not fit.
    """
    return check_options(kind, {key: value for key, value in options.items() if key not in ("name", "task")}, "task")


def check_ranges(task: object, checks: Iterable[tuple[str, bool, str]]) -> None:
    """Refuse the first setting of a task that is out of its range.

    Args:
        task: the task.
        checks: of each setting its name, whether it is good, and what is expected.

    Raises:
        ConfigError: Naming it.
    """
    for name, good, expected in checks:
        if not good:
            raise ConfigError(f"{getattr(task, name)!r} given, expected {expected}", where=f"task.{name}")


_NAMES: dict[type[Any], str] = {int: "a whole number", float: "a number", bool: "true or false", str: "a word"}
