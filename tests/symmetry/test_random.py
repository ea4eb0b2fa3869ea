"""Does tracing stay sound where all sizes are small and equal? 200 random configurations over eight families.

Widths, heads, batch and time run from 1 to 4, so that axes of equal size, and of size 1, meet in every combination.
Exporting a model costs torch a second, so an ordinary run takes three in ten of them; METANET_ALL=1 takes all.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from math import factorial as f
from math import prod
from typing import Any

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

import symmetry
from symmetry.trace import derive
from symmetry.trace.export import export

from .families import LoRALinear, Mixer, Recurrent, Stages
from .models import Activation, draw, mlp, seeded
from .transformers import rotated
from .wide import Ensemble, Experts, HyperNetwork

SIZE = st.integers(1, 4)


def examples(count: int) -> Callable[[Any], Any]:
    """The same configurations in every run: all of them where METANET_ALL is set, else three in ten."""
    count = count if os.environ.get("METANET_ALL") else -(-count * 3 // 10)
    slow = [HealthCheck.too_slow, HealthCheck.data_too_large]
    return settings(max_examples=count, derandomize=True, deadline=None, database=None, suppress_health_check=slow)


def check(build: Callable[[], nn.Module], *inputs: Tensor, control: bool = False) -> symmetry.SymmetrySpec:
    """Trace, with and without ``strict``, and prove each factor by running.

    Args:
        control: whether the negative control must change the function; attention over one place and norms of one unit
            do not see their parameters.
    """
    model = seeded(build)
    graph = export(model, inputs)
    spec = derive(copy.deepcopy(graph), model, strict=True)
    assert derive(graph, model) == spec
    proof = symmetry.verify(model, inputs, spec, trials=1)
    assert proof.max_error <= 1e-10, str(proof)
    if control:
        assert proof.passed, str(proof)
    rows = {(row.kind, row.name) for row in proof.table}
    assert rows >= {("permutation", space.name) for space in spec.permuted if space.size > 1}
    assert rows >= {(factor.kind, factor.name) for factor in spec.factors}
    assert rows >= {(factor.kind, factor.space) for factor in spec.linear}
    return spec


class Residual(nn.Module):
    """A multilayer network, around it a residual connection or none, its output averaged over time."""

    def __init__(self, widths: list[int], function: Callable[[Tensor], Tensor] | None, residual: bool) -> None:
        super().__init__()
        self.net, self.head = mlp([widths[0], *widths, widths[0]], function), nn.Linear(widths[0], 2)
        self.function, self.residual = Activation(function or (lambda x: x)), residual

    def forward(self, x: Tensor) -> Tensor:
        y = self.function(self.net(x))
        return self.head(x + y if self.residual else y).mean(1)


@examples(30)
@given(
    widths=st.lists(SIZE, min_size=2, max_size=4),
    batch=SIZE,
    time=SIZE,
    function=st.sampled_from([torch.relu, torch.tanh, torch.sin, functional.gelu, torch.abs, None]),
    residual=st.booleans(),
)
def test_multilayer_networks(
    widths: list[int], batch: int, time: int, function: Callable[[Tensor], Tensor] | None, residual: bool
) -> None:
    spec = check(
        lambda: Residual(widths, function, residual), draw(batch, time, widths[0]), control=function is not None
    )
    if function is not None:
        # The residual stream is the input, whose units stay in place.
        hidden = widths if residual else [*widths, widths[0]]
        assert spec.permutation_order == prod(map(f, hidden))
        scaled, signed = function in (torch.relu, torch.abs), function in (torch.tanh, torch.sin)
        assert spec.scale_dimension == scaled * sum(hidden)
        # What is behind |x| does not see the sign of a row before it: one more than for a function that passes signs.
        assert spec.sign_bits >= signed * sum(hidden)


class Convolutions(nn.Module):
    """Stages of convolution, norm, non-linearity, and depthwise or grouped pairs; flattened or averaged."""

    def __init__(self, channels: list[int], side: int, norm: str, pool: str, flat: bool, grouped: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in zip([2, *channels], channels, strict=False):
            layers.append(nn.Conv2d(inputs, outputs, 3, padding=1))
            if norm == "group":
                layers.append(nn.GroupNorm(2 if outputs % 2 == 0 else 1, outputs))
            layers += [nn.BatchNorm2d(outputs)] if norm == "batch" else []
            layers += [nn.ReLU()]
            if grouped:
                layers += [nn.Conv2d(outputs, 2 * outputs, 3, padding=1, groups=outputs), nn.Tanh()]
                layers += [nn.Conv2d(2 * outputs, outputs, 1, groups=outputs), nn.ReLU()]
        pooled = pool != "none" and side % 2 == 0
        layers += [nn.MaxPool2d(2) if pool == "max" else nn.AvgPool2d(2)] if pooled else []
        self.net, self.flat = nn.Sequential(*layers), flat
        after = side // 2 if pooled else side
        self.head = nn.Linear(channels[-1] * (after * after if flat else 1), 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.net(x)
        return self.head(y.flatten(1) if self.flat else y.mean((2, 3)))


@examples(30)
@given(
    channels=st.lists(SIZE, min_size=1, max_size=3),
    side=SIZE,
    batch=SIZE,
    norm=st.sampled_from(["none", "batch", "group"]),
    pool=st.sampled_from(["max", "avg", "none"]),
    flat=st.booleans(),
    grouped=st.booleans(),
)
def test_convolutional_networks(
    channels: list[int], side: int, batch: int, norm: str, pool: str, flat: bool, grouped: bool
) -> None:
    # A group norm over one channel and one pixel is a constant.
    side = max(side, 2) if norm == "group" else side
    spec = check(lambda: Convolutions(channels, side, norm, pool, flat, grouped), draw(batch, 2, side, side))
    if norm != "group":
        assert spec.permutation_order == prod(f(c) * (2**c if grouped else 1) for c in channels)


class AnyAttention(nn.Module):
    """Attention with any number of heads, groups of keys and units, and any layout of the projections."""

    def __init__(self, width: int, heads: int, groups: int, units: int, layout: str, norm: bool, turn: bool) -> None:
        super().__init__()
        self.heads, self.groups, self.units, self.layout, self.turn = heads, groups, units, layout, turn
        self.stem, self.head = nn.Linear(3, width), nn.Linear(width, 2)
        self.norm = nn.LayerNorm(width) if norm else nn.Identity()
        if layout == "separate":
            self.q, self.k, self.v = (nn.Linear(width, n * units) for n in (heads, groups, groups))
        else:
            self.qkv = nn.Linear(width, 3 * heads * units)
        self.o = nn.Linear(heads * units, width)

    def _cut(self, x: Tensor, heads: int) -> Tensor:
        return x.view(x.shape[0], x.shape[1], heads, self.units).transpose(1, 2)

    def _project(self, x: Tensor) -> tuple[Tensor, ...]:
        batch, time, _ = x.shape
        if self.layout == "separate":
            shared = (self._cut(layer(x), self.groups) for layer in (self.k, self.v))
            return self._cut(self.q(x), self.heads), *(
                y.repeat_interleave(self.heads // self.groups, 1) for y in shared
            )
        if self.layout == "stacked":
            return self.qkv(x).view(batch, time, 3, self.heads, self.units).permute(2, 0, 3, 1, 4).unbind(0)
        if self.layout == "chunked":
            return tuple(self._cut(y, self.heads) for y in self.qkv(x).chunk(3, -1))
        return self.qkv(x).view(batch, time, self.heads, 3 * self.units).transpose(1, 2).chunk(3, -1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.stem(x))
        q, k, v = self._project(self.norm(x))
        q, k = (rotated(q), rotated(k)) if self.turn else (q, k)
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.head((x + self.o(y.transpose(1, 2).flatten(2))).mean(1))


@examples(45)
@given(
    width=SIZE,
    heads=SIZE,
    shared=st.booleans(),
    units=SIZE,
    layout=st.sampled_from(["separate", "stacked", "chunked", "inside heads"]),
    norm=st.booleans(),
    turn=st.booleans(),
    batch=SIZE,
    time=SIZE,
)
def test_attention(
    width: int, heads: int, shared: bool, units: int, layout: str, norm: bool, turn: bool, batch: int, time: int
) -> None:
    groups = max(1, heads // 2) if shared and layout == "separate" and heads != 3 else heads
    turn = turn and units % 2 == 0
    spec = check(
        lambda: AnyAttention(width, heads, groups, units, layout, norm, turn),
        draw(batch, time, 3),
        control=time > 1 and width > 1,
    )
    assert spec.permutation_order == f(width) * f(groups) * f(heads // groups) ** groups
    if units > 1:
        assert spec.linear_dimension == groups * units**2 * (1 if turn else 2)


@examples(25)
@given(
    kind=st.sampled_from([nn.LSTM, nn.GRU, nn.RNN]),
    hidden=SIZE,
    inputs=SIZE,
    layers=st.integers(1, 2),
    both=st.booleans(),
    batch=SIZE,
    time=st.integers(1, 3),
)
def test_recurrent_networks(
    kind: type[nn.RNNBase], hidden: int, inputs: int, layers: int, both: bool, batch: int, time: int
) -> None:
    spec = check(
        lambda: Recurrent(kind, hidden, inputs, num_layers=layers, bidirectional=both),
        draw(batch, time, inputs),
        control=time > 1,
    )
    spaces = layers * (2 if both else 1)
    assert spec.permutation_order == f(hidden) ** spaces
    if time > 1 and not both:
        # The last step of the backward direction has read one input, and never its own state.
        assert spec.sign_bits == hidden * spaces


@examples(20)
@given(tokens=SIZE, width=SIZE, mixed=SIZE, hidden=SIZE, batch=SIZE)
def test_mixers(tokens: int, width: int, mixed: int, hidden: int, batch: int) -> None:
    spec = check(lambda: Mixer(tokens, width, mixed, hidden), draw(batch, tokens, 3))
    assert spec.permutation_order == f(width) * f(mixed) * f(hidden)


@examples(20)
@given(members=SIZE, width=SIZE, hidden=SIZE, batch=SIZE, gated=st.booleans())
def test_experts_and_ensembles(members: int, width: int, hidden: int, batch: int, gated: bool) -> None:
    inside = f(members) * f(hidden) ** members
    if gated:
        spec = check(lambda: Experts(members, width, hidden), draw(batch, 3))
        assert spec.permutation_order == f(width) ** 2 * inside
        assert spec.scale_dimension == 2 * width + members * hidden
    else:
        spec = check(lambda: Ensemble(members, hidden), draw(batch, 3), control=True)
        assert (spec.permutation_order, spec.scale_dimension) == (inside, members * hidden)


@examples(20)
@given(widths=st.lists(SIZE, min_size=1, max_size=3), rank=SIZE, adapted=st.booleans(), bias=st.booleans(), batch=SIZE)
def test_linear_chains_and_low_rank_terms(widths: list[int], rank: int, adapted: bool, bias: bool, batch: int) -> None:
    def square(sizes: list[int]) -> int:
        return sum(size**2 for size in sizes if size > 1)

    if adapted:
        width = widths[0]
        build = lambda: Stages(LoRALinear(3, width, rank), torch.relu, LoRALinear(width, 2, rank))  # noqa: E731
        spec = check(build, draw(batch, 3), control=True)
        assert (spec.permutation_order, spec.linear_dimension) == (f(width), square([rank] * 2))
        assert spec.scale_dimension == width + 2 * (rank == 1)
    else:
        spec = check(lambda: mlp([3, *widths, 2], None, bias), draw(batch, 3), control=True)
        assert (spec.permutation_order, spec.linear_dimension) == (1, square(widths))
        # GL(1) is a scale and a sign.
        assert spec.scale_dimension == spec.sign_bits == widths.count(1)


@examples(10)
@given(width=SIZE, hidden=SIZE, batch=SIZE, time=SIZE)
def test_written_weights(width: int, hidden: int, batch: int, time: int) -> None:
    spec = check(lambda: HyperNetwork(width, hidden), draw(batch, time, 3), draw(batch, 2), control=True)
    assert (spec.permutation_order, spec.scale_dimension) == (f(width) * f(hidden), width + hidden)
