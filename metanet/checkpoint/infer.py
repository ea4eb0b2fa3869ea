"""Which chains of linear layers does this state dict hold, told by its names and shapes?

Only what names and shapes say for sure becomes one chain: layers numbered in one sequence whose sizes fit, and the
layouts of Stable-Baselines3. Two sequences that merely could follow each other stay apart, because a hidden layer
that is in truth an output would make the group too large; keeping them apart only makes it smaller. The activation is
in no file: it is the known default of a recognised layout, or the user says it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from metanet.checkpoint.architecture import Architecture
from metanet.checkpoint.layouts import LAYOUTS, Layout, Part
from metanet.checkpoint.options import ACTIVATIONS
from metanet.errors import CheckpointError

__all__ = ["infer"]

HEADS = ("head", "out", "output", "classifier", "final", "last", "fc_out", "out_proj")
_HINT = (
    "give the architecture with architecture=, an architecture.json beside the file, or a Python factory with factory="
)


@dataclass
class _Layers:
    """The linear layers of a state, by path, and the tensors that are none."""

    state: Mapping[str, Tensor]
    prefix: str
    file: str | os.PathLike[str]
    paths: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    used: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        for name, tensor in self.state.items():
            path = name.removesuffix(".weight")
            if path != name and tensor.ndim == 2:
                self.paths.append(path.removeprefix(self.prefix))
        known = set(self.paths)
        for name, tensor in self.state.items():
            path = name.removeprefix(self.prefix)
            layer, _, last = path.rpartition(".")
            if layer not in known or last not in ("weight", "bias"):
                self.others.append(path)
            elif last == "bias" and tuple(tensor.shape) != self._shape(layer)[:1]:
                raise self.error(f"is the bias of a layer with {self._shape(layer)[0]} outputs", path)

    def error(self, reason: str, path: str | None, hint: str = _HINT) -> CheckpointError:
        tensor = None if path is None else self.prefix + path
        if tensor is not None and tensor in self.state:
            reason = f"has shape {list(self.state[tensor].shape)}: {reason}"
        return CheckpointError(reason, file=self.file, tensor=tensor, hint=hint)

    def _shape(self, path: str) -> tuple[int, ...]:
        return tuple(self.state[f"{self.prefix}{path}.weight"].shape)

    def matrices(self) -> list[str]:
        """Tensors with two axes that are no layer's weight."""
        return [path for path in self.others if self.state[self.prefix + path].ndim == 2]

    def sequence(self, prefix: str) -> list[str]:
        """The layers ``prefix.0``, ``prefix.2``, ... in the order of their numbers, or ``prefix`` itself."""
        numbered = {int(path[len(prefix) + 1 :]): path for path in self.paths if _is_numbered(path, prefix)}
        return [prefix] * (prefix in self.paths) + [numbered[i] for i in sorted(numbered)]

    def chain(self, name: str, source: str, paths: list[str], activation: str, last: str) -> dict[str, Any]:
        """One chain of the architecture, its sizes checked."""
        widths = [self._shape(paths[0])[1]]
        before = source
        for path in paths:
            outputs, inputs = self._shape(path)
            if inputs != widths[-1]:
                raise self.error(f"it reads {inputs} units, but '{before}' writes {widths[-1]}", f"{path}.weight")
            widths.append(outputs)
            before = path
        self.used.update(paths)
        return {
            "name": name,
            "input": source,
            "layers": [self.prefix + path for path in paths],
            "widths": widths,
            "activations": [activation] * (len(paths) - 1) + [last],
            "bias": [f"{self.prefix}{path}.bias" in self.state for path in paths],
        }

    def check_all_used(self, allowed: tuple[str, ...]) -> None:
        """Refuse tensors that have no place, because they could be a norm or an attention that changes the group."""
        for path in self.paths:
            if path not in self.used:
                raise self.error("it belongs to no chain of linear layers that its name tells", f"{path}.weight")
        for path in self.others:
            if path not in allowed:
                raise self.error("only chains of linear layers are recognised by names and shapes", path)


def _is_numbered(path: str, prefix: str) -> bool:
    return path.startswith(prefix + ".") and re.fullmatch(r"[0-9]{1,6}", path[len(prefix) + 1 :]) is not None


def infer(
    state: Mapping[str, Tensor], activation: str | None = None, file: str | os.PathLike[str] = "", prefix: str = ""
) -> Architecture:
    """The architecture of a state dict that consists of chains of linear layers.

    Args:
        state: names and tensors.
        activation: the pointwise function between the layers; ``None`` takes the default of a recognised layout.
        file: for messages.
        prefix: what every name starts with (``module.``); it is kept.

    Raises:
        CheckpointError: where a tensor has no place in a chain, sizes do not fit, or the activation is not known.
    """
    if activation is not None and activation not in ACTIVATIONS:
        raise CheckpointError(
            f"activation {activation!r:.60} is not known", file=file, hint="known are " + ", ".join(ACTIVATIONS)
        )
    layers = _Layers(state, prefix, file)
    if not layers.paths:
        first = next(iter(state))
        raise layers.error("there is no linear layer (a two-axis '.weight') in the file", first.removeprefix(prefix))
    for layout in LAYOUTS:
        if layout.fits(layers.paths, layers.matrices()):
            return _from_layout(layers, layout, activation)
    return _from_numbers(layers, activation)


def _matches(layers: _Layers, part: Part) -> list[tuple[str, list[str]]]:
    """Chain names and layers for one part of a layout; a pattern such as ``critic.qf#`` may give several."""
    if "#" not in part.prefixes[0]:
        paths = [path for prefix in part.prefixes for path in layers.sequence(prefix)]
        return [(part.name, paths)] if paths else []
    pattern = re.compile(re.escape(part.prefixes[0]).replace(r"\#", "[0-9]{1,6}") + r"(?=\.|$)")
    found = {match.group() for path in layers.paths if (match := pattern.match(path))}
    ordered = sorted(found, key=lambda text: (len(text), text))
    return [(prefix, layers.sequence(prefix)) for prefix in ordered]


def _from_layout(layers: _Layers, layout: Layout, activation: str | None) -> Architecture:
    chosen = activation or layout.activation
    chains: list[dict[str, Any]] = []
    for part in layout.parts:
        names = {chain["name"] for chain in chains}
        source = next((name for name in part.reads if name in names), part.reads[-1])
        for name, paths in _matches(layers, part):
            chains.append(layers.chain(name, source, paths, chosen, chosen if part.hidden else "identity"))
    noises = [_noise(layers, layout, {chain["name"]: chain["widths"][-1] for chain in chains})] if layout.noise else []
    layers.check_all_used((*layout.extras, layout.noise))
    said = "given by the user" if activation else "its default, the file does not say it"
    return _architecture(
        layers,
        chains,
        noises,
        f"Stable-Baselines3 {layout.name}, by its tensor names; activation {chosen}: {said}; {layout.note}",
    )


def _noise(layers: _Layers, layout: Layout, sizes: Mapping[str, int]) -> dict[str, Any]:
    source = next((name for name in layout.noise_reads if name in sizes), layout.noise_reads[-1])
    shape = list(layers.state[layers.prefix + layout.noise].shape)
    if source in sizes and shape[0] != sizes[source]:
        raise layers.error(f"it should have one row for each of the {sizes[source]} units of '{source}'", layout.noise)
    return {"parameter": layers.prefix + layout.noise, "input": source, "shape": shape}


def _from_numbers(layers: _Layers, activation: str | None) -> Architecture:
    groups: dict[tuple[str, str], list[tuple[int, str]]] = {}
    for path in layers.paths:
        match = re.fullmatch(r"(.*\D|)([0-9]{1,6})(\D*)", path)
        stem = (match[1], match[3]) if match else (path, "")
        groups.setdefault(stem, []).append((int(match[2]) if match else 0, path))
    sequences = {stem: [path for _, path in sorted(group)] for stem, group in groups.items()}
    _join_heads(layers, sequences)
    layers.used.update(path for paths in sequences.values() for path in paths)
    layers.check_all_used(())
    if activation is None:
        raise layers.error(
            "the file does not say which function stands between its linear layers",
            None,
            hint="give it with activation= ("
            + ", ".join(ACTIVATIONS)
            + "), or the whole with architecture= or factory=",
        )
    chains = []
    for (before, after), paths in sequences.items():
        name = (before.rstrip("._") + after) or "chain"
        source = "input" if len(sequences) == 1 else f"{name}.input"
        chains.append(layers.chain(name, source, paths, activation, "identity"))
    text = f"linear layers numbered in sequence, by names and shapes; activation {activation}: given by the user"
    return _architecture(layers, chains, [], text)


def _join_heads(layers: _Layers, sequences: dict[tuple[str, str], list[str]]) -> None:
    """Put a last layer with a usual name (``head``, ``out``) behind the one numbered sequence in the same folder."""
    heads: dict[str, list[str]] = {}
    trunks: dict[str, list[tuple[str, str]]] = {}
    for stem, paths in sequences.items():
        folder, _, last = stem[0].rstrip(".").rpartition(".")
        if stem != (paths[0], ""):
            trunks.setdefault(folder, []).append(stem)
        elif last in HEADS:
            heads.setdefault(folder, []).append(paths[0])
    for folder, found in heads.items():
        if len(found) == 1 and len(trunks.get(folder, ())) == 1:
            sequences[trunks[folder][0]].append(found[0])
            del sequences[(found[0], "")]


def _architecture(
    layers: _Layers, chains: list[dict[str, Any]], noises: list[dict[str, Any]], provenance: str
) -> Architecture:
    used = {noise["parameter"] for noise in noises}
    names = [layers.prefix + path for path in layers.others if layers.prefix + path not in used]
    extras = {name: list(layers.state[name].shape) for name in names}
    try:
        return Architecture("chains", {"chains": chains, "noises": noises, "extras": extras}, provenance)
    except CheckpointError as error:
        raise error.within(layers.file) from None
