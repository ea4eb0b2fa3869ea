"""Specs written by hand, for tests that must not depend on the tracer, and random states for them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from symmetry import Atom, Axis, Concat, Fixed, NeuronSpace, Product, SymmetrySpec, TensorInfo

Entry = tuple[str, str, tuple[Axis, ...], tuple[str, ...]]  # name, kind, axes, roles


def make_spec(
    entries: list[Entry],
    activations: dict[str, tuple[str, ...]] | None = None,
    within: dict[str, tuple[str, ...]] | None = None,
    tied: dict[str, str] | None = None,
    dtypes: dict[str, str] | None = None,
) -> SymmetrySpec:
    spaces: dict[str, NeuronSpace] = {}
    for _, _, axes, _ in entries:
        for leaf in (leaf for axis in axes for leaf in axis.leaves()):
            if isinstance(leaf, Atom):
                spaces[leaf.space.name] = leaf.space
    tensors = {}
    for order, (name, kind, axes, roles) in enumerate(entries):
        tensors[name] = TensorInfo(
            shape=tuple(axis.size for axis in axes),
            dtype=(dtypes or {}).get(name, "float32"),
            kind=kind,
            roles=roles,
            order=order,
            buffer="running" in kind or kind == "unused",
            tied_to=(tied or {}).get(name),
            positive_offset=1e-5 if kind == "norm.running_var" else None,
        )
    return SymmetrySpec(
        spaces=tuple(spaces.values()),
        axes={name: axes for name, _, axes, _ in entries},
        tensors=tensors,
        within=within or {},
        activations=activations or dict.fromkeys(spaces, ("relu",)),
    )


def random_state(
    spec: SymmetrySpec, generator: torch.Generator, dtype: torch.dtype = torch.float64
) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for name, info in spec.tensors.items():
        if info.tied_to is not None:
            state[name] = state[info.tied_to]
        elif "float" not in info.dtype:
            state[name] = torch.randint(0, 100, info.shape, generator=generator)
        else:
            fan_in = math.prod(info.shape[1:]) or 1
            value = torch.randn(info.shape, generator=generator, dtype=torch.float64) / math.sqrt(fan_in)
            if info.kind == "norm.running_var":
                value = value.square() + 0.1
            state[name] = value.to(dtype)
    return state


def atom(name: str, size: int) -> Atom:
    return Atom(NeuronSpace(name, size))


def linear(name: str, out: Axis, inp: Axis, bias: bool = True) -> list[Entry]:
    weight: Entry = (f"{name}.weight", "linear.weight", (out, inp), ("out", "in"))
    return [weight, (f"{name}.bias", "bias", (out,), ("out",))] if bias else [weight]


def conv(name: str, out: Axis, inp: Axis, kernel: int = 3, bias: bool = True) -> list[Entry]:
    axes = (out, inp, Fixed(kernel), Fixed(kernel))
    weight: Entry = (f"{name}.weight", "conv.weight", axes, ("out", "in", "position", "position"))
    return [weight, (f"{name}.bias", "bias", (out,), ("out",))] if bias else [weight]


def norm(name: str, space: Axis) -> list[Entry]:
    return [
        (f"{name}.weight", "norm.weight", (space,), ("out",)),
        (f"{name}.bias", "norm.bias", (space,), ("out",)),
        (f"{name}.running_mean", "norm.running_mean", (space,), ("out",)),
        (f"{name}.running_var", "norm.running_var", (space,), ("out",)),
        (f"{name}.num_batches_tracked", "unused", (), ()),
    ]


def mlp(*widths: int, activation: str = "relu") -> SymmetrySpec:
    """inputs, hidden widths ..., outputs."""
    axes: list[Axis] = [Fixed(widths[0], "input.0.1")]
    axes += [atom(f"h{i}", width) for i, width in enumerate(widths[1:-1], 1)]
    axes.append(Fixed(widths[-1], "output.0.1"))
    entries = [entry for i in range(len(widths) - 1) for entry in linear(f"layers.{i}", axes[i + 1], axes[i])]
    return make_spec(entries, {f"h{i}": (activation,) for i in range(1, len(widths) - 1)})


def cnn(channels: int = 1, widths: tuple[int, int] = (4, 5), outputs: int = 3, pixels: int = 4) -> SymmetrySpec:
    """conv, batch norm, depthwise conv, conv, flatten, linear; integer counters."""
    first, second = atom("c1", widths[0]), atom("c2", widths[1])
    depthwise: Entry = (
        "depth.weight",
        "conv.weight",
        (first, Fixed(1), Fixed(3), Fixed(3)),
        ("unit", "none", "position", "position"),
    )
    entries = [
        *conv("conv1", first, Fixed(channels, "input.0.1"), bias=False),
        *norm("bn1", first),
        depthwise,
        *conv("conv2", second, first),
        *norm("bn2", second),
        *linear("head", Fixed(outputs, "output.0.1"), Product(second, Fixed(pixels))),
    ]
    return make_spec(entries, dtypes={"bn1.num_batches_tracked": "int64", "bn2.num_batches_tracked": "int64"})


def residual(width: int = 4) -> SymmetrySpec:
    """A residual stream that two branches read and write; one of them square."""
    stream, hidden = atom("stream", width), atom("hidden", width + 2)
    entries = [
        *linear("stem", stream, Fixed(3, "input.0.1")),
        *linear("up", hidden, stream),
        *linear("down", stream, hidden),
        *linear("square", stream, stream, bias=False),
        *linear("head", Fixed(2, "output.0.1"), stream),
    ]
    return make_spec(entries, {"hidden": ("gelu",), "stream": ()})


def lstm(inputs: int = 3, width: int = 4) -> SymmetrySpec:
    """The gates of an LSTM: four parts of one space."""
    hidden = atom("h", width)
    gates = Concat((hidden, hidden, hidden, hidden))
    entries = [
        ("cell.weight_ih_l0", "linear.weight", (gates, Fixed(inputs, "input.0.2")), ("out", "in")),
        ("cell.weight_hh_l0", "linear.weight", (gates, hidden), ("out", "in")),
        ("cell.bias_ih_l0", "bias", (gates,), ("out",)),
        *linear("head", Fixed(2, "output.0.1"), hidden),
    ]
    return make_spec(entries, {"h": ("sigmoid", "tanh")})


def chains() -> SymmetrySpec:
    """Two chains that read one observation, a tied pair and an unused vector."""
    seen, policy, value = Fixed(3, "obs"), atom("pi", 4), atom("vf", 4)
    entries = [
        *linear("policy.0", policy, seen),
        *linear("value.0", value, seen),
        *linear("policy.2", Fixed(2, "action"), policy),
        *linear("value.2", Fixed(1, "value"), value),
        ("log_std", "unused", (Fixed(2),), ("none",)),
        *linear("again", policy, seen),
        ("temperature", "parameter", (), ()),
    ]
    tied = {"again.weight": "policy.0.weight"}
    return make_spec(entries, {"pi": ("tanh",), "vf": ("tanh",)}, tied=tied)


def attention(width: int = 3, heads: int = 2, each: int = 2) -> SymmetrySpec:
    """Units inside heads (a wreath product), Q, K and V in one tensor, and a raw tensor of three unit axes."""
    stream, head, unit = atom("stream", width), atom("heads", heads), atom("units", each)
    units = Product(head, unit)
    entries: list[Entry] = [
        *linear("inp", stream, Fixed(3, "input.0.1")),
        ("qkv.weight", "linear.weight", (Concat((units, units, units)), stream), ("out", "in")),
        ("out.weight", "linear.weight", (stream, units), ("out", "in")),
        ("odd", "parameter", (stream, stream, stream), ("unit", "unit", "unit")),
        *linear("head", Fixed(2, "output.0.1"), stream),
    ]
    return make_spec(entries, {"stream": ("relu",)}, within={"units": ("heads",)})


SPECS = {
    "mlp": lambda: mlp(4, 5, 3, 2),
    "width one": lambda: mlp(2, 1, 1, 1),
    "tanh": lambda: mlp(4, 4, 2, activation="tanh"),
    "cnn": cnn,
    "residual": residual,
    "lstm": lstm,
    "chains": chains,
    "attention": attention,
}
