"""What can be asked of a trained network's weights? The public names, each imported when it is first used.

Example:
    >>> import metanet
    >>> "load" in dir(metanet)
    True
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from metanet import checkpoint, datasets, errors, graph, nn, report, score, tasks, train
    from metanet.checkpoint import Architecture, Checkpoint, load, save_checkpoint
    from metanet.errors import CheckpointError, ConfigError, MetanetError, ZooError
    from metanet.graph import ParameterGraph, collate

__version__ = "0.1.0"

__all__ = [
    "__version__",
    "load",
    "save_checkpoint",
    "Architecture",
    "Checkpoint",
    "ParameterGraph",
    "collate",
    "MetanetError",
    "CheckpointError",
    "ConfigError",
    "ZooError",
    "checkpoint",
    "datasets",
    "errors",
    "graph",
    "morph",
    "nn",
    "report",
    "score",
    "tasks",
    "train",
]

# Name -> (module, attribute); an empty attribute stands for the module itself. Importing torch-geometric takes a
# second, and `metanet --help` should not pay for it.
_NAMES = {
    "load": ("metanet.checkpoint", "load"),
    "save_checkpoint": ("metanet.checkpoint", "save_checkpoint"),
    "Architecture": ("metanet.checkpoint", "Architecture"),
    "Checkpoint": ("metanet.checkpoint", "Checkpoint"),
    "ParameterGraph": ("metanet.graph", "ParameterGraph"),
    "collate": ("metanet.graph", "collate"),
    "MetanetError": ("metanet.errors", "MetanetError"),
    "CheckpointError": ("metanet.errors", "CheckpointError"),
    "ConfigError": ("metanet.errors", "ConfigError"),
    "ZooError": ("metanet.errors", "ZooError"),
} | {
    name: (f"metanet.{name}", "")
    for name in ("checkpoint", "datasets", "errors", "graph", "morph", "nn", "report", "score", "tasks", "train")
}


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module 'metanet' has no attribute {name!r}")
    module, attribute = _NAMES[name]
    value = importlib.import_module(module)
    if attribute:
        value = getattr(value, attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
