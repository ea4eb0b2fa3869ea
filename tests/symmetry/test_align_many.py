"""Different widths, many networks at once, and what lies between two networks."""

from __future__ import annotations

import itertools
from functools import lru_cache

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import symmetry
from symmetry import SpecError, SymmetrySpec
from symmetry.verify import generic_state

from .families import SEQUENCE, Encoder
from .models import draw, mlp, seeded
from .test_align import distance, network, same_permutations, traced

State = dict[str, Tensor]


@lru_cache(maxsize=8)
def tanh_mlp(width: int) -> tuple[nn.Module, SymmetrySpec]:
    model = seeded(lambda: mlp([8, width, width, 4], torch.tanh))
    return model, symmetry.trace(model, (draw(7, 8),))


def narrowed(state: State, keep: dict[str, Tensor], spec: SymmetrySpec) -> State:
    """Only some units of each space, in a given order."""
    result = {}
    for name, axes in spec.axes.items():
        value = state[name]
        for dim, axis in enumerate(axes):
            if str(axis).split("[")[0] in keep:
                value = value.index_select(dim, keep[str(axis).split("[")[0]])
        result[name] = value
    return result


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_units_of_a_narrow_network_are_found_in_a_wide_one(dtype: torch.dtype) -> None:
    (_, small), (model, large) = tanh_mlp(10), tanh_mlp(16)
    state = generic_state(large, model.state_dict(), torch.Generator().manual_seed(1), fresh=True)
    state = {name: value.to(dtype) for name, value in state.items()}
    generator = torch.Generator().manual_seed(2)
    keep = {space.name: torch.randperm(16, generator=generator)[:10] for space in large.spaces}
    signs = small.sample(generator, kinds=("sign",))
    part = small.act(signs, narrowed(state, keep, large))
    found = symmetry.match_widths(small, part, large, state)
    for name, kept in keep.items():
        assert torch.equal(found.pairs[name][:, 0], torch.arange(10))
        assert torch.equal(found.pairs[name][:, 1], kept)
        assert float(found.similarity[name].min()) > 1 - 1e-5
    assert all(torch.equal(value, found.flips[name]) for name, value in signs.flips.items())
    # The other way round: the same pairs, in the order of the wide network's units.
    back = symmetry.match_widths(large, state, small, part)
    for name, kept in keep.items():
        expected = sorted((int(unit), place) for place, unit in enumerate(kept))
        assert [tuple(pair) for pair in back.pairs[name].tolist()] == expected
    assert "10 pairs, cosine 1.000" in str(back)
    # Negative control: an unrelated wide network has no such units.
    other = generic_state(large, model.state_dict(), torch.Generator().manual_seed(9), fresh=True)
    assert all(float(v.mean()) < 0.9 for v in symmetry.match_widths(small, part, large, other).similarity.values())


def test_equal_widths_give_what_align_gives() -> None:
    spec = traced("mlp tanh")
    a, b = network("mlp tanh", 1), network("mlp tanh", 2)
    pairs, element = symmetry.match_widths(spec, a, spec, b).pairs, symmetry.align(spec, a, b)
    assert all(torch.equal(pairs[name][:, 1], order) for name, order in element.permutations.items())


def test_heads_of_two_counts() -> None:
    """Four heads, of which two are in the other network, among other units of the feed-forward part."""
    models = [seeded(lambda h=h, f=f: nn.Sequential(Encoder(8, h, f, dropout=0.0)), 3) for h, f in ((4, 12), (4, 9))]
    specs = [symmetry.trace(model.eval(), (draw(*SEQUENCE),)) for model in models]
    state = generic_state(specs[0], models[0].state_dict(), torch.Generator().manual_seed(1), fresh=True)
    hidden = next(space.name for space in specs[0].spaces if space.size == 12)
    keep = {hidden: torch.randperm(12, generator=torch.Generator().manual_seed(4))[:9]}
    part = narrowed(state, keep, specs[0])
    planted = specs[0].sample(torch.Generator().manual_seed(5))
    found = symmetry.match_widths(specs[1], part, specs[0], specs[0].act(planted, state))
    inverse = (~planted).permutations
    for name, pairs in found.pairs.items():
        kept = keep.get(name, torch.arange(len(inverse[name])))
        assert torch.equal(pairs[:, 1], planted.permutations[name].argsort()[kept])


def test_other_architectures_are_refused() -> None:
    (model, spec), (_, large) = tanh_mlp(10), tanh_mlp(16)
    state = {name: value.double() for name, value in model.state_dict().items()}
    relu = traced("mlp relu")
    with pytest.raises(SpecError, match="shape"):
        symmetry.match_widths(spec, state, large, state)
    with pytest.raises(SpecError, match=r"0\.weight lies over"):
        symmetry.match_widths(spec, state, relu, network("mlp relu", 1))
    with pytest.raises(SpecError, match="other tensors"):
        symmetry.match_widths(spec, state, traced("resnet"), network("resnet", 1))


@pytest.mark.parametrize("name", ["mlp tanh", "conv, batch norm", "encoder layer"])
def test_round_any_cycle_of_networks_nothing_has_moved(name: str) -> None:
    spec = traced(name)
    states = [network(name, seed) for seed in range(4)]
    universe = symmetry.align_many(spec, states)
    assert len(universe) == 4
    assert universe.elements[0] == spec.identity()
    for cycle in itertools.permutations(range(4), 3):
        i, j, k = cycle
        around = universe.between(i, j) @ universe.between(j, k) @ universe.between(k, i)
        assert around == spec.identity()
        assert same_permutations(around, spec.identity())
    # Negative control: pairwise matchings of unrelated networks do not close.
    pairwise = [symmetry.align(spec, states[i], states[j]) for i, j in ((0, 1), (1, 2), (2, 0))]
    assert pairwise[0] @ pairwise[1] @ pairwise[2] != spec.identity()


def test_copies_of_one_network_are_all_found() -> None:
    spec, state = traced("conv, batch norm"), network("conv, batch norm", 1)
    planted = [spec.sample(torch.Generator().manual_seed(seed)) for seed in range(4)]
    universe = symmetry.align_many(spec, [spec.act(element, state) for element in planted])
    for i, j in itertools.permutations(range(4), 2):
        assert universe.between(i, j) == planted[i] @ ~planted[j]


def test_many_needs_more_than_one() -> None:
    spec, state = traced("mlp relu"), network("mlp relu", 1)
    with pytest.raises(SpecError, match="two or more"):
        symmetry.align_many(spec, [state])
    with pytest.raises(SpecError, match="two or more"):
        symmetry.align_many(spec, state)  # type: ignore[arg-type]


def trained(build: object, seed: int, inputs: Tensor, targets: Tensor, steps: int = 120) -> tuple[nn.Module, State]:
    model = seeded(build, seed)  # type: ignore[arg-type]
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    model.train()
    for _ in range(steps):
        optimiser.zero_grad()
        functional.cross_entropy(model(inputs), targets).backward()
        optimiser.step()
    return model.eval(), {name: value.detach().clone() for name, value in model.state_dict().items()}


def task(*shape: int) -> tuple[Tensor, Tensor]:
    """Inputs whose class is a random function of them that a small network can learn."""
    inputs = draw(256, *shape, seed=11)
    teacher = draw(3, int(torch.tensor(shape).prod()), seed=12)
    return inputs, torch.tanh(inputs.flatten(1) @ teacher.T).argmax(1)


def test_barrier_of_trained_networks_and_its_repair() -> None:
    inputs, targets = task(8)
    build = lambda: mlp([8, 24, 24, 3], torch.relu)  # noqa: E731
    (model, a), (_, b) = (trained(build, seed, inputs, targets) for seed in (0, 1))
    spec = symmetry.trace(model, (inputs,))
    batches = [((inputs[:128],), targets[:128]), ((inputs[128:],), targets[128:])]
    before = symmetry.barrier(model, a, b, batches, points=5)
    moved = spec.act(symmetry.align(spec, a, b), b)
    after = symmetry.barrier(model, a, moved, batches, points=5)
    assert before.losses[0] == after.losses[0]
    assert after.losses[-1] == pytest.approx(before.losses[-1], rel=1e-4)
    assert after.midpoint < 0.7 * before.midpoint
    repaired = symmetry.barrier(
        model, a, moved, batches, path=lambda w: symmetry.repair(spec, model, a, moved, (inputs,), w)
    )
    assert repaired.midpoint < after.midpoint
    assert after.highest >= after.midpoint
    assert "at the midpoint" in str(after)
    # An end is not moved by its own repair, and a network has no barrier to itself.
    assert distance(symmetry.repair(spec, model, a, moved, (inputs,), 0.0), a) < 1e-4
    assert symmetry.barrier(model, a, a, batches).highest < 1e-6


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_repaired_units_have_the_statistics_between_those_of_the_ends(dtype: torch.dtype) -> None:
    inputs, _ = task(8)
    inputs = inputs.to(dtype)
    model = seeded(lambda: mlp([8, 12, 12, 3], torch.relu))
    spec = symmetry.trace(model, (inputs.float(),))
    model = model.to(dtype)
    a, b = (
        {k: v.to(dtype) for k, v in seeded(lambda: mlp([8, 12, 12, 3], torch.relu), s).state_dict().items()}
        for s in (1, 2)
    )

    def statistics(state: State) -> list[tuple[Tensor, Tensor]]:
        first = functional.linear(inputs, state["0.weight"], state["0.bias"])
        second = functional.linear(torch.relu(first), state["2.weight"], state["2.bias"])
        return [torch.std_mean(value, 0, correction=0) for value in (first, second)]

    repaired = symmetry.repair(spec, model, a, b, (inputs,), 0.3)
    plain = symmetry.interpolate(a, b, 0.3)
    tolerance = 1e-9 if dtype == torch.float64 else 1e-4
    for one, other, mine, before in zip(*map(statistics, (a, b, repaired, plain)), strict=True):
        for x, y, z, w in zip(one, other, mine, before, strict=True):
            assert float((x.lerp(y, 0.3) - z).abs().max()) < tolerance
            assert float((x.lerp(y, 0.3) - w).abs().max()) > 1e-2 or torch.equal(x, one[1])
    # The last layer is nobody's hidden unit.
    assert torch.equal(repaired["4.weight"], plain["4.weight"])


def wide_conv() -> nn.Module:
    layers: list[nn.Module] = []
    for inputs in (2, 24, 24):
        layers += [nn.Conv2d(inputs, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(24 * 16, 3))


def test_running_statistics_are_estimated_again() -> None:
    inputs, targets = task(2, 4, 4)
    (model, a), (_, b) = (trained(wide_conv, seed, inputs, targets, 40) for seed in (0, 1))
    spec = symmetry.trace(model, (inputs,))
    moved = spec.act(symmetry.align(spec, a, b), b)
    repaired = symmetry.repair(spec, model, a, moved, (inputs,))
    plain = symmetry.interpolate(a, moved)
    first = functional.conv2d(inputs, plain["0.weight"], plain["0.bias"], padding=1)
    variance, mean = torch.var_mean(first, (0, 2, 3))
    assert float((repaired["1.running_mean"] - mean).abs().max()) < 1e-5
    assert float((repaired["1.running_var"] - variance).abs().max()) < 1e-4
    assert float((plain["1.running_var"] - variance).abs().max()) > 1e-2
    # A layer in front of a batch norm needs no other correction.
    assert torch.equal(repaired["0.weight"], plain["0.weight"])
    batches = [((inputs,), targets)]
    straight = symmetry.barrier(model, a, moved, batches).midpoint
    path = symmetry.barrier(
        model, a, moved, batches, path=lambda w: symmetry.repair(spec, model, a, moved, (inputs,), w)
    )
    assert path.midpoint < straight
    assert not model.training


def test_barrier_and_repair_refuse() -> None:
    inputs, targets = task(3)
    spec, state = traced("mlp relu"), network("mlp relu", 1, torch.float32)
    model = seeded(lambda: mlp([3, 4, 4, 2], torch.relu))
    with pytest.raises(SpecError, match="odd number"):
        symmetry.barrier(model, state, state, [((inputs,), targets)], points=4)
    with pytest.raises(SpecError, match="empty"):
        symmetry.barrier(model, state, state, [])
    with pytest.raises(SpecError, match="write \\(tensor,\\)"):
        symmetry.repair(spec, model, state, state, inputs)  # type: ignore[arg-type]
    with pytest.raises(SpecError, match=r"0\.weight"):
        symmetry.interpolate(state, {})
