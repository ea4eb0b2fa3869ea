"""At which values of a model's graph can the units of each space be seen? Found by acting, not by rules.

A random permutation of all spaces leaves the outputs alone and moves every inner value in the way of the spaces it
carries. So the model is run before and after: a value whose entries have moved along an axis as some layout of the spec
says carries those spaces there. What a network reads its units from are the values where a space is used up: those with
a reader that does not carry it on.
"""

from __future__ import annotations

import copy
import itertools
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export.graph_signature import InputKind
from torch.utils import _pytree as pytree

from symmetry.action import act, tensor_blocks
from symmetry.elements import GroupElement
from symmetry.errors import SpecError, TraceError
from symmetry.spaces import Atom, Axis, Fixed
from symmetry.spec import SymmetrySpec, TensorInfo

__all__ = ["Probe", "Sight"]

SAME = 1e-7
MOST_LAYOUTS = 64


@dataclass(frozen=True, slots=True)
class Sight:
    """A value that units are read from.

    Args:
        node: its name in the graph.
        axes: its layout over the spaces of the spec.
        odd: whether a sign flip of its units flips it.
    """

    node: str
    axes: tuple[Axis, ...]
    odd: bool


class Probe:
    """A model that can be run on other weights, with all values of its graph in sight; in float64.

    Args:
        model: the module; it is not changed.
        spec: its spec.
        inputs: one entry per argument of ``forward``; the graph is that of exactly these shapes.

    Raises:
        TraceError: if the model cannot be exported on these inputs.
        SpecError: if the model is not the spec's, or the inputs are no sequence.
    """

    def __init__(self, model: nn.Module, spec: SymmetrySpec, inputs: Sequence[Any]) -> None:
        if isinstance(inputs, Tensor) or not isinstance(inputs, Sequence):
            raise SpecError("inputs: expected a tuple with one entry per argument of the model; write (tensor,)")
        spec.check(model.state_dict())
        self.spec = spec
        wide = copy.deepcopy(model).double().eval()
        self.inputs = tuple(_wide(item) for item in inputs)
        logger = logging.getLogger("torch.export")
        level = logger.level
        try:
            logger.setLevel(logging.ERROR)
            with warnings.catch_warnings(), torch.no_grad():
                warnings.simplefilter("ignore")
                self.program = torch.export.export(wide, self.inputs).run_decompositions()
        except Exception as error:
            text = " ".join(str(error).split())[:300]
            raise TraceError(
                f"{type(model).__name__} cannot be exported on these inputs: {type(error).__name__}: {text}; give "
                "inputs as the model takes them"
            ) from error
        finally:
            logger.setLevel(level)
        self.buffers = dict(wide.named_buffers())

    def run(self, state: Mapping[str, Tensor], keep: set[str] | None = None) -> dict[str, Tensor]:
        """All tensor values (or those to keep) that depend on the inputs, by node."""
        return dict(self._values(state, keep))

    def sights(self, state: Mapping[str, Tensor], generator: torch.Generator) -> tuple[Sight, ...]:
        """The values that the units of each space are read from, at a network in which no two units are alike."""
        spec = self.spec
        before = self.run(state)
        # Matrices move values in no way that a layout could explain: where they act, units cannot be compared by value.
        moved = spec.sample(generator, kinds=("permutation", "linear", "orthogonal"))
        carried: dict[str, tuple[Axis, ...]] = {}
        layouts = _layouts(spec)
        for node, after in self._values(act(spec, moved, state)):
            found = _layout_of(spec, moved, before[node], after, layouts)
            if found is not None:
                carried[node] = found
        odd: set[str] = set()
        for element in _flips(spec):
            for node, after in self._values(act(spec, element, state), set(carried)):
                if _same(after, -before[node]) and not _same(after, before[node]):
                    odd.add(node)
        read = self._read(carried)
        return tuple(Sight(node, axes, node in odd) for node, axes in carried.items() if node in read)

    def _read(self, carried: Mapping[str, tuple[Axis, ...]]) -> set[str]:
        """Nodes with a space that some reader does not carry on."""
        spaces = {node: {leaf for axis in axes for leaf in axis.leaves()} for node, axes in carried.items()}
        for node in self.program.graph.nodes:
            # Of an operation with several results, those that are taken out of it say what it carries on.
            if isinstance(node.meta.get("val"), tuple | list):
                spaces[node.name] = set().union(*(spaces.get(user.name, set()) for user in node.users))
        found = set()
        for node in self.program.graph.nodes:
            if node.name in carried:
                mine = {leaf for leaf in spaces[node.name] if isinstance(leaf, Atom)}
                if any(not mine <= spaces.get(user.name, set()) for user in node.users):
                    found.add(node.name)
        return found

    def _values(self, state: Mapping[str, Tensor], keep: set[str] | None = None) -> Iterator[tuple[str, Tensor]]:
        flat = iter(pytree.tree_leaves(self.inputs))
        given: list[Any] = []
        dependent: set[str] = set()
        for spec in self.program.graph_signature.input_specs:
            target = str(spec.target)
            if spec.kind == InputKind.USER_INPUT:
                given.append(next(flat))
                dependent.add(getattr(spec.arg, "name", ""))
            elif spec.kind in (InputKind.PARAMETER, InputKind.BUFFER):
                value = state[target] if target in state else self.buffers[target]
                given.append(_wide(value))
            else:
                given.append(self.program.constants[target])
        values: dict[str, Any] = {}
        uses = {node.name: len(node.users) for node in self.program.graph.nodes}
        placeholders = iter(given)
        with torch.no_grad():
            for node in self.program.graph.nodes:
                if node.op == "placeholder":
                    values[node.name] = next(placeholders)
                elif node.op == "call_function":
                    arguments = torch.fx.map_arg((node.args, node.kwargs), lambda item: values[item.name])
                    values[node.name] = node.target(*arguments[0], **arguments[1])
                    if any(item.name in dependent for item in node.all_input_nodes):
                        dependent.add(node.name)
                    value = values[node.name]
                    if node.name in dependent and isinstance(value, Tensor) and (keep is None or node.name in keep):
                        yield node.name, value
                for item in node.all_input_nodes:
                    uses[item.name] -= 1
                    if not uses[item.name]:
                        values.pop(item.name, None)


def _wide(value: Any) -> Any:
    floating = isinstance(value, Tensor) and value.is_floating_point()
    return value.detach().to("cpu", torch.float64) if floating else value


def _layouts(spec: SymmetrySpec) -> dict[int, list[Axis]]:
    """The layouts over permuted spaces that some tensor of the spec has, by size."""
    permuted = {space.name for space in spec.permuted if space.size > 1}
    found: dict[int, list[Axis]] = {}
    axes = {axis: None for name in spec.axes for axis in spec.axes[name]}
    # A value may be seen with its heads apart from the units inside.
    for leaf in [leaf for axis in axes for leaf in axis.leaves()]:
        axes.setdefault(leaf)
    for axis in axes:
        if any(isinstance(leaf, Atom) and leaf.space.name in permuted for leaf in axis.leaves()):
            found.setdefault(axis.size, []).append(axis)
    return found


def _layout_of(
    spec: SymmetrySpec, moved: GroupElement, before: Tensor, after: Tensor, layouts: Mapping[int, list[Axis]]
) -> tuple[Axis, ...] | None:
    """The layout that explains how a value has moved; ``None`` if it did not move or none does."""
    if not before.is_floating_point() or before.shape != after.shape or _same(before, after):
        return None
    options: list[list[Axis]] = [[Fixed(size), *layouts.get(size, [])] for size in before.shape]
    # Layouts with few spaces first: a value is said to carry no more than what explains it.
    choices = sorted(
        itertools.islice(itertools.product(*options), 4096),
        key=lambda axes: sum(not isinstance(axis, Fixed) for axis in axes),
    )
    for axes in choices[1 : MOST_LAYOUTS + 1]:
        leaves = [leaf for axis in axes for leaf in axis.leaves() if isinstance(leaf, Atom)]
        names = [leaf.space.name for leaf in leaves]
        complete = all(outer in names for name in names for outer in spec.within.get(name, ()))
        if complete and len(set(names)) == len(names) and _same(_move(spec, moved, before, axes), after):
            return axes
    return None


def _move(spec: SymmetrySpec, moved: GroupElement, value: Tensor, axes: tuple[Axis, ...]) -> Tensor:
    """A value as a permutation moves it, by the action on a state of one tensor."""
    alone = SymmetrySpec(
        spec.spaces, {"value": axes}, {"value": TensorInfo(tuple(value.shape), "float64")}, spec.within
    )
    every = {space.name: moved.permutations.get(space.name) for space in spec.spaces}
    neutral = alone.identity()
    element = GroupElement(
        alone, {name: neutral.permutations[name] if p is None else p for name, p in every.items()}, {}, {}
    )
    return act(alone, element, {"value": value})["value"]


def _flips(spec: SymmetrySpec) -> Iterator[GroupElement]:
    """Elements that flip every unit of every space by its first sign factor, by its second, and so on."""
    neutral = spec.identity()
    of: dict[str | None, list[str]] = {}
    for factor in spec.factors:
        if factor.kind == "sign":
            of.setdefault(factor.space, []).append(factor.name)
    for rank in range(max((len(names) for names in of.values()), default=0)):
        chosen = {names[rank] for names in of.values() if len(names) > rank}
        flips = {name: torch.ones_like(value) if name in chosen else value for name, value in neutral.flips.items()}
        yield GroupElement(spec, neutral.permutations, neutral.log_scales, flips, neutral.matrices)


def _same(first: Tensor, second: Tensor) -> bool:
    size = float(first.abs().max()) if first.numel() else 0.0
    return bool((first - second).abs().max() <= SAME * size) if first.numel() else True


def blocks_of(sight: Sight, value: Tensor) -> Iterator[tuple[tuple[str | None, ...], Tensor]]:
    """The concatenation-free blocks of a value: the spaces of its dimensions (``None``: fixed), and the numbers."""
    for block in tensor_blocks(sight.axes):
        names = tuple(leaf.space.name if isinstance(leaf, Atom) else None for leaf in block.leaves)
        yield names, block.read(value)
