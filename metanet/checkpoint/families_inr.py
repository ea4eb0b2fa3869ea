"""How is an implicit neural representation built: a network that maps coordinates to the value of a signal there?"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor, nn

from metanet.checkpoint.families import Family
from metanet.checkpoint.options import Options

__all__ = ["SIREN", "Siren"]

MAX_FREQUENCY = 1e4


class Siren(nn.Module):
    """Linear layers with ``sin(w0 (W x + b))`` between them; the last layer is linear.

    Source: Sitzmann et al., Implicit Neural Representations with Periodic Activation Functions, 2020, section 3.

    Shapes:
        (batch, inputs) -> (batch, outputs)
    """

    def __init__(self, inputs: int, widths: tuple[int, ...], outputs: int, w0: float, first_w0: float) -> None:
        super().__init__()
        sizes = (inputs, *widths, outputs)
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))
        self.frequencies = (first_w0, *[w0] * (len(widths) - 1))

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        for frequency, layer in zip(self.frequencies, self.layers, strict=False):
            x = torch.sin(frequency * layer(x))
        last: Tensor = self.layers[-1](x)
        return last


def _normalize_siren(raw: object) -> dict[str, Any]:
    options = Options("siren", raw)
    result: dict[str, Any] = {
        "inputs": options.integer("inputs"),
        "widths": options.widths(shortest=1),
        "outputs": options.integer("outputs"),
        "w0": options.number("w0", 1e-4, MAX_FREQUENCY, default=30.0),
    }
    result["first_w0"] = options.number("first_w0", 1e-4, MAX_FREQUENCY, default=result["w0"])
    options.finish()
    return result


SIREN = Family("siren", _normalize_siren, lambda o: Siren(**o), lambda o: ((o["inputs"],),))
