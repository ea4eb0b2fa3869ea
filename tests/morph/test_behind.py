"""Do the weights behind a dropped block make up for it as least squares on what they read would?"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import symmetry
from metanet import morph
from metanet.errors import PlanError
from metanet.morph import Compensation, Drop, Swap
from metanet.morph.moments import reader_inputs, watched
from tests.morph.subjects import network, same
from tests.symmetry.models import draw, seeded


class Linear(nn.Module):
    """A block that adds a linear map of what it reads: what is behind it can make up for it wholly."""

    def __init__(self, kind: type[nn.Module], width: int, *sizes: int) -> None:
        super().__init__()
        self.map = kind(width, width, *sizes, bias=not sizes)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.map(x)


class Last(nn.Module):
    """The output of a recurrent layer, or of attention, at the last step."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        given = (x, x, x) if isinstance(self.layer, nn.MultiheadAttention) else (x,)
        return self.layer(*given)[0][:, -1]


# Block "1" is dropped; what reads behind it is of each kind.
BEHIND: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (
        lambda: nn.Sequential(nn.Linear(3, 4), Linear(nn.Linear, 4), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2)),
        (40, 3),
    ),
    "convolution": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 3, 3), Linear(nn.Conv2d, 3, 1), nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.Tanh()
        ),
        (20, 1, 6, 6),
    ),
    "recurrent": (
        lambda: nn.Sequential(nn.Linear(3, 4), Linear(nn.Linear, 4), Last(nn.GRU(4, 3, batch_first=True))),
        (40, 5, 3),
    ),
    "attention": (
        lambda: nn.Sequential(
            nn.Linear(3, 4), Linear(nn.Linear, 4), Last(nn.MultiheadAttention(4, 2, batch_first=True))
        ),
        (40, 5, 3),
    ),
}


def shifted(model: nn.Module) -> None:
    """Torch starts some biases at zero, where a lost constant would not be seen."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "bias" in name:
                parameter.copy_(draw(*parameter.shape, dtype=torch.float64))


@pytest.mark.usefixtures("traced_once")
@pytest.mark.parametrize("name", BEHIND)
def test_a_linear_block_is_made_up_for_wholly(name: str) -> None:
    build, shape = BEHIND[name]
    model = seeded(build).double().eval()
    shifted(model)
    inputs = (draw(*shape, dtype=torch.float64),)
    spec = symmetry.trace(model, inputs)
    dropped = morph.apply(Drop("1"), model, inputs, spec=spec)
    assert dropped.error > 1e-2
    plain = dropped.model
    behind = [key for key in reader_inputs(watched(plain), inputs) if key != "0.weight"]
    joint = {}
    before, now = (reader_inputs(watched(one), inputs) for one in (model, plain))
    for key in behind[:1]:
        x, y = (torch.cat([item.reshape(-1, item.shape[-1]) for item in seen[key]]) for seen in (now, before))
        both = torch.cat([x, y], 1)
        joint[key] = both.mean(0), torch.cov(both.mT, correction=0)
    for compensation in (
        Compensation([inputs], ridge=1e-12),
        Compensation([inputs], ridge=1e-12, sequential=False),
        Compensation(moments=joint, ridge=1e-12),
    ):
        made = morph.apply(Drop("1"), model, inputs, spec=spec, compensation=compensation)
        assert made.uncompensated == ()
        assert made.error < 1e-6
        assert same(morph.undo(made), model)


def test_the_first_reader_is_refitted_as_least_squares_says() -> None:
    """An oracle: numpy on what it reads with and without the block."""
    model, inputs, spec = network("resnet")
    data = (draw(30, 3, 8, 8, seed=4, dtype=torch.float64),)
    plain = morph.apply(Drop("5"), model, inputs, spec=spec).model
    x, y = (model[:stages](data[0]).mean((2, 3)).detach().numpy() for stages in (5, 6))
    wide = np.concatenate([x, np.ones((len(x), 1))], 1)
    fit = np.linalg.lstsq(wide, y, rcond=None)[0]
    weight, bias = (tensor.detach().numpy() for tensor in (model[8].weight, model[8].bias))
    for sequential in (True, False):
        compensation = Compensation([data], ridge=1e-13, sequential=sequential)
        made = morph.apply(Drop("5"), model, inputs, spec=spec, compensation=compensation).model
        found = x @ made[8].weight.detach().numpy().T + made[8].bias.detach().numpy()
        assert np.allclose(found, wide @ fit @ weight.T + bias, atol=1e-6)
        assert not np.allclose(made[8].weight.detach().numpy(), weight, atol=1e-3)
        assert all(torch.equal(made[0].weight, one[0].weight) for one in (model, plain))


@pytest.mark.parametrize("edit", [Drop("3"), Swap("2", "tanh")], ids=str)
def test_in_the_middle_of_a_stream_all_readers_help(edit: morph.Edit) -> None:
    """Behind another activation as behind a dropped block."""
    model, inputs, spec = network("resnet")
    data = (draw(64, *inputs[0].shape[1:], seed=4, dtype=torch.float64),)

    def distance(compensation: Compensation | None) -> float:
        made = morph.apply(edit, model, inputs, spec=spec, compensation=compensation).model
        with torch.no_grad():
            return float((made(*data) - model(*data)).square().mean())

    plain = distance(None)
    for sequential in (True, False):
        assert distance(Compensation([data], sequential=sequential)) < 0.5 * plain


def test_moments_that_do_not_fit() -> None:
    model, inputs, spec = network("resnet")
    wrong = Compensation(moments={"8.weight": (torch.zeros(7), torch.eye(7))})
    with pytest.raises(PlanError, match=r"8.weight.*expected \(12,\) and \(12, 12\).*without the block and with it"):
        morph.apply(Drop("5"), model, inputs, spec=spec, compensation=wrong)
    # Moments of what is read now alone say nothing of what was.
    nothing = Compensation(moments={"8.weight": (torch.zeros(6), torch.eye(6))})
    made = morph.apply(Drop("5"), model, inputs, spec=spec, compensation=nothing)
    assert made.uncompensated == ("drop 5",)
