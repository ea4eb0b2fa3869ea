"""Do gradients, Fisher diagonals and moments follow the weights? Autograd at the acted weights is the oracle."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import symmetry
from symmetry import SpecError, SymmetrySpec
from symmetry.verify import generic_state

from .families import FACTS, Stages, SwiGLU
from .models import SUBJECTS, draw, mlp, seeded


class TiedByName(nn.Module):
    """One tensor under two names: a layer and its transpose's partner."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)
        self.c.weight = self.b.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.d(torch.tanh(self.c(torch.tanh(self.b(torch.tanh(self.a(x)))))))


EXTRA: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "siren": (lambda: mlp([2, 5, 4, 2], torch.sin), (7, 2)),
    "sine before a relu": (lambda: Stages(nn.Linear(2, 4), torch.sin, torch.relu, nn.Linear(4, 1)), (7, 2)),
    "gains folded": (SwiGLU, (7, 3)),
    "tied by name": (TiedByName, (7, 3)),
}
NAMES = (
    "mlp relu",
    "mlp tanh",
    "conv, batch norm",
    "group norm, depthwise",
    "u-net",
    "encoder layer",
    "lstm",
    "swiglu",
    "deep linear",
    "lora",
    "prelu",
    "shared weights, relu",
    "tied linear autoencoder",
    *EXTRA,
)
KINDS = ("permutation", "scale", "sign", "linear", "orthogonal", "shift")
State = dict[str, Tensor]


@cache
def case(name: str) -> tuple[nn.Module, SymmetrySpec, State, tuple[int, ...]]:
    known = {subject.name: (subject.build, subject.shape) for subject in (*SUBJECTS, *FACTS)}
    build, shape = (known | EXTRA)[name]
    model = seeded(build).eval()
    spec = symmetry.trace(model, (draw(*shape),), fold_gains=name == "gains folded")
    # Fresh weights with larger biases: few units are dead, and dead ones have no gradient to compare.
    state = generic_state(spec, model.state_dict(keep_vars=True), torch.Generator().manual_seed(1), fresh=True)
    return model.to(torch.float64), spec, state, shape


def gradients(model: nn.Module, state: State, shape: tuple[int, ...], rows: slice = slice(None)) -> State:
    """The gradient of a loss that is not symmetric in its outputs, at a state."""
    names = [name for name, _ in model.named_parameters()]
    weights = {name: state[name].detach().clone().requires_grad_() for name in names}
    given = {**{name: value for name, value in state.items() if name in dict(model.named_buffers())}, **weights}
    outputs = torch.func.functional_call(model, given, draw(*shape, seed=3, dtype=torch.float64)[rows])
    wanted = draw(*outputs.shape, seed=4, dtype=torch.float64)
    (outputs - wanted).square().sum().backward()
    return {name: value.grad if value.grad is not None else torch.zeros_like(value) for name, value in weights.items()}


def apart(one: State, other: State) -> float:
    scale = max(float(value.abs().max()) for value in other.values())
    return max(float((one[name] - other[name]).abs().max()) / scale for name in other)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_those_of_autograd(name: str) -> None:
    model, spec, state, shape = case(name)
    at_start = gradients(model, state, shape)
    generator = torch.Generator().manual_seed(1)
    tried = 0
    for kinds in (*((kind,) for kind in KINDS), KINDS):
        element = spec.sample(generator, kinds)
        if element == spec.identity():
            continue
        tried += 1
        expected = gradients(model, spec.act(element, state), shape)
        found = symmetry.act_gradient(spec, element, at_start, state)
        assert list(found) == list(at_start)
        assert apart(found, expected) < 1e-10, kinds
        assert apart(at_start, expected) > 1e-4 or kinds == ("shift",)
        if kinds in (("scale",), ("linear",)):
            like_weights = {**state, **at_start}
            assert apart({n: spec.act(element, like_weights)[n] for n in expected}, expected) > 1e-4
    assert tried


@pytest.mark.parametrize("name", ["mlp relu", "conv, batch norm", "lstm", "prelu", "tied by name"])
def test_fisher_diagonals_are_those_of_autograd(name: str) -> None:
    model, spec, state, shape = case(name)

    def fisher(given: State) -> State:
        rows = [gradients(model, given, shape, slice(row, row + 1)) for row in range(shape[0])]
        return {key: torch.stack([row[key].square() for row in rows]).mean(0) for key in rows[0]}

    element = spec.sample(torch.Generator().manual_seed(2))
    found, expected = symmetry.act_fisher(spec, element, fisher(state)), fisher(spec.act(element, state))
    assert apart(found, expected) < 1e-10
    assert apart(fisher(state), expected) > 1e-3


def optimizer_of(model: nn.Module, kind: str) -> torch.optim.Optimizer:
    parameters = list(model.parameters())
    made: dict[str, Callable[[], torch.optim.Optimizer]] = {
        "adam": lambda: torch.optim.Adam(parameters, lr=0.01, amsgrad=True),
        "adamw": lambda: torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.1),
        "sgd": lambda: torch.optim.SGD(parameters, lr=0.01, momentum=0.9, weight_decay=0.01),
        "rmsprop": lambda: torch.optim.RMSprop(parameters, lr=0.01, momentum=0.9, centered=True),
        "adagrad": lambda: torch.optim.Adagrad(parameters, lr=0.01),
        "adamax": lambda: torch.optim.Adamax(parameters, lr=0.01),
        "adadelta": lambda: torch.optim.Adadelta(parameters),
        "rprop": lambda: torch.optim.Rprop(parameters),
        "nadam": lambda: torch.optim.NAdam(parameters),
        "radam": lambda: torch.optim.RAdam(parameters),
    }
    return made[kind]()


def step(model: nn.Module, optimizer: torch.optim.Optimizer, given: State) -> State:
    for name, parameter in model.named_parameters():
        parameter.grad = given[name].clone()
    optimizer.step()
    return {name: value.detach().clone() for name, value in model.state_dict(keep_vars=True).items()}


@pytest.mark.parametrize(
    "kind", ["adam", "adamw", "sgd", "rmsprop", "adagrad", "adamax", "adadelta", "rprop", "nadam", "radam"]
)
def test_a_step_commutes_with_permutations_and_signs_exactly(kind: str) -> None:
    model, spec, state, shape = case("conv, batch norm")
    model = copy.deepcopy(model)
    model.load_state_dict(state)
    optimizer = optimizer_of(model, kind)
    names = [name for name, _ in model.named_parameters()]
    for seed in range(3):
        state = step(model, optimizer, {n: draw(*state[n].shape, seed=seed, dtype=torch.float64) for n in names})
    # Reloading changes the dtype of some counters; here for both.
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    element = spec.sample(torch.Generator().manual_seed(3), ("permutation", "sign"))
    acted = symmetry.act_optimizer(spec, element, optimizer.state_dict(), names)
    last = gradients(model, state, shape)

    other = copy.deepcopy(model)
    other.load_state_dict(spec.act(element, state))
    plain = optimizer_of(other, kind)
    plain.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    followed = optimizer_of(twin := copy.deepcopy(other), kind)
    followed.load_state_dict(acted)

    moved = symmetry.act_gradient(spec, element, last)
    found = step(twin, followed, moved)
    wrong = step(other, plain, moved)
    expected = spec.act(element, step(model, optimizer, last))
    assert all(torch.equal(found[name], expected[name]) for name in names)
    assert not all(torch.equal(wrong[name], expected[name]) for name in names)


@pytest.mark.parametrize("name", ["mlp relu", "conv, batch norm", "encoder layer"])
def test_momentum_of_scaled_and_turned_weights(name: str) -> None:
    """The momentum that training would have had at the acted weights, were they moved alike all along."""
    model, spec, state, shape = case(name)
    model = copy.deepcopy(model)
    model.load_state_dict(state)
    names = [name for name, _ in model.named_parameters()]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9)
    history = [gradients(model, state, shape, slice(0, row)) for row in (3, 5, 7)]
    for given in history:
        step(model, optimizer, given)
    element = spec.sample(torch.Generator().manual_seed(4))
    acted = symmetry.act_optimizer(spec, element, optimizer.state_dict(), names)
    moved = spec.act(element, state)
    buffer: State = {}
    for row in (3, 5, 7):
        at_moved = gradients(model, moved, shape, slice(0, row))
        buffer = {n: 0.9 * buffer[n] + g if buffer else g for n, g in at_moved.items()}
    found = {n: acted["state"][k]["momentum_buffer"] for k, n in enumerate(names)}
    assert apart(found, buffer) < 1e-10
    before = {n: optimizer.state_dict()["state"][k]["momentum_buffer"] for k, n in enumerate(names)}
    assert apart(before, buffer) > 1e-3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes(dtype: torch.dtype) -> None:
    model, spec, state, shape = case("encoder layer")
    exact = gradients(model, state, shape)
    coarse = {name: value.to(dtype) for name, value in exact.items()}
    element = spec.sample(torch.Generator().manual_seed(5))
    found = symmetry.act_gradient(spec, element, coarse)
    assert {value.dtype for value in found.values()} == {dtype}
    expected = symmetry.act_gradient(spec, element, {name: value.double() for name, value in coarse.items()})
    assert all(torch.equal(found[name], expected[name].to(dtype)) for name in expected)
    still = spec.sample(torch.Generator().manual_seed(5), ("permutation", "sign"))
    back = symmetry.act_gradient(spec, ~still, symmetry.act_gradient(spec, still, coarse))
    assert all(torch.equal(back[name], coarse[name]) for name in coarse)


def test_composition() -> None:
    model, spec, state, shape = case("u-net")
    given = gradients(model, state, shape)
    a, b = (spec.sample(torch.Generator().manual_seed(seed)) for seed in (6, 7))
    one = symmetry.act_gradient(spec, a @ b, given)
    two = symmetry.act_gradient(spec, a, symmetry.act_gradient(spec, b, given))
    assert apart(one, two) < 1e-10
    assert apart(one, symmetry.act_gradient(spec, b @ a, given)) > 1e-3


def test_matrices_and_squares() -> None:
    model, spec, state, shape = case("lora")
    names = [name for name, _ in model.named_parameters()]
    element = spec.sample(torch.Generator().manual_seed(8), ("linear",))
    squares = {name: value.square() for name, value in gradients(model, state, shape).items()}
    with pytest.raises(SpecError, match=r"do not follow the matrix on .* or approximate=True"):
        symmetry.act_fisher(spec, element, squares)
    found = symmetry.act_fisher(spec, element, squares, approximate=True)
    factor = spec.linear[0]
    slot = factor.slots[0]
    assert slot.leaf == 0
    assert not slot.inverse
    dual = torch.linalg.inv(element.matrices[factor.space]).T
    assert torch.allclose(found[slot.tensor], dual.square() @ squares[slot.tensor])
    model = copy.deepcopy(model)
    optimizer = torch.optim.Adamax(model.parameters())
    step(model, optimizer, squares)
    with pytest.raises(SpecError, match=r"squares and magnitudes .*; expected an element without matrices$"):
        symmetry.act_optimizer(spec, element, optimizer.state_dict(), names, approximate=True)


def refuse(message: str, call: Callable[..., Any], *arguments: Any) -> None:
    with pytest.raises(SpecError, match=message):
        call(*arguments)


def test_refusals() -> None:
    model, spec, state, shape = case("mlp relu")
    element, given = spec.identity(), gradients(model, state, shape)
    names = [name for name, _ in model.named_parameters()]
    refuse("gradients: 'nowhere' is not an entry", symmetry.act_gradient, spec, element, {"nowhere": torch.zeros(1)})
    refuse(r"0\.bias has shape \(5,\), expected", symmetry.act_gradient, spec, element, {"0.bias": torch.zeros(5)})
    other = case("mlp tanh")[1].identity()
    refuse("the element belongs to another spec", symmetry.act_gradient, spec, other, given)
    optimizer = torch.optim.Adam(copy.deepcopy(model).parameters())
    refuse("names: 2 names for 6 parameters", symmetry.act_optimizer, spec, element, optimizer.state_dict(), names[:2])
    refuse("no entries 'state'", symmetry.act_optimizer, spec, element, {"lr": 1}, names)
    odd = {**optimizer.state_dict(), "state": {0: {"curvature": torch.zeros(4, 3)}}}
    refuse("'curvature' of 0.weight has no rule", symmetry.act_optimizer, spec, element, odd, names)
    far = {**optimizer.state_dict(), "state": {9: {"exp_avg": torch.zeros(4, 3)}}}
    refuse("state of parameter 9; expected numbers below 6", symmetry.act_optimizer, spec, element, far, names)
    model, spec, state, shape = case("gains folded")
    turned = spec.sample(torch.Generator().manual_seed(1), ("orthogonal",))
    given = gradients(model, state, shape)
    refuse("expected the argument state", symmetry.act_gradient, spec, turned, given)
    del given["n.weight"]
    refuse("'n.weight' is missing; expected both", symmetry.act_gradient, spec, turned, given, state)
