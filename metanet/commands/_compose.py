"""Which configuration do the words `group=name key=value` make? Composed by Hydra from the files in `metanet.configs`.

Nothing is instantiated: the result is a plain dictionary, and the commands read it by name.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from metanet.errors import ConfigError, clean


def compose(name: str, overrides: Sequence[str], config_folder: Path | None = None) -> dict[str, Any]:
    """The configuration `name` of `metanet.configs` with `overrides`, resolved.

    Args:
        name: The primary file, without `.yaml`.
        overrides: Hydra overrides, such as `zoo=digits_cnn` or `zoo.runs=40`.
        config_folder: A folder with files of the user's own, searched as well as the packaged ones.

    Raises:
        ConfigError: An override is not understood, names something unknown, or a required value is missing.
    """
    import hydra
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    words = list(overrides)
    if config_folder is not None:
        if not config_folder.is_dir():
            raise ConfigError("no such folder", where=config_folder, hint="--config-dir takes a folder of YAML files")
        words.append(f"hydra.searchpath=['file://{config_folder.resolve()}']")
    # Hydra keeps one global search path; a caller that is itself a Hydra program gets its own back.
    kept = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    logging.getLogger("hydra").setLevel(logging.ERROR)
    try:
        with hydra.initialize_config_module("metanet.configs", version_base="1.3"):
            composed = hydra.compose(name, overrides=words)
        values = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(_reason(error), where=f"configuration '{name}'", hint=_hint(overrides)) from None
    finally:
        GlobalHydra.instance().hydra = kept
    if not isinstance(values, dict):
        raise ConfigError("is not a mapping", where=f"configuration '{name}'")
    return {str(key): value for key, value in values.items()}


def options(group: str) -> list[str]:
    """The names that `group=NAME` can choose from.

    >>> isinstance(options("zoo"), list)
    True
    """
    from importlib.resources import files

    folder = files("metanet.configs").joinpath(group)
    if not folder.is_dir():
        return []
    return sorted(file.name.removesuffix(".yaml") for file in folder.iterdir() if file.name.endswith(".yaml"))


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    reason = lines[0].rstrip(".")
    for i, line in enumerate(lines[1:], start=1):
        # What Hydra and OmegaConf say further on is partly about their own API; these lines are about the user's words.
        if line.startswith("Available options"):
            reason += f" (there are: {', '.join(lines[i + 1 : i + 21]).split(', Config search path')[0]})"
        elif line.startswith("Key '") or (line.startswith("full_key:") and line != "full_key:"):
            reason += f" ({line.removeprefix('full_key:').strip()})"
    return clean(reason)


def _hint(overrides: Sequence[str]) -> str:
    shown = " ".join(overrides[:8])
    return f"check: {shown}" if shown else "a required value has no default; name it, as in key=value"
