"""Are networks that are not finite refused by tensor, and huge ones compared all the same?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import symmetry
from symmetry import SpecError, SymmetrySpec
from tests.nn.cases import State, case


def spoiled(state: State) -> State:
    found = {name: value.clone() for name, value in state.items()}
    found["0.weight"].view(-1)[:2] = float("nan")
    found["2.bias"][0] = float("inf")
    return found


READERS: dict[str, Callable[[SymmetrySpec, State, State], Any]] = {
    "this is the reference": lambda spec, good, bad: symmetry.align(spec, bad, good),
    "this is the state to be carried there": lambda spec, good, bad: symmetry.align(spec, good, bad),
    "this is network 1": lambda spec, good, bad: symmetry.align_many(spec, [good, bad]),
    "this is the second": lambda spec, good, bad: symmetry.match_widths(spec, good, spec, bad),
    "a canonical gauge needs a finite state": lambda spec, good, bad: symmetry.canonicalize(spec, bad),
}


@pytest.mark.parametrize("message", READERS)
def test_values_that_are_not_finite_are_told_by_tensor(message):
    one = case("mlp relu")
    with pytest.raises(
        SpecError, match=r"0\.weight \(2 of 15\), 2\.bias \(1 of 4\): values that are not finite"
    ) as told:
        READERS[message](one.spec, one.state(0), spoiled(one.state(0)))
    assert message in str(told.value)


@pytest.mark.parametrize("name", ["mlp tanh", "mlp relu"])
def test_huge_networks_are_aligned_and_looked_at(name):
    """Squares of their weights leave the range of float32; a planted element is found all the same."""
    one = case(name)
    state = {key: (1e30 * value).float() for key, value in one.state(0).items()}
    element = one.spec.sample(torch.Generator().manual_seed(1), kinds=("permutation", "sign"))
    found = symmetry.align(one.spec, state, one.spec.act(element, state))
    assert all(bool(torch.equal(a, b)) for a, b in zip(element.permutations.values(), _inverse(found), strict=True))
    assert "twins" not in symmetry.analyze(one.spec, state).text()
    twins = {key: value.clone() for key, value in state.items()}
    for key in ("0.weight", "0.bias"):
        twins[key][1] = twins[key][0]
    assert "twins (0 = 1)" in symmetry.analyze(one.spec, twins).text()


def _inverse(element: symmetry.GroupElement) -> list[Tensor]:
    return [value.argsort() for value in element.permutations.values()]
