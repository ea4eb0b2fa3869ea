"""Do independent methods find the same group? igraph's automorphisms, all sign patterns, the kernel of the Jacobian."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import igraph
import pytest
import torch
from torch import Tensor, nn

import symmetry
from symmetry.verify import generic_state

from .models import ActorCritic, ResidualMLP, conv_bn, draw, mlp, resnet, seeded


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
    ],
    ids=["mlp", "conv_bn", "resnet", "residual_mlp", "actor_critic"],
)
def test_permutations_equal_igraph(
    graph: Callable[[], ComputationGraph], build: Callable[[], nn.Module], shape: tuple[int, ...]
) -> None:
    assert symmetry.trace(seeded(build), (draw(*shape),)).permutation_order == graph().automorphisms()


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
}


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
        assert total <= 16, "brute force would take too long"
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
    assert int(always.sum()) == 2**spec.sign_bits


class ExplicitNorm(nn.Module):
    """Batch norm in eval mode, written out so that it can be differentiated with respect to its statistics."""

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            self.register_buffer(name, getattr(norm, name))

    def forward(self, x: Tensor) -> Tensor:
        mean, var, weight, bias = (
            t.view(1, -1, 1, 1) for t in (self.running_mean, self.running_var, self.weight, self.bias)
        )
        return (x - mean) / (var + self.eps).sqrt() * weight + bias


def explicit(model: nn.Module) -> nn.Module:
    for name, child in model.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(model, name, ExplicitNorm(child))
        else:
            explicit(child)
    return model


@pytest.mark.parametrize(
    ("build", "shape", "extra", "wide"),
    [
        (lambda: mlp([3, 4, 4, 2], torch.relu), (400, 3), 0, 4),
        (lambda: mlp([3, 4, 4, 2], torch.tanh), (64, 3), 0, 1),
        (lambda: ResidualMLP(4, 5, torch.tanh), (400, 3), 14, 1),
        (
            lambda: nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2), nn.ReLU(), nn.Conv2d(2, 2, 1)),
            (64, 2, 3, 3),
            4,
            4,
        ),
    ],
    ids=["relu", "tanh", "residual", "batch norm"],
)
def test_scalings_span_the_kernel_of_the_jacobian(
    build: Callable[[], nn.Module], shape: tuple[int, ...], extra: int, wide: float
) -> None:
    """Tangents of the scalings lie in the kernel of df/dtheta, are independent, and span it where nothing is named.

    ``extra`` says how many additive null directions are known besides: the bias before a batch norm against its running
    mean, and that mean against the bias behind it, two per channel; what the last layer, two rows on a stream of four,
    does not see of the branch that writes into the stream: 2 x 5 weights, and its 4 biases against the last one.
    """
    # Wide inputs switch every unit on and off; a unit that is always on has more symmetries than its architecture.
    model, x = seeded(build).eval(), wide * draw(*shape, dtype=torch.float64)
    spec = symmetry.trace(model, (x.float(),))
    state = generic_state(spec, model.state_dict(), torch.Generator().manual_seed(5))
    model = explicit(model.to(torch.float64))
    names = [k for k, v in state.items() if v.is_floating_point()]
    fixed = {k: v for k, v in state.items() if k not in names}

    def f(given: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(model, given | fixed, (x,)).flatten()

    def jacobian_at(state: dict[str, Tensor]) -> Tensor:
        point = {k: state[k] for k in names}
        return torch.cat([j.flatten(1) for j in torch.func.jacrev(f)(point).values()], dim=1)

    def kernel_at(jacobian: Tensor) -> int:
        return jacobian.shape[1] - int(torch.linalg.matrix_rank(jacobian, rtol=1e-9))

    jacobian = jacobian_at(state)
    tangents = []
    neutral = spec.identity()
    for name, value in neutral.log_scales.items():
        for place in range(value.numel()):
            step = torch.zeros_like(value)
            step.view(-1)[place] = 1e-5
            ends = []
            for sign in (1, -1):
                element = symmetry.GroupElement(
                    spec, neutral.permutations, {**neutral.log_scales, name: sign * step}, neutral.flips
                )
                acted = spec.act(element, state)
                ends.append(torch.cat([acted[k].flatten() for k in names]))
            tangents.append((ends[0] - ends[1]) / 2e-5)
    elsewhere = [generic_state(spec, state, torch.Generator().manual_seed(seed), fresh=True) for seed in range(4)]
    kernel = min(kernel_at(jacobian), *(kernel_at(jacobian_at(point)) for point in elsewhere))
    scale = jacobian.norm()
    if tangents:
        stacked = torch.stack(tangents, dim=1)
        assert float((jacobian @ stacked).norm() / (scale * stacked.norm())) < 1e-8
        assert int(torch.linalg.matrix_rank(stacked, rtol=1e-7)) == spec.scale_dimension
        random = draw(*stacked.shape, seed=8, dtype=torch.float64)
        assert float((jacobian @ random).norm() / (scale * random.norm())) > 1e-3
    assert kernel == spec.scale_dimension + extra
