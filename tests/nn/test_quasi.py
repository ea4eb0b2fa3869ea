"""Do quasi-equivariant layers stay in the orbit with their witness, and is everything else caught?"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import symmetry
from metanet.checkpoint import Architecture
from metanet.errors import ModelError
from metanet.graph import Bucket, ParameterGraph, collate
from metanet.nn import Metanet
from metanet.nn.dense import Dense, Table
from metanet.nn.features import Embedding
from metanet.nn.frames import Motion
from metanet.nn.frames.frame import canonical
from metanet.nn.layer import MessageLayer
from metanet.nn.quasi import GaugeHead, Moved, learnable, move
from metanet.nn.quasi_check import OrbitCheck, check_orbit, orbit_distance
from metanet.nn.structure import structure_of

Layer = Callable[[Bucket], Moved]


class Attention(nn.Module):
    """Self-attention with two heads between two linear maps."""

    def __init__(self, width: int = 6, heads: int = 2) -> None:
        super().__init__()
        self.heads, self.each = heads, width // heads
        self.first, self.last = nn.Linear(3, width), nn.Linear(width, 2)
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        q, k, v = (m(x).unflatten(-1, (self.heads, self.each)).transpose(1, 2) for m in (self.q, self.k, self.v))
        y = torch.softmax(q @ k.mT / math.sqrt(self.each), -1) @ v
        return self.last(self.o(y.transpose(1, 2).flatten(2)) + x)


def _family(name: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    generator = torch.Generator().manual_seed(3)
    if name == "transformer":
        return Attention().eval(), (torch.randn(7, 4, 3, generator=generator),)
    family, _, rest = name.partition(" ")
    options = {"inputs": 5, "widths": [4, 3], "outputs": 3, "activation": rest or "relu"}
    if family == "cnn":
        options = {"channels": 1, "size": 6, "widths": [3, 4], "outputs": 3, "activation": "relu"}
        options |= {"norm": "batch"} if rest == "norm" else {}
    architecture = Architecture(family, options)
    example = architecture.example_inputs()[0]
    return architecture.build().eval(), (torch.randn(7, *example.shape[1:], generator=generator),)


class Case:
    """One architecture with a random network, biases and norms included."""

    def __init__(self, name: str) -> None:
        self.module, self.inputs = _family(name)
        self.spec = symmetry.trace(self.module, self.inputs)
        generator = torch.Generator().manual_seed(5)
        self.state = {
            key: value.double() + 0.3 * torch.rand(value.shape, generator=generator, dtype=torch.float64)
            if value.is_floating_point()
            else value
            for key, value in self.module.state_dict().items()
        }

    def bucket(self) -> Bucket:
        return collate([ParameterGraph.build(self.spec, self.state)], torch.float64).buckets[0]

    def check(self, layer: Layer) -> OrbitCheck:
        return check_orbit(layer, self.spec, self.module, self.state, self.inputs)


FAMILIES = ("mlp", "cnn", "cnn norm", "transformer")


@pytest.fixture(scope="module")
def cases() -> Callable[[str], Case]:
    known: dict[str, Case] = {}

    def case(name: str) -> Case:
        if name not in known:
            known[name] = Case(name)
        return known[name]

    return case


def make(**options: object) -> Layer:
    """A small quasi-equivariant layer: one round of messages in the frame, then the head; beta is the identity."""
    net = nn.ModuleDict(
        {"embed": Embedding(8, 16), "round": MessageLayer(8), "head": GaugeHead(8, **options)}  # type: ignore[arg-type]
    ).double()
    for module in net.modules():
        if isinstance(module, Dense | Table):
            module.reset_parameters(torch.Generator().manual_seed(1))

    def layer(bucket: Bucket) -> Moved:
        frame, inside = canonical(bucket, "rms")
        structure = structure_of(bucket.topology)
        nodes, edges, layers = net["embed"](inside)
        nodes, edges, layers = net["round"](structure, inside, nodes, edges, layers)
        return move(bucket, bucket.values, net["head"](structure, nodes, layers, frame))

    return layer


@pytest.mark.parametrize("base", ["own", "frame"])
@pytest.mark.parametrize("name", FAMILIES)
def test_the_answer_stays_in_the_orbit_with_its_witness(cases, name, base):
    found = cases(name).check(make(base=base))
    assert found.passed, found
    assert found.moved > 1e-2, "alpha is the identity"
    assert found.turned > 1e-2, "the layer is strict: the witness is g itself"
    scales, linear = learnable(cases(name).bucket().topology)
    assert scales if name != "transformer" else len(linear) == 2


def test_alpha_is_in_the_group_however_large_its_parameters():
    case = Case("transformer")
    net = GaugeHead(8, reach=0.5).double()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_(0, 50, generator=torch.Generator().manual_seed(0))
    bucket = case.bucket()
    frame, _ = canonical(bucket, "rms")
    generator = torch.Generator().manual_seed(2)
    nodes = torch.randn(1, structure_of(bucket.topology).offsets[-1], 8, generator=generator, dtype=torch.float64)
    layers = torch.randn(1, len(bucket.topology.layers), 8, generator=generator, dtype=torch.float64)
    (alpha,) = net(structure_of(bucket.topology), nodes, layers, frame)
    inner = frame @ alpha @ ~frame
    for value in inner.log_scales.values():
        assert value.abs().max() <= 0.5 + 1e-12
    for value in inner.matrices.values():
        assert torch.linalg.matrix_norm(value - torch.eye(value.shape[-1]), 2).max() < 1
    assert max(value.detach().std().item() for value in inner.matrices.values()) > 1e-2


def test_soft_leaves_the_orbit_and_says_how_far(cases):
    for name in ("mlp", "transformer"):
        case = cases(name)
        with torch.no_grad():
            moved, quasi = make(soft=True)(case.bucket()), make()(case.bucket())
        distance, _ = orbit_distance(moved)
        assert 1e-4 < float(distance) <= float(moved.defect()) + 1e-12
        assert not case.check(make(soft=True)).passed
        # What is in the orbit is found there, even from a wrong start.
        true = moved.alphas[0].act(moved.beta)
        away, _ = orbit_distance(replace(moved, values=true, alphas=moved.alphas[1:2]), steps=300)
        assert float(away) < 0.05 * float(distance)
        assert float(quasi.defect()) < 1e-14
        assert float(orbit_distance(quasi)[0]) < 1e-14


class Twice(Motion):
    """The trap: N where its inverse belongs."""

    @property
    def duals(self) -> dict[str, Tensor]:  # type: ignore[override]
        return dict(self.matrices)


def per_channel(bucket: Bucket) -> Moved:
    """The trap: one element per channel, passed off as one element."""
    moved = make(soft=True)(bucket)
    return replace(moved, alphas=(moved.alpha,))


def same_twice(bucket: Bucket) -> Moved:
    moved = make()(bucket)
    alpha = moved.alpha
    twice = Twice(alpha.topology, alpha.size, alpha.log_scales, alpha.flips, alpha.matrices, alpha.shifts)
    return replace(moved, values=twice.act(moved.beta))


def no_reciprocal(bucket: Bucket) -> Moved:
    """The trap: incoming weights scaled, outgoing ones forgotten."""
    moved = make()(bucket)
    last = max(bucket.topology.edges, key=lambda i: bucket.topology.layers[bucket.topology.blocks[i].layer].order)
    values = tuple(old if i == last else new for i, (old, new) in enumerate(zip(moved.beta, moved.values, strict=True)))
    return replace(moved, values=values)


def scaled_sine(bucket: Bucket) -> Moved:
    """The trap: units of a sine scaled, with the reciprocal on what reads them."""
    edges = sorted(bucket.topology.edges, key=lambda i: bucket.topology.layers[bucket.topology.blocks[i].layer].order)
    first, second = edges[:2]
    scale = 1 + 0.3 * torch.sin(bucket.value(first).square().sum((2, 3)))
    values = list(bucket.values)
    values[first] = bucket.value(first) * scale[:, :, None, None]
    values[second] = bucket.value(second) / scale[:, None, :, None]
    for number in bucket.topology.nodes:
        if bucket.topology.blocks[number].groups[0] == bucket.topology.blocks[first].groups[0]:
            values[number] = bucket.value(number) * scale[..., None]
    return Moved(bucket, tuple(values), bucket.values, (Motion.identity(bucket),))


@pytest.mark.parametrize(
    ("name", "trap"),
    [
        ("mlp", per_channel),
        ("transformer", per_channel),
        ("transformer", same_twice),
        ("mlp", no_reciprocal),
        ("cnn norm", no_reciprocal),
        ("mlp sin", scaled_sine),
    ],
)
def test_every_trap_is_caught(cases, name, trap):
    found = cases(name).check(trap)
    assert not found.passed
    assert max(found.orbit, found.member) > 1e-4, found
    assert found.kept > 1e-4, found


def test_nothing_continuous_to_learn_leaves_a_sine_network_alone(cases):
    case = cases("mlp sin")
    assert learnable(case.bucket().topology) == ((), ())
    found = case.check(make())
    assert found.passed
    assert found.moved < 1e-14
    # The same scaling is no trap where the activation lets it pass.
    assert case.check(scaled_sine).kept > 1e-3 > 1e-9 > cases("mlp").check(scaled_sine).kept


def test_refusals(cases):
    with pytest.raises(ModelError, match="base='elsewhere' is unknown"):
        GaugeHead(8, base="elsewhere")
    with pytest.raises(ModelError, match="reach=0"):
        GaugeHead(8, reach=0)
    assert "base='own'" in repr(GaugeHead(8))


@pytest.mark.parametrize("change", [True, False])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_metanetwork_in_mode_quasi(cases, name, change):
    options = {"hidden": 8, "layers": 1, "symmetry": "full", "mode": "quasi", "change": change}
    net = Metanet(level="state", **options).double()
    case = cases(name)
    found = case.check(net.move)
    assert found.passed, found
    assert found.moved > 1e-3
    graph = ParameterGraph.build(case.spec, case.state)
    (answer,) = net(collate([graph], torch.float64))
    assert answer.defect < 1e-14
    whole = {**case.state, **answer}
    case.spec.check(whole)
    same = symmetry.act(case.spec, answer.alpha, case.state)
    away = max(float((whole[key] - same[key]).detach().abs().max()) for key in answer)
    assert (away > 1e-6) if change else (away < 1e-12)
    torch.stack([value.square().sum() for value in answer.values()]).sum().backward()
    still = {key for key, p in net.head.named_parameters() if p.grad is None or not bool((p.grad != 0).any())}
    unused = {"element.left", "element.right"} if name != "transformer" else set()
    assert not {key for key in still if key.rpartition(".")[0] not in unused}


def test_answers_come_in_the_order_of_the_batch(cases):
    net = Metanet(level="state", hidden=8, layers=1, symmetry="full", mode="soft", base="frame").double()
    graphs = [ParameterGraph.build(case.spec, case.state) for case in map(cases, ("mlp", "cnn", "mlp"))]
    answers = net(collate(graphs, torch.float64))
    for graph, answer in zip(graphs, answers, strict=True):
        assert {key: value.shape for key, value in answer.items()} == {
            key: value.shape for key, value in graph.state().items() if value.is_floating_point()
        }
        assert answer.defect > 1e-6
    torch.testing.assert_close(answers[0], answers[2])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "quick"}, "mode='quick' is unknown"),
        ({"mode": "quasi"}, "answers with whole networks"),
        ({"mode": "quasi", "level": "state"}, "symmetry='full'"),
        ({"mode": "soft", "level": "state", "symmetry": "full", "base": "there"}, "base='there' is unknown"),
        ({"base": "frame"}, "with mode='strict'"),
    ],
)
def test_modes_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ModelError, match=message):
        Metanet(**options)


def test_strict_moves_nothing(cases):
    with pytest.raises(ModelError, match="moves nothing"):
        Metanet(level="state", symmetry="full").double().move(cases("mlp").bucket())
