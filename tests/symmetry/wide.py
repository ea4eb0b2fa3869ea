"""What else people run, with groups derived by hand: convolutions of several styles, experts, ensembles, recurrence."""

from __future__ import annotations

from math import factorial as f

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations

from .families import Recurrent, Stages
from .models import Subject
from .transformers import TRANSFORMERS


class ConvNeXt(nn.Module):
    """Depthwise convolution, LayerNorm over channels, a pointwise bottleneck, layer scale."""

    def __init__(self, width: int = 4, hidden: int = 6) -> None:
        super().__init__()
        self.stem, self.deep = nn.Conv2d(3, width, 2, 2), nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.gamma, self.head = nn.Parameter(torch.rand(width)), nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.norm(self.deep(x).permute(0, 2, 3, 1))
        x = x + (self.gamma * self.down(functional.gelu(self.up(y)))).permute(0, 3, 1, 2)
        return self.head(x.mean((-2, -1)))


class DenseNet(nn.Module):
    """Each layer reads all that came before, batch norm before the non-linearity."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1, bias=False)
        self.n1, self.c1 = nn.BatchNorm2d(4), nn.Conv2d(4, 3, 3, padding=1, bias=False)
        self.n2, self.c2 = nn.BatchNorm2d(7), nn.Conv2d(7, 3, 3, padding=1, bias=False)
        self.n3, self.head = nn.BatchNorm2d(10), nn.Linear(10, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.cat([x, self.c1(torch.relu(self.n1(x)))], 1)
        x = torch.cat([x, self.c2(torch.relu(self.n2(x)))], 1)
        return self.head(torch.relu(self.n3(x)).mean((2, 3)))


class SqueezeExcite(nn.Module):
    """Channels weighted by a gate that sees their means."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 5, 3), nn.Conv2d(5, 5, 3), nn.Linear(5, 2)
        self.down, self.up = nn.Conv2d(5, 3, 1), nn.Conv2d(3, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(torch.relu(self.a(x)))
        gate = torch.sigmoid(self.up(torch.relu(self.down(x.mean((2, 3), keepdim=True)))))
        return self.head(torch.relu(x * gate).mean((2, 3)))


class Experts(nn.Module):
    """A soft mixture of experts: gates by softmax, experts by batched products."""

    def __init__(self, experts: int = 3, width: int = 4, hidden: int = 5) -> None:
        super().__init__()
        self.stem, self.head, self.gate = nn.Linear(3, width), nn.Linear(width, 2), nn.Linear(width, experts)
        self.w1, self.b1 = nn.Parameter(torch.randn(experts, width, hidden)), nn.Parameter(torch.randn(experts, hidden))
        self.w2, self.b2 = nn.Parameter(torch.randn(experts, hidden, width)), nn.Parameter(torch.randn(experts, width))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        gates = self.gate(x).softmax(-1)
        inner = torch.relu(torch.einsum("bi,eih->beh", x, self.w1) + self.b1)
        outer = torch.einsum("beh,eho->beo", inner, self.w2) + self.b2
        return self.head(torch.relu((gates[..., None] * outer).sum(1)))


class Ensemble(nn.Module):
    """Several MLPs side by side by ``bmm``, their outputs averaged."""

    def __init__(self, members: int = 3, hidden: int = 4) -> None:
        super().__init__()
        self.w1, self.b1 = nn.Parameter(torch.randn(members, 3, hidden)), nn.Parameter(torch.randn(members, 1, hidden))
        self.w2, self.b2 = nn.Parameter(torch.randn(members, hidden, 2)), nn.Parameter(torch.randn(members, 1, 2))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.expand(self.w1.shape[0], -1, -1)
        return torch.baddbmm(self.b2, torch.relu(torch.baddbmm(self.b1, wide, self.w1)), self.w2).mean(0)


class TiedMLP(nn.Module):
    """A non-linear autoencoder with tied weights."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 5), nn.Parameter(torch.randn(4)), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.relu(functional.linear(torch.relu(self.a(x)), self.a.weight.T, self.b)))


class WaveNet(nn.Module):
    """Dilated causal convolutions with gates, residual and skip connections."""

    def __init__(self, width: int = 4, hidden: int = 3, skip: int = 5) -> None:
        super().__init__()
        self.stem = nn.Conv1d(2, width, 1)
        self.filters = nn.ModuleList(nn.Conv1d(width, 2 * hidden, 2, dilation=2**n) for n in range(2))
        self.residual = nn.ModuleList(nn.Conv1d(hidden, width, 1) for _ in range(2))
        self.skips = nn.ModuleList(nn.Conv1d(hidden, skip, 1) for _ in range(2))
        self.head = nn.Conv1d(skip, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x, total = self.stem(x), torch.zeros(())
        for number, (filters, residual, skip) in enumerate(zip(self.filters, self.residual, self.skips, strict=True)):
            a, b = filters(functional.pad(x, (2**number, 0))).chunk(2, 1)
            y = torch.tanh(a) * torch.sigmoid(b)
            x, total = x + residual(y), total + skip(y)
        return self.head(torch.relu(total))


class UpsamplingUNet(nn.Module):
    """Two levels with batch norm; up by bilinear interpolation."""

    def __init__(self, mode: str = "bilinear") -> None:
        super().__init__()
        self.mode = mode
        self.a, self.na = nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.b, self.nb = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.c, self.out = nn.Conv2d(7, 5, 3, padding=1), nn.Conv2d(5, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = torch.relu(self.na(self.a(x)))
        b = torch.relu(self.nb(self.b(functional.avg_pool2d(a, 2))))
        align = None if self.mode == "nearest" else False
        b = functional.interpolate(b, scale_factor=2, mode=self.mode, align_corners=align)
        return self.out(torch.relu(self.c(torch.cat([b, a], 1))))


def weight_normed() -> nn.Module:
    return Stages(parametrizations.weight_norm(nn.Linear(3, 4)), torch.relu, nn.Linear(4, 2))


def instance_normed() -> nn.Module:
    return Stages(
        nn.Conv2d(3, 4, 3), nn.InstanceNorm2d(4, affine=True), torch.relu, lambda x: x.mean((2, 3)), nn.Linear(4, 2)
    )


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 with batch norms around a projected residual connection."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.n0 = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.c1, self.n1 = nn.Conv2d(4, 3, 1, bias=False), nn.BatchNorm2d(3)
        self.c2, self.n2 = nn.Conv2d(3, 3, 3, 2, 1, bias=False), nn.BatchNorm2d(3)
        self.c3, self.n3 = nn.Conv2d(3, 5, 1, bias=False), nn.BatchNorm2d(5)
        self.down, self.n4 = nn.Conv2d(4, 5, 1, 2, bias=False), nn.BatchNorm2d(5)
        self.head = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.n0(self.stem(x)))
        y = torch.relu(self.n2(self.c2(torch.relu(self.n1(self.c1(x))))))
        x = torch.relu(self.n3(self.c3(y)) + self.n4(self.down(x)))
        return self.head(functional.adaptive_avg_pool2d(x, 1).flatten(1))


class InvertedResidual(nn.Module):
    """MobileNetV3's block: expand, depthwise, squeeze and excite, project; hard swish and hard sigmoid."""

    def __init__(self, width: int = 4, hidden: int = 6, squeezed: int = 2) -> None:
        super().__init__()

        def layer(inputs: int, outputs: int, size: int, groups: int = 1) -> nn.Module:
            conv = nn.Conv2d(inputs, outputs, size, padding=size // 2, groups=groups, bias=False)
            return nn.Sequential(conv, nn.BatchNorm2d(outputs))

        self.stem, self.expand = layer(3, width, 3), layer(width, hidden, 1)
        self.deep, self.project = layer(hidden, hidden, 3, hidden), layer(hidden, width, 1)
        self.s1, self.s2, self.head = (
            nn.Conv2d(hidden, squeezed, 1),
            nn.Conv2d(squeezed, hidden, 1),
            nn.Linear(width, 2),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = functional.hardswish(self.stem(x))
        y = functional.hardswish(self.deep(functional.hardswish(self.expand(x))))
        gate = functional.hardsigmoid(self.s2(torch.relu(self.s1(functional.adaptive_avg_pool2d(y, 1)))))
        return self.head((x + self.project(y * gate)).mean((2, 3)))


class CellLoop(nn.Module):
    """A recurrent cell called step by step."""

    def __init__(self, kind: type[nn.RNNCellBase], hidden: int = 4) -> None:
        super().__init__()
        self.cell, self.head = kind(3, hidden), nn.Linear(hidden, 2)  # type: ignore[call-arg]

    def forward(self, x: Tensor) -> Tensor:
        state = None
        for step in range(x.shape[1]):
            state = self.cell(x[:, step], state)
        return self.head(state[0] if isinstance(state, tuple) else state)


class NormedLSTM(nn.Module):
    """An LSTM with layer norm on both products of the gates and on the cell."""

    def __init__(self, hidden: int = 4) -> None:
        super().__init__()
        self.wx, self.wh = nn.Linear(3, 4 * hidden, bias=False), nn.Linear(hidden, 4 * hidden, bias=False)
        self.nx, self.nh, self.nc = nn.LayerNorm(4 * hidden), nn.LayerNorm(4 * hidden), nn.LayerNorm(hidden)
        self.head = nn.Linear(hidden, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = c = x.new_zeros(x.shape[0], self.head.in_features)
        for step in range(x.shape[1]):
            i, f, g, o = (self.nx(self.wx(x[:, step])) + self.nh(self.wh(h))).chunk(4, 1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(self.nc(c))
        return self.head(h)


class FiLM(nn.Module):
    """Channels scaled and shifted by numbers that a second input gives."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.n = nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4)
        self.film, self.b, self.head = nn.Linear(3, 8), nn.Conv2d(4, 5, 1), nn.Linear(5, 2)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        gain, shift = self.film(z)[:, :, None, None].chunk(2, 1)
        x = torch.relu(gain * self.n(self.a(x)) + shift)
        return self.head(torch.relu(self.b(x)).mean((2, 3)))


class HyperNetwork(nn.Module):
    """A layer whose weights another layer writes."""

    def __init__(self, width: int = 4, hidden: int = 5) -> None:
        super().__init__()
        self.shape = (width, hidden)
        self.stem, self.hyper, self.head = nn.Linear(3, width), nn.Linear(2, width * hidden), nn.Linear(hidden, 2)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        weight = self.hyper(z).view(-1, *self.shape)
        return self.head(torch.relu(torch.bmm(torch.relu(self.stem(x)), weight)))


class Deconvolutions(nn.Module):
    """A decoder: a vector unfolds to a signal by transposed convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(3, 8)
        self.a, self.n = nn.ConvTranspose1d(4, 5, 4, 2, 1), nn.BatchNorm1d(5)
        self.b = nn.ConvTranspose1d(5, 2, 4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x)).view(-1, 4, 2)
        return torch.tanh(self.b(torch.relu(self.n(self.a(x)))))


def volumes() -> nn.Module:
    return Stages(
        nn.Conv3d(2, 3, 2),
        nn.BatchNorm3d(3),
        torch.relu,
        nn.MaxPool3d(2, 1),
        nn.Conv3d(3, 4, 2),
        torch.relu,
        lambda x: x.mean((2, 3, 4)),
        nn.Linear(4, 2),
    )


# Batch norm with its buffers has, for each channel, two scales (the convolution against mean, and variance against
# gain) and one sign; relu behind it one scale more.
IMAGE, SEQUENCE = (7, 3, 8, 8), (7, 5, 3)
CONVOLUTIONS = (
    # stream 4! and hidden 6!. Signs: each unit of the stream against its own depthwise kernel 4, the depthwise layer as
    # a whole against the norm's gain 1, gain against its readers 4, layer scale against the rows before it 4.
    Subject("convnext", ConvNeXt, IMAGE, f(4) * f(6), 4 + 1 + 4 + 4, 4 + 4 + 4),
    # 4! 3! 3!, a sign each. Scales: one for a unit, and two for each norm that reads it: 4 by three, 3 by two, 3 by
    # one.
    Subject("densenet", DenseNet, (7, 2, 4, 4), f(4) * f(3) ** 2, 10, 4 * 7 + 3 * 5 + 3 * 3),
    Subject("squeeze and excite", SqueezeExcite, IMAGE, f(5) ** 2 * f(3), 0, 5 + 5 + 3),
    # Filters and gates are one space in each of two layers, 3! with three signs of tanh; skips 5! with relu. The stream
    # meets no non-linearity: GL(4).
    Subject("wavenet", WaveNet, (7, 2, 6), f(3) ** 2 * f(5), 6, 5, 16),
    Subject("u-net, bilinear", UpsamplingUNet, (7, 1, 4, 4), f(3) * f(4) * f(5), 7, 2 * 7 + 12),
    Subject("u-net, nearest", lambda: UpsamplingUNet("nearest"), (7, 1, 4, 4), f(3) * f(4) * f(5), 7, 26),
    # Instance norm: a row's sign against the gain; its scale stops at eps. relu 4.
    Subject("instance norm", instance_normed, IMAGE, f(4), 4, 4),
    # 20 channels of batch norm; relu on 4, 3, 3 and the sum of 5.
    Subject("bottleneck", Bottleneck, IMAGE, f(4) * f(3) ** 2 * f(5), 20, 2 * 20 + 15),
    # 4 + 6 + 6 + 4 channels of batch norm; hard swish stops what comes after; relu on 2. The projection writes the
    # stream.
    Subject("inverted residual", InvertedResidual, IMAGE, f(4) * f(6) * f(2), 20, 2 * 20 + 2),
    Subject("volumes", volumes, (7, 2, 4, 4, 4), f(3) * f(4), 3, 2 * 3 + 3 + 4),
    # relu on 4 channels, each of two places that stay in their order; batch norm and relu on 5.
    Subject(
        "transposed convolutions",
        Deconvolutions,
        (7, 3),
        f(4) * f(5),
        5,
        4 + 2 * 5 + 5,
        pinned=("aten.convolution.default",),
    ),
    # Batch norm on 4: 8 scales and 4 signs; its gain against the conditioned one: 4 and 4; relu on 4 and 5.
    Subject("conditioned channels", FiLM, (7, 2, 5, 5), f(4) * f(5), 4 + 4, 8 + 4 + 4 + 5, more=((7, 3),)),
)
OTHERS = (
    # relu 4!, experts 3!, in each of them 5! of its own, relu 4!.
    Subject("experts", Experts, (7, 3), f(4) * f(3) * f(5) ** 3 * f(4), 0, 4 + 3 * 5 + 4),
    Subject("ensemble", Ensemble, (7, 3), f(3) * f(4) ** 3, 0, 3 * 4),
    # Scaling rows by r scales the output's unit i by the sum of r_u^2: all r must be equal, and the reader takes r^2
    # up.
    Subject("tied autoencoder", TiedMLP, (7, 4), f(5), 0, 1),
    # Direction and length: the sign and the length of each direction vector, and relu.
    Subject("weight norm", weight_normed, (7, 3), f(4), 4, 4 + 4),
    Subject("written weights", HyperNetwork, (7, 5, 3), f(4) * f(5), 0, 4 + 5, more=((7, 2),)),
    # Each layer and direction 4! with four signs of tanh.
    Subject(
        "lstm, two layers, both directions",
        lambda: Recurrent(nn.LSTM, num_layers=2, bidirectional=True),
        (7, 3, 3),
        f(4) ** 4,
        16,
        0,
    ),
    Subject(
        "gru, two layers, both directions",
        lambda: Recurrent(nn.GRU, num_layers=2, bidirectional=True),
        (7, 3, 3),
        f(4) ** 4,
        16,
        0,
    ),
    Subject("tanh rnn, two layers", lambda: Recurrent(nn.RNN, num_layers=2), SEQUENCE, f(4) ** 2, 8, 0),
    # The square matrix is scaled by s on one side and 1 / s on the other.
    Subject("relu rnn", lambda: Recurrent(nn.RNN, nonlinearity="relu"), SEQUENCE, f(4), 0, 4),
    Subject("gru cell", lambda: CellLoop(nn.GRUCell), (7, 3, 3), f(4), 4, 0),
    Subject("lstm cell", lambda: CellLoop(nn.LSTMCell), (7, 3, 3), f(4), 4, 0),
    # Signs: all rows of either matrix against its norm's gain, 1 and 1; all cells against their norm's gain and the
    # gains of the candidates, 1; each unit behind the cell's norm, 4.
    Subject("lstm, layer norm", NormedLSTM, (7, 3, 3), f(4), 1 + 1 + 1 + 4, 0),
)
WIDE = TRANSFORMERS + CONVOLUTIONS + OTHERS
