"""Which configurations of zoos come with the package?"""

from __future__ import annotations

import importlib.resources
from typing import Any

from metanet.errors import ConfigError, clean

from .plan import Config, parse_config

__all__ = ["load_zoo_config", "zoo_config_names"]


def zoo_config_names() -> list[str]:
    """The configurations that come with the package."""
    folder = importlib.resources.files("metanet.configs") / "zoo"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def load_zoo_config(name: str, **changes: Any) -> Config:
    """One of the configurations that come with the package, with some of its settings changed.

    Args:
        name: as in ``zoo=NAME`` on the command line.
        changes: new values for settings at the top level, for example ``runs=40``.

    Raises:
        ConfigError: if there is no such configuration, or the changes make it impossible.
    """
    from omegaconf import OmegaConf

    if name not in zoo_config_names():
        raise ConfigError(
            f"{clean(repr(name), 60)} is no zoo", where="zoo", hint="known: " + ", ".join(zoo_config_names())
        )
    text = (importlib.resources.files("metanet.configs") / "zoo" / f"{name}.yaml").read_text("utf-8")
    stated = OmegaConf.to_container(OmegaConf.create(text), resolve=True)
    return parse_config({**stated, **changes} if isinstance(stated, dict) else stated)
