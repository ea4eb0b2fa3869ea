"""Do rounds of Gauss-Newton bring an edited network nearer to the old one, and leave everything else alone?"""

from __future__ import annotations

import pytest
import torch
from torch import nn

import symmetry
from metanet import morph
from metanet.errors import PlanError
from metanet.morph import Compensation
from metanet.tasks.morph_task import divergence


def perceptron() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, 4)).double().eval()
    for parameter in model.parameters():
        parameter.data.mul_(2)
    return model


class Tied(nn.Module):
    """A weight that reads and writes."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.out = nn.Linear(6, 8), nn.Linear(8, 6), nn.Linear(6, 3)
        self.two.weight = nn.Parameter(self.one.weight.detach().mT.clone())
        self.again = nn.Linear(6, 8)
        self.again.weight = self.one.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.two(torch.relu(self.again(self.two(torch.relu(self.one(x)))))))


def narrowed(model: nn.Module, keep: dict[str, int], inputs: torch.Tensor, rounds: int) -> morph.Morph:
    spec = symmetry.trace(model, (inputs[:3],))
    plan = morph.narrow_by_obs(model, spec, keep, [(inputs,)])
    return morph.apply(plan, model, (inputs[:3],), compensation=Compensation([(inputs,)], rounds=rounds))


def test_rounds_go_down_on_inputs_that_were_not_seen_and_undo_goes_back() -> None:
    model = perceptron()
    drawn = torch.randn(700, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    far = {}
    for rounds in (0, 2, 8):
        found = narrowed(model, {"0": 6, "2": 5}, drawn[:400], rounds)
        with torch.no_grad():
            far[rounds] = float(divergence(model(drawn[400:])[None], found.model(drawn[400:])[None]))
        back = morph.undo(found)
        assert all(torch.equal(before[name], value) for name, value in back.state_dict().items())
    assert far[8] < far[2] < 0.9 * far[0]
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_tied_weights_stay_tied() -> None:
    torch.manual_seed(1)
    model = Tied().double().eval()
    drawn = torch.randn(300, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    plain, found = (narrowed(model, {"one": 6}, drawn, rounds).model for rounds in (0, 4))
    assert found.one.weight is found.again.weight
    with torch.no_grad():
        far = [float(divergence(model(drawn)[None], made(drawn)[None])) for made in (plain, found)]
    assert far[1] < 0.9 * far[0]


def test_what_has_no_classes_is_refused_before_anything_is_touched() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1)).double().eval()
    drawn = torch.randn(100, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with pytest.raises(PlanError, match="rounds go down the divergence of classes"):
        narrowed(model, {"0": 4}, drawn, 2)
    with pytest.raises(PlanError, match="batches to go down on"):
        Compensation(moments={}, rounds=1)
    with pytest.raises(PlanError, match="-1 rounds"):
        Compensation([(drawn,)], rounds=-1)
