"""How does a folder of checkpoint files with a table of labels become training data?"""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metanet.checkpoint import load
from metanet.errors import ConfigError, TaskError
from metanet.graph import ParameterGraph
from metanet.tasks.data import PropertyItem

_MAX_ROWS = 1_000_000


@dataclass(frozen=True)
class LabelledFolder:
    """Checkpoint files and a CSV table that says something of each.

    Attributes:
        folder: Where the files and the table are.
        table: Name of the CSV file.
        file: Its column with the file names.
        group: Its column that says what belongs together; groups are never split.
        keep: Column name to accepted values; other rows are left out.
    """

    folder: Path
    table: str = "labels.csv"
    file: str = "file"
    group: str = ""
    keep: Mapping[str, Sequence[str]] | None = None

    def rows(self) -> list[dict[str, str]]:
        """The rows of the table that `keep` accepts.

        Raises:
            ConfigError: No such folder, table or column.
            TaskError: A file name that leads out of the folder, or no row left.
        """
        path = self.folder / self.table
        if not path.is_file():
            raise ConfigError(
                "no such table", hint="name the folder of the checkpoints, dataset.folder=...", where=path
            )
        with open(path, newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            columns = reader.fieldnames or []
            for needed in (self.file, self.group, *(self.keep or {})):
                if needed and needed not in columns:
                    raise ConfigError(f"no column {needed!r}", hint=f"there are {', '.join(columns)}", where=path)
            rows = [row for row, _ in zip(reader, range(_MAX_ROWS), strict=False) if self._accepts(row)]
        if not rows:
            raise TaskError("no row is left", hint="check dataset.keep", where=path)
        for row in rows:
            if Path(row[self.file]).name != row[self.file] or not row[self.file]:
                raise TaskError(f"file name {row[self.file]!r}, expected a name in the same folder", where=path)
        return rows

    def items(
        self,
        column: str,
        load_file: Callable[[Path], Any] = load,
        on_item: Callable[[str], None] | None = None,
    ) -> Iterator[PropertyItem]:
        """The networks, each with its value of `column`; numbers where all values are numbers.

        Args:
            column: What is to be predicted.
            load_file: Reads one file; `metanet.load` unless a factory or an architecture has to be named.
            on_item: Called with each file's name before it is read.

        Raises:
            ConfigError: The table has no such column.
            CheckpointError: A file cannot be read.
        """
        rows = self.rows()
        if column not in rows[0]:
            raise ConfigError(
                f"no column {column!r}", hint=f"there are {', '.join(rows[0])}", where=self.folder / self.table
            )
        numeric = all(_is_number(row[column]) for row in rows)
        for row in rows:
            name = row[self.file]
            if on_item is not None:
                on_item(name)
            checkpoint = load_file(self.folder / name)
            graph = ParameterGraph.build(checkpoint.spec, checkpoint.state)
            target: float | str = float(row[column]) if numeric else row[column]
            yield PropertyItem(graph, target, row[self.group] if self.group else name, None, name)

    def _accepts(self, row: Mapping[str, str]) -> bool:
        return all(row[column] in values for column, values in (self.keep or {}).items())


def labelled_folder(options: Mapping[str, Any], base: str | os.PathLike[str] | None = None) -> LabelledFolder:
    """The folder that a configuration names.

    Args:
        options: `folder`, `table`, `file`, `group` and `keep`.
        base: What a relative folder is relative to.

    Raises:
        ConfigError: No folder named, or one that does not exist.
    """
    given = {key: value for key, value in options.items() if key not in ("name", "kind")}
    unknown = sorted(set(given) - {"folder", "table", "file", "group", "keep"})
    if unknown:
        raise ConfigError(f"no such setting: {unknown[0]!r}", where="dataset")
    if not given.get("folder"):
        raise ConfigError("not given", hint="set dataset.folder=FOLDER, or METANET_DATA", where="dataset.folder")
    folder = Path(base or ".") / str(given.pop("folder"))
    if not folder.is_dir():
        raise ConfigError("no such folder", hint="set dataset.folder=FOLDER, or METANET_DATA", where=folder)
    keep = {str(key): [str(v) for v in values] for key, values in (given.pop("keep", None) or {}).items()}
    return LabelledFolder(folder, keep=keep, **{key: str(value or "") for key, value in given.items()})


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
