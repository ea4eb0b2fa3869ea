"""Do independent methods find the same group? igraph's automorphisms, all sign patterns."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import igraph
import pytest
import torch
from torch import Tensor, nn

import symmetry
from symmetry.verify import generic_state

from .families import Encoder, Recurrent, Stages, UNet, group_norms
from .models import ActorCritic, ResidualMLP, conv_bn, draw, mlp, resnet, seeded
from .wide import Experts


class ComputationGraph:
    """A network as a coloured graph, unit by unit: who reads whom, and by which kind of operation."""

    def __init__(self) -> None:
        self.edges: list[tuple[int, int]] = []
        self.colours: list[object] = []

    def units(self, count: int, colour: object, each: bool = False) -> list[int]:
        """New vertices; with ``each`` every one has a colour of its own (inputs and outputs)."""
        first = len(self.colours)
        self.colours += [(colour, number) if each else colour for number in range(count)]
        return list(range(first, first + count))

    def dense(self, source: list[int], count: int, each: bool = False) -> list[int]:
        target = self.units(count, "output" if each else "dense", each)
        self.edges += list(itertools.product(source, target))
        return target

    def pointwise(self, *sources: list[int], colour: str = "pointwise") -> list[int]:
        target = self.units(len(sources[0]), colour)
        self.edges += [edge for source in sources for edge in zip(source, target, strict=True)]
        return target

    def automorphisms(self) -> int:
        numbers = {colour: number for number, colour in enumerate(dict.fromkeys(self.colours))}
        graph = igraph.Graph(n=len(self.colours), edges=self.edges, directed=True)
        return int(graph.count_automorphisms(color=[numbers[colour] for colour in self.colours]))


def graph_of_mlp() -> ComputationGraph:
    graph = ComputationGraph()
    x = graph.units(3, "input", each=True)
    for width in (4, 4):
        x = graph.pointwise(graph.dense(x, width))
    graph.dense(x, 2, each=True)
    return graph


def graph_of_conv_bn() -> ComputationGraph:
    graph = ComputationGraph()
    x = graph.units(2, "input", each=True)
    for channels in (4, 5):
        x = graph.pointwise(graph.pointwise(graph.dense(x, channels), colour="norm"))
    graph.dense(x, 3, each=True)
    return graph


def graph_of_resnet() -> ComputationGraph:
    graph = ComputationGraph()
    x = graph.units(3, "input", each=True)
    x = graph.pointwise(graph.pointwise(graph.dense(x, 4), colour="norm"))
    for inputs, outputs, down in ((4, 4, False), (4, 6, True), (6, 6, False)):
        assert len(x) == inputs
        inner = graph.pointwise(graph.pointwise(graph.dense(x, outputs), colour="norm"))
        inner = graph.pointwise(graph.dense(inner, outputs), colour="norm")
        skip = graph.pointwise(graph.dense(x, outputs), colour="norm") if down else x
        x = graph.pointwise(graph.pointwise(skip, inner, colour="add"))
    graph.dense(graph.pointwise(x, colour="mean"), 3, each=True)
    return graph


def graph_of_residual_mlp() -> ComputationGraph:
    graph = ComputationGraph()
    x = graph.pointwise(graph.dense(graph.units(3, "input", each=True), 4))
    inner = graph.dense(graph.pointwise(graph.dense(x, 5)), 4)
    graph.dense(graph.pointwise(x, inner, colour="add"), 2, each=True)
    return graph


def grouped(graph: ComputationGraph, x: list[int], groups: int) -> list[int]:
    """A norm over consecutive groups of units: each result reads its unit and what its group has in common."""
    size = len(x) // groups
    commons = graph.units(groups, "moments")
    graph.edges += [(unit, commons[number // size]) for number, unit in enumerate(x)]
    target = graph.pointwise(x, colour="norm")
    graph.edges += [(commons[number // size], unit) for number, unit in enumerate(target)]
    return target


def graph_of_group_norms() -> ComputationGraph:
    graph = ComputationGraph()
    x = graph.dense(graph.units(3, "input", each=True), 4)
    x = graph.pointwise(graph.pointwise(grouped(graph, x, 2)), colour="depthwise")
    x = graph.dense(graph.pointwise(x), 6)
    graph.dense(graph.pointwise(grouped(graph, x, 3)), 3, each=True)
    return graph


def graph_of_unet() -> ComputationGraph:
    graph = ComputationGraph()
    a = graph.pointwise(graph.dense(graph.units(1, "input", each=True), 3))
    up = graph.dense(graph.pointwise(graph.dense(graph.pointwise(a, colour="pool"), 4)), 3)
    c = graph.units(4, "dense")
    graph.edges += [*itertools.product(up, c), *itertools.product(graph.pointwise(a, colour="skip"), c)]
    graph.dense(graph.pointwise(c), 2, each=True)
    return graph


def attention(graph: ComputationGraph, x: list[int], heads: int, units: int) -> list[int]:
    """Queries times keys unit by unit, summed to a score for each head; scores times values."""
    q, k, v = (graph.pointwise(graph.dense(x, heads * units), colour=name) for name in ("query", "key", "value"))
    scores = graph.units(heads, "score")
    products = graph.pointwise(q, k, colour="product")
    graph.edges += [(unit, scores[number // units]) for number, unit in enumerate(products)]
    read = graph.pointwise(v, colour="read")
    graph.edges += [(scores[number // units], unit) for number, unit in enumerate(read)]
    return graph.dense(read, len(x))


def graph_of_encoder() -> ComputationGraph:
    graph = ComputationGraph()
    x = graph.dense(graph.units(3, "input", each=True), 4)
    x = grouped(graph, graph.pointwise(x, attention(graph, x, 2, 2), colour="add"), 1)
    inner = graph.dense(graph.pointwise(graph.dense(x, 6)), 4)
    graph.dense(grouped(graph, graph.pointwise(x, inner, colour="add"), 1), 2, each=True)
    return graph


def graph_of_lstm() -> ComputationGraph:
    """Rolled up: the state of the step before is the state."""
    graph = ComputationGraph()
    x, h = graph.units(3, "input", each=True), graph.units(4, "state")
    gates = []
    for name in ("input gate", "forget gate", "candidate", "output gate"):
        gates.append(graph.units(4, name))
        graph.edges += itertools.product([*x, *h], gates[-1])
    cell = graph.pointwise(*gates[:3], colour="cell")
    for number, unit in enumerate(h):
        graph.edges += [(cell[number], unit), (cell[number], cell[number]), (gates[3][number], unit)]
    graph.dense(h, 2, each=True)
    return graph


def graph_of_experts() -> ComputationGraph:
    graph = ComputationGraph()
    x = graph.pointwise(graph.dense(graph.units(3, "input", each=True), 4))
    gates = graph.pointwise(graph.dense(x, 3), colour="softmax")
    total = graph.units(4, "sum")
    for gate in gates:
        outer = graph.dense(graph.pointwise(graph.dense(x, 5)), 4)
        weighted = graph.pointwise(outer, colour="weighted")
        graph.edges += [(gate, unit) for unit in weighted]
        graph.edges += zip(weighted, total, strict=True)
    graph.dense(graph.pointwise(total), 2, each=True)
    return graph


def graph_of_actor_critic() -> ComputationGraph:
    graph = ComputationGraph()
    x = graph.units(4, "input", each=True)
    for number, (hidden, outputs) in enumerate(((6, 2), (5, 1))):
        last = graph.dense(graph.pointwise(graph.dense(x, hidden)), outputs, each=True)
        for unit in last:
            graph.colours[unit] = ("head", number, graph.colours[unit])
    return graph


@pytest.mark.parametrize(
    ("graph", "build", "shape"),
    [
        (graph_of_mlp, lambda: mlp([3, 4, 4, 2], torch.relu), (7, 3)),
        (graph_of_conv_bn, conv_bn, (7, 2, 4, 4)),
        (graph_of_resnet, resnet, (7, 3, 8, 8)),
        (graph_of_residual_mlp, lambda: ResidualMLP(4, 5, torch.relu), (7, 3)),
        (graph_of_actor_critic, ActorCritic, (7, 4)),
        (graph_of_group_norms, group_norms, (7, 3, 5, 5)),
        (graph_of_unet, UNet, (7, 1, 4, 4)),
        (graph_of_encoder, lambda: Encoder(dropout=0.0), (7, 5, 3)),
        (graph_of_lstm, lambda: Recurrent(nn.LSTM), (7, 5, 3)),
        (graph_of_experts, Experts, (7, 3)),
    ],
    ids=lambda value: value.__name__ if getattr(value, "__name__", "").startswith("graph") else "",
)
def test_permutations_equal_igraph(
    graph: Callable[[], ComputationGraph], build: Callable[[], nn.Module], shape: tuple[int, ...]
) -> None:
    spec = symmetry.trace(seeded(build), (draw(*shape),))
    # Matrices have their own permutations, which the graph of units sees.
    inside = math.prod(math.factorial(factor.size) ** spec.copies(factor.space) for factor in spec.linear)
    assert spec.permutation_order * inside == graph().automorphisms()


def test_igraph_sees_a_missing_tie() -> None:
    """Negative control of the oracle: without the residual edge there are more automorphisms."""
    graph = graph_of_residual_mlp()
    adds = {vertex for vertex, colour in enumerate(graph.colours) if colour == "add"}
    kept, seen = [], set()
    for source, target in graph.edges:
        if target in adds and target not in seen:
            seen.add(target)
            continue
        kept.append((source, target))
    graph.edges = kept
    assert graph.automorphisms() > graph_of_residual_mlp().automorphisms()


class TinyConv(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.c1, self.n, self.c2 = nn.Conv1d(1, 2, 1), nn.BatchNorm1d(2), nn.Conv1d(2, 1, 1)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.c2(self.function(self.n(self.c1(x))))


SIGNED = {
    "tanh 1-2-2-1": (lambda: mlp([1, 2, 2, 1], torch.tanh), (7, 1)),
    "tanh 1-1-1-1": (lambda: mlp([1, 1, 1, 1], torch.tanh), (7, 1)),
    "sin 2-2-1": (lambda: mlp([2, 2, 1], torch.sin), (7, 2)),
    "relu 1-2-2-1": (lambda: mlp([1, 2, 2, 1], torch.relu), (7, 1)),
    "shared tanh 1-wide": (lambda: Shared(torch.tanh), (7, 1)),
    "residual tanh 1-wide": (lambda: SmallResidual(), (7, 1)),
    "conv, batch norm, relu": (lambda: TinyConv(torch.relu), (7, 1, 2)),
    "layer norm 1-2-1": (lambda: Stages(nn.Linear(1, 2), nn.LayerNorm(2), torch.relu, nn.Linear(2, 1)), (7, 1)),
    "lstm": (lambda: OneUnit(4), (7, 3, 1)),
    "gru": (lambda: OneUnit(3), (7, 3, 1)),
    "swiglu, rms norm": (lambda: TinyGLU(), (7, 1)),
    "deep linear 2-2-1": (lambda: mlp([2, 2, 1], None), (7, 2)),
}
# By hand, as the powers of two in the table of facts.
COUNTS = {"tanh 1-2-2-1": 4, "layer norm 1-2-1": 1, "lstm": 1, "gru": 1, "swiglu, rms norm": 5, "deep linear 2-2-1": 2}


class OneUnit(nn.Module):
    """An LSTM (four gates) or GRU (three) of one unit, written out: vmap has no rule for torch's own cells."""

    def __init__(self, gates: int) -> None:
        super().__init__()
        self.w, self.r, self.head = nn.Linear(1, gates), nn.Linear(1, gates), nn.Linear(1, 1)
        self.gates = gates

    def forward(self, x: Tensor) -> Tensor:
        h = c = x.new_zeros(x.shape[0], 1)
        for step in range(x.shape[1]):
            new, old = self.w(x[:, step]), self.r(h)
            if self.gates == 4:
                i, f, g, o = (new + old).chunk(4, 1)
                c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
                h = torch.sigmoid(o) * torch.tanh(c)
            else:
                (r, z, n), (u, v, m) = new.chunk(3, 1), old.chunk(3, 1)
                keep = torch.sigmoid(z + v)
                h = (1 - keep) * torch.tanh(n + torch.sigmoid(r + u) * m) + keep * h
        return self.head(h)


class TinyGLU(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.e, self.n, self.h = nn.Linear(1, 2, bias=False), nn.RMSNorm(2), nn.Linear(2, 1, bias=False)
        self.g, self.u, self.d = (nn.Linear(*sizes, bias=False) for sizes in ((2, 1), (2, 1), (1, 2)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.e(x)
        y = self.n(x)
        return self.h(x + self.d(nn.functional.silu(self.g(y)) * self.u(y)))


class Shared(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.i, self.m, self.o = nn.Linear(1, 1), nn.Linear(1, 1), nn.Linear(1, 1)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        x = self.function(self.m(self.function(self.i(x))))
        return self.o(self.function(self.m(x)))


class SmallResidual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.i, self.a, self.b, self.o = nn.Linear(1, 2), nn.Linear(2, 1), nn.Linear(1, 2), nn.Linear(2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.i(x))
        return self.o(x + self.b(torch.tanh(self.a(x))))


@pytest.mark.parametrize("name", SIGNED)
def test_signs_equal_brute_force(name: str) -> None:
    """Try all sign patterns of all parameters; count those that leave the function alone."""
    build, shape = SIGNED[name]
    model, x = seeded(build).eval(), draw(*shape, dtype=torch.float64)
    spec = symmetry.trace(model, (x.float(),))
    model, generator = model.to(torch.float64), torch.Generator().manual_seed(5)
    always = None
    # A dead unit hides signs at one point of weight space; a symmetry holds at every point.
    for _ in range(6):
        state = generic_state(spec, model.state_dict(), generator, fresh=True)
        free = [k for k, v in state.items() if v.is_floating_point() and spec.tensors[k].positive_offset is None]
        sizes = [state[k].numel() for k in free]
        total = sum(sizes)
        assert total <= 20, "brute force would take too long"
        bits = (torch.arange(2**total)[:, None] >> torch.arange(total)) & 1
        signs = (1 - 2 * bits).to(torch.float64)
        fixed = {k: v for k, v in state.items() if k not in free}

        patterns = {
            k: s.view(-1, *state[k].shape) * state[k] for k, s in zip(free, signs.split(sizes, dim=1), strict=True)
        }
        with torch.no_grad():
            made = torch.func.vmap(
                lambda given, fixed=fixed: torch.func.functional_call(model, given | fixed, (x,)).flatten(),
                chunk_size=4096,
            )(patterns)
        same = (made - made[0]).abs().amax(1) < 1e-9
        always = same if always is None else always & same
    # Diagonal signs are a part of every matrix group.
    bits = spec.sign_bits + sum(factor.size * spec.copies(factor.space) for factor in spec.linear)
    assert bits == COUNTS.get(name, bits)
    assert int(always.sum()) == 2**bits
