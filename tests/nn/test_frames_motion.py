"""Do motions act on a bucket as the elements of `symmetry` act on each of its states?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from metanet.errors import ModelError
from metanet.graph import Bucket
from metanet.nn.frames import Motion
from symmetry import GroupElement
from tests.nn.cases import Case, State, batch_of, case

KINDS = ("scale", "sign", "linear", "orthogonal", "shift")
NAMES = ("batch norm", "siren", "transformer", "gru", "folded gains")
LIMIT = 1e-12


def prepared(name: str) -> tuple[Case, list[State], Bucket, list[list[GroupElement]]]:
    """A case, two states of it, their bucket, and two lists of an element for each."""
    one = case(name)
    states = [one.state(0), one.state(1)]
    generator = torch.Generator().manual_seed(3)
    elements = [[one.spec.sample(generator, KINDS) for _ in states] for _ in range(2)]
    return one, states, batch_of(one.spec, states).buckets[0], elements


def motion_of(bucket: Bucket, elements: Sequence[GroupElement]) -> Motion:
    return Motion.of(bucket.topology, elements, torch.zeros((), dtype=torch.float64))


def values_of(one: Case, elements: Sequence[GroupElement], states: Sequence[State]) -> tuple[Tensor | None, ...]:
    moved = [one.spec.act(element, state) for element, state in zip(elements, states, strict=True)]
    return batch_of(one.spec, moved).buckets[0].values


def apart(found: Sequence[Tensor | None], expected: Sequence[Tensor | None]) -> float:
    """Largest difference of any block, relative to its largest entry."""
    pairs = [(a, b) for a, b in zip(found, expected, strict=True) if a is not None and b is not None]
    return max(float((a - b).abs().max() / b.abs().max().clamp_min(1e-30)) for a, b in pairs)


@pytest.mark.parametrize("name", NAMES)
def test_a_motion_acts_as_its_elements(name):
    one, states, bucket, (first, second) = prepared(name)
    a, b = motion_of(bucket, first), motion_of(bucket, second)
    assert apart(a.act(bucket.values), bucket.values) > 1e-3  # negative control: it does move something
    assert apart(a.act(bucket.values), values_of(one, first, states)) < LIMIT
    together = [left @ right for left, right in zip(first, second, strict=True)]
    assert apart((a @ b).act(bucket.values), values_of(one, together, states)) < LIMIT
    assert apart((~a).act(a.act(bucket.values)), bucket.values) < LIMIT
    for row, element in enumerate(first):
        assert a.element(row) == element
        assert (~a).element(row) == ~element
        assert (a @ b).element(row) == together[row]
    assert a.select(torch.tensor([1])).element(0) == first[1]


@pytest.mark.parametrize("name", NAMES)
def test_changes_are_carried_by_the_linear_part(name):
    one, _, bucket, (first, _) = prepared(name)
    motion = motion_of(bucket, first)
    generator = torch.Generator().manual_seed(5)
    gains = {slot.gain for factor in one.spec.linear for slot in factor.slots}
    changes = [
        None if value is None else torch.randn(len(bucket), 3, *value.shape[1:], generator=generator).double()
        for value in bucket.values
    ]
    for change, block in zip(changes, bucket.topology.blocks, strict=True):
        if block.tensor in gains and change is not None:
            change.zero_()
    carried = motion.carry(changes, bucket.values)
    for k in range(3):
        moved = [
            None if value is None or change is None else value + change[:, k]
            for value, change in zip(bucket.values, changes, strict=True)
        ]
        expected = [
            None if value is None or change is None else value + change[:, k]
            for value, change in zip(motion.act(bucket.values), carried, strict=True)
        ]
        assert apart(motion.act(moved), expected) < LIMIT


def test_gradients_flow_through_scales_and_matrices():
    _, _, bucket, (first, _) = prepared("transformer")
    motion = motion_of(bucket, first)
    logs = {name: value.clone().requires_grad_() for name, value in motion.log_scales.items()}
    matrices = {name: value.clone().requires_grad_() for name, value in motion.matrices.items()}
    moved = replace(motion, log_scales=logs, matrices=matrices).act(bucket.values)
    total = torch.stack([value.pow(3).sum() for value in moved if value is not None]).sum()
    found = torch.autograd.grad(total, [*logs.values(), *matrices.values()])
    assert found
    assert all(bool(value.isfinite().all()) and bool((value != 0).any()) for value in found)


def test_wrong_names_and_shapes_are_refused():
    _, _, bucket, (first, _) = prepared("batch norm")
    name = next(iter(first[0].log_scales))
    with pytest.raises(ModelError, match=r"log_scales\['nothing'\] is unknown"):
        Motion(bucket.topology, 2, {"nothing": torch.zeros(2, 4)})
    with pytest.raises(ModelError, match="has shape"):
        Motion(bucket.topology, 2, {name: torch.zeros(1, 4)})
    permuting = case("batch norm").spec.sample(torch.Generator().manual_seed(0))
    with pytest.raises(ModelError, match="permutes"):
        motion_of(bucket, [permuting, permuting])
