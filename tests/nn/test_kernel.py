"""Is the kernel that works in pieces the plain formula, there and back, in every precision, with less memory?"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from metanet.graph import GraphBatch, ParameterGraph, collate
from metanet.nn import Metanet, kernel
from metanet.nn.rounds import MESSAGES
from tests.graph.specs import SPECS, cnn, lstm, mlp, random_state, residual

LEVELS = ("graph", "node", "edge")


def arguments(update: bool = True, sizes: tuple[int, ...] = (3, 4, 5, 6)) -> list[Tensor | None]:
    generator = torch.Generator().manual_seed(0)
    batch, targets, sources, hidden = sizes
    ends = [(batch, targets, hidden), (batch, sources, hidden)]
    shapes = [sizes, *ends, (hidden, hidden), *([(hidden, hidden), (hidden,)] if update else [])]
    drawn = [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes]
    return [*drawn, *[None] * (6 - len(drawn))]


def gradients(function, given: list[Tensor | None]) -> list[Tensor]:
    outputs = [x for x in function(*given) if x is not None]
    loss = sum((x.sin() * torch.linspace(0, 1, x.numel(), dtype=x.dtype).view(x.shape)).sum() for x in outputs)
    return [*outputs, *torch.autograd.grad(loss, [x for x in given if x is not None])]


@pytest.fixture(params=[1, 800, 1 << 19], ids=["a target at a time", "within networks", "whole networks"])
def piece(request, monkeypatch) -> Iterator[int]:
    monkeypatch.setattr(kernel, "PIECE_BYTES", request.param)
    return request.param


@pytest.mark.parametrize("update", [True, False])
def test_it_is_the_plain_formula_whatever_the_pieces(piece, update):
    found = gradients(kernel.edge_messages, arguments(update))
    expected = gradients(kernel.plain_messages, arguments(update))
    for ours, plain in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("library", [True, False], ids=["oneDNN", "the default library"])
@pytest.mark.parametrize("update", [True, False])
def test_large_products_in_float32_are_the_same_in_both_libraries(library, update, monkeypatch):
    wide = arguments(update, (3, 20, 24, 48))
    narrow = [None if x is None else x.detach().float().requires_grad_() for x in wide]
    calls = []
    fused = kernel._fused
    monkeypatch.setattr(kernel, "_fused", lambda *given: calls.append(1) or fused(*given))
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", library)
    found = gradients(kernel.edge_messages, narrow)
    assert bool(calls) == (library and torch.backends.mkldnn.is_available())
    for ours, exact in zip(found, gradients(kernel.plain_messages, wide), strict=True):
        assert (ours - exact).norm() < 1e-5 * exact.norm()


def test_gradients_are_right_by_finite_differences_and_can_be_differentiated_again():
    def smooth(*given: Tensor) -> list[Tensor]:
        return [x for x in kernel.edge_messages(*given) if x is not None]

    given = arguments(sizes=(2, 2, 3, 2))
    assert torch.autograd.gradcheck(smooth, given)
    assert torch.autograd.gradgradcheck(smooth, given)


def test_one_unused_output_is_as_good_as_zero():
    given = arguments()
    for chosen in range(3):
        ours = torch.autograd.grad(kernel.edge_messages(*given)[chosen].sum(), given, allow_unused=True)
        plain = torch.autograd.grad(kernel.plain_messages(*given)[chosen].sum(), given, allow_unused=True)
        for a, b in zip(ours, plain, strict=True):
            torch.testing.assert_close(a, torch.zeros_like(a) if b is None else b)


def batch(dtype: torch.dtype) -> GraphBatch:
    generator = torch.Generator().manual_seed(0)
    specs = [mlp(5, 8, 3), cnn(), residual(), lstm()] * 2
    return collate([ParameterGraph.build(spec, random_state(spec, generator)) for spec in specs], dtype)


def answers_and_gradients(net: Metanet, data: GraphBatch, low: bool = False) -> tuple[Tensor, Tensor]:
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=low):
        answer = net(data)
    flat = answer if net.level == "graph" else torch.cat([v.flatten() for row in answer for v in row.values()])
    net.zero_grad()
    flat.float().square().mean().backward() if low else flat.square().mean().backward()
    found = [torch.zeros_like(p) if p.grad is None else p.grad for p in net.parameters()]
    return flat.detach().flatten(), torch.cat([grad.flatten() for grad in found])


@pytest.mark.parametrize("messages", MESSAGES)
@pytest.mark.parametrize("level", LEVELS)
def test_checkpointing_changes_neither_answers_nor_gradients(messages, level):
    settings = {"level": level, "hidden": 8, "layers": 2, "messages": messages}
    data = batch(torch.float64)
    kept = answers_and_gradients(Metanet(**settings).double(), data)
    made = answers_and_gradients(Metanet(**settings, checkpointing=True).double(), data)
    other = answers_and_gradients(Metanet(**settings, seed=1).double(), data)
    for first, second, third in zip(kept, made, other, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-6, atol=1e-9)
        assert (first - third).abs().max() > 1e-4


@pytest.mark.parametrize("messages", MESSAGES)
def test_checkpointing_keeps_less(messages):
    data = batch(torch.float32)

    def kept(checkpointing: bool) -> int:
        sizes: dict[int, int] = {}

        def pack(x: Tensor) -> Tensor:
            sizes[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        net = Metanet(level="node", hidden=16, layers=4, messages=messages, checkpointing=checkpointing)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            answer = net(data)
        assert answer
        return sum(sizes.values())

    assert kept(True) < 0.7 * kept(False)


@pytest.mark.parametrize("messages", MESSAGES)
@pytest.mark.parametrize("level", LEVELS)
def test_bfloat16_is_near_float32(messages, level):
    net = Metanet(2, level, hidden=16, layers=2, messages=messages, probes=4 if level == "graph" else 0)
    data = batch(torch.float32)
    net.fit_statistics(data)
    exact, slopes = answers_and_gradients(net, data)
    near, near_slopes = answers_and_gradients(net, data, low=True)
    assert torch.isfinite(near).all()
    assert (near.float() - exact).norm() < 0.05 * exact.norm()
    assert (near.float() - exact).abs().max() > 0  # it is another precision
    assert torch.isfinite(near_slopes).all()
    assert torch.cosine_similarity(near_slopes, slopes, dim=0) > 0.95


@pytest.mark.parametrize("name", SPECS)
def test_every_topology_runs_in_bfloat16(name):
    spec = SPECS[name]()
    data = collate([ParameterGraph.build(spec, random_state(spec, torch.Generator().manual_seed(0)))])
    for messages in MESSAGES:
        net = Metanet(level="edge", hidden=8, layers=1, messages=messages, partial=True)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            (answer,) = net(data)
        assert all(torch.isfinite(value).all() for value in answer.values())
