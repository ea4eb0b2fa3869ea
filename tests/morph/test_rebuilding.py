"""Does a morph say which units stand in for those that were dropped?"""

from __future__ import annotations

import pytest
import torch

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
