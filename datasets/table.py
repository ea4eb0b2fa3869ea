"""How is a mapping from a file read key by key, so that nothing unknown and nothing impossible passes?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from metanet.errors import ConfigError, clean

__all__ = ["Table", "plain"]


def plain(raw: object) -> object:
    """``raw`` with OmegaConf's containers made plain ones."""
    # OmegaConf comes with hydra; a caller who passes plain mappings should not have to load it.
    if type(raw).__module__.startswith("omegaconf"):
        from omegaconf import OmegaConf

        return OmegaConf.to_container(raw, resolve=True)
    return raw


class Table:
    """Reads a mapping key by key; :meth:`finish` refuses whatever nobody asked for."""

    def __init__(self, where: str, raw: object) -> None:
        if not isinstance(raw, Mapping):
            raise ConfigError(
                f"{clean(repr(raw), 60)}, expected a mapping",
                where=where or "zoo configuration",
                hint="see configs/zoo",
            )
        self.where, self._raw, self._read = where, raw, set[str]()

    def path(self, key: str) -> str:
        """The name of a setting, as messages tell it."""
        return f"{self.where}.{key}" if self.where else key

    def take(self, key: str, default: Any = None) -> Any:
        """The raw value of a setting."""
        self._read.add(key)
        if key in self._raw:
            return self._raw[key]
        if default is None:
            raise ConfigError("is missing", where=self.path(key), hint="add it to the zoo's configuration")
        return default

    def text(self, key: str) -> str:
        """A short name."""
        value = self.take(key)
        if not isinstance(value, str) or not value or len(value) > 100 or not value.isprintable():
            raise ConfigError(f"{clean(repr(value), 60)}, expected a short name", where=self.path(key))
        return value

    def integer(self, key: str, low: int, high: int, default: int | None = None) -> int:
        """A whole number from ``low`` to ``high``."""
        value = self.take(key, default)
        if type(value) is not int or not low <= value <= high:
            expected = f"a whole number from {low} to {high}"
            raise ConfigError(f"{clean(repr(value), 60)}, expected {expected}", where=self.path(key))
        return value

    def number(self, key: str, low: float, high: float, default: float | None = None) -> float:
        """A real number from ``low`` to ``high``."""
        value = self.take(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise ConfigError(
                f"{clean(repr(value), 60)}, expected a number from {low:g} to {high:g}", where=self.path(key)
            )
        return float(value)

    def table(self, key: str) -> Table:
        """A mapping inside this one."""
        return Table(self.path(key), self.take(key))

    def named_tables(self, key: str, known: tuple[str, ...]) -> dict[str, Table]:
        """The mappings by name inside ``key``, in the order of ``known``."""
        part = self.table(key)
        unknown = [name for name in part._raw if name not in known]
        if unknown:
            raise ConfigError(
                f"{clean(repr(unknown[0]), 60)} is unknown", where=part.where, hint=f"known: {', '.join(known)}"
            )
        if not part._raw:
            raise ConfigError("is empty", where=part.where, hint=f"give at least one of {', '.join(known)}")
        # In a fixed order, so that the order in a file changes nothing.
        return {name: Table(part.path(name), part._raw[name]) for name in known if name in part._raw}

    def finish(self) -> None:
        """Refuse whatever was not read."""
        unknown = [key for key in self._raw if key not in self._read]
        if unknown:
            hint = "known settings: " + ", ".join(sorted(self._read))
            raise ConfigError("unknown setting", where=self.path(clean(unknown[0], 60)), hint=hint)
