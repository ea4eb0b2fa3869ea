"""Which architectures has a model seen, and is this one near enough to say anything about it?

A metanetwork computes something for any parameter graph. Outside of what it was trained on that is a number without
meaning, so a model remembers what it has seen and refuses the rest by name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from metanet.errors import TaskError
from metanet.graph import topology_of
from symmetry import Fixed, SymmetrySpec

_LISTED = 8  # up to so many different sizes are remembered one by one; of more, only the range
_SIZES = ("layers", "inputs", "outputs", "widths", "positions")
_MARGIN = 2.0  # how far outside a remembered range a width may lie


@dataclass(frozen=True)
class Sizes:
    """Sizes that were seen: each one where they are few, else the range.

    Attributes:
        listed: The sizes; empty where only the range counts.
        low: Smallest.
        high: Largest.
    """

    listed: tuple[int, ...]
    low: int
    high: int

    @classmethod
    def of(cls, values: Iterable[int]) -> Sizes:
        unique = sorted(set(values)) or [0]
        return cls(tuple(unique) if len(unique) <= _LISTED else (), unique[0], unique[-1])

    def refuses(self, size: int, margin: float) -> bool:
        """Whether a size is neither listed nor within the range, widened by a factor."""
        return not self.low / margin <= size <= self.high * margin

    def __str__(self) -> str:
        return ", ".join(map(str, self.listed)) if self.listed else f"{self.low} to {self.high}"


@dataclass(frozen=True)
class Coverage:
    """What the architectures of a training part had in common.

    Attributes:
        kinds: Kinds of tensors ("linear.weight", "norm.running_var").
        activations: Pointwise functions.
        layers: Number of weight layers.
        inputs: Sizes of the axes that read the data.
        outputs: Sizes of the axes that write the answer.
        widths: Sizes of the hidden spaces.
        factors: What the groups consist of ("permutation", "scale", "sign", "linear", "orthogonal", "shift"); `None` in
            a record that does not tell.
        positions: Numbers of kernel positions (or pixels behind a flatten) of one weight; `None` likewise.
    """

    kinds: tuple[str, ...]
    activations: tuple[str, ...]
    layers: Sizes
    inputs: Sizes
    outputs: Sizes
    widths: Sizes
    factors: tuple[str, ...] | None = None
    positions: Sizes | None = None

    @classmethod
    def of(cls, specs: Iterable[SymmetrySpec]) -> Coverage:
        """What these specs have in common; equal specs are looked at once."""
        unique = {spec.fingerprint: spec for spec in specs}.values()
        return cls(
            kinds=tuple(sorted({kind for spec in unique for kind in _kinds(spec)})),
            activations=tuple(sorted({name for spec in unique for name in _activations(spec)})),
            layers=Sizes.of(_layers(spec) for spec in unique),
            inputs=Sizes.of(size for spec in unique for size in _ends(spec, "in")),
            outputs=Sizes.of(size for spec in unique for size in _ends(spec, "out")),
            widths=Sizes.of(space.size for spec in unique for space in spec.spaces),
            factors=tuple(sorted({kind for spec in unique for kind in _factors(spec)})),
            positions=Sizes.of(count for spec in unique for count in _positions(spec).values()),
        )

    def refusal(self, spec: SymmetrySpec) -> str:
        """Why the model cannot read such an architecture; empty where it can."""
        for what, known, found in (
            ("tensors of kind", self.kinds, _kinds(spec)),
            ("activation", self.activations, _activations(spec)),
            ("symmetry", self.factors, _factors(spec)),
        ):
            new = sorted(set(found) - set(known)) if known is not None else []
            if new:
                where = f" of {found[new[0]]}" if isinstance(found, dict) else ""
                return f"{what} {new[0]!r}{where}, the model was trained on {', '.join(known or ()) or 'none'}"
        if self.positions is not None:
            for tensor, count in _positions(spec).items():
                if count > self.positions.high:
                    return f"{count} kernel positions in {tensor}, the model was trained on {self.positions}"
        layers = _layers(spec)
        if self.layers.refuses(layers, 1):
            return f"{layers} weight layers, the model was trained on {self.layers}"
        for what, sizes, found_sizes in (
            ("inputs", self.inputs, _ends(spec, "in")),
            ("outputs", self.outputs, _ends(spec, "out")),
        ):
            for size in found_sizes:
                if (sizes.listed and size not in sizes.listed) or sizes.refuses(size, _MARGIN):
                    return f"{size} {what}, the model was trained on {sizes}"
        for space in spec.spaces:
            if self.widths.refuses(space.size, _MARGIN):
                seen = f"{self.widths.low} to {self.widths.high}"
                return f"width {space.size} of {space.name}, the model was trained on {seen}"
        return ""

    def to_json(self) -> dict[str, Any]:
        sizes = {name: getattr(self, name) for name in _SIZES if getattr(self, name) is not None}
        return {
            "kinds": list(self.kinds),
            "activations": list(self.activations),
            **({} if self.factors is None else {"factors": list(self.factors)}),
            **{name: {"listed": list(s.listed), "low": s.low, "high": s.high} for name, s in sizes.items()},
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Coverage:
        """The coverage that `to_json` told of.

        Raises:
            TaskError: Not such a value.
        """
        try:
            sizes = {
                name: Sizes(tuple(map(int, value[name]["listed"])), int(value[name]["low"]), int(value[name]["high"]))
                for name in _SIZES
                if name != "positions" or name in value
            }
            factors = tuple(map(str, value["factors"])) if "factors" in value else None
            kinds, activations = (tuple(map(str, value[name])) for name in ("kinds", "activations"))
            return cls(kinds, activations, factors=factors, **sizes)
        except (KeyError, TypeError, ValueError) as error:
            raise TaskError(f"not the coverage of a model ({error!r})") from error


def _kinds(spec: SymmetrySpec) -> set[str]:
    return {tensor.kind for tensor in spec.tensors.values() if tensor.kind != "unused"}


def _activations(spec: SymmetrySpec) -> set[str]:
    return {name for names in spec.activations.values() for name in names}


def _factors(spec: SymmetrySpec) -> dict[str, str]:
    """The kinds of factors of a group, each with the first space (or tensor) that has one."""
    found: dict[str, str] = {}
    for space in spec.permuted:
        found.setdefault("permutation", f"space {space.name}")
    for factor in spec.factors:
        found.setdefault(factor.kind, f"space {factor.space}" if factor.space else factor.name)
    for linear in spec.linear:
        found.setdefault(linear.kind, f"space {linear.space}")
    for shift in spec.shifts:
        found.setdefault("shift", f"space {shift.space}" if shift.space else shift.name)
    return found


def _positions(spec: SymmetrySpec) -> dict[str, int]:
    """Kernel positions of every weight between units."""
    topology = topology_of(spec)
    return {topology.blocks[i].tensor: topology.blocks[i].features for i in topology.edges}


def _layers(spec: SymmetrySpec) -> int:
    return sum(
        tensor.kind.endswith(".weight") and not tensor.kind.startswith("norm") for tensor in spec.tensors.values()
    )


def _ends(spec: SymmetrySpec, role: str) -> set[int]:
    # A fixed axis that a weight reads from is the data; one that it writes to is the answer.
    found = set()
    for name, tensor in spec.tensors.items():
        if tensor.kind in ("linear.weight", "conv.weight"):
            for axis, its_role in zip(spec.axes[name], tensor.roles, strict=True):
                if its_role == role and isinstance(axis, Fixed):
                    found.add(axis.size)
    return found
