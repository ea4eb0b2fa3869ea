"""Is what a checkpoint conditions the same function at its width and above, in every gauge, and close to it below?"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

import symmetry
from metanet.errors import FieldError
from metanet.fields import ConditionedField
from metanet.morph import Compensation, apply, narrow_by_obs
from symmetry import SymmetrySpec


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 4)).double().eval()


def inputs(count: int = 96, seed: int = 1) -> Tensor:
    return torch.randn(count, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(scope="module")
def spec() -> SymmetrySpec:
    return symmetry.trace(network(), (inputs(2),))


def field(model: nn.Module, spec: SymmetrySpec, **options: object) -> ConditionedField:
    return ConditionedField(model, spec, (inputs(2),), (inputs(),), **options)  # type: ignore[arg-type]


def gap(one: nn.Module, two: nn.Module) -> float:
    """Largest difference of the outputs over their spread."""
    with torch.no_grad():
        a, b = one(inputs(64, 2)), two(inputs(64, 2))
    return float((a - b).abs().max() / a.std())


def divergence(one: nn.Module, two: nn.Module, at: Tensor) -> float:
    with torch.no_grad():
        a, b = one(at).log_softmax(-1), two(at).log_softmax(-1)
    return float((a.exp() * (a - b)).sum(-1).mean())


def sizes(spec: SymmetrySpec, ratio: float) -> dict[str, int]:
    return {space.name: round(ratio * space.size) for space in spec.spaces}


@pytest.mark.parametrize("ratio", [1.0, 1.25, 2.0])
def test_its_own_width_and_wider_are_the_same_function(spec: SymmetrySpec, ratio: float) -> None:
    model = network()
    made = field(model, spec).network(sizes(spec, ratio))
    assert made[0].out_features == round(12 * ratio)  # type: ignore[index]
    assert gap(model, made) <= 1e-9
    assert gap(model, field(model, spec).network(sizes(spec, 0.75))) > 1e-4


def test_checkpoints_of_one_orbit_are_one_field(spec: SymmetrySpec) -> None:
    model, moved = network(), copy.deepcopy(network())
    element = spec.sample(torch.Generator().manual_seed(3))
    moved.load_state_dict(symmetry.act(spec, element, dict(model.state_dict())))
    assert gap(model, moved) <= 1e-10
    half = sizes(spec, 0.5)
    one, two = (field(each, spec).network(half) for each in (model, moved))
    assert gap(one, two) <= 1e-10
    assert gap(one, model) > 1e-3
    # Without the canonical form the path depends on the scales of units, and the networks differ.
    one, two = (field(each, spec, gauge=None).network(half) for each in (model, moved))
    assert gap(one, two) > 1e-5


def test_the_order_of_units_changes_nothing(spec: SymmetrySpec) -> None:
    model, moved = network(), copy.deepcopy(network())
    order = torch.tensor([3, 0, 11, 5, 1, 9, 2, 7, 10, 4, 8, 6])
    with torch.no_grad():
        moved[0].weight.copy_(model[0].weight[order])  # type: ignore[index]
        moved[0].bias.copy_(model[0].bias[order])  # type: ignore[index]
        moved[2].weight.copy_(model[2].weight[:, order])  # type: ignore[index]
    for gauge in ("balanced", None):
        one, two = (field(each, spec, gauge=gauge).network(sizes(spec, 0.5)) for each in (model, moved))
        assert gap(one, two) <= (0 if gauge else 1e-10)


def test_rounds_come_closer_than_selection_with_compensation(spec: SymmetrySpec) -> None:
    model, half = network(), sizes(spec, 0.5)
    plan = narrow_by_obs(model, spec, half, [(inputs(),)])
    selected = apply(plan, model, (inputs(2),), spec=spec, compensation=Compensation([(inputs(),)])).model
    fresh = inputs(512, 5)
    still, moved = (field(model, spec, rounds=rounds).network(half) for rounds in (0, 8))
    assert divergence(model, moved, fresh) < 0.7 * divergence(model, selected, fresh)
    assert divergence(model, moved, fresh) < 0.7 * divergence(model, still, fresh)


def test_further_inputs_move_rounds_alone(spec: SymmetrySpec) -> None:
    model, half, more = network(), sizes(spec, 0.5), (inputs(96, 9),)
    with_more, without = (field(model, spec, more=given).network(half) for given in (more, ()))
    assert gap(with_more, without) > 1e-6
    with_more, without = (field(model, spec, more=given, rounds=0).network(half) for given in (more, ()))
    assert gap(with_more, without) == 0


def test_spaces_have_sizes_of_their_own(spec: SymmetrySpec) -> None:
    model = network()
    made = field(model, spec)
    first, second = (space.name for space in spec.spaces)
    state: Mapping[str, Tensor] = made(spec, {first: 5, second: 20})
    assert state["0.weight"].shape == (5, 6)
    assert state["2.weight"].shape == (20, 5)
    assert gap(made.network({first: 5}), made.network({first: 5, second: 20})) <= 1e-9
    wider = symmetry.trace(made.network({second: 10}), (inputs(2),))
    assert made(wider)["2.weight"].shape == (10, 12)


def test_networks_are_kept_and_handed_out_as_copies(spec: SymmetrySpec) -> None:
    made = field(network(), spec, rounds=1, most=2)
    one = made.network({"0": 6})
    before = one(inputs(4))
    with torch.no_grad():
        one[0].weight.zero_()  # type: ignore[index]
    assert torch.equal(made.network({"0": 6})(inputs(4)), before)
    for size in (7, 8):
        made.network({"0": size})
    assert len(made._made) == 2


def test_single_precision_stays(spec: SymmetrySpec) -> None:
    model = network().float()
    given = inputs().float()
    made = ConditionedField(model, spec_of(model), (given[:2],), (given,)).network({"0": 6})
    assert {value.dtype for value in made.state_dict().values()} == {torch.float32}
    assert torch.equal(made(given), made(given))


def spec_of(model: nn.Module) -> SymmetrySpec:
    return symmetry.trace(model, (inputs(2).float(),))


def test_batch_norm_and_convolutions() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 5, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3),
    ).double()  # fmt: skip
    images = torch.randn(48, 1, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.no_grad():
        for _ in range(30):
            model(images)
    model.eval()
    spec = symmetry.trace(model, (images[:2],))
    made = ConditionedField(model, spec, (images[:2],), (images,), rounds=4)
    half, still = made.network({"0": 3}), ConditionedField(model, spec, (images[:2],), (images,), rounds=0)
    assert half[1].num_features == 3  # type: ignore[index]
    assert divergence(model, half, images) < divergence(model, still.network({"0": 3}), images)
    with torch.no_grad():
        wide = made.network({"0": 9, "3": 7})(images) - model(images)
    assert float(wide.abs().max()) <= 1e-9


def test_bad_requests(spec: SymmetrySpec) -> None:
    made = field(network(), spec)
    with pytest.raises(FieldError, match="0 units of '0'; expected 1 or more; it has 12"):
        made.network({"0": 0})
    with pytest.raises(FieldError, match="no space 'hidden'; the network has 0, 2"):
        made.network({"hidden": 3})
    with pytest.raises(FieldError, match="no inputs to condition on"):
        ConditionedField(network(), spec, (inputs(2),), ())
    with pytest.raises(FieldError, match="inputs that are not finite"):
        ConditionedField(network(), spec, (inputs(2),), (inputs() * torch.nan,))
    other = nn.Sequential(nn.Linear(7, 5), nn.ReLU(), nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 4)).double()
    with pytest.raises(FieldError, match=r"0\.weight, axis 1"):
        made(symmetry.trace(other, (torch.randn(2, 7, dtype=torch.float64),)))
    assert str(made) == "ConditionedField(2 spaces, 96 inputs, 16 rounds)"


def test_order_and_signs_change_no_bit() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 4)).double().eval()
    spec, moved = symmetry.trace(model, (inputs(2),)), copy.deepcopy(model)
    element = spec.sample(torch.Generator().manual_seed(3))
    assert any(bool(flips.any()) for flips in element.flips.values())
    moved.load_state_dict(symmetry.act(spec, element, dict(model.state_dict())))
    one, two = (field(each, spec, rounds=4).network(sizes(spec, 0.5)) for each in (model, moved))
    assert gap(one, two) == 0
    # The control: signs of the first weight alone make another function, and another network.
    with torch.no_grad():
        moved[0].weight[:3].neg_()  # type: ignore[index]
    assert gap(one, field(moved, spec, rounds=4).network(sizes(spec, 0.5))) > 1e-3
