"""How do torch's recurrent layers run step by step, so that what their weights read can be watched?"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from metanet.errors import PlanError

__all__ = ["Unrolled", "unroll"]


class Unrolled(nn.RNNBase):
    """RNN, GRU or LSTM with one call of a linear function per weight and step; slow, and the same in numbers.

    Made from a layer of torch's by :func:`unroll`, never built.

    Shapes:
        as the layer that it was
    """

    kind: str

    def forward(self, x: Tensor, state: Any = None) -> Any:
        """See the class."""
        single = x.dim() == 2
        x = x.unsqueeze(0 if self.batch_first else 1) if single else x
        x = x if self.batch_first else x.transpose(0, 1)
        hidden, cell = self._initial(x, state, single)
        last_hidden, last_cell = [], []
        for layer in range(self.num_layers):
            outs = []
            for direction in range(2 if self.bidirectional else 1):
                number = layer * (2 if self.bidirectional else 1) + direction
                out, h, c = self._run(x.flip(1) if direction else x, number, hidden[number], cell[number])
                outs.append(out.flip(1) if direction else out)
                last_hidden.append(h)
                last_cell.append(c)
            x = torch.cat(outs, -1)
        out = x if self.batch_first else x.transpose(0, 1)
        ends = [torch.stack(last_hidden), torch.stack(last_cell)]
        if single:
            out, ends = out.squeeze(0 if self.batch_first else 1), [end.squeeze(1) for end in ends]
        return out, tuple(ends) if self.kind == "lstm" else ends[0]

    def _initial(self, x: Tensor, state: Any, single: bool) -> tuple[Tensor, Tensor]:
        number = self.num_layers * (2 if self.bidirectional else 1)
        zeros = x.new_zeros(number, x.shape[0], self.hidden_size)
        if state is None:
            return zeros, zeros
        given = list(state) if self.kind == "lstm" else [state, zeros]
        hidden, cell = (item.unsqueeze(1) if single and item.dim() == 2 else item for item in given)
        return hidden, cell

    def _run(self, x: Tensor, number: int, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One layer in one direction. Shapes: (batch, time, inputs) -> (batch, time, units), ends (batch, units)."""
        weights = list(self.all_weights[number])
        w_ih, w_hh = weights[:2]
        b_ih, b_hh = weights[2:4] if self.bias else (None, None)
        outs = []
        for step in range(x.shape[1]):
            a, b = functional.linear(x[:, step], w_ih, b_ih), functional.linear(h, w_hh, b_hh)
            h, c = self._step(a, b, h, c)
            outs.append(h)
        return torch.stack(outs, 1), h, c

    def _step(self, a: Tensor, b: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """Formulas of the documentation of torch.nn.RNN, GRU and LSTM."""
        if self.kind == "lstm":
            i, f, g, o = (a + b).chunk(4, -1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            return o.sigmoid() * c.tanh(), c
        if self.kind == "gru":
            (r, z, n), (hr, hz, hn) = a.chunk(3, -1), b.chunk(3, -1)
            update = (z + hz).sigmoid()
            new = (n + (r + hr).sigmoid() * hn).tanh()
            return (1 - update) * new + update * h, c
        return (a + b).tanh() if self.kind == "tanh" else (a + b).relu(), c


def unroll(layer: Any) -> None:
    """Turn a recurrent layer of torch's into an :class:`Unrolled`, in place.

    Raises:
        PlanError: if it projects its state.
    """
    if layer.proj_size:
        raise PlanError("a recurrent layer with proj_size cannot be watched", hint="leave it uncompensated")
    layer.kind = {"LSTM": "lstm", "GRU": "gru"}.get(layer.mode) or layer.nonlinearity
    layer.__class__ = Unrolled
