"""Which change of weights brings a picture held in them to where a learned reader wants it? A few learned steps.

The networks are run at the pixels, a small convolutional network reads the picture that they show and says at every
pixel what is to be added, and the weights follow: ``change = rate * J^T r``, with J the derivative of the picture by
the weights. Rates are learned for each step and tensor; readers and rates are trained through all of it. Permutations,
signs and half periods of biases act on weights by orthogonal matrices and shifts, and gradients turn as the weights do:
the changed networks follow the group by construction, without a frame. Scalings and matrices are refused, since
gradients do not follow them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

from metanet.errors import ModelError
from metanet.graph import Bucket
from metanet.nn.dense import Dense, Table

__all__ = ["Steered", "pixel_grid"]

_DEPTHS = 16  # tensors whose steps are told apart, along the data flow; later ones share the last
_RATE = -1.5  # logarithm of the first rates


def pixel_grid(side: int) -> Tensor:
    """The coordinates of a picture's pixels, row by row: first to the right, then downwards, from -1 to 1.

    Shapes:
        return: (side * side, 2)
    """
    axis = torch.linspace(-1, 1, side)
    down, right = torch.meshgrid(axis, axis, indexing="ij")
    return torch.stack([right, down], dim=-1).reshape(-1, 2)


class Steered(nn.Module):
    """Changed weights of networks of two coordinates with one output.

    Args:
        side: pixels along each side of the picture.
        steps: how many steps are taken, each with a reader of its own.
        channels: width of the readers.
        generator: source of the first weights.

    Shapes:
        a bucket of B networks -> the changed state, ``(B, ...)`` by name.

    Raises:
        ModelError: for an argument out of range.
    """

    grid: Tensor

    def __init__(self, side: int, steps: int = 3, channels: int = 16, generator: torch.Generator | None = None) -> None:
        super().__init__()
        for name, value, least in (("side", side, 2), ("steps", steps, 1), ("channels", channels, 1)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ModelError(f"{name}={value!r}, expected an integer of at least {least}")
        self.side = side
        self.register_buffer("grid", pixel_grid(side), persistent=False)
        self.readers = nn.ModuleList(_Reader(channels) for _ in range(steps))
        self.rates = Table(steps, _DEPTHS, scale=0.0)
        for module in self.modules():
            if isinstance(module, Dense | Table):
                module.reset_parameters(generator or torch.Generator().manual_seed(0))

    def forward(self, bucket: Bucket) -> dict[str, Tensor]:
        """See the class.

        Raises:
            ModelError: for networks whose operations are not known, of another kind, or with scalings or matrices in
                their group.
        """
        spec = bucket.topology.spec
        if bucket.program is None:
            raise ModelError("the graphs hold no program", hint="ParameterGraph.build(spec, state, program=...)")
        if spec.linear or any(factor.kind == "scale" for factor in spec.factors):
            raise ModelError("the networks have scalings or matrices in their group, which gradients do not follow")
        training, start = torch.is_grad_enabled(), bucket.state()
        places = _places(bucket)
        with torch.enable_grad():
            state = {name: value.detach().clone().requires_grad_(name in places) for name, value in start.items()}
            first: Tensor | None = None
            for step, reader in enumerate(self.readers):
                shown = bucket.program.run(state, (self.grid,))[0]
                if shown.shape[1:] != (self.side**2, 1):
                    raise ModelError(f"the networks give {list(shown.shape[2:])} numbers per point, expected 1")
                picture = shown[..., 0]
                first = picture if first is None else first
                wanted = reader(first, picture)
                names = list(places)
                slopes = torch.autograd.grad(
                    picture, [state[name] for name in names], wanted, create_graph=training, materialize_grads=True
                )
                size = torch.stack([slope.flatten(1).square().sum(1) for slope in slopes]).sum(0)
                # In first order this step would add as much along `wanted` as it asks for, were the rate 1.
                length = wanted.square().sum(1) / (size + 1e-12)
                for name, slope in zip(names, slopes, strict=True):
                    rate = torch.exp(_RATE + self.rates.weight[step, places[name]]) * length
                    state[name] = state[name] + rate.reshape(-1, *[1] * (slope.ndim - 1)) * slope
                if not training:
                    state = {n: value.detach().requires_grad_(n in places) for n, value in state.items()}
        return state if training else {name: value.detach() for name, value in state.items()}


class _Reader(nn.Module):
    """What is to be added to a picture, from the first one and the present one.

    Shapes:
        two of ``(B, side * side)`` -> the same.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        # Kernels as matrices: their first weights must come from a generator that is handed in.
        self.first = Dense(9 * 2, channels, gain=1.4)
        self.second = Dense(9 * channels, channels, gain=1.4)
        self.third = Dense(9 * channels, channels, gain=1.4)
        self.out = Dense(9 * channels, 1, gain=0.5)

    def forward(self, first: Tensor, present: Tensor) -> Tensor:
        """See the class."""
        side = round(first.shape[1] ** 0.5)
        x = torch.stack([first, present], dim=1).unflatten(2, (side, side))
        x = torch.relu(_convolved(self.first, x))
        x = x + torch.relu(_convolved(self.second, x))
        x = x + torch.relu(_convolved(self.third, x))
        wanted: Tensor = _convolved(self.out, x).flatten(1)
        return wanted


def _convolved(kernel: Dense, x: Tensor) -> Tensor:
    return conv2d(x, kernel.weight.unflatten(1, (-1, 3, 3)), kernel.bias, padding=1)


def _places(bucket: Bucket) -> dict[str, int]:
    """Every tensor that is changed, with its place along the data flow."""
    topology = bucket.topology
    blocks = (topology.blocks[number] for number in (*topology.edges, *topology.nodes))
    return {block.tensor: min(topology.layers[block.layer].order, _DEPTHS - 1) for block in blocks}
