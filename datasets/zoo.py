"""What is in a finished zoo? Reads the index at once and weights when they are asked for."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
from numpy.typing import ArrayLike
from torch import Tensor

from metanet.checkpoint import Architecture
from metanet.errors import ZooError, clean

from .bulk import read_stacked
from .config import SPLITS
from .images import ImageData, load_images
from .inr_config import KIND
from .measure import evaluate_on
from .published import KIND as PUBLISHED
from .records import CONFIG_COLUMNS, INR_METRICS, METRICS
from .storage import CONFIG, INDEX, read_index, read_manifest, safe_path

__all__ = ["Index", "Zoo", "ZooEntry"]


class Index(Sequence[Mapping[str, Any]]):
    """A table: a row by number, a column by name.

    >>> index = Index([{"run": 0, "step": 5}, {"run": 1, "step": 7}])
    >>> index["step"].tolist(), index[1]["run"], index.names
    ([5, 7], 1, ('run', 'step'))
    """

    def __init__(self, rows: Iterable[Mapping[str, Any]]) -> None:
        self._rows = tuple(rows)

    @property
    def names(self) -> tuple[str, ...]:
        """The columns."""
        return tuple(self._rows[0]) if self._rows else ()

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, key: Any) -> Any:
        """Rows for integers and slices; for a name, the column as an array, NaN where a number is not known."""
        if not isinstance(key, str):
            return self._rows[key]
        if self._rows and key not in self._rows[0]:
            raise ZooError(f"no column {clean(repr(key), 60)}", hint="columns: " + ", ".join(self.names))
        values = [row[key] for row in self._rows]
        numeric = all(value is None or isinstance(value, int | float) for value in values)
        if numeric and any(value is None for value in values):
            values = [np.nan if value is None else value for value in values]
        return np.array(values)

    def __repr__(self) -> str:
        return f"Index({len(self)} rows: {', '.join(self.names)})"


@dataclass(frozen=True, eq=False)
class ZooEntry:
    """One network of a zoo; its weights are read when :attr:`state` is asked for."""

    zoo: Zoo
    record: Mapping[str, Any]

    @property
    def state(self) -> dict[str, Tensor]:
        """The state dict, read from its shard."""
        return self.zoo._read(self.record)

    @property
    def architecture(self) -> Architecture:
        """What builds the module that the state belongs to."""
        return self.zoo.architectures[self.record["architecture"]]

    @property
    def metrics(self) -> dict[str, float]:
        """Loss and accuracy on the run's own images and on the test set; of an image, its loss and PSNR; of a published
        network, what its table says.
        """
        return {name: self.record[name] for name in self.zoo.metrics}

    @property
    def config(self) -> dict[str, Any]:
        """The settings that were drawn for its run."""
        return {name: self.record[name] for name in CONFIG_COLUMNS if name in self.record}

    @property
    def run(self) -> int:
        """Number of its run."""
        return int(self.record["run"])

    @property
    def step(self) -> int:
        """Steps of training behind it."""
        return int(self.record["step"])

    @property
    def split(self) -> str:
        """One of "train", "val" and "test"."""
        return str(self.record["split"])

    def __repr__(self) -> str:
        known = [name for name in self.zoo.metrics[-1:] if self.record[name] is not None]
        quality = "".join(f"{name}={self.record[name]:.4f}, " for name in known)
        return f"ZooEntry(run={self.run}, step={self.step}, {self.split}, {quality}{self.architecture})"


class Zoo:
    """A finished zoo on disk. Use :meth:`open`.

    ``zoo[i]`` is its i-th network, :attr:`index` the table of all of them, :attr:`failures` the records of runs that
    diverged.
    """

    def __init__(self, folder: Path, manifest: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> None:
        self.folder = folder
        self.manifest = manifest
        self.index = Index(record for record in records if record["status"] == "ok")
        self.failures = tuple(record for record in records if record["status"] != "ok")
        self.architectures = tuple(Architecture.from_json(value) for value in manifest["architectures"])
        self._shards: dict[str, Any] = {}

    @property
    def kind(self) -> str:
        """What its networks are: "classifiers" of images, "inr" where they are images themselves, or "published" where
        they were imported.
        """
        return str(self.manifest["config"].get("kind", "classifiers"))

    @property
    def metrics(self) -> tuple[str, ...]:
        """The columns that say how good a network is; the last one says it best. A published zoo may have none."""
        if self.kind == PUBLISHED:
            stated = self.manifest["config"].get("metrics")
            return tuple(stated) if isinstance(stated, list) and all(isinstance(s, str) for s in stated) else ()
        return INR_METRICS if self.kind == KIND else METRICS

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> Zoo:
        """The zoo in ``folder``: manifest and index are checked, shards by their size (``verify_zoo`` reads them all).

        Raises:
            ZooError: if the folder is no complete zoo, or a file is missing or was changed.
        """
        folder = Path(folder)
        manifest = read_manifest(folder)
        for name, stated in manifest["files"].items():
            path = safe_path(folder, name)
            size = path.stat().st_size if path.is_file() else None
            if size != stated["bytes"]:
                found = "is missing" if size is None else f"has {size} bytes, the manifest says {stated['bytes']}"
                raise ZooError(found, where=path, hint="restore the file, or build the zoo again in a new folder")
        records = read_index(safe_path(folder, INDEX), manifest["files"][INDEX])
        zoo = cls(folder, manifest, records)
        for record in records:
            zoo._check(record)
        return zoo

    def _check(self, record: Mapping[str, Any]) -> None:
        run, where = clean(repr(record["run"]), 20), self.folder / INDEX
        for name in ("run", "snapshot", "step"):
            if type(record[name]) is not int or record[name] < 0:
                shown = clean(repr(record[name]), 40)
                raise ZooError(f"a record has {name} {shown}, expected a whole number", where=where)
        if record["split"] not in SPLITS:
            raise ZooError(f"run {run} has split {clean(repr(record['split']), 40)}", where=where)
        if record["parent"] is not None and type(record["parent"]) is not int:
            raise ZooError(f"run {run} has parent {clean(repr(record['parent']), 40)}", where=where)
        number = record["architecture"]
        if type(number) is not int or not 0 <= number < len(self.architectures):
            raise ZooError(f"run {run} names architecture {clean(repr(number), 40)}", where=where)
        if record["status"] not in ("ok", "failed"):
            raise ZooError(f"run {run} has status {clean(repr(record['status']), 40)}", where=where)
        if record["status"] == "ok":
            missing = [name for name in self.metrics if name not in record]
            if missing:
                raise ZooError(f"run {run} has no {missing[0]}", where=where, hint="restore the index")
            shard, key = record["shard"], record["key"]
            if not isinstance(shard, str) or shard not in self.manifest["files"] or type(key) is not int or key < 0:
                shown = clean(f"{shard!r} row {key!r}", 80)
                raise ZooError(f"run {run} lies in {shown}, which the manifest does not have", where=where)

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, i: int) -> ZooEntry:
        """The network in row ``i`` of the index."""
        return ZooEntry(self, self.index[int(i)])

    def __iter__(self) -> Iterator[ZooEntry]:
        return (ZooEntry(self, record) for record in self.index)

    def split(self, name: str) -> np.ndarray:
        """Rows of the index in one split; all snapshots of a run, and of runs that go on from it, are in the same.

        Args:
            name: "train", "val" or "test".
        """
        if name not in SPLITS:
            raise ZooError(f"no split {clean(repr(name), 40)}", hint="splits: " + ", ".join(SPLITS))
        return np.flatnonzero([record["split"] == name for record in self.index])

    def stacked(self, rows: ArrayLike | None = None) -> dict[str, Tensor]:
        """The weights of many networks of one architecture at once, many times faster than one network after another.

        Args:
            rows: of the index, in any order; all of them by default.

        Shapes:
            ``(len(rows), *shape)`` by name.

        Raises:
            ZooError: for rows that do not exist, rows of several architectures, or a shard that was changed.
        """
        return read_stacked(self.folder, self.index[:], rows, self._shapes, self._shard)

    def _shard(self, name: str) -> Any:
        # Handles stay open: the file is mapped, and its header is parsed once.
        if name not in self._shards:
            path = safe_path(self.folder, name)
            try:
                self._shards[name] = safetensors.safe_open(path, framework="pt", device="cpu")
            except (OSError, safetensors.SafetensorError) as error:
                raise ZooError(f"cannot be read: {clean(error, 200)}", where=path, hint="restore the file") from error
        return self._shards[name]

    def _read(self, record: Mapping[str, Any]) -> dict[str, Tensor]:
        shard, row = self._shard(record["shard"]), record["key"]
        state: dict[str, Tensor] = {}
        for name, shape in self._shapes(record["architecture"]).items():
            try:
                part = shard.get_slice(name)
                stated = tuple(part.get_shape())
                if stated[1:] != shape or not row < stated[0]:
                    raise ZooError(
                        f"tensor '{name}' is {stated}, expected {shape} behind more than {row} rows",
                        where=self.folder / record["shard"],
                        hint="restore the file",
                    )
                state[name] = part[row]
            except safetensors.SafetensorError as error:
                raise ZooError(
                    clean(error, 200), where=self.folder / record["shard"], hint="restore the file"
                ) from error
        return state

    @functools.cache  # noqa: B019 - a zoo lives as long as its program
    def _shapes(self, architecture: int) -> Mapping[str, tuple[int, ...]]:
        return self.architectures[architecture].shapes()

    @functools.cached_property
    def data(self) -> ImageData:
        """The images that its networks learned, loaded again and compared with what the zoo was built on.

        Raises:
            ZooError: if they are not there or not the same.
        """
        if self.kind == PUBLISHED:
            raise ZooError(
                "is a published zoo: the images that its networks learned are no part of it", where=self.folder
            )
        data = load_images(self.manifest["config"]["data"])
        if data.fingerprint != self.manifest["data_sha256"]:
            raise ZooError(
                f"was built on other images than the data set '{data.name}' here", where=self.folder / CONFIG
            )
        return data

    def evaluate(self, state: Mapping[str, Tensor], architecture: Architecture) -> dict[str, float]:
        """The true quality of any network on this zoo's test images: "test_loss" and "test_accuracy".

        Raises:
            ZooError: if it does not read such images, or the zoo's networks are images themselves.
        """
        if self.kind == KIND:
            raise ZooError("the networks of this zoo are images", where=self.folder, hint="compare them: zoo.image(i)")
        return evaluate_on(self.data, state, architecture)

    def image(self, i: int) -> Tensor:
        """The grey values, from 0 to 1, that network ``i`` of a zoo of images learned.

        Shapes:
            (channels, height, width).
        """
        if self.kind != KIND:
            raise ZooError("the networks of this zoo are classifiers", where=self.folder, hint="their images: zoo.data")
        return self.data.image(self.index[int(i)]["image"])[0]

    def export(self, i: int, path: str | os.PathLike[str]) -> None:
        """Write network ``i`` as one checkpoint file that carries its architecture and metrics."""
        from metanet.checkpoint import save_checkpoint

        entry = self[i]
        save_checkpoint(path, entry.state, entry.architecture, metrics=entry.metrics)

    def __repr__(self) -> str:
        name = self.manifest["config"]["name"]
        return f"Zoo({name}: {len(self)} networks of {self.manifest['runs']} runs, {len(self.failures)} failed)"
