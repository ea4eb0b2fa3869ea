"""What is in a folder of the Small Transformer Zoo: which transformers, of which quality, trained how?

Source of the layout: Tran et al., Equivariant Neural Functional Networks for Transformers, 2025, and the program that
wrote its checkpoints (MIT licence):

    metadata/mnist.csv                   a row for each checkpoint: the settings of its training, ckpt_epoch, ckpt_file,
                                         and test_top1_accuracy or test_accuracy
    mnist/<run>_<epoch>_<accuracy>.pt    its state dict; for texts (ag_news) without the embedding, which all share

The authors take the checkpoints after 75 epochs and draw 70, 15 and 15 % of them; which ones was not published, so here
they are drawn once and for all, by run.
"""

from __future__ import annotations

import functools
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

import torch
from torch import Tensor

from metanet.checkpoint import Architecture
from metanet.errors import CheckpointError, ZooError, clean

from .published import PublishedNetwork, PublishedZoo, finite, listing, parts_by_share, read_network, table_rows

__all__ = ["TransformerZoo", "read_transformer_zoo"]

EPOCH = 75
_ZOO = "the Small Transformer Zoo"
_SHARES = {"train": 0.7, "val": 0.15, "test": 0.15}
_ACCURACY = ("test_accuracy", "test_top1_accuracy")
_HEADS = "n_attention_heads"
_NAME = re.compile(r"([A-Za-z0-9-]{1,60})_([A-Za-z0-9]{1,12})(_[0-9]{1,6})?\.pt")
# Texts have no fixed length; the sequences that are made up for a network of texts have this one.
_TOKENS = 16


class TransformerZoo(PublishedZoo):
    """Transformers in the order of the table. Use :func:`read_transformer_zoo`."""

    metrics = ("test_accuracy",)

    def __init__(
        self, folder: Path, rows: Sequence[Mapping[str, str]], column: str, left_out: Sequence[str], heads: int | None
    ) -> None:
        self.folder, self.left_out = folder, tuple(left_out)
        self._rows, self._column, self._heads = rows, column, heads
        self._parts = parts_by_share([_run(row) for row in rows], _SHARES)

    def parts(self) -> list[tuple[str, str]]:
        """Run and part of every network, without reading weights."""
        runs = [_run(row) for row in self._rows]
        return [(run, self._parts[run]) for run in runs]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, i: int) -> PublishedNetwork:  # type: ignore[override]
        row = self._rows[i]
        path = self.folder / row["ckpt_file"]
        raw = read_network(path)
        options = _options(raw.state, path, self._heads or int(finite(row[_HEADS], path, _HEADS)))
        try:
            architecture = _architecture(tuple(sorted(options.items())))
            architecture.check_state(raw.state)
        except CheckpointError as error:
            stated = f"'{error.tensor}' {error.reason}" if error.tensor else error.reason
            raise ZooError(f"holds no transformer of {_ZOO}: {stated}", where=path, hint="fetch it again") from error
        state = {name: raw.state[name] for name in architecture.shapes()}
        accuracy = finite(row[self._column], path, self._column)
        # Where the authors kept their files says nothing about a network.
        unused = ("ckpt_epoch", "ckpt_file", *_ACCURACY)
        config = {key: text for key, text in row.items() if key not in unused and not key.endswith("_path")}
        run, step = _run(row), int(row["ckpt_epoch"])
        name = row["ckpt_file"]
        return PublishedNetwork(
            state, architecture, {"test_accuracy": accuracy}, config, self._parts[run], run, step, name=name
        )


def read_transformer_zoo(
    folder: str | os.PathLike[str],
    data: str | None = None,
    epoch: int | None = EPOCH,
    least: float = 0.0,
    heads: int | None = None,
) -> TransformerZoo:
    """The networks in a folder of MNIST-Transformers or AGNews-Transformers, in the order of its table.

    Args:
        folder: the one that holds ``metadata``.
        data: the data set whose networks are wanted, where there are several: "mnist".
        epoch: only checkpoints of this epoch; None for all that have one ("best" has none).
        least: only checkpoints of at least this test accuracy; left out before the parts are drawn.
        heads: of attention, where the table does not say how many.

    Raises:
        ZooError: naming the file and what is wrong in it. Checkpoints of the table that are not there are refused: a
            part of the zoo is not the zoo.
    """
    folder = Path(folder)
    if "metadata" not in listing(folder):
        raise ZooError("holds no folder 'metadata'", where=folder, hint="name the folder of the unpacked archive")
    tables = [name.removesuffix(".csv") for name in listing(folder / "metadata") if name.endswith(".csv")]
    if data is None and len(tables) != 1:
        stated = ", ".join(tables) or "none"
        raise ZooError(f"holds {len(tables)} tables: {stated}", where=folder / "metadata", hint="choose one: data=NAME")
    data = tables[0] if data is None else data
    if data not in tables:
        known = ", ".join(tables) or "none"
        raise ZooError(f"has no table of {clean(repr(data), 40)}", where=folder / "metadata", hint=f"there are {known}")
    path = folder / "metadata" / f"{data}.csv"
    here = set(listing(folder / data))
    named: set[str] = set()
    wanted: list[dict[str, str]] = []
    column = ""
    for number, row in enumerate(table_rows(path, ("ckpt_epoch", "ckpt_file"), _ZOO), 2):
        if not column:
            column = _accuracy_column(path, row, heads)
        named.add(_checked_name(path, number, row["ckpt_file"], data, here, named))
        if _wanted(row, epoch) and finite(row[column], path, column) >= least:
            wanted.append(row)
    left_out = sorted(f"{data}/{name}" for name in here - named)
    if not wanted:
        at = "with an epoch" if epoch is None else f"of epoch {epoch}"
        raise ZooError(f"no checkpoint {at} and an accuracy of at least {least:g}", where=path, hint="ask for others")
    return TransformerZoo(folder, wanted, column, left_out, heads)


def _wanted(row: Mapping[str, str], epoch: int | None) -> bool:
    text = row["ckpt_epoch"]
    return text == str(epoch) if epoch is not None else text.isascii() and text.isdigit()


def _accuracy_column(path: Path, row: Mapping[str, str], heads: int | None) -> str:
    column = next((name for name in _ACCURACY if name in row), None)
    if column is None:
        raise ZooError(f"has no column {_ACCURACY[0]!r}", where=path, hint=f"is it a table of {_ZOO}?")
    if heads is None and _HEADS not in row:
        raise ZooError(f"has no column {_HEADS!r}", where=path, hint="say how many: heads=2")
    return column


def _checked_name(path: Path, number: int, text: str, data: str, here: set[str], seen: set[str]) -> str:
    """The file that a row of the table names, inside its folder."""
    first, _, name = text.partition("/")
    if first != data or not _NAME.fullmatch(name):
        expected = f"{data}/<run>_<epoch>_<accuracy>.pt"
        raise ZooError(f"row {number} names the file {clean(repr(text), 80)}, expected {expected}", where=path)
    if name in seen:
        raise ZooError(f"row {number} names {clean(text, 80)} again", where=path, hint="fetch it again")
    if name not in here:
        raise ZooError(
            f"row {number} names {clean(text, 80)}, which is not there",
            where=path,
            hint="unpack the whole archive: a part of the zoo is not the zoo",
        )
    return name


def _run(row: Mapping[str, str]) -> str:
    return PurePosixPath(row["ckpt_file"]).name.split("_")[0]


def _options(state: Mapping[str, Tensor], path: Path, heads: int) -> dict[str, int]:
    """The options of the architecture, from the shapes of the state and the number of heads."""
    wrong = [name for name, tensor in state.items() if tensor.dtype != torch.float32]
    if wrong:
        raise ZooError(f"'{clean(wrong[0], 60)}' is {state[wrong[0]].dtype}, expected float32", where=path)

    def shape(name: str, axes: int) -> tuple[int, ...]:
        found = tuple(state[name].shape) if name in state else ()
        if len(found) != axes:
            stated = f"has shape {list(found)}" if name in state else "is not there"
            raise ZooError(f"'{name}' {stated}, expected {axes} axes", where=path, hint=f"is it of {_ZOO}?")
        return found

    hidden, width = shape("encoder.0.fc1.weight", 2)
    blocks = {name.split(".")[1] for name in state if name.startswith("encoder.")}
    options = {
        "width": width,
        "hidden": hidden,
        "layers": len(blocks),
        "heads": heads,
        "outputs": shape("classifier.fc2.weight", 2)[0],
    }
    if "embedding.conv1.weight" not in state:
        return {**options, "tokens": _TOKENS}
    _, channels, patch, _ = shape("embedding.conv1.weight", 4)
    side = math.isqrt(shape("embedding.pos_embedding", 2)[0])
    return {**options, "channels": channels, "patch": patch, "size": side * patch}


@functools.lru_cache(maxsize=256)
def _architecture(options: tuple[tuple[str, int], ...]) -> Architecture:
    return Architecture("zoo_transformer", dict(options), provenance=f"{_ZOO}; heads from its table")
