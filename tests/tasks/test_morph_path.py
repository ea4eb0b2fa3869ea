"""Does the gap between gradients vanish on the images themselves, grow with the distance, and teach inputs?"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import symmetry
from metanet.morph.batched import Masked
from metanet.tasks import morph_path
from metanet.tasks.morph_path import gradient_gap


@pytest.fixture(scope="module")
def masked() -> Masked:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)).double()
    return Masked(model, symmetry.trace(model, (torch.zeros(2, 5, dtype=torch.float64),)))


def states(masked: Masked, count: int = 2) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {
        name: torch.randn(count, *value.shape, generator=generator, dtype=torch.float64) / 2
        for name, value in masked.module.state_dict().items()
    }


def images(count: int = 800, seed: int = 1, shift: float = 0.0) -> Tensor:
    return torch.randn(count, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + shift


def gap(masked: Masked, inputs: Tensor, seed: int = 0, own: bool = False) -> Tensor:
    masks = {masked.spaces[0]: torch.tensor([[1.0, 0, 1, 0, 1, 0, 1, 1]] * 2, dtype=torch.float64)}
    drawn = torch.Generator().manual_seed(seed)
    return gradient_gap(masked, states(masked), inputs, images(), masks, torch.tensor(1e-3), drawn, own)


def test_the_images_themselves_leave_no_gap_and_others_do(masked: Masked) -> None:
    same, alike, far = (
        float(gap(masked, inputs).detach()) for inputs in (images(), images(seed=2), images(seed=2, shift=3.0))
    )
    assert same < -15
    assert alike > same + 5
    assert far > alike + 0.5


def test_own_inputs_are_the_same_as_shared_ones(masked: Masked) -> None:
    one, two = gap(masked, images(seed=2)), gap(masked, images(seed=2).expand(2, -1, -1), own=True)
    assert float(one.detach()) == pytest.approx(float(two.detach()), abs=1e-9)


def test_inputs_learn_from_it(masked: Masked) -> None:
    inputs = images(60, seed=2, shift=1.0).requires_grad_()
    optimizer = torch.optim.Adam([inputs], lr=0.1)
    before = sum(float(gap(masked, inputs, seed).detach()) for seed in range(4)) / 4
    for step in range(40):
        optimizer.zero_grad()
        gap(masked, inputs, step).backward()
        optimizer.step()
    after = sum(float(gap(masked, inputs, seed).detach()) for seed in range(4)) / 4
    assert after < before - 0.3


def test_the_path_is_drawn_from_the_generator(masked: Masked) -> None:
    found = [float(gap(masked, images(seed=2), seed).detach()) for seed in (0, 0, 1, 2)]
    assert found[0] == found[1]
    assert len(set(found)) > 1


def test_weights_that_read_dropped_units_do_not_count(masked: Masked, monkeypatch: pytest.MonkeyPatch) -> None:
    def rounds(seed: int) -> int:
        return int(torch.randint(morph_path._DEPTH + 1, (), generator=torch.Generator().manual_seed(seed)))

    # At the start of the path the masks matter for the sums alone.
    start = next(seed for seed in range(100) if rounds(seed) == 0)
    found = float(gap(masked, images(seed=2), start).detach())
    monkeypatch.setattr(morph_path, "may_move", lambda *_: {})
    assert abs(float(gap(masked, images(seed=2), start).detach()) - found) > 1e-6
