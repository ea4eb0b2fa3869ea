"""Does every number that a field writes, and every loss, come out as its formula says? Small cases, worked out anew."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import symmetry
from metanet.errors import FieldError
from metanet.fields import KnotsField, MlpField, Sampling, Skeletons, materialise, ordered, sizes_of
from metanet.fields.field import start_scale
from metanet.fields.fitting import check_range, check_spec
from metanet.fields.losses import divergence, magnitude, reconstruction, task_loss
from metanet.fields.mlp import Perceptron
from metanet.fields.parts import Product, Table, to_knots
from metanet.morph import importance
from metanet.morph.resize import resized_spec
from symmetry import SymmetrySpec
from tests.fields.test_fields import subject

EXAMPLE = (torch.randn(4, 5, generator=torch.Generator().manual_seed(0)),)


def perceptron() -> tuple[nn.Sequential, SymmetrySpec]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3)).eval()
    return model, symmetry.trace(model, EXAMPLE)


MODEL, SPEC = perceptron()


def test_tables_of_several_widths_are_mixed_by_the_geometric_mean_of_all() -> None:
    field = KnotsField(SPEC, MODEL.state_dict(), Sampling("cut"), width_knots=3, widths=(0.5, 1.5), start="fit")
    bias = next(piece for piece in field.layout.pieces if piece.tensor == "0.bias")
    weight = next(piece for piece in field.layout.pieces if piece.tensor == "0.weight")
    parts = field.parts[bias.key], field.gains[weight.key]
    with torch.no_grad():
        for part in parts:
            assert isinstance(part, Table)
            part.table.copy_(torch.tensor([1.0, 3.0, 4.0])[:, None].expand(3, 8))
    for sizes, width in (({}, 1.0), ({"0": 4, "2": 3}, 0.5), ({"0": 2}, 0.5), ({"0": 2, "2": 3}, math.sqrt(0.125))):
        assert field.width({**field.layout.full, **sizes}) == pytest.approx(width)
        told = float(np.interp(width, [0.5, 1.0, 1.5], [1.0, 3.0, 4.0]))
        state, size = field(None, sizes), sizes.get("0", 8)
        assert torch.allclose(state["0.bias"], torch.full((size,), told))
        assert torch.allclose(state["0.weight"], MODEL.state_dict()["0.weight"][:size] * (1 + told))
    wide = field(None, {"0": 32, "2": 24})
    assert torch.allclose(wide["0.bias"], torch.full((32,), 4.0))


def test_a_space_of_one_unit_says_nothing_of_the_width() -> None:
    model = nn.Sequential(nn.Linear(5, 1), nn.Tanh(), nn.Linear(1, 6), nn.Tanh(), nn.Linear(6, 3)).eval()
    field = KnotsField(symmetry.trace(model, EXAMPLE), model.state_dict())
    assert field.width({name: 3 if full == 6 else full for name, full in field.layout.full.items()}) == 0.5


def test_interpolation_is_that_of_numpy() -> None:
    for way, size in (("spread", 5), ("cut", 5), ("spread", 12), ("cut", 12)):
        places = Sampling(way).places(size, 8)
        knots = (np.arange(4) + 0.5) / 4
        spacing = 8 if way == "cut" and size < 8 else size
        at = (np.arange(size) + 0.5) / spacing
        assert np.allclose(places.positions.numpy(), at)
        for number in range(4):
            assert np.allclose(places.hats(4)[:, number].numpy(), np.interp(at, knots, np.eye(4)[number]))
        assert places.shares.tolist() == pytest.approx([8 / size if spacing == size else 1.0] * size)


def test_knots_that_no_unit_reads_are_like_the_nearest() -> None:
    few, values = Sampling("cut").places(3, 12), torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)
    assert torch.allclose(to_knots(values, 0, few, 12), torch.tensor([1.0, 2.0, *[4.0] * 10], dtype=torch.float64))


@pytest.mark.parametrize(("way", "size", "spacing"), [("cut", 4, 8), ("spread", 4, 4), ("cut", 16, 16)])
def test_units_stray_by_half_a_spacing_to_either_side(way: str, size: int, spacing: int) -> None:
    generator, still = torch.Generator().manual_seed(0), Sampling(way).places(size, 8).positions
    moves = torch.stack([Sampling(way).places(size, 8, 0.9, generator).positions - still for _ in range(300)])
    bound = 0.45 / spacing
    assert 0.95 * bound < float(moves.abs().max()) <= bound
    assert abs(float(moves.mean())) < 0.1 * bound


def test_a_product_is_what_its_tables_say() -> None:
    field = KnotsField(SPEC, MODEL.state_dict(), Sampling("cut"), rank=2, generator=torch.Generator().manual_seed(0))
    piece = next(piece for piece in field.layout.pieces if piece.tensor == "2.weight")
    part = field.parts[piece.key]
    assert isinstance(part, Product)
    a, b = (table / table.square().mean(-1, keepdim=True).sqrt() for table in (part.a, part.b))
    assert torch.allclose(field()["2.weight"], a @ b.mT * part.scale / math.sqrt(2), rtol=1e-5)
    # Values of the size of the given network's, whatever the rank.
    assert float(part.scale) == 2.0 ** round(math.log2(float(MODEL.state_dict()["2.weight"].square().mean().sqrt())))


def test_weights_that_are_all_zeros_start_like_others() -> None:
    model, _, spec = subject("conv, batch norm")
    field = KnotsField(spec, model.state_dict(), generator=torch.Generator().manual_seed(0))
    piece = next(piece for piece in field.layout.pieces if piece.tensor == "3.weight")
    shape = tuple(model.state_dict()["3.weight"].shape)
    assert piece.fan_in == math.prod(shape[1:])
    wanted = math.sqrt(2 / math.prod(shape[1:]))
    assert start_scale(piece, torch.zeros(shape)) == 2.0 ** round(math.log2(wanted))


def test_a_random_table_starts_at_the_size_of_the_weights() -> None:
    field = KnotsField(SPEC, MODEL.state_dict(), Sampling("cut"), generator=torch.Generator().manual_seed(0))
    ratio = field()["0.weight"].detach().std() / MODEL.state_dict()["0.weight"].std()
    assert 0.5 < float(ratio) < 2
    before = field()["0.weight"]
    field.fold()
    assert torch.equal(field()["0.weight"], before)
    assert float(ratio) != 1


def test_a_spec_of_another_width_asks_for_that_width() -> None:
    field = KnotsField(SPEC, MODEL.state_dict(), start="fit")
    half = resized_spec(SPEC, {"0": 4, "2": 3})
    assert {name: tuple(value.shape) for name, value in field(half).items()} == {
        name: info.shape for name, info in half.tensors.items()
    }
    with pytest.raises(FieldError, match="no example inputs"):
        materialise(field, MODEL, {"0": 4})
    # What is named beside it counts more.
    assert tuple(field(half, {"0": 2})["2.weight"].shape) == (3, 2)
    longer = symmetry.trace(nn.Sequential(*MODEL, nn.Tanh(), nn.Linear(3, 3)).eval(), EXAMPLE)
    with pytest.raises(FieldError, match=r"4.weight, axis 0: "):
        check_spec(SPEC, longer)
    more = dataclasses.replace(
        SPEC,
        axes={**SPEC.axes, "more": SPEC.axes["4.bias"]},
        tensors={**SPEC.tensors, "more": SPEC.tensors["4.bias"]},
    )
    with pytest.raises(FieldError, match="tensor 'more' is not written by the field"):
        check_spec(SPEC, more)
    with pytest.raises(FieldError, match=r"6.weight: not written by the field"):
        field.check_model(nn.Sequential(*MODEL, nn.Tanh(), nn.Linear(3, 3)))


def test_products_of_spaces_are_told_apart() -> None:
    spec = subject("encoder layer")[2]
    check_spec(spec, resized_spec(spec, sizes_of(spec, 0.5)))
    name, axis = next(
        (name, axis) for name, axes in spec.axes.items() for axis in axes if isinstance(axis, symmetry.Product)
    )

    turned = tuple(symmetry.Product(one.inner, one.outer) if one is axis else one for one in spec.axes[name])
    with pytest.raises(FieldError, match="another architecture"):
        check_spec(spec, dataclasses.replace(spec, axes={**spec.axes, name: turned}))


def test_the_range_is_closed_on_both_sides() -> None:
    # A quarter of 6 units is 1.5, which rounds to 2.
    for size, allowed in ((1, False), (2, True), (6, True), (7, False)):
        if allowed:
            check_range(SPEC, {"2": size}, (0.25, 1.0))
        else:
            with pytest.raises(FieldError, match="trained for 2 to 6"):
                check_range(SPEC, {"2": size}, (0.25, 1.0))


def test_modules_that_were_used_last_are_kept() -> None:
    skeletons = Skeletons(MODEL, SPEC, EXAMPLE, most=2)
    field = KnotsField(SPEC, MODEL.state_dict(), start="fit")

    def get(size: int) -> nn.Module:
        return skeletons.get(field(None, {"0": size}), {"0": size})

    first, second = get(2), get(3)
    assert get(2) is first
    get(4)
    assert get(2) is first
    assert get(3) is not second


def test_training_leaves_the_state_alone_and_draws_nothing() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = (nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3))
        model = nn.Sequential(*layers).eval()
    spec = symmetry.trace(model, EXAMPLE)
    skeletons = Skeletons(model, spec, EXAMPLE)
    state = KnotsField(spec, model.state_dict(), start="fit")()
    before = {name: tensor.detach().clone() for name, tensor in state.items()}
    inputs = (3 + torch.randn(20, 5, generator=torch.Generator().manual_seed(0)),)
    one, other = (skeletons.run(state, {}, inputs, train=True) for _ in range(2))
    assert torch.equal(one, other)
    assert all(torch.equal(state[name], tensor) for name, tensor in before.items())
    # The statistics of the batch, not those of the state.
    assert not torch.allclose(one, skeletons.run(state, {}, inputs, train=False), atol=1e-2)


def test_tied_weights_are_one_tensor() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 6)
            self.c.weight = self.b.weight

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.c(torch.relu(self.b(torch.relu(self.a(x)))))
            return out

    model = Tied().eval()
    spec = symmetry.trace(model, EXAMPLE)
    state = KnotsField(spec, model.state_dict(), start="fit")()
    assert state["b.weight"] is state["c.weight"]
    made = materialise(KnotsField(spec, model.state_dict(), start="fit"), model, {}, EXAMPLE)
    assert isinstance(made, Tied)
    assert made.b.weight is made.c.weight


def test_groups_and_the_units_in_them_are_in_order_of_importance() -> None:
    model, _, spec = subject("group norm, depthwise")
    found = ordered(spec, model.state_dict(), "importance")
    assert any(spec.within.get(space.name) for space in spec.permuted)
    for space in spec.permuted:
        assert bool((importance(spec, found.state, space.name, "group_l2").diff(dim=-1) <= 1e-12).all())


def test_copies_of_the_units_of_heads_share_what_queries_and_keys_say() -> None:
    model, _, spec = subject("encoder layer")
    field = KnotsField(spec, model.state_dict(), Sampling("cut", "copies"), start="fit")
    queries, keys, _ = (piece for piece in field.layout.pieces if piece.tensor.endswith("in_proj_weight"))
    inside = queries.spaces[1]
    assert inside == keys.spaces[1] != queries.spaces[0]
    assert inside is not None
    told = []
    for size in (field.layout.full[inside], field.layout.full[inside] + 1):
        sizes = {inside: size}
        q, k = (field.layout.read(piece, field(None, sizes), sizes) for piece in (queries, keys))
        assert q.shape[1] == size
        told.append(torch.einsum("hus,hut->hst", q, k))
    assert torch.allclose(told[0], told[1])


def test_what_does_not_vary_is_stored_once() -> None:
    class Centred(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(5, 6), nn.Linear(6, 3)
            self.register_buffer("mean", torch.arange(5.0))

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.b(torch.relu(self.a(x - self.mean)))
            return out

    model = Centred().eval()
    field = KnotsField(symmetry.trace(model, EXAMPLE), model.state_dict(), width_knots=3, start="fit")
    assert torch.equal(field(None, {"a": 2})["mean"], torch.arange(5.0))
    # Weights once, the biases and the gains of units at three widths, the buffer once.
    assert field.stored == (6 * 5 + 3 * 6) + 3 * (6 + 3) + 3 * (6 + 3) + 5


def test_perceptrons_know_the_width_and_are_centred() -> None:
    field = MlpField(SPEC, MODEL.state_dict(), Sampling("cut"), generator=torch.Generator().manual_seed(0))
    # The same coordinates: what differs comes from the widths.
    assert not torch.allclose(field(None, {"0": 4})["0.weight"], field()["0.weight"][:4], atol=1e-4)
    piece = next(piece for piece in field.layout.pieces if piece.tensor == "2.weight")
    part = field.parts[piece.key]
    assert isinstance(part, Perceptron)
    values = part(field.places(piece), 1.0).detach()
    assert abs(float(values.mean())) < 1e-5
    assert float(values.std(correction=0)) == pytest.approx(
        start_scale(piece, MODEL.state_dict()["2.weight"]), rel=1e-3
    )


def test_losses_of_values_and_of_weights() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(6, 2, generator=generator) * torch.tensor([1.0, 9.0]) for _ in range(2))
    b = b + torch.tensor([5.0, 0.0])
    spread = (b - b.mean(0)).square().mean(0).mean()
    assert torch.allclose(divergence(a, b, False), (a - b).square().mean() / spread)
    column, targets = torch.randn(6, 1, generator=generator), torch.randn(6, generator=generator)
    assert torch.allclose(task_loss(column, targets), (column[:, 0] - targets).square().mean())
    state, wanted = {"x": a, "y": column}, {"x": b, "y": targets[:, None]}
    parts = [(state[name] - wanted[name]).square().mean() / wanted[name].square().mean() for name in "xy"]
    assert torch.allclose(reconstruction(state, wanted, ["x", "y"]), sum(parts) / 2)
    sizes = [a.square().mean() / 2, column.square().mean() / 3]
    assert torch.allclose(magnitude(state, {"x": 2.0, "y": 3.0}), sum(sizes) / 2)
