"""Does a field write whole networks of any architecture at any sizes, and what does it refuse?"""

from __future__ import annotations

import dataclasses
import functools

import pytest
import torch
from torch import Tensor, nn

import symmetry
from metanet.errors import FieldError
from metanet.fields import Field, KnotsField, MlpField, Sampling, Skeletons, materialise, ordered, sizes_of
from metanet.fields.fitting import check_range, varying
from metanet.fields.losses import first_output
from metanet.fields.mlp import Perceptron
from metanet.fields.parts import to_knots
from metanet.morph import importance, to_sizes
from metanet.morph.choose import normed_spaces
from symmetry import SymmetrySpec
from symmetry.spec import Pin
from tests.morph.subjects import network

# One of each kind of layout: streams, norms, kernels, groups, gates, heads, concatenations.
NAMES = ["conv, batch norm", "resnet", "group norm, depthwise", "u-net", "encoder layer", "lstm"]
COPIES = Sampling("cut", "copies")


@functools.cache
def subject(name: str) -> tuple[nn.Module, tuple[Tensor, ...], SymmetrySpec]:
    # The spec's dtypes are those that fields write: that of float64 networks is traced in float64.
    model, inputs, spec = network(name)
    tensors = {
        key: dataclasses.replace(info, dtype=str(model.state_dict()[key].dtype).removeprefix("torch."))
        for key, info in spec.tensors.items()
    }
    return model, inputs, dataclasses.replace(spec, tensors=tensors)


def spread_of_difference(a: nn.Module, b: nn.Module, inputs: tuple[Tensor, ...]) -> float:
    with torch.no_grad():
        one, other = a(*inputs), b(*inputs)
    return float((one - other).abs().max() / one.std())


@pytest.mark.parametrize("name", NAMES)
def test_enough_knots_hold_the_network_itself(name: str) -> None:
    model, inputs, spec = subject(name)
    field = KnotsField(spec, model.state_dict(), COPIES, start="fit")
    written, state = field(spec), model.state_dict()
    assert list(written) == list(state)
    assert all(torch.equal(written[key], state[key]) for key in state)
    # Narrower than the field was made for: the state loads into a module of these sizes, which runs.
    half = sizes_of(spec, 0.5)
    made = materialise(field, model, half, inputs)
    assert {key: value.shape for key, value in field(spec, half).items()} == {
        key: value.shape for key, value in made.state_dict().items()
    }
    assert spread_of_difference(model, made, inputs) > 1e-3
    twice = materialise(field, model, sizes_of(spec, 2.0), inputs)
    assert spread_of_difference(model, twice, inputs) < 1e-10


@pytest.mark.parametrize(("name", "way"), [("resnet", "cut"), ("encoder layer", "spread")])
def test_other_forms_write_what_loads(name: str, way: str) -> None:
    model, inputs, spec = subject(name)
    generator = torch.Generator().manual_seed(0)
    state = model.state_dict()
    fields: list[Field] = [
        KnotsField(spec, state, Sampling(way), knots=3, rank=1, width_knots=3, generator=generator),
        MlpField(spec, state, Sampling(way), hidden=8, generator=generator),
    ]
    sizes = {space: size + number for number, (space, size) in enumerate(to_sizes(spec, 0.5).items())}
    for field in fields:
        made = materialise(field, model, sizes, inputs)
        shapes = {key: value.shape for key, value in field(None, sizes).items()}
        assert shapes == {key: value.shape for key, value in made.state_dict().items()}
        with torch.no_grad():
            assert bool(made(*inputs).isfinite().all())
        assert field.stored == sum(value.numel() for value in field.state_dict().values())


def test_sizes_of_spaces_are_their_own() -> None:
    model, inputs, spec = subject("conv, batch norm")
    field = KnotsField(spec, model.state_dict(), COPIES, start="fit")
    first, second = (space.name for space in spec.spaces)
    state = field(spec, {first: 2, second: 7})
    assert state["3.weight"].shape[:2] == (7, 2)
    assert torch.equal(state["0.weight"], model.state_dict()["0.weight"][:2])
    assert spread_of_difference(model, materialise(field, model, {second: 10}, inputs), inputs) < 1e-10


def test_wider_by_a_fraction_is_exact_with_copies_and_not_between() -> None:
    model, inputs, spec = subject("conv, batch norm")
    assert not normed_spaces(spec)
    errors = {}
    for beyond in ("copies", "between"):
        field = KnotsField(spec, model.state_dict(), Sampling("spread", beyond), start="fit")
        errors[beyond] = spread_of_difference(model, materialise(field, model, sizes_of(spec, 1.5), inputs), inputs)
    assert errors["copies"] < 1e-10 < 1e-3 < errors["between"]


@pytest.mark.parametrize("order", ["smooth", "importance"])
def test_order_changes_the_weights_and_not_the_function(order: str) -> None:
    model, inputs, spec = subject("resnet")
    found = ordered(spec, model.state_dict(), order)
    field = KnotsField(spec, found.state, COPIES, start="fit")
    assert spread_of_difference(model, materialise(field, model, {}, inputs), inputs) < 1e-10
    assert any(not torch.equal(value, model.state_dict()[key]) for key, value in found.state.items())
    if order == "importance":
        for space in spec.permuted:
            assert bool((importance(spec, found.state, space.name, "group_l2").diff(dim=-1) <= 1e-12).all())
    else:
        assert found.after < found.before


def test_fewer_knots_are_the_closest_ones() -> None:
    places = Sampling().places(12, 12)
    values = torch.randn(12, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    knots = to_knots(values, 0, places, 5)
    error = (places.hats(5) @ knots - values).square().sum()
    for _ in range(5):
        other = knots + 1e-3 * torch.randn(5, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        assert (places.hats(5) @ other - values).square().sum() > error
    # What few units read alone stays like its neighbours: a constant comes back as a constant everywhere.
    few = Sampling("cut").places(3, 12)
    assert torch.allclose(to_knots(torch.ones(3, 1, dtype=torch.float64), 0, few, 12), torch.ones(12, 1).double())


def test_a_product_of_full_rank_holds_the_network_too() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 12), nn.Tanh(), nn.Linear(12, 30)).double().eval()
    inputs = (torch.randn(7, 40, dtype=torch.float64),)
    spec = symmetry.trace(model, inputs)
    errors = []
    for rank in (3, 8):
        # A network of that rank, so that the product can hold it and stores fewer numbers.
        with torch.no_grad():
            u, s, v = torch.linalg.svd(model[0].weight, full_matrices=False)
            model[0].weight.copy_(u[:, :8] * s[:8] @ v[:8])
            u, s, v = torch.linalg.svd(model[2].weight, full_matrices=False)
            model[2].weight.copy_(u[:, :8] * s[:8] @ v[:8])
        field = KnotsField(spec, model.state_dict(), rank=rank, start="fit", normalised=False)
        assert field.stored < sum(value.numel() for value in model.state_dict().values())
        errors.append(spread_of_difference(model, materialise(field, model, {}, inputs), inputs))
    assert errors[1] < 1e-10 < 1e-2 < errors[0]


def test_perceptrons_live_at_the_start_and_are_of_the_right_size() -> None:
    model, _, spec = subject("resnet")
    field = MlpField(spec, model.state_dict(), generator=torch.Generator().manual_seed(0))
    state = {name: tensor.detach() for name, tensor in field().items()}
    written = [(piece, field.parts[piece.key]) for piece in field.layout.pieces]
    for piece, part in written:
        if isinstance(part, Perceptron):
            assert part.dead(field.places(piece)) == 0
            ratio = float(state[piece.tensor].std() / model.state_dict()[piece.tensor].square().mean().sqrt())
            assert 0.3 < ratio < 2
    # The start that died: a bias that pulls all units below zero.
    piece, part = next((piece, part) for piece, part in written if isinstance(part, Perceptron))
    for layer in (part.first, *part.wide, *part.back):
        nn.init.zeros_(layer.weight)
        nn.init.constant_(layer.bias, -1.0)
    assert part.dead(field.places(piece)) == 1


@pytest.mark.parametrize("name", ["conv, batch norm", "resnet", "u-net"])
def test_only_gains_that_a_norm_undoes_are_left_out(name: str) -> None:
    model, inputs, spec = subject(name)
    field = KnotsField(spec, model.state_dict(), COPIES, width_knots=3)
    skeletons, state = Skeletons(model, spec, inputs), model.state_dict()
    generator = torch.Generator().manual_seed(0)
    left_out = 0
    for piece in field.layout.pieces:
        whole = field.layout.read(piece, state).shape == state[piece.tensor].shape
        if not (piece.weighs and whole and piece.roles[0] == "out"):
            continue
        gains = 0.5 + torch.rand(piece.full[0], generator=generator, dtype=torch.float64)
        moved = dict(state)
        moved[piece.tensor] = state[piece.tensor] * gains.view(-1, *[1] * (len(piece.roles) - 1))
        one, other = (first_output(skeletons.run(each, {}, inputs, train=True)) for each in (state, moved))
        change = float((one - other).abs().max() / one.std())
        # A batch norm adds a small number to the variance, so that very little is left of a gain in front of it.
        assert change > 1e-3 if piece.key in field.gains else change < 1e-3, (piece.tensor, change)
        left_out += piece.key not in field.gains
    assert (left_out > 0) == (name != "u-net")


def test_noise_moves_weights_and_draws_average_it() -> None:
    model, _, spec = subject("conv, batch norm")
    field = KnotsField(spec, model.state_dict(), Sampling("spread"), start="fit")
    still = field()["3.weight"]

    def far(draws: int) -> float:
        generator = torch.Generator().manual_seed(0)
        found = [field(None, None, 1.0, generator, draws)["3.weight"].detach() for _ in range(20)]
        return float(torch.stack([each - torch.stack(found).mean(0) for each in found]).square().mean())

    assert far(1) > 5 * far(10) > 0
    assert torch.equal(field(None, None, 0.0)["3.weight"], still)


def test_refusals() -> None:
    model, _, spec = subject("conv, batch norm")
    state = model.state_dict()
    field = KnotsField(spec, state, start="fit")
    first = spec.spaces[0].name
    with pytest.raises(FieldError, match="0 units of"):
        field(spec, {first: 0})
    with pytest.raises(FieldError, match=r"no space 'nowhere'; the network has"):
        field(spec, {"nowhere": 3})
    with pytest.raises(FieldError, match="width 0"):
        sizes_of(spec, 0.0)
    with pytest.raises(FieldError, match="--extrapolate"):
        check_range(spec, sizes_of(spec, 2.0), (0.25, 1.0))
    check_range(spec, sizes_of(spec, 1.0), (0.25, 1.0))
    with pytest.raises(FieldError, match="no space shall vary"):
        varying(spec, ())
    assert varying(spec, (first, first)) == (first,)
    for noise in (float("nan"), -1.0):
        with pytest.raises(FieldError, match=f"noise {noise}"):
            field(spec, None, noise)
    other = subject("resnet")[2]
    with pytest.raises(FieldError, match="another architecture"):
        field(other)
    changed = dict(spec.axes)
    changed["0.weight"] = (changed["0.weight"][0], symmetry.Fixed(9), *changed["0.weight"][2:])
    infos = {**spec.tensors, "0.weight": dataclasses.replace(spec.tensors["0.weight"], shape=(4, 9, 3, 3))}
    with pytest.raises(FieldError, match=r"0.weight, axis 1: fixed\(9\)"):
        field(dataclasses.replace(spec, axes=changed, tensors=infos))
    pin = Pin("aten.cumsum.default", "cumsum", ("7.weight[1]",), "mixes units")
    pinned = dataclasses.replace(spec, pinned=(pin,))
    with pytest.raises(FieldError, match=r"some widths cannot change: aten.cumsum.default"):
        varying(pinned)
    assert varying(pinned, (first,)) == (first,)
    with pytest.raises(FieldError, match=r"cannot change: aten.cumsum.default"):
        KnotsField(pinned, state)(None, {"7": 2})
    for options in ({"knots": 0}, {"rank": 0}, {"start": "anyhow"}, {"widths": (1.0, 0.5)}):
        with pytest.raises(FieldError):
            KnotsField(spec, state, **options)  # type: ignore[arg-type]
    with pytest.raises(FieldError, match="way of sampling"):
        Sampling("sideways")
