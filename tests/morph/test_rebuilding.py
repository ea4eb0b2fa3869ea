"""Does a morph say which units stand in for those that were dropped?"""

from __future__ import annotations

import pytest
import torch
from torch import nn

import symmetry
from metanet import morph
from metanet.errors import PlanError
from metanet.morph import Compensation
from metanet.morph.rebuilding import rebuilding
from symmetry.spaces import Atom, Concat, Fixed, NeuronSpace, Product
from tests.morph.subjects import network
from tests.morph.test_compensate import batches


@pytest.mark.parametrize(
    ("name", "space", "wide"),
    [
        ("mlp relu", "0", [0, 1, 2, 3, 1, 0]),
        ("conv, batch norm", "3", [0, 1, 2, 3, 4, 2]),  # read through a flattened map: channels, not positions
    ],
)
def test_a_copy_is_rebuilt_from_its_twin(name: str, space: str, wide: list[int]) -> None:
    model, inputs, spec = network(name)
    size = spec.sizes[space]
    twins = morph.apply(morph.Widen(space, wide), model, inputs, spec=spec)
    compensation = Compensation(batches(name), ridge=1e-9)
    back = morph.apply(morph.Keep(space, range(size)), twins.model, inputs, spec=twins.spec, compensation=compensation)
    (found,) = back.records[0].rebuilt
    told = {found.units(int(place)): found.units(int(found.sources[row, 0])) for row, place in enumerate(found.dropped)}
    assert told == {((space, unit),): ((space, wide[unit]),) for unit in range(size, len(wide))}
    assert found.coefficients[:, 0].sub(1).abs().max() < 1e-4
    assert found.coefficients[:, 1:].mul(found.spreads[:, 1:]).abs().max() < 1e-3
    assert morph.apply(morph.Keep(space, range(size)), twins.model, inputs, spec=twins.spec).records[0].rebuilt == ()


def test_sources_are_ordered_by_what_they_add_and_named_by_space() -> None:
    parts = Atom(NeuronSpace("left", 2)), Product(Atom(NeuronSpace("heads", 2)), Atom(NeuronSpace("inside", 2)))
    axis = Product(Concat(parts), Fixed(9))
    selection = torch.eye(6)[[0, 2, 3, 4]]
    matrix = torch.zeros(4, 6)
    matrix[:, 1], matrix[:, 5] = torch.tensor([3.0, 1.0, -1.0, 0.0]), torch.tensor([0.0, 0.0, 0.0, 1.0])
    spread = torch.tensor([0.1, 2.0, 1.0, 1.0])
    found = rebuilding("w", axis, matrix, selection, torch.diag(spread.square()))
    assert [found.units(int(place)) for place in found.dropped] == [(("left", 1),), (("heads", 1), ("inside", 1))]
    # A coefficient of 3 on a unit that hardly moves adds less than one of 1 on a unit that does.
    assert found.sources[0].tolist() == [2, 3, 0, 4]
    assert found.coefficients[0].tolist() == [1.0, -1.0, 3.0, 0.0]
    assert found.units(4) == (("heads", 1), ("inside", 0))
    with pytest.raises(PlanError, match="place 6"):
        found.units(6)


def test_groups_and_units_inside_them_go_together() -> None:
    """A grouped convolution at half the width: the units are chosen for every group, then groups go."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=4), nn.ReLU(), nn.Flatten(), nn.Linear(128, 3)
        ).eval()
    inputs = (torch.randn(7, 1, 8, 8, generator=torch.Generator().manual_seed(1)),)
    spec = symmetry.trace(model, inputs)
    plan = morph.narrow(spec, model.state_dict(), morph.to_sizes(spec, 0.5))
    made = morph.apply(plan, model, inputs, spec=spec, compensation=Compensation([inputs]))
    assert (made.model[2].in_channels, made.model[2].out_channels, made.model[2].groups) == (2, 2, 2)
    # Each group reads units of its own, which no single matrix mixes; the linear layer behind is refitted.
    assert made.uncompensated == ("2.weight",)
    assert [each.reader for each in made.records[0].rebuilt] == ["5.weight"]
