"""Are inputs joined along lines, every one with another, the same in every call?"""

from __future__ import annotations

import torch

from metanet.tasks.crossing import crossed


def test_every_value_lies_between_an_image_and_its_partner() -> None:
    images = torch.arange(6.0).reshape(6, 1, 1, 1).expand(6, 2, 9, 9)
    made = crossed(images, torch.Generator().manual_seed(0))
    assert made.shape == images.shape
    partner = torch.randperm(6, generator=_after_angles(6))
    low, high = torch.minimum(images, images[partner]), torch.maximum(images, images[partner])
    assert bool(((made >= low - 1e-6) & (made <= high + 1e-6)).all())
    # On one side of the line it is the image, on the other its partner; in the middle half of each.
    joined = [k for k in range(6) if int(partner[k]) != k]
    for k in joined:
        share = (made[k, 0] - float(partner[k])) / (k - float(partner[k]))
        assert float(share.max()) > 0.95
        assert float(share.min()) < 0.05
        assert abs(float(share[4, 4]) - 0.5) < 1e-5
    assert len(joined) >= 4


def _after_angles(count: int) -> torch.Generator:
    generator = torch.Generator().manual_seed(0)
    torch.rand(count, 1, 1, 1, generator=generator)
    return generator


def test_it_is_drawn_from_the_generator_alone() -> None:
    images = torch.randn(5, 1, 4, 6, generator=torch.Generator().manual_seed(1))
    one, same, other = (crossed(images, torch.Generator().manual_seed(seed)) for seed in (2, 2, 3))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_signals_of_one_row() -> None:
    images = torch.randn(4, 1, 1, 16, generator=torch.Generator().manual_seed(1))
    made = crossed(images, torch.Generator().manual_seed(0))
    assert made.shape == images.shape
    assert not torch.equal(made, images)
