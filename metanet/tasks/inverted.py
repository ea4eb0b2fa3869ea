"""What would good networks call a typical input of each class? Inputs made up from the training networks alone.

No data are at hand, but the training networks are: inputs are moved by gradient until the better of them agree on a
class, under noise and small moves (inversion by an ensemble; by a single network: Mahendran and Vedaldi 2015,
"Understanding deep image representations by inverting them"; as data for another network: Yin et al. 2020, "Dreaming
to distill"). How well a new network names these inputs tells much of how well it names real ones. The answers are
functions of the function alone: the same all along an orbit of the whole group.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import one_hot

from metanet.errors import TaskError
from metanet.graph import Bucket, GraphBatch
from metanet.nn.rich import bucket_rich_weights
from metanet.nn.rich_inputs import KINDS_OF_INPUT, grid_of, moved, smooth_inputs
from metanet.nn.rich_responses import EACH, answers_to, bucket_responses
from metanet.tasks.data import statistics_of

__all__ = ["INVERTED", "InversionOptions", "Inverted", "feature_matrix", "invert"]

# As many as there are random inputs: the operations of an architecture are then read once for both.
COUNT = len(KINDS_OF_INPUT) * EACH
_VARIANTS = ("as made", "moved down", "moved back", "noisy", "blurred", "mixed")
_TOLD = ("right", "loss", "share", "margin", "spread of margins")
_RANKS = 10
INVERTED: tuple[str, ...] = (
    "is asked",
    *(f"{variant}: {name}" for variant in _VARIANTS for name in _TOLD),
    *(f"share of class rank {i + 1}" for i in range(_RANKS)),
)
"""Names of what is told of the answers to the made-up inputs; all are 0 for networks that cannot be asked."""


@dataclass(frozen=True)
class InversionOptions:
    """How inputs are made up.

    Attributes:
        steps: Steps of Adam.
        networks: Networks that each step asks.
        best: Share of the training networks that may be asked, the best first.
        rate: Size of the steps.
        noise: Deviation of the noise on the inputs while they are made.
        move: Most places by which they are moved along each axis while they are made.
        rough: Weight of the squared differences of neighbours.
    """

    steps: int = 200
    networks: int = 16
    best: float = 0.3
    rate: float = 0.05
    noise: float = 0.2
    move: int = 1
    rough: float = 0.1


@dataclass(frozen=True, eq=False)
class Inverted:
    """Made-up inputs, by how many values a network reads and how many classes it answers.

    Attributes:
        inputs: "values x classes" -> inputs, one behind the other; input i is meant as class i modulo the classes.

    Shapes:
        inputs: (inputs, values)
    """

    inputs: Mapping[str, Tensor]

    def features(self, batch: GraphBatch) -> NDArray[np.float64]:
        """How well each network of a batch names the inputs.

        Shapes:
            return: (n, len(INVERTED))
        """
        return batch.gather(self._bucket(bucket) for bucket in batch).cpu().numpy()

    def _bucket(self, bucket: Bucket) -> Tensor:
        key = key_of(bucket)
        if key not in self.inputs or bucket.program is None:
            return torch.zeros(len(bucket), len(INVERTED), dtype=torch.float64)
        shape = bucket.program.inputs[0].shape
        x = self.inputs[key].double().reshape(-1, *shape)
        labels = torch.arange(len(x)) % _classes(key)
        told, whole = [], None
        for inputs in _variants(x):
            answers = answers_to(bucket, [inputs]).cpu()
            whole = answers if whole is None else whole
            told.append(_told(answers, labels))
        if whole is None:
            raise TaskError("no input was made up")
        share = whole.softmax(-1).gather(2, labels.expand(len(whole), -1)[..., None])[..., 0]
        where = one_hot(labels, _classes(key)).double()
        ranks = ((share @ where) / where.sum(0)).sort(1).values
        # A fixed number of columns, whatever the number of classes: evenly spaced ranks.
        chosen = torch.linspace(0, ranks.shape[1] - 1, _RANKS).round().long()
        return torch.cat([torch.ones(len(bucket), 1, dtype=torch.float64), *told, ranks[:, chosen]], dim=1)

    def tensors(self) -> dict[str, Tensor]:
        """Everything as tensors, for a safetensors file."""
        return {key: value.contiguous() for key, value in self.inputs.items()}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Inverted:
        """What `tensors` told of.

        Raises:
            TaskError: Not such tensors.
        """
        for key, value in tensors.items():
            parts = key.split("x")
            good = len(parts) == 2 and all(part.isdigit() for part in parts) and value.ndim == 2
            if not good or value.shape[1] != int(parts[0]) or not bool(torch.isfinite(value).all()):
                raise TaskError(f"not made-up inputs: {key} of shape {tuple(value.shape)}")
        return cls(dict(tensors))


def feature_matrix(batch: GraphBatch, kind: str, inverted: Inverted | None) -> NDArray[np.float64]:
    """What boosted trees see of the networks of a batch.

    Args:
        batch: The networks.
        kind: One of `metanet.tasks.property_trees.FEATURES`.
        inverted: The made-up inputs, for the kind "inverted".

    Shapes:
        return: (n, features)
    """
    if kind == "statistics":
        return statistics_of(batch)
    columns = [batch.gather(bucket_rich_weights(bucket) for bucket in batch)]
    if kind in ("responses", "inverted"):
        columns.append(batch.gather(bucket_responses(bucket) for bucket in batch))
    found = torch.cat(columns, dim=1).detach().cpu().numpy()
    if kind != "inverted":
        return found
    if inverted is None:
        raise TaskError("features 'inverted' without the inputs that they are answers to")
    return np.concatenate([found, inverted.features(batch)], axis=1)


def key_of(bucket: Bucket) -> str:
    """How many values the networks read and how many classes they answer; empty where they cannot be asked."""
    if bucket.program is None:
        return ""
    forms = bucket.program.inputs
    if len(forms) != 1 or forms[0].vocabulary is not None:
        return ""
    first = torch.zeros(1, dtype=torch.int64, device=bucket.index.device)
    x = smooth_inputs(forms[0].shape, COUNT)
    outputs = answers_to(bucket.select(first, first), [x]).shape[2]
    return f"{x[0].numel()}x{outputs}" if outputs > 1 else ""


def invert(
    batch: GraphBatch, goodness: NDArray[np.float64] | None, seed: int, options: InversionOptions | None = None
) -> Inverted:
    """Inputs on which the better of these networks agree.

    Args:
        batch: The training networks; those that do not know their program cannot be asked.
        goodness: The larger the better, one number for each; None asks all alike.
        seed: Where the inputs start, and which networks are asked in each step.
        options: How they are made.
    """
    options = options or InversionOptions()
    by_key: dict[str, list[int]] = {}
    for bucket in batch:
        key = key_of(bucket)
        if key:
            by_key.setdefault(key, []).extend(bucket.index.tolist())
    found = {}
    for number, (key, places) in enumerate(sorted(by_key.items())):
        order = sorted(places, key=lambda place: -float(goodness[place])) if goodness is not None else places
        kept = order[: max(options.networks, round(options.best * len(order)))] if goodness is not None else order
        found[key] = _inverted(batch, kept, key, np.random.default_rng([seed, number]), options)
    return Inverted(found)


@torch.enable_grad()  # type: ignore[untyped-decorator]
def _inverted(
    batch: GraphBatch, places: list[int], key: str, draws: np.random.Generator, options: InversionOptions
) -> Tensor:
    values, classes = int(key.split("x")[0]), _classes(key)
    generator = torch.Generator().manual_seed(int(draws.integers(2**31)))
    labels = torch.arange(COUNT) % classes
    free = (0.5 * smooth_inputs((values,), COUNT, seed=int(draws.integers(2**20)))).requires_grad_()
    optimiser = torch.optim.Adam([free], lr=options.rate)
    axes = len(grid_of((values,)))
    for _ in range(options.steps):
        asked = draws.choice(places, min(options.networks, len(places)), replace=False)
        x = _shaped(free)
        rough = torch.stack([(x - moved(x, axis)).square().mean() for axis in range(axes)]).sum()
        shown = x
        for axis in range(axes):
            shown = moved(shown, axis, int(draws.integers(-options.move, options.move + 1)))
        shown = shown + options.noise * torch.randn(x.shape, generator=generator, dtype=x.dtype)
        losses = [_loss(bucket, shown, labels) for bucket in batch.select(asked.tolist())]
        loss = torch.cat(losses).mean() + options.rough * rough
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    return _shaped(free).detach().float()


def _shaped(free: Tensor) -> Tensor:
    """Slightly smoothed, and of a root mean square of at most 1: inputs are usually standardised."""
    x = 0.5 * (free + _blurred(free))
    return x / x.square().mean(1, keepdim=True).sqrt().clamp(min=1.0)


def _blurred(x: Tensor) -> Tensor:
    """The mean over three places along every axis of the grid; the border counts twice."""
    grid = grid_of(x.shape[1:])
    y = x.reshape(len(x), *grid)
    for axis, size in enumerate(grid, start=1):
        places = torch.arange(-1, size + 1).clamp(0, size - 1)
        wide = y.index_select(axis, places)
        y = (wide.narrow(axis, 0, size) + wide.narrow(axis, 1, size) + wide.narrow(axis, 2, size)) / 3
    return y.reshape(x.shape)


def _loss(bucket: Bucket, x: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of every network and input; a network that is sure of another class pulls no more than others."""
    if bucket.program is None:
        raise TaskError("a network without its program cannot be asked")
    state = {name: value.double() if value.is_floating_point() else value for name, value in bucket.state().items()}
    given = x.reshape(len(x), *bucket.program.inputs[0].shape)
    answers = bucket.program.run(state, [given])[0].reshape(len(bucket), len(x), -1)
    return -answers.log_softmax(-1)[:, torch.arange(len(x)), labels].clamp(min=-8).reshape(-1)


def _variants(x: Tensor) -> list[Tensor]:
    """The inputs as made, then made harder."""
    generator = torch.Generator().manual_seed(COUNT)
    noise = torch.randn(x.shape, generator=generator, dtype=x.dtype)
    other = x[torch.randperm(len(x), generator=generator)]
    back = moved(moved(x, 0, -1), 1, -1)
    return [x, moved(x, 0), back, x + 0.5 * noise, _blurred(x), 0.65 * x + 0.35 * other]


def _told(answers: Tensor, labels: Tensor) -> Tensor:
    """``(B, n, classes)`` -> ``(B, len(_TOLD))``."""
    places = torch.arange(len(labels))
    own = answers[:, places, labels]
    logs = answers.log_softmax(-1)[:, places, labels].clamp(min=-12)
    rest = answers.clone()
    rest[:, places, labels] = -torch.inf
    margin = (own - rest.amax(-1)) / (answers.std((1, 2), correction=0)[:, None] + 1e-9)
    right = (answers.argmax(-1) == labels).double().mean(1)
    return torch.stack(
        [right, -logs.mean(1), logs.exp().mean(1), margin.mean(1), margin.std(1, correction=0)], dim=1
    ).clamp(-1e6, 1e6)


def _classes(key: str) -> int:
    return int(key.split("x")[1])
