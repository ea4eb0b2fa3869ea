"""How is a recurrent network built that reads an image row by row?"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from metanet.checkpoint.families import Activation, Family
from metanet.checkpoint.options import ACTIVATIONS, Options

__all__ = ["GRU", "Gru"]

# The steps are written out one by one.
MAX_ROWS = 256


class Cell(nn.Module):
    """One step of a gated recurrent unit.

    ``r, z = sigmoid(...)``, ``n = act(V_n x + r (U_n h))``, ``h <- n + z (h - n)``, with the gates r, z, n one below
    the other in both layers, as in ``torch.nn.GRUCell`` (where ``act`` is tanh).
    Source: Cho et al., Learning Phrase Representations using RNN Encoder-Decoder, 2014, section 2.3.

    Shapes:
        x (batch, inputs), h (batch, width) -> (batch, width)
    """

    def __init__(self, inputs: int, width: int, activation: str) -> None:
        super().__init__()
        self.input, self.hidden = nn.Linear(inputs, 3 * width), nn.Linear(width, 3 * width)
        self.activation = Activation(activation)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        """See the class."""
        # Plain operations, because torch's own cell has no batching rule.
        here, before = self.input(x).chunk(3, -1), self.hidden(h).chunk(3, -1)
        reset, keep = (torch.sigmoid(here[i] + before[i]) for i in (0, 1))
        new: Tensor = self.activation(here[2] + reset * before[2])
        return new + keep * (h - new)


class Gru(nn.Module):
    """Recurrent layers on the rows of an image, one on top of the other, and one linear layer.

    The linear layer reads the units after the last row ("last"), or their mean over all rows.

    With ``norm`` "layer", each layer's units go through a layer norm before anything reads them but the layer itself.

    Shapes:
        (batch, channels, size, size) -> (batch, outputs)
    """

    def __init__(
        self, channels: int, size: int, widths: tuple[int, ...], outputs: int, activation: str, norm: str, readout: str
    ) -> None:
        super().__init__()
        before = (channels * size, *widths[:-1])
        self.cells = nn.ModuleList(Cell(a, b, activation) for a, b in zip(before, widths, strict=True))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for width in widths) if norm == "layer" else None
        self.widths, self.readout = widths, readout
        self.head = nn.Linear(widths[-1], outputs)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        # A list of steps in place of one tensor: a stack would hide from the tracer that units may be rescaled.
        steps = list(x.transpose(1, 2).flatten(2).unbind(1))
        for i, (cell, width) in enumerate(zip(self.cells, self.widths, strict=True)):
            h = steps[0].new_zeros(len(x), width)
            for t, step in enumerate(steps):
                h = cell(step, h)
                steps[t] = h if self.norms is None else self.norms[i](h)
        units = steps[-1] if self.readout == "last" else sum(steps[1:], steps[0]) / len(steps)
        result: Tensor = self.head(units)
        return result


def _normalize(raw: object) -> dict[str, Any]:
    options = Options("gru", raw)
    result: dict[str, Any] = {
        "channels": options.integer("channels"),
        "size": options.integer("size", high=MAX_ROWS),
        "widths": options.widths(shortest=1),
        "outputs": options.integer("outputs"),
        "activation": options.choice("activation", ACTIVATIONS, default="tanh"),
        "norm": options.choice("norm", ("none", "layer"), default="none"),
        "readout": options.choice("readout", ("last", "mean"), default="last"),
    }
    options.finish()
    return result


GRU = Family("gru", _normalize, lambda o: Gru(**o), lambda o: ((o["channels"], o["size"], o["size"]),))
