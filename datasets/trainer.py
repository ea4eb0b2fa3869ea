"""How is one group of networks trained at once, and what is kept of each?

All runs of a group share an architecture. Each has its own first weights, share of the images, order of minibatches,
optimiser and length. A run that has taken its last step, or diverged, leaves the group; the others go on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from metanet.checkpoint import Architecture

from .draw import RunSettings
from .images import ImageData
from .measure import measure_many
from .optimisers import Optimisers
from .stacked import Networks, initial_state

__all__ = ["Failure", "RunData", "Snapshot", "data_of_run", "train_group", "train_states"]

_MEASURED_AT_ONCE = 64


@dataclass(frozen=True, eq=False)
class RunData:
    """What one run learns from.

    Shapes:
        rows (share,) of the pool; labels (pool,) as the run sees them; batches (steps, batch) rows of the pool.
    """

    rows: np.ndarray
    labels: np.ndarray
    batches: np.ndarray


@dataclass(frozen=True, eq=False)
class Snapshot:
    """A network at one step of its run, with its quality."""

    run: int
    step: int
    state: Mapping[str, Tensor]
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Failure:
    """Why a run has no snapshots from some step on."""

    run: int
    step: int
    reason: str


def data_of_run(run: RunSettings, data: ImageData, batch_size: int) -> RunData:
    """The run's share of the pool, its labels and its minibatches: epochs in random order, one after another."""
    generator = np.random.default_rng(run.generators()[1])
    pool = len(data.pool_labels)
    count = min(pool, max(2, round(run.data_share * pool)))
    rows = generator.permutation(pool)[:count]
    labels = data.pool_labels.numpy().copy()
    wrong = rows[: round(run.label_noise * count)]
    labels[wrong] = generator.integers(data.classes, size=len(wrong))
    need = run.steps * batch_size
    epochs = [generator.permutation(rows) for _ in range(-(-need // count))]
    return RunData(rows, labels, np.concatenate(epochs)[:need].reshape(run.steps, batch_size))


def first_state(run: RunSettings, architecture: Architecture) -> dict[str, Tensor]:
    """The weights that a run without a parent starts from."""
    # 64 bits of the run's own sequence; torch takes nothing wider.
    seed = int(run.generators()[0].generate_state(1, np.uint64)[0] >> np.uint64(1))
    return initial_state(architecture.build(), torch.Generator().manual_seed(seed), run.initial_scale)


class _Group:
    """The networks that are still learning, row by row."""

    def __init__(
        self,
        architecture: Architecture,
        runs: Sequence[RunSettings],
        starts: Sequence[Mapping[str, Tensor]],
        data: ImageData,
        batch_size: int,
        dtype: torch.dtype,
    ) -> None:
        self.runs = list(runs)
        self.networks = Networks(architecture, starts, dtype)
        self.optimisers = Optimisers(runs, self.networks.parameters)
        self.images = self.networks.shape_inputs(data.pool_images).to(dtype)
        each = [data_of_run(run, data, batch_size) for run in runs]
        self.labels = torch.from_numpy(np.stack([part.labels for part in each]))
        # Short runs are padded by repeating; they have left before it matters.
        longest = max(run.steps for run in runs)
        self.batches = torch.from_numpy(np.stack([np.resize(p.batches, (longest, batch_size)) for p in each]))

    def keep(self, rows: list[int]) -> None:
        index = torch.tensor(rows)
        self.runs = [self.runs[row] for row in rows]
        self.networks.keep(index)
        self.optimisers.keep(index)
        self.labels, self.batches = self.labels[index], self.batches[index]

    def train(self, start: int, stop: int) -> Tensor:
        """Steps ``start`` to ``stop``; returns each network's loss before each step, (steps, n)."""
        networks = self.networks
        # The leaves are views of one matrix, so that one update of the matrix moves them all.
        leaves = {name: view.detach().requires_grad_() for name, view in networks.tensors().items()}
        order = list(leaves.values())
        n, size = len(networks), self.batches.shape[2]
        losses = []
        for step in range(start, stop):
            rows = self.batches[:, step]
            inputs = self.images[rows.reshape(-1)].unflatten(0, (n, size))
            target = self.labels.gather(1, rows)
            logits = networks.forward(leaves, inputs, training=True)
            each = cross_entropy(logits.flatten(0, 1), target.reshape(-1), reduction="none").view(n, size).mean(1)
            # No network's loss depends on another's weights: the gradient of the sum holds each one's own.
            gradients = torch.autograd.grad(each.sum(), order)
            self.optimisers.step(networks.parameters, torch.cat([g.flatten(1) for g in gradients], dim=1))
            losses.append(each.detach())
        return torch.stack(losses)


def _failures(group: _Group, losses: Tensor, start: int) -> dict[int, Failure]:
    failed: dict[int, Failure] = {}
    fine = torch.isfinite(losses)
    weights_fine = torch.isfinite(group.networks.parameters).all(1)
    for buffer in group.networks.buffers.values():
        weights_fine &= torch.isfinite(buffer).reshape(len(buffer), -1).all(1)
    for row, run in enumerate(group.runs):
        if not fine[:, row].all():
            at = int((~fine[:, row]).nonzero()[0])
            failed[row] = Failure(run.run, start + at + 1, f"training loss became {float(losses[at, row])}")
        elif not weights_fine[row]:
            failed[row] = Failure(run.run, start + len(losses), "a weight became infinite or NaN")
    return failed


@dataclass(frozen=True, eq=False)
class Kept:
    """A network at one step of its run, not yet measured."""

    run: RunSettings
    step: int
    state: dict[str, Tensor]


def _measure(
    architecture: Architecture,
    kept: Sequence[Kept],
    data: ImageData,
    batch_size: int,
    dtype: torch.dtype,
) -> tuple[list[Snapshot], list[Failure]]:
    snapshots: list[Snapshot] = []
    failures: list[Failure] = []
    pool = len(data.pool_labels)
    for first in range(0, len(kept), _MEASURED_AT_ONCE):
        part = kept[first : first + _MEASURED_AT_ONCE]
        networks = Networks(architecture, [one.state for one in part], dtype)
        mask = torch.zeros(len(part), pool, dtype=torch.bool)
        labels = torch.empty(len(part), pool, dtype=torch.int64)
        for row, one in enumerate(part):
            own = data_of_run(one.run, data, batch_size)
            mask[row, own.rows] = True
            labels[row] = torch.from_numpy(own.labels)
        train = measure_many(networks, data.pool_images, labels, mask)
        test = measure_many(networks, data.test_images, data.test_labels)
        for row, one in enumerate(part):
            values = [float(value[row]) for value in (*train, *test)]
            metrics = dict(zip(("train_loss", "train_accuracy", "test_loss", "test_accuracy"), values, strict=True))
            bad = next((name for name, value in metrics.items() if not np.isfinite(value)), None)
            if bad is None:
                snapshots.append(Snapshot(one.run.run, one.step, one.state, metrics))
            else:
                failures.append(Failure(one.run.run, one.step, f"{bad.replace('_', ' ')} is {metrics[bad]}"))
    return snapshots, failures


def train_states(
    architecture: Architecture,
    runs: Sequence[RunSettings],
    data: ImageData,
    batch_size: int,
    starts: Sequence[Mapping[str, Tensor]] | None = None,
    dtype: torch.dtype = torch.float32,
    progress: Callable[[int], None] = lambda steps: None,
) -> tuple[list[Kept], list[Failure]]:
    """Train all runs at once; see :func:`train_group`, which also measures what was kept."""
    starts = [first_state(run, architecture) for run in runs] if starts is None else starts
    group = _Group(architecture, runs, starts, data, batch_size, dtype)
    kept: list[Kept] = []
    failures: list[Failure] = []
    at = 0
    for stop in sorted({step for run in runs for step in run.snapshot_steps}):
        losses = group.train(at, stop)
        progress(losses.numel())
        failed = _failures(group, losses, at)
        failures += failed.values()
        wanted = [row for row, run in enumerate(group.runs) if row not in failed and stop in run.snapshot_steps]
        if wanted:
            states = group.networks.stacked_state()
            kept += [Kept(group.runs[row], stop, {k: v[row].clone() for k, v in states.items()}) for row in wanted]
        going = [row for row, run in enumerate(group.runs) if row not in failed and run.steps > stop]
        at = stop
        if not going:
            break
        if len(going) < len(group.runs):
            group.keep(going)
    return kept, failures


def train_group(
    architecture: Architecture,
    runs: Sequence[RunSettings],
    data: ImageData,
    batch_size: int,
    starts: Sequence[Mapping[str, Tensor]] | None = None,
    dtype: torch.dtype = torch.float32,
    progress: Callable[[int], None] = lambda steps: None,
) -> tuple[list[Snapshot], list[Failure]]:
    """Train all runs at once.

    Args:
        architecture: of all of them.
        runs: their settings.
        data: the images.
        batch_size: images in a minibatch.
        starts: first weights; drawn from each run's own seed by default.
        dtype: to compute in.
        progress: is told how many network-steps were done since it was last called.

    Returns:
        Every snapshot whose weights and metrics are finite, and one failure for each run that diverged; both by run.
    """
    if not runs:
        return [], []
    kept, diverged = train_states(architecture, runs, data, batch_size, starts, dtype, progress)
    snapshots, unmeasured = _measure(architecture, kept, data, batch_size, dtype)
    failures: dict[int, Failure] = {}
    for failure in sorted((*diverged, *unmeasured), key=lambda f: (f.run, f.step)):
        # The first thing that went wrong is the reason that is told.
        failures.setdefault(failure.run, failure)
    fine = [s for s in snapshots if s.run not in failures or s.step < failures[s.run].step]
    fine.sort(key=lambda s: (s.run, s.step))
    return fine, list(failures.values())
