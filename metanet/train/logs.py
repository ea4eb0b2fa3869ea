"""Where do the metrics of every epoch go: CSV, JSON lines, TensorBoard and a progress bar."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from metanet.errors import TrainError
from metanet.io import write_text_atomic

CSV_NAME, JSONL_NAME, TENSORBOARD_NAME = "metrics.csv", "metrics.jsonl", "tensorboard"

Row = dict[str, Any]


class FolderLog:
    """Writes one row per epoch to `metrics.csv` and `metrics.jsonl`, and if wanted to TensorBoard.

    Args:
        folder: Where the files go.
        history: Rows of the epochs that are already done; the files are written anew from them, so that rows that
            a killed run wrote after its last kept state do not appear twice.
        tensorboard: Also write event files.

    Raises:
        TrainError: TensorBoard was asked for and is not installed.
    """

    def __init__(self, folder: Path, history: Sequence[Row], tensorboard: bool) -> None:
        self._folder = folder
        self._writer = _tensorboard_writer(folder / TENSORBOARD_NAME, len(history)) if tensorboard else None
        write_text_atomic(folder / CSV_NAME, _csv_lines(history, header=True) if history else "")
        write_text_atomic(folder / JSONL_NAME, "".join(_json_line(row) for row in history))
        self._header = not history

    def add(self, row: Row) -> None:
        """Append the row of one epoch."""
        with open(self._folder / CSV_NAME, "a", newline="", encoding="utf-8") as file:
            file.write(_csv_lines([row], header=self._header))
        with open(self._folder / JSONL_NAME, "a", encoding="utf-8") as file:
            file.write(_json_line(row))
        self._header = False
        if self._writer is not None:
            for name, value in row.items():
                if name != "epoch" and isinstance(value, int | float):
                    self._writer.add_scalar(name, value, global_step=row["epoch"])

    def close(self) -> None:
        """Flush what TensorBoard holds back."""
        if self._writer is not None:
            self._writer.close()


class Progress:
    """A progress bar over the epochs that shows the monitored metric; silent where no terminal is attached.

    Args:
        total: Number of epochs.
        done: Epochs already done.
        show: True, False, or None for "where a terminal is attached".
    """

    def __init__(self, total: int, done: int, show: bool | None) -> None:
        from tqdm.auto import tqdm

        # tqdm reads disable=None as "disable where the output is no terminal".
        self._bar = tqdm(
            total=total,
            initial=done,
            desc="training",
            unit="epoch",
            disable=None if show is None else not show,
            leave=False,
            dynamic_ncols=True,
        )

    def step(self, values: dict[str, float]) -> None:
        """One more epoch is done; show these numbers."""
        self._bar.set_postfix({name: f"{value:.4g}" for name, value in values.items()}, refresh=False)
        self._bar.update()

    def close(self) -> None:
        """Take the bar away."""
        self._bar.close()


def _csv_lines(rows: Sequence[Row], header: bool) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _json_line(row: Row) -> str:
    # NaN is no JSON: a metric that is not defined (the rank correlation of a constant) is written as null.
    clean = {
        key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in row.items()
    }
    return json.dumps(clean, allow_nan=False) + "\n"


def _tensorboard_writer(folder: Path, done: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise TrainError(
            "TensorBoard is not installed, but trainer.tensorboard is true",
            hint="pip install 'metanet[tensorboard]', or set trainer.tensorboard=false",
        ) from error
    # purge_step hides what a killed run logged after its last kept state.
    return SummaryWriter(str(folder), purge_step=done + 1)
