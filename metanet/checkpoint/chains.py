"""How is a file with several chains of linear layers (an actor and its critics, a trunk with heads) one network?

Each chain reads a named input or the output of an earlier chain, so a shared trunk with several heads is one function
and gets one spec. Chains that nobody reads are the outputs, in order. Tensors that belong to no chain (``log_std``)
are kept as
extras: they take no part in the function. State-dependent exploration noise, whose ``log_std`` has one row per unit
of a chain, is an output of its own: without it, permuting that chain's units would silently change how an agent
explores.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from metanet.checkpoint.families import Activation, Family
from metanet.checkpoint.options import ACTIVATIONS, MAX_DEPTH, MAX_PARAMETERS, Options
from metanet.errors import CheckpointError

__all__ = ["CHAINS", "Chains"]

MAX_CHAINS = 64
MAX_EXTRAS = 256
MAX_NAME = 200


class _Folder(nn.Module):
    """Holds children so that dotted names come out as in the file."""


def _place(root: nn.Module, path: str, value: nn.Module | nn.Parameter) -> None:
    *folders, last = path.split(".")
    here = root
    try:
        for part in folders:
            child = here._modules.get(part)
            if child is None:
                child = _Folder()
                here.add_module(part, child)
            here = child
        if isinstance(value, nn.Parameter):
            here.register_parameter(last, value)
        elif isinstance(here._modules.get(last), _Folder):
            raise KeyError("two modules of this name")
        else:
            here.add_module(last, value)
    except KeyError as error:
        raise CheckpointError(
            f"'{path}' cannot be the name of a part of a module ({error.args[0]})", hint="rename the tensor"
        ) from None


class Chains(nn.Module):
    """Chains of linear layers as one function.

    Shapes:
        one (batch, size) tensor per input, in order of first use -> one (batch, outputs) tensor per chain that no other
        reads, then one per noise, as a tuple
    """

    def __init__(self, chains: Any, noises: Any, extras: Mapping[str, Any]) -> None:
        super().__init__()
        self.inputs = tuple(_inputs(chains, noises))
        read = {part["input"] for part in (*chains, *noises)}
        self.outputs = tuple(chain["name"] for chain in chains if chain["name"] not in read)
        self.chains = tuple(
            (chain["name"], chain["input"], tuple(zip(chain["layers"], chain["activations"], strict=True)))
            for chain in chains
        )
        for chain in chains:
            sizes = zip(chain["widths"][:-1], chain["widths"][1:], strict=True)
            for layer, (a, b), bias in zip(chain["layers"], sizes, chain["bias"], strict=True):
                # Deeper names first would hide a linear layer under a folder; both orders are refused in _place.
                _place(self, layer, nn.Linear(a, b, bias=bias))
        self.noises = tuple((noise["parameter"], noise["input"]) for noise in noises)
        for noise in noises:
            _place(self, noise["parameter"], nn.Parameter(torch.zeros(tuple(noise["shape"]))))
        for name, shape in extras.items():
            _place(self, name, nn.Parameter(torch.zeros(tuple(shape))))
        self.pointwise = {name: Activation(name) for name in ACTIVATIONS}

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """See the class."""
        values = dict(zip(self.inputs, inputs, strict=True))
        for name, source, layers in self.chains:
            x = values[source]
            for layer, activation in layers:
                x = self.pointwise[activation](self.get_submodule(layer)(x))
            values[name] = x
        noises = tuple(self._noise(self._tensor(name), values[source]) for name, source in self.noises)
        return tuple(values[name] for name in self.outputs) + noises

    def _tensor(self, name: str) -> Tensor:
        # get_parameter would refuse the plain tensors that torch.func.functional_call puts in a parameter's place.
        folder, _, last = name.rpartition(".")
        return getattr(self.get_submodule(folder), last)

    @staticmethod
    def _noise(log_std: Tensor, features: Tensor) -> Tensor:
        """Standard deviation of state-dependent exploration.

        Source: Raffin et al., Smooth Exploration for Robotic Reinforcement Learning, 2021, section 3; the small
            constant is that of Stable-Baselines3.
        """
        return torch.sqrt((features * features) @ torch.exp(2 * log_std) + 1e-6)


def _inputs(chains: Any, noises: Any) -> dict[str, int]:
    """Size of every outside input, in order of first use."""
    names = {chain["name"] for chain in chains}
    result: dict[str, int] = {}
    for chain in chains:
        if chain["input"] not in names:
            result.setdefault(chain["input"], chain["widths"][0])
    for noise in noises:
        if noise["input"] not in names:
            result.setdefault(noise["input"], noise["shape"][0])
    return result


def _check_name(options: Options, what: str, value: object) -> str:
    good = isinstance(value, str) and 0 < len(value) <= MAX_NAME and value.isprintable() and all(value.split("."))
    if not good:
        raise options.error(what, value, f"a dotted name of 1 to {MAX_NAME} printable characters")
    return str(value)


def _normalize_chain(position: int, raw: object) -> dict[str, Any]:
    options = Options(f"chains[{position}]", raw)
    layers = [
        _check_name(options, f"layers[{i}]", name)
        for i, name in enumerate(options.check_sequence("layers", options.take("layers"), MAX_DEPTH))
    ]
    activations = options.check_sequence("activations", options.take("activations"), MAX_DEPTH)
    bias = options.check_sequence("bias", options.take("bias", [True] * len(layers), required=False), MAX_DEPTH)
    result = {
        "name": _check_name(options, "name", options.take("name")),
        "input": _check_name(options, "input", options.take("input")),
        "layers": layers,
        "widths": options.widths(shortest=2),
        "activations": [options.check_choice(f"activations[{i}]", a, ACTIVATIONS) for i, a in enumerate(activations)],
        "bias": list(bias),
    }
    options.finish()
    for i, flag in enumerate(bias):
        if type(flag) is not bool:
            raise options.error(f"bias[{i}]", flag, "true or false")
    for name, length in (("widths", len(layers) + 1), ("activations", len(layers)), ("bias", len(layers))):
        if len(result[name]) != length:
            raise options.error(f"length of {name}", len(result[name]), f"{length} for {len(layers)} layers")
    return result


def _normalize_noise(position: int, raw: object) -> dict[str, Any]:
    options = Options(f"noises[{position}]", raw)
    shape = options.widths("shape")
    result = {
        "parameter": _check_name(options, "parameter", options.take("parameter")),
        "input": _check_name(options, "input", options.take("input")),
        "shape": shape,
    }
    options.finish()
    if len(shape) != 2:
        raise options.error("length of shape", len(shape), "2: units and actions")
    return result


def _normalize_extras(options: Options) -> dict[str, list[int]]:
    raw = options.take("extras", {}, required=False)
    if not isinstance(raw, Mapping) or len(raw) > MAX_EXTRAS:
        raise options.error("extras", raw, f"a mapping from at most {MAX_EXTRAS} names to shapes")
    result = {}
    for name, shape in raw.items():
        sizes = options.check_sequence(f"extras '{name}'", shape, 8)
        result[_check_name(options, "extras", name)] = [
            options.check_integer(f"extras '{name}'", size, 0, MAX_PARAMETERS) for size in sizes
        ]
    return result


def _normalize(raw: object) -> dict[str, Any]:
    options = Options("chains", raw)
    listed = options.check_sequence("chains", options.take("chains"), MAX_CHAINS)
    chains = [_normalize_chain(i, chain) for i, chain in enumerate(listed)]
    wide = options.check_sequence("noises", options.take("noises", [], required=False), MAX_CHAINS)
    noises = [_normalize_noise(i, noise) for i, noise in enumerate(wide)]
    extras = _normalize_extras(options)
    options.finish()
    if not chains:
        raise options.error("chains", listed, "at least one chain")
    sizes: dict[str, int] = {}
    done: set[str] = set()
    later = {chain["name"] for chain in chains}
    for i, chain in enumerate(chains):
        name, source = chain["name"], chain["input"]
        if name in done or name == source:
            raise options.error(f"chains[{i}] name", name, "a name of its own")
        if source in later and source not in done:
            raise options.error(f"chains[{i}] input", source, "an input, or a chain that stands earlier in the list")
        if sizes.setdefault(source, chain["widths"][0]) != chain["widths"][0]:
            raise options.error(
                f"chains[{i}] widths[0]", chain["widths"][0], f"{sizes[source]}, the size of '{source}'"
            )
        if name in sizes:
            raise options.error(f"chains[{i}] name", name, "a name that no input has")
        sizes[name] = chain["widths"][-1]
        done.add(name)
    for i, noise in enumerate(noises):
        if sizes.setdefault(noise["input"], noise["shape"][0]) != noise["shape"][0]:
            raise options.error(
                f"noises[{i}] shape[0]", noise["shape"][0], f"{sizes[noise['input']]}, as many as units"
            )
    _check_tensor_names(options, chains, [noise["parameter"] for noise in noises] + list(extras))
    return {"chains": chains, "noises": noises, "extras": extras}


def _check_tensor_names(options: Options, chains: list[dict[str, Any]], others: list[str]) -> None:
    tensors: set[str] = set()
    for chain in chains:
        for layer, bias in zip(chain["layers"], chain["bias"], strict=True):
            for tensor in (f"{layer}.weight", f"{layer}.bias") if bias else (f"{layer}.weight",):
                if tensor in tensors:
                    raise options.error("layers", layer, "every layer once")
                tensors.add(tensor)
    for name in others:
        if name in tensors:
            raise options.error("extras or noises", name, "a tensor of no chain, once")
        tensors.add(name)


CHAINS = Family(
    "chains",
    _normalize,
    lambda o: Chains(o["chains"], o["noises"], o["extras"]),
    lambda o: tuple((size,) for size in _inputs(o["chains"], o["noises"]).values()),
)
