"""Small networks of every family, trained on handwritten digits in about a second each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional

import symmetry
from metanet.checkpoint import Architecture
from symmetry import SymmetrySpec
from tests.nn.cases import State
from tests.symmetry.models import seeded


class LongShort(nn.Module):
    """An LSTM that reads an image row by row."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.LSTM(8, 8, batch_first=True), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cell(x.squeeze(1))[0][:, -1])


def _family(family: str, **options: object) -> Callable[[], nn.Module]:
    return lambda: Architecture(family, options).build()


_CNN = {"channels": 1, "size": 8, "widths": [8, 8], "outputs": 10, "activation": "relu"}
BUILDERS: dict[str, Callable[[], nn.Module]] = {
    "mlp relu": _family("mlp", inputs=64, widths=[10, 8], outputs=10, activation="relu"),
    "mlp tanh": _family("mlp", inputs=64, widths=[10, 8], outputs=10, activation="tanh"),
    "cnn": _family("cnn", **_CNN),
    "residual": _family("cnn", **_CNN, norm="batch", residual=True),
    "transformer": _family(
        "transformer", channels=1, size=8, patch=[4, 4], width=8, heads=2, hidden=[12], outputs=10, activation="relu"
    ),
    "gru": _family("gru", channels=1, size=8, widths=[8], outputs=10),
    "lstm": LongShort,
    "siren": _family("siren", inputs=2, widths=[10, 10], outputs=1),
}


@dataclass(frozen=True)
class Trained:
    """Two networks of one architecture, trained from different starts; the second's module, and inputs to run it on."""

    spec: SymmetrySpec
    states: tuple[State, ...]
    module: nn.Module
    inputs: Tensor


@cache
def trained(name: str) -> Trained:
    """Networks of a family, in float64; their loss has fallen by a quarter at least.

    Raises:
        RuntimeError: where it has not: they are not trained.
    """
    from sklearn.datasets import load_digits

    images, labels = (torch.as_tensor(array) for array in load_digits(return_X_y=True))
    images = images.float() / 16
    found = []
    for seed in (0, 1):
        module = seeded(BUILDERS[name], seed)
        inputs, targets = _task(name, images, labels, seed)
        first = last = 0.0
        optimiser = torch.optim.Adam(module.parameters(), lr=3e-3 if name == "siren" else 1e-2)
        generator = torch.Generator().manual_seed(seed)
        for _ in range(150):
            rows = torch.randint(len(inputs), (min(128, len(inputs)),), generator=generator)
            answers = module(inputs[rows])
            loss = (
                (answers - targets[rows]).square().mean()
                if name == "siren"
                else functional.cross_entropy(answers, targets[rows])
            )
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            first, last = first or loss.item(), loss.item()
        if last > 0.75 * first:
            raise RuntimeError(f"{name}: loss {first:.3g} only fell to {last:.3g}")
        found.append(module.eval())
    example = inputs[:7]
    spec = symmetry.trace(found[0], (example,))
    return Trained(
        spec,
        tuple(
            {key: value.double() if value.is_floating_point() else value for key, value in module.state_dict().items()}
            for module in found
        ),
        found[-1],
        example,
    )


def _task(name: str, images: Tensor, labels: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    if name == "siren":
        side = torch.linspace(-1, 1, 8)
        return torch.cartesian_prod(side, side), images[seed].reshape(64, 1) - images[seed].mean()
    return (images if name.startswith("mlp") else images.reshape(-1, 1, 8, 8)), labels
