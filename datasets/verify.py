"""Is a zoo what its index says? Every file is hashed, and a sample of the networks is read and measured again."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from metanet.errors import MetanetError

from .inr_zoo import InrDraw, measure_inr
from .measure import evaluate_on, measure_one
from .plan import parse_config, plan_zoo
from .published import KIND as PUBLISHED
from .records import METRICS
from .storage import digest, read_manifest, safe_path
from .trainer import data_of_run
from .zoo import Zoo, ZooEntry

__all__ = ["VerifyReport", "verify_zoo"]

# Many networks at once sum in another order than one alone: float32 losses differ in the last digits, and an image on
# the border between two classes may fall to either side.
_LOSS_TOLERANCE = 1e-3
_IMAGES_TOLERANCE = 1.5
# Mean squared errors of images are small themselves; below this one, float32 decides.
_LEAST_LOSS, _PSNR_TOLERANCE = 1e-6, 0.5


@dataclass(frozen=True)
class VerifyReport:
    """What :func:`verify_zoo` found.

    Args:
        folder: of the zoo.
        snapshots: networks in the index.
        runs: trained, failed ones among them.
        failed: runs that failed.
        failed_share: failed over runs.
        max_failed: the highest share that passes.
        sampled: how many networks were read and measured again.
        worst_loss_error: the largest relative difference of a loss that was met.
        problems: everything that is wrong, one line each.
        measured: whether the sample was measured and not only read: the images of a published zoo are not there.
    """

    folder: str
    snapshots: int
    runs: int
    failed: int
    failed_share: float
    max_failed: float
    sampled: int
    worst_loss_error: float
    problems: tuple[str, ...]
    measured: bool = True

    @property
    def passed(self) -> bool:
        """Nothing is wrong."""
        return not self.problems

    def text(self) -> str:
        """A few lines for people."""
        lines = [
            f"{self.folder}: {self.snapshots} networks of {self.runs} runs",
            f"failed runs: {self.failed} ({self.failed_share:.1%}, at most {self.max_failed:.1%})",
            f"measured again: {self.sampled} networks, worst relative difference of a loss {self.worst_loss_error:.1e}"
            if self.measured
            else f"read again: {self.sampled} networks; their published metrics cannot be measured without the images",
        ]
        lines += [f"problem: {problem}" for problem in self.problems[:20]]
        if len(self.problems) > 20:
            lines.append(f"and {len(self.problems) - 20} more problems")
        return "\n".join([*lines, "passed" if self.passed else "FAILED"])

    def to_json(self) -> dict[str, Any]:
        """Everything as JSON."""
        return {**self.__dict__, "problems": list(self.problems), "passed": self.passed}


def verify_zoo(
    folder: str | os.PathLike[str],
    sample: int = 64,
    max_failed: float = 0.1,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> VerifyReport:
    """Check a zoo's files, splits and share of failures, and measure a sample of its networks again.

    Args:
        folder: of the zoo.
        sample: how many networks to measure; all of them if there are fewer.
        max_failed: the highest share of failed runs that passes.
        seed: which networks are taken.
        progress: is called with how many networks were measured, and of how many.

    Raises:
        ZooError: if the folder holds no finished zoo at all; everything else that is wrong stands in the report.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    problems = _file_problems(folder, manifest)
    try:
        zoo = Zoo.open(folder)
    except MetanetError as error:
        problems = [str(error), *(p for p in problems if not p.startswith(error.where))]
        return VerifyReport(str(folder), 0, 0, 0, 0.0, max_failed, 0, 0.0, tuple(problems))
    problems += _split_problems(zoo)
    runs = {record["run"] for record in zoo.index} | {record["run"] for record in zoo.failures}
    if len(runs) != manifest["runs"] or len(zoo) != manifest["snapshots"]:
        stated = f"{manifest['snapshots']} networks of {manifest['runs']} runs"
        problems.append(f"the index has {len(zoo)} networks of {len(runs)} runs, the manifest says {stated}")
    share = len(zoo.failures) / max(1, len(runs))
    if share > max_failed:
        problems.append(
            f"{share:.1%} of the runs failed, at most {max_failed:.1%} may; first: {zoo.failures[0]['reason']}"
        )
    rows = np.random.default_rng(seed).permutation(len(zoo))[: max(0, sample)]
    worst, published = 0.0, zoo.kind == PUBLISHED
    try:
        draw = None if published else plan_zoo(parse_config(manifest["config"]), zoo.data).draw
        for count, row in enumerate(sorted(rows.tolist()), 1):
            if draw is None:
                problems += _read_again(zoo[row], f"row {row}")
                progress(count, len(rows))
                continue
            settings = draw.runs[zoo[row].run] if zoo[row].run < len(draw.runs) else None
            found, difference = _measure_again(zoo[row], settings, draw)
            problems += found
            worst = max(worst, difference)
            progress(count, len(rows))
    except MetanetError as error:
        problems.append(str(error))
    return VerifyReport(
        str(folder),
        len(zoo),
        len(runs),
        len(zoo.failures),
        share,
        max_failed,
        len(rows),
        worst,
        tuple(problems),
        not published,
    )


def _file_problems(folder: Path, manifest: Mapping[str, Any]) -> list[str]:
    problems = []
    for name, stated in manifest["files"].items():
        path = safe_path(folder, name)
        if not path.is_file():
            problems.append(f"{path}: is missing")
        elif digest(path) != stated:
            problems.append(f"{path}: is not the file that the manifest describes (size or SHA-256 differs)")
    return problems


def _split_problems(zoo: Zoo) -> list[str]:
    splits: dict[int, set[str]] = {}
    images: dict[int, set[str]] = {}
    for record in (*zoo.index, *zoo.failures):
        splits.setdefault(record["run"], set()).add(record["split"])
        if record["parent"] is not None:
            splits.setdefault(record["parent"], set()).add(record["split"])
        if "image" in record:
            images.setdefault(record["image"], set()).add(record["split"])
    twice = sorted(image for image, found in images.items() if len(found) > 1)
    return [f"image {image} is in more than one split" for image in twice] + [
        f"run {run} or a run that goes on from it is in more than one split: {', '.join(sorted(found))}"
        for run, found in sorted(splits.items())
        if len(found) > 1
    ]


def _read_again(entry: ZooEntry, name: str) -> list[str]:
    state = entry.state
    bad = [key for key, tensor in state.items() if not torch.isfinite(tensor).all()]
    return [f"{name}: tensor '{bad[0]}' is not finite"] if bad else []


def _measure_again(entry: ZooEntry, settings: Any, draw: Any) -> tuple[list[str], float]:
    name = f"run {entry.run}, snapshot {entry.record['snapshot']}"
    if settings is None or entry.architecture != draw.architectures[settings.architecture]:
        return [f"{name}: is no run of this configuration"], 0.0
    if problems := _read_again(entry, name):
        return problems, 0.0
    state = entry.state
    data = entry.zoo.data
    if isinstance(draw, InrDraw):
        if (settings.image, settings.split) != (entry.record["image"], entry.split):
            return [f"{name}: is not of the image or the split of this configuration"], 0.0
        measured = measure_inr(state, entry.architecture, data, settings.image)
        difference = abs(measured["loss"] - entry.metrics["loss"]) / max(abs(measured["loss"]), _LEAST_LOSS)
        if difference <= _LOSS_TOLERANCE and abs(measured["psnr"] - entry.metrics["psnr"]) <= _PSNR_TOLERANCE:
            return [], difference
        return [f"{name}: the index says {entry.metrics}, measured {measured}"], difference
    own = data_of_run(settings, data, entry.zoo.manifest["config"]["batch_size"])
    rows = torch.from_numpy(own.rows)
    labels = torch.from_numpy(own.labels)[rows]
    loss, accuracy = measure_one(state, entry.architecture, data.pool_images[rows], labels)
    measured = {"train_loss": loss, "train_accuracy": accuracy, **evaluate_on(data, state, entry.architecture)}
    counts = {"train_accuracy": len(rows), "test_accuracy": len(data.test_labels)}
    worst = 0.0
    for metric in METRICS:
        stated, found = entry.metrics[metric], measured[metric]
        known = isinstance(stated, int | float)
        difference = abs(found - stated) if known else float("inf")
        if metric in counts:
            fine = difference * counts[metric] <= _IMAGES_TOLERANCE
        else:
            relative = difference / max(abs(found), 1e-3)
            fine = relative <= _LOSS_TOLERANCE
            worst = max(worst, relative) if known else worst
        if not fine:
            problems.append(f"{name}: the index says {metric} {stated}, measured {found:.6g}")
    return problems, worst
