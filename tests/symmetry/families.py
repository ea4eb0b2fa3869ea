"""Families of networks beyond plain chains whose groups are known by hand: norms, attention, recurrence, matrices."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from .models import Subject, mlp


class Stages(nn.Module):
    """Modules and functions one after the other."""

    def __init__(self, *stages: nn.Module | Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.stages = [stage for stage in stages if not isinstance(stage, nn.Module)]
        self.layers = nn.ModuleList(stage for stage in stages if isinstance(stage, nn.Module))
        self.plan = [isinstance(stage, nn.Module) for stage in stages]

    def forward(self, x: Tensor) -> Tensor:
        layers, functions = iter(self.layers), iter(self.stages)
        for module in self.plan:
            x = next(layers)(x) if module else next(functions)(x)
        return x


def group_norms() -> nn.Module:
    return Stages(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.GroupNorm(2, 4),
        torch.relu,
        nn.Conv2d(4, 4, 3, padding=1, groups=4),
        torch.relu,
        nn.Conv2d(4, 6, 1),
        nn.GroupNorm(3, 6),
        torch.relu,
        lambda x: x.mean((2, 3)),
        nn.Linear(6, 3),
    )


class UNet(nn.Module):
    """One level down and up again, with a skip and a transposed convolution that meets no non-linearity."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(3, 4, 3, padding=1)
        self.up = nn.ConvTranspose2d(4, 3, 2, 2)
        self.c, self.out = nn.Conv2d(6, 4, 3, padding=1), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = torch.relu(self.a(x))
        b = torch.relu(self.b(functional.max_pool2d(a, 2)))
        return self.out(torch.relu(self.c(torch.cat([self.up(b), a], 1))))


class Mixer(nn.Module):
    """One block that mixes tokens, one that mixes channels."""

    def __init__(self, tokens: int = 4, width: int = 5, mixed: int = 3, hidden: int = 6) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(3, width), nn.Linear(width, 2)
        self.n1, self.n2, self.n3 = nn.LayerNorm(width), nn.LayerNorm(width), nn.LayerNorm(width)
        self.t1, self.t2 = nn.Linear(tokens, mixed), nn.Linear(mixed, tokens)
        self.c1, self.c2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.t2(functional.gelu(self.t1(self.n1(x).transpose(1, 2)))).transpose(1, 2)
        x = x + self.c2(functional.gelu(self.c1(self.n2(x))))
        return self.head(self.n3(x).mean(1))


class Encoder(nn.Module):
    """torch's own encoder layer between two linear ones."""

    def __init__(self, width: int = 4, heads: int = 2, hidden: int = 6, **options: object) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(3, width), nn.Linear(width, 2)
        self.layer = nn.TransformerEncoderLayer(width, heads, hidden, batch_first=True, **options)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(self.stem(x)).mean(1))


class Recurrent(nn.Module):
    """A recurrent network, its last step read out."""

    def __init__(self, kind: type[nn.RNNBase], hidden: int = 4, inputs: int = 3, **options: object) -> None:
        super().__init__()
        self.cell = kind(inputs, hidden, batch_first=True, **options)  # type: ignore[call-arg]
        self.head = nn.Linear(hidden * (2 if self.cell.bidirectional else 1), 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cell(x)[0][:, -1])


class SwiGLU(nn.Module):
    """A gated residual block under RMSNorm."""

    def __init__(self, width: int = 4, hidden: int = 5) -> None:
        super().__init__()
        self.e, self.h = nn.Linear(3, width), nn.Linear(width, 2)
        self.n = nn.RMSNorm(width)
        self.g, self.u, self.d = nn.Linear(width, hidden), nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.e(x)
        y = self.n(x)
        return self.h(x + self.d(functional.silu(self.g(y)) * self.u(y)))


class LoRALinear(nn.Module):
    """A linear layer plus a scaled product of two thin matrices."""

    def __init__(self, inputs: int, outputs: int, rank: int = 2) -> None:
        super().__init__()
        self.base = nn.Linear(inputs, outputs)
        self.a, self.b = nn.Parameter(torch.randn(rank, inputs)), nn.Parameter(torch.randn(outputs, rank))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + 0.5 * functional.linear(functional.linear(x, self.a), self.b)


class TiedAutoencoder(nn.Module):
    """A linear autoencoder whose decoder is the transpose of its encoder."""

    def __init__(self, inputs: int = 5, code: int = 4) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(code, inputs))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.T @ self.weight


SEQUENCE = (7, 5, 3)
FACTS = (
    Subject("group norm, depthwise", group_norms, (7, 3, 5, 5), 384, 5, 14),
    Subject("u-net", UNet, (7, 1, 4, 4), 3456, 0, 11, 9),
    Subject("mixer", Mixer, (7, 4, 3), 518400, 12, 11),
    Subject("encoder layer", lambda: Encoder(dropout=0.0), SEQUENCE, 34560, 6, 10, 16),
    Subject("lstm", lambda: Recurrent(nn.LSTM), SEQUENCE, 24, 4, 0),
    Subject("gru", lambda: Recurrent(nn.GRU), SEQUENCE, 24, 4, 0),
    Subject("swiglu", SwiGLU, (7, 3), 2880, 13, 9),
    Subject("deep linear", lambda: mlp([3, 4, 3, 2], None), (7, 3), 1, 0, 0, 25),
    Subject("deep linear without bias", lambda: mlp([3, 4, 3, 2], None, bias=False), (7, 3), 1, 0, 0, 25),
    Subject("lora", lambda: Stages(LoRALinear(3, 5), torch.relu, LoRALinear(5, 2)), (7, 3), 120, 0, 5, 8),
    Subject(
        "prelu",
        lambda: Stages(nn.Linear(3, 4), nn.PReLU(4), nn.Linear(4, 5), nn.PReLU(1), nn.Linear(5, 2)),
        (7, 3),
        2880,
        0,
        9,
    ),
    Subject(
        "layer norm",
        lambda: Stages(nn.Linear(3, 4), nn.LayerNorm(4), torch.relu, nn.Linear(4, 5), torch.relu, nn.Linear(5, 2)),
        (7, 3),
        2880,
        1,
        9,
    ),
    Subject("tied linear autoencoder", TiedAutoencoder, (7, 5), 1, 0, 0, 0, 6),
)
