"""Does tracing stay sound where models are awkward, and does it say what stopped it?"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import symmetry
from symmetry import Atom, Concat, Product

from .models import ActorCritic, conv_bn, draw, mlp, seeded


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


class Applied(nn.Module):
    """A function of one linear layer and its input."""

    def __init__(self, function: Callable[[nn.Module, Tensor], object]) -> None:
        super().__init__()
        self.a, self.function = nn.Linear(3, 2), function

    def forward(self, x: Tensor) -> object:
        return self.function(self.a, x)


def branching(layer: nn.Module, x: Tensor) -> Tensor:
    if x.sum() > 0:
        return layer(x)
    return -layer(x)


def looping(layer: nn.Module, x: Tensor) -> Tensor:
    return layer(x) * sum(1 for _ in range(int(x.sum())))


def chosen(layer: nn.Module, x: Tensor) -> Tensor:
    y = layer(x)
    return y[y > 0]


def to_numpy(layer: nn.Module, x: Tensor) -> Tensor:
    return torch.from_numpy(layer(x).numpy())


def refusing(layer: nn.Module, x: Tensor) -> Tensor:
    raise KeyError("no such head")


def misfitting(layer: nn.Module, x: Tensor) -> Tensor:
    return layer(layer(x))


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(3, 2)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.a(x) * mask


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (branching, ("control flow", "if x.sum() > 0:", "torch.cond")),
        (looping, ("control flow", "range(int(x.sum()))", "torch.where")),
        # torch keeps the lines of modules for the nodes of a graph, not those of functions that they call.
        (
            chosen,
            ("aten.index.Tensor", "node index", "self.function(self.a, x)", "depends on the values", "torch.where"),
        ),
        (to_numpy, ("numpy() is not supported", "torch.from_numpy(layer(x)", "torch.export.export")),
        (refusing, ("KeyError: 'no such head'", 'raise KeyError("no such head")')),
        (misfitting, ("aten.linear.default", "module a (Linear)", "return layer(layer(x))", "[7, 2] X [3, 2]")),
        (lambda layer, x: None, ("Applied", "returns no tensor")),
    ],
    ids=["branch", "loop", "boolean index", "numpy", "raises", "shapes", "no output"],
)
def test_what_does_not_export_is_explained(
    function: Callable[[nn.Module, Tensor], object], words: tuple[str, ...]
) -> None:
    """Operation or node, the line of the model's code, torch's reason and what to do, in one line."""
    with pytest.raises(symmetry.TraceError) as caught:
        symmetry.trace(Applied(function), (draw(7, 3),))
    message = str(caught.value)
    assert all(word in message for word in words), message
    if len(words) > 2:
        assert "test_trace.py:" in message
    assert "\n" not in message
    assert "TORCH_LOGS" not in message
    assert len(message) < 700


def test_shapes_that_do_not_fit_name_the_module() -> None:
    with pytest.raises(symmetry.TraceError, match=r"aten\.linear\.default, module 0 \(Linear\): .*\[7, 4\] X \[3, 2\]"):
        symmetry.trace(mlp([3, 2], None), (draw(7, 4),))


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ((), ("0 entries", "(x: ", "mask: ", "missing a required argument: 'x'")),
        ((draw(7, 3),), ("1 entry", "missing a required argument: 'mask'")),
        ((draw(7, 3),) * 3, ("3 entries", "too many positional arguments")),
    ],
)
def test_a_wrong_number_of_inputs_is_explained(inputs: tuple[Tensor, ...], words: tuple[str, ...]) -> None:
    with pytest.raises(symmetry.TraceError) as caught:
        symmetry.trace(Two(), inputs)
    message = str(caught.value)
    assert message.startswith("Two: example_inputs has ")
    assert "give one entry per argument of forward" in message
    assert all(word in message for word in words), message


def test_wrong_arguments_are_explained() -> None:
    with pytest.raises(symmetry.TraceError, match=r"write \(tensor,\)"):
        symmetry.trace(mlp([3, 2], None), draw(7, 3))  # type: ignore[arg-type]
    with pytest.raises(symmetry.TraceError, match=r"dict, expected a tuple"):
        symmetry.trace(mlp([3, 2], None), {"x": draw(7, 3)})  # type: ignore[arg-type]
    with pytest.raises(symmetry.TraceError, match=r"expected a torch\.nn\.Module"):
        symmetry.trace(torch.relu, (draw(7, 3),))  # type: ignore[arg-type]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        scripted = torch.jit.script(mlp([3, 2], None))
    with pytest.raises(symmetry.TraceError, match=r"TorchScript; trace the torch\.nn\.Module"):
        symmetry.trace(scripted, (draw(7, 3),))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: state.pop("0.bias"), ("no entry '0.bias'", "(4,)", "traced from")),
        (lambda state: state.update({"2.weight": torch.zeros(5, 4)}), ("2.weight", "(5, 4)", "expected (4, 4)")),
        (lambda state: state.update(extra=torch.zeros(1)), ("'extra'", "does not know", "0.weight")),
    ],
    ids=["missing", "shape", "unknown"],
)
def test_a_state_of_another_model_shows_the_first_difference(
    change: Callable[[dict[str, Tensor]], object], words: tuple[str, ...]
) -> None:
    model = mlp([3, 4, 4, 2], torch.relu)
    spec, state = symmetry.trace(model, (draw(7, 3),)), model.state_dict()
    change(state)
    with pytest.raises(symmetry.SpecError) as caught:
        spec.act(spec.identity(), state)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_spec_of_another_model_is_refused_by_verify() -> None:
    spec = symmetry.trace(mlp([3, 4, 2], torch.relu), (draw(7, 3),))
    with pytest.raises(symmetry.SpecError, match=r"0\.weight: shape \(5, 3\), expected \(4, 3\) by the spec"):
        symmetry.verify(mlp([3, 5, 2], torch.relu), (draw(7, 3),), spec)


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
