"""Does tracing stay sound where models are awkward, and does it say what stopped it?"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import symmetry
from symmetry import Atom, Concat, Product

from .models import Activation, ActorCritic, conv_bn, draw, mlp, seeded


class Cumulative(nn.Module):
    """An operation without a rule between two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 5), nn.Linear(5, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.relu(self.b(torch.relu(self.a(x)).cumprod(-1))))


def test_an_operation_without_a_rule_pins_and_is_named() -> None:
    model, x = seeded(Cumulative), draw(7, 3)
    spec = symmetry.trace(model, (x,))
    assert [space.name for space in spec.spaces] == ["b"]
    pin = spec.pinned[0]
    assert pin.operation == "aten.cumprod.default"
    assert set(pin.tensors) == {"a.weight[0]", "a.bias[0]", "b.weight[1]"}
    assert "cumprod" in pin.source
    assert "test_trace.py" in pin.source
    assert "aten.cumprod.default" in str(pin)
    assert symmetry.verify(model, (x,), spec, trials=2).passed


def test_strict_raises_with_node_operation_and_line() -> None:
    with pytest.raises(symmetry.TraceError) as caught:
        symmetry.trace(seeded(Cumulative), (draw(7, 3),), strict=True)
    message = str(caught.value)
    assert "aten.cumprod.default" in message
    assert "node cumprod" in message
    assert "strict=False" in message
    assert "\n" not in message


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) if x.sum() > 0 else -self.a(x)


@pytest.mark.parametrize(
    ("build", "inputs", "words"),
    [
        (Branching, (draw(7, 3),), ("Branching", "control flow")),
        (lambda: mlp([3, 2], None), (), ("Sequential", "example_inputs")),
        (lambda: mlp([3, 2], None), (draw(7, 3), draw(7, 3)), ("Sequential", "example_inputs")),
        (lambda: mlp([3, 2], None), (draw(7, 4),), ("Sequential", "export")),
    ],
)
def test_what_does_not_export_is_explained(
    build: Callable[[], nn.Module], inputs: tuple[Tensor, ...], words: tuple[str, ...]
) -> None:
    with pytest.raises(symmetry.TraceError) as caught:
        symmetry.trace(seeded(build), inputs)
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert "\n" not in message


def test_wrong_arguments_are_explained() -> None:
    with pytest.raises(symmetry.TraceError, match=r"write \(tensor,\)"):
        symmetry.trace(mlp([3, 2], None), draw(7, 3))  # type: ignore[arg-type]
    with pytest.raises(symmetry.TraceError, match=r"expected a torch\.nn\.Module"):
        symmetry.trace(torch.relu, (draw(7, 3),))  # type: ignore[arg-type]


def test_tracing_leaves_the_model_as_it_was() -> None:
    model = seeded(conv_bn).train()
    model[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    symmetry.trace(model, (draw(7, 2, 4, 4),))
    assert [module.training for module in model] == [True, False, *[True] * 6]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())


class Gates(nn.Module):
    """One matrix whose output is cut into four gates (as in recurrent cells), and a concatenation read again."""

    def __init__(self, units: int) -> None:
        super().__init__()
        self.w, self.r, self.o = nn.Linear(3, 4 * units), nn.Linear(2 * units, 3), nn.Linear(3, 2)
        self.units = units

    def forward(self, x: Tensor) -> Tensor:
        n = self.units
        z = self.w(x)
        a, b, c, d = z[:, :n], z[:, n : 2 * n], z[:, 2 * n : 3 * n], z[:, 3 * n :]
        first = torch.tanh(a) * torch.sigmoid(b)
        second = torch.relu(c) * d
        return self.o(torch.relu(self.r(torch.cat([first, second], dim=1))))


@pytest.mark.parametrize("units", [1, 2, 4])
def test_gates_become_a_concatenation(units: int) -> None:
    model, x = seeded(lambda: Gates(units)), draw(7, 3)
    spec = symmetry.trace(model, (x,), strict=True)
    axis = spec.axes["w.weight"][0]
    assert isinstance(axis, Concat)
    names = [part.space.name for part in axis.parts if isinstance(part, Atom)]
    assert names[0] == names[1] != names[2] == names[3]
    # tanh: one sign a unit; relu(c) d: a scale for c and one for d, a sign for d; then the relu layer of three.
    assert spec.sign_bits == 2 * units
    assert spec.scale_dimension == 2 * units + 3
    proof = symmetry.verify(model, (x,), spec, trials=3)
    assert proof.passed, str(proof)


class Flattened(nn.Module):
    """Channels by pixels, read by one matrix."""

    def __init__(self, channels: int, side: int) -> None:
        super().__init__()
        self.c, self.o = nn.Conv2d(1, channels, 3, padding=1), nn.Linear(channels * side * side, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.o(torch.relu(self.c(x)).flatten(1))


@pytest.mark.parametrize(("channels", "side"), [(4, 4), (1, 3), (3, 1), (4, 2)])
def test_flatten_becomes_a_product(channels: int, side: int) -> None:
    model, x = seeded(lambda: Flattened(channels, side)), draw(7, 1, side, side)
    spec = symmetry.trace(model, (x,), strict=True)
    assert [space.size for space in spec.spaces] == [channels]
    if channels > 1 and side > 1:
        assert isinstance(spec.axes["o.weight"][1], Product)
    assert spec.scale_dimension == channels
    assert symmetry.verify(model, (x,), spec, trials=3).passed


@settings(max_examples=25, deadline=None)
@given(
    widths=st.lists(st.integers(1, 4), min_size=2, max_size=4),
    batch=st.integers(1, 4),
    time=st.integers(1, 4),
    function=st.sampled_from([torch.relu, torch.tanh, torch.sin, nn.functional.gelu, torch.abs, None]),
    residual=st.booleans(),
)
def test_random_multilayer_networks_are_sound(
    widths: list[int], batch: int, time: int, function: Callable[[Tensor], Tensor] | None, residual: bool
) -> None:
    """Equal sizes everywhere (batch = time = units) must not confuse axes."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp([widths[0], *widths, widths[0]], function)
            self.head = nn.Linear(widths[0], 2)
            self.function = Activation(function or (lambda x: x))

        def forward(self, x: Tensor) -> Tensor:
            y = self.function(self.net(x))
            return self.head(x + y if residual else y).mean(1)

    model, x = seeded(Model), draw(batch, time, widths[0])
    spec = symmetry.trace(model, (x,), strict=True)
    proof = symmetry.verify(model, (x,), spec, trials=2)
    assert proof.max_error <= 1e-10, str(proof)


@settings(max_examples=20, deadline=None)
@given(
    channels=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    side=st.integers(1, 4),
    norm=st.booleans(),
    pool=st.sampled_from(["max", "avg", "none"]),
    flat=st.booleans(),
    groups=st.booleans(),
)
def test_random_convolutional_networks_are_sound(
    channels: list[int], side: int, norm: bool, pool: str, flat: bool, groups: bool
) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layers: list[nn.Module] = []
            for inputs, outputs in zip([2, *channels], channels, strict=False):
                layers.append(nn.Conv2d(inputs, outputs, 3, padding=1))
                layers += [nn.BatchNorm2d(outputs)] if norm else []
                layers += [nn.ReLU()]
                if groups:
                    layers += [nn.Conv2d(outputs, 2 * outputs, 3, padding=1, groups=outputs), nn.Tanh()]
                    layers += [nn.Conv2d(2 * outputs, outputs, 1, groups=outputs), nn.ReLU()]
            if pool != "none" and side % 2 == 0:
                layers.append(nn.MaxPool2d(2) if pool == "max" else nn.AvgPool2d(2))
            self.net = nn.Sequential(*layers)
            self.flat = flat
            after = side // 2 if pool != "none" and side % 2 == 0 else side
            self.head = nn.Linear(channels[-1] * (after * after if flat else 1), 2)

        def forward(self, x: Tensor) -> Tensor:
            y = self.net(x)
            return self.head(y.flatten(1) if self.flat else y.mean((2, 3)))

    model, x = seeded(Model), draw(2, 2, side, side)
    spec = symmetry.trace(model, (x,), strict=True)
    proof = symmetry.verify(model, (x,), spec, trials=2)
    assert proof.max_error <= 1e-10, str(proof)


def test_grouped_convolutions_have_units_inside_groups() -> None:
    """Between two depthwise stages each channel's pair of units is its own: S2 wreath S4."""
    model = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 8, 3, groups=4), nn.Tanh(), nn.Conv2d(8, 4, 1, groups=4), nn.ReLU(),
        nn.Conv2d(4, 2, 1),
    )  # fmt: skip
    x = draw(7, 3, 5, 5)
    spec = symmetry.trace(model, (x,), strict=True)
    assert spec.permutation_order == 24 * 2**4
    assert list(spec.within.values()) == [(next(iter(spec.within.values()))[0],)]
    assert symmetry.verify(model, (x,), spec).passed


def test_two_chains_share_their_input_axis() -> None:
    spec = symmetry.trace(seeded(ActorCritic), (draw(7, 4),))
    assert spec.axes["actor.0.weight"][1] == spec.axes["critic.0.weight"][1]
    assert spec.axes["log_std"][0].leaves()[0].size == 2
    assert spec.tensors["actor.0.weight"].roles == ("out", "in")
    assert spec.tensors["actor.0.weight"].kind == "linear.weight"
    assert spec.tensors["actor.0.bias"].kind == "bias"
    assert spec.activations["actor.0"] == ("tanh",)


def test_unused_and_unsaved_tensors() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.spare = nn.Linear(3, 4), nn.Linear(4, 2), nn.Linear(9, 9)
            self.register_buffer("mask", torch.tensor([1.0, 2.0, 3.0, 4.0]), persistent=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(torch.relu(self.a(x)) * self.mask)

    model, x = seeded(Model), draw(7, 3)
    spec = symmetry.trace(model, (x,))
    assert spec.tensors["spare.weight"].kind == "unused"
    assert "mask" not in spec.axes
    # A constant that differs from unit to unit forbids permuting them; scalings pass it.
    assert spec.spaces == ()
    assert symmetry.verify(model, (x,), spec, trials=2).passed
    state = model.state_dict()
    acted = spec.act(spec.sample(torch.Generator().manual_seed(0)), state)
    assert acted["spare.weight"] is state["spare.weight"]


def test_every_rule_stands_in_the_table() -> None:
    table = symmetry.rule_table()
    operations = [operation for _, operation, _ in table]
    assert len(set(operations)) == len(operations)
    assert {"aten.convolution.default", "aten.addmm.default", "aten.relu.default", "getitem"} <= set(operations)
    assert all(summary for _, _, summary in table)
