"""From two finished walks to a spec: name the spaces, find which lie within which, and solve for scalings and signs."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property

from torch import Tensor

from symmetry.factors import Factor, LinearFactor, LinearSlot, ShiftFactor, ShiftStep, Slot
from symmetry.spaces import Atom, Axis, Concat, Fixed, NeuronSpace, Product
from symmetry.spec import Pin, SymmetrySpec, TensorInfo
from symmetry.trace.axes import AxisNode, factors, leaves, parts, root
from symmetry.trace.axis_pass import AxisPass, Value, references
from symmetry.trace.expressions import Expression, Field, Variable, complement, null_space, vanishes
from symmetry.trace.gauge_pass import GaugePass, cut
from symmetry.trace.linear_pass import LinearPass, MatrixGroup
from symmetry.trace.sines import Sines, is_virtual, sine_biases, virtual

__all__ = ["Derivation"]


@dataclass
class Derivation:
    """Builds the spec of a model whose axes have been found.

    Args:
        walk: the finished first walk.
        state: the model's state dict.
        tied: names that share their storage with another -> that other name.
        frozen_buffers: whether buffers keep their values.
    """

    walk: AxisPass
    state: Mapping[str, Tensor]
    tied: Mapping[str, str]
    frozen_buffers: bool
    turns: list[tuple[str | None, int, Expression]] = field(default_factory=list)

    @cached_property
    def order(self) -> dict[str, int]:
        """Rank of first use of every used tensor along the data flow."""
        ranks: dict[str, int] = {}
        names = self.walk.graph.tensors
        reads = [reference for node in self.walk.graph.nodes for reference in references(node)]
        for reference in (*reads, *self.walk.graph.outputs):
            if reference.name in names:
                ranks.setdefault(names[reference.name], len(ranks))
        return ranks

    @cached_property
    def names(self) -> dict[AxisNode, str]:
        """A unique name for every leaf that a used tensor has, in the order of the data flow."""
        found: dict[AxisNode, str] = {}
        taken: set[str] = set()
        writers = self._occurrences(("out", "unit"))
        others = self._occurrences(("in", "position", "none"))
        for leaf, base in itertools.chain(writers, others):
            if leaf in found:
                continue
            labels = [reason.label for reason in leaf.reasons if reason.label]
            name = min(labels) if labels else base
            found[leaf] = _unique(name, taken)
        return found

    def _occurrences(self, roles: tuple[str, ...]) -> Iterable[tuple[AxisNode, str]]:
        for tensor in sorted(self.order, key=self.order.__getitem__):
            for dim, axis in enumerate(self.walk.tensors[tensor]):
                role = self.walk.roles.get(tensor, {}).get(dim, "none")
                if role in roles:
                    module, _, last = tensor.rpartition(".")
                    whole = role in ("out", "unit") and module and last in ("weight", "bias")
                    # The cells of torch's recurrent networks: weight_ih_l0, bias_hh_l1_reverse.
                    cell = re.fullmatch(r"(?:weight|bias)_(?:ih|hh)((?:_l\d+)?(?:_reverse)?)", last)
                    if cell and role in ("out", "unit"):
                        module, whole = ".".join(part for part in (module, cell[1].strip("_")) if part), True
                    for leaf in leaves(axis):
                        yield leaf, module if whole else f"{tensor}.{dim}"

    @cached_property
    def free(self) -> list[AxisNode]:
        """The leaves that are permuted, in the order of the data flow."""
        return [leaf for leaf in self.names if not leaf.reasons]

    @cached_property
    def matrices(self) -> dict[AxisNode, MatrixGroup]:
        """The leaves along which any invertible (or orthogonal) matrix may act, and how tensors carry it."""
        walk = LinearPass(self.walk, Field("sign"), self.frozen_buffers, "linear")
        walk.run()
        found = {leaf: walk.solve(leaf) for leaf in self.free}
        return {leaf: group for leaf, group in found.items() if group is not None}

    @cached_property
    def within(self) -> dict[AxisNode, list[AxisNode]]:
        """For each space, the spaces by whose units it is indexed.

        A space s is indexed by t if every value that contains s contains t exactly once, and no operation combines
        units of t while s survives. Then s has its own permutation for each unit of t (the wreath product).
        """
        values: list[Value] = [Value(dims) for dims in self.walk.tensors.values()]
        for made in self.walk.values.values():
            values += [item for item in (made if isinstance(made, tuple) else (made,)) if item is not None]
        index = {leaf for leaf in self.free if leaf.size > 1}
        found: dict[AxisNode, set[AxisNode]] = {leaf: index - {leaf} for leaf in index}
        for value in values:
            for choice in itertools.product(*(cut(axis) for axis in value.dims)):
                block = [leaf for part in choice for leaf in part if leaf in index]
                once = {leaf for leaf in block if block.count(leaf) == 1}
                for leaf in set(block):
                    found[leaf] &= once
        for mixed, surviving in self.walk.mixes:
            gone = {leaf for axis in mixed for leaf in leaves(axis)}
            for leaf in {leaf for axis in surviving for leaf in leaves(axis)} & index - gone:
                found[leaf] -= gone
        rank = {leaf: place for place, leaf in enumerate(self.free)}
        # Two spaces that are only ever met together would each lie within the other: the first one is the outer one.
        result = {}
        for leaf, outer in found.items():
            # A matrix has no places that permutations could be indexed by.
            outer = {other for other in outer if other not in self.matrices}
            kept = [
                other
                for other in outer
                if leaf not in found[other] or rank[other] < rank[leaf] or leaf in self.matrices
            ]
            if kept:
                result[leaf] = sorted(kept, key=lambda other: (len(found[other]), rank[other]))
        return result

    def spec(self) -> SymmetrySpec:
        """Put everything together."""
        scales, scale_dimension = self._factors("scale")
        signs, sign_bits = self._factors("sign")
        axes, tensors = {}, {}
        for name, tensor in self.state.items():
            source = self.tied.get(name, name)
            used = source in self.order
            dims = self.walk.tensors.get(source, [])
            axes[name] = (
                tuple(self._axis(axis) for axis in dims) if used else tuple(Fixed(int(size)) for size in tensor.shape)
            )
            tensors[name] = self._info(name, source, tensor)
        return SymmetrySpec(
            spaces=tuple(NeuronSpace(self.names[leaf], leaf.size) for leaf in self.free),
            axes=axes,
            tensors=tensors,
            within={
                self.names[leaf]: tuple(self.names[outer] for outer in found) for leaf, found in self.within.items()
            },
            factors=(*scales, *signs),
            scale_dimension=scale_dimension,
            sign_bits=sign_bits,
            pinned=self._pins(),
            activations=self._activations(),
            linear=self._linear(),
            shifts=self._shifts(),
        )

    def _info(self, name: str, source: str, tensor: Tensor) -> TensorInfo:
        used = source in self.order
        roles = self.walk.roles.get(source, {})
        offsets = set(self.walk.offsets.get(source, []))
        return TensorInfo(
            shape=tuple(tensor.shape),
            dtype=str(tensor.dtype).removeprefix("torch."),
            kind=self.walk.kinds.get(source, "parameter") if used else "unused",
            roles=tuple(roles.get(dim, "none") for dim in range(tensor.ndim)),
            order=self.order.get(source, len(self.order)),
            buffer=source in self.walk.graph.buffers,
            tied_to=self.tied.get(name),
            positive_offset=offsets.pop() if len(offsets) == 1 else None,
        )

    def _axis(self, node: AxisNode) -> Axis:
        node = root(node)
        if node.kind == "concat":
            return Concat(tuple(self._axis(part) for part in parts(node)))
        if node.kind == "product":
            first, *rest = (self._axis(factor) for factor in factors(node))
            for axis in rest:
                first = Product(first, axis)
            return first
        if node.reasons:
            return Fixed(node.size, self.names[node])
        return Atom(NeuronSpace(self.names[node], node.size))

    def _linear(self) -> tuple[LinearFactor, ...]:
        """The factors on whose spaces matrices act."""
        found = []
        for leaf, (kind, parities, gains) in self.matrices.items():
            slots = [
                LinearSlot(variable.tensor, variable.block, variable.leaf, bool(parity), gains.get(variable))
                for variable, parity in sorted(parities.items(), key=lambda item: self._rank(item[0]))
                if variable.leaf is not None
            ]
            if slots[0].inverse:
                # M and its inverse transpose are two names of one group; the tensor met first carries M itself.
                slots = [replace(slot, inverse=not slot.inverse) for slot in slots]
            found.append(LinearFactor(kind, self.names[leaf], leaf.size, tuple(slots)))
        return tuple(found)

    def _multiples(self, kind: str) -> tuple[list[Expression], dict[AxisNode, list[Expression]]]:
        """Multiples of the identity, which belong to the matrix groups, as scalings or signs.

        Returns:
            Those common to whole spaces, and those with one value per unit of a space that the matrices lie within.
        """
        algebra, common, units = Field(kind), [], dict[AxisNode, list[Expression]]()
        for leaf, (group, parities, _) in self.matrices.items():
            if group == "orthogonal" and kind == "scale":
                continue
            whole: Expression = {}
            outer: dict[AxisNode, Expression] = {other: {} for other in self.within.get(leaf, [])}
            for variable, parity in parities.items():
                exponent = Fraction(-1 if parity else 1)
                whole = algebra.combine(whole, {Variable(variable.tensor, variable.block): algebra.reduce(exponent)})
                for place, other in enumerate(self._block(variable)):
                    if other in outer:
                        there = Variable(variable.tensor, variable.block, place)
                        outer[other] = algebra.combine(outer[other], {there: algebra.reduce(exponent)})
            common.append(whole)
            for other, expression in outer.items():
                units.setdefault(other, []).append(expression)
        return common, units

    def _block(self, variable: Variable) -> list[AxisNode]:
        """The leaves of the block that a variable belongs to, in order."""
        choices = itertools.product(*(cut(axis, ones=True) for axis in self.walk.tensors[variable.tensor]))
        return [leaf for part in next(itertools.islice(choices, variable.block, None)) for leaf in part]

    def _rank(self, variable: Variable) -> tuple[int, int, int]:
        # What sines turn comes first, so that it stays free and every solution has one turn or none.
        order = -1 if is_virtual(variable.tensor) else self.order[variable.tensor]
        return (order, variable.block, -1 if variable.leaf is None else variable.leaf)

    def _factors(self, kind: str) -> tuple[list[Factor], int]:
        """Generators of one kind, and the exact dimension of the group they generate, outside the matrix groups.

        Dimension: dim null(U) plus, over spaces, dim null(V) (n - 1). A generator has one value per unit; its constant
        part is also a solution of U, so U contributes only what those constants do not span. What multiples of the
        identity in the matrix groups do already is taken out of both.
        """
        gauge = GaugePass(self.walk, Field(kind), self.frozen_buffers, kind, self.sines if kind == "sign" else {})
        gauge.run()
        known, known_units = self._multiples(kind)
        basis = null_space(gauge.field, sorted(gauge.common_variables, key=self._rank), gauge.common_rows)
        common, turns = _apart(basis)
        factors, constants = [], list(known)
        dimension = len(complement(gauge.field, known, common))
        taken: set[str] = set()
        for leaf, name in self.names.items():
            group = self.matrices.get(leaf)
            if group is not None and not group.gains:
                continue
            variables = sorted(gauge.unit_variables.get(leaf, []), key=self._rank)
            copies = math.prod(other.size for other in self.within.get(leaf, []))
            rows = list(gauge.unit_rows.get(leaf, []))
            if group is not None:
                # Beside the matrices only a gain and what is behind it have factors of their own.
                rows += [{variable: Fraction(1)} for variable in group.parities if variable not in group.gains]
            solutions, shifts = _apart(null_space(gauge.field, variables, rows))
            candidates = complement(gauge.field, known_units.get(leaf, []), solutions)
            for vector in [*candidates, *shifts]:
                constant: Expression = {}
                for variable, exponent in vector.items():
                    whole = Variable(variable.tensor, variable.block)
                    constant = gauge.field.combine(constant, {whole: exponent})
                if not vanishes(gauge.field, gauge.common_rows, constant):
                    continue
                constants.append(constant)
                if any(is_virtual(variable.tensor) for variable in vector):
                    self.turns.append((name, leaf.size, vector))
                else:
                    dimension += (leaf.size - 1) * copies
                    factors.append(self._factor(kind, name, name, leaf.size, vector, taken))
        for vector in complement(gauge.field, constants, [*common, *turns]):
            if any(is_virtual(variable.tensor) for variable in vector):
                self.turns.append((None, 1, vector))
                continue
            tensor = min(vector, key=self._rank).tensor
            factors.append(self._factor(kind, f"all of {tensor}", None, 1, vector, taken))
        return factors, dimension

    @cached_property
    def sine_biases(self) -> dict[str, Sines]:
        """The biases right before sines; a bias of one axis that is a parameter."""
        found = sine_biases(self.walk.graph)
        return {
            name: sines
            for name, sines in found.items()
            if name in self.order and name in self.walk.floating and len(self.walk.tensors[name]) == 1
        }

    @cached_property
    def sines(self) -> dict[str, str]:
        """For every sine with such a bias, its name."""
        return {node: bias for bias, sines in self.sine_biases.items() for node in sines.nodes}

    def _shifts(self) -> tuple[ShiftFactor, ...]:
        """Half periods where a sign can be taken up behind the sine, whole ones along every other leaf."""
        found, taken, half = [], set[str](), set[tuple[str, int, int | None]]()
        for space, size, vector in self.turns:
            steps, flips = [], []
            for variable, exponent in sorted(vector.items(), key=lambda item: self._rank(item[0])):
                if is_virtual(variable.tensor):
                    bias = variable.tensor.removeprefix(virtual(""))
                    steps.append(ShiftStep(bias, variable.block, variable.leaf, self.sine_biases[bias].half))
                    half.add((bias, variable.block, variable.leaf))
                else:
                    flips.append(Slot(variable.tensor, variable.block, variable.leaf, exponent))
            name = _unique(space or f"all of {steps[0].tensor}", taken)
            found.append(ShiftFactor(name, space, size, tuple(steps), tuple(flips)))
        for bias, sines in self.sine_biases.items():
            for block, leaves_of in enumerate(cut(self.walk.tensors[bias][0], ones=True)):
                places: list[tuple[int | None, AxisNode | None]]
                places = [(place, leaf) for place, leaf in enumerate(leaves_of) if leaf.size > 1]
                for place, leaf in places or [(None, None)]:
                    if (bias, block, place) not in half:
                        space = None if leaf is None else self.names[leaf]
                        step = ShiftStep(bias, block, place, 2 * sines.half)
                        name = _unique(space or f"all of {bias}", taken)
                        found.append(ShiftFactor(name, space, 1 if leaf is None else leaf.size, (step,), ()))
        return tuple(found)

    def _factor(
        self, kind: str, name: str, space: str | None, size: int, vector: Expression, taken: set[str]
    ) -> Factor:
        unique = _unique(name, taken)
        ordered = sorted(
            vector.items(), key=lambda item: (self.order[item[0].tensor], item[0].block, item[0].leaf or 0)
        )
        slots = tuple(Slot(variable.tensor, variable.block, variable.leaf, exponent) for variable, exponent in ordered)
        return Factor(unique, kind, space, size, slots)

    def _pins(self) -> tuple[Pin, ...]:
        """Axes of parameters that an operation, and nothing else, keeps fixed."""
        found: dict[tuple[str, str, str, str], list[str]] = {}
        for tensor in self.order:
            for dim, axis in enumerate(self.walk.tensors[tensor]):
                for leaf in leaves(axis):
                    if leaf.size > 1 and leaf.reasons and all(reason.kind == "operation" for reason in leaf.reasons):
                        for reason in leaf.reasons:
                            key = (reason.operation, reason.node, reason.text, reason.source)
                            place = f"{tensor}[{dim}]"
                            if place not in found.setdefault(key, []):
                                found[key].append(place)
        return tuple(
            Pin(operation, node, tuple(places), text, source)
            for (operation, node, text, source), places in found.items()
        )

    def _activations(self) -> dict[str, tuple[str, ...]]:
        found: dict[str, list[str]] = {}
        for function, dims in self.walk.activations:
            for leaf in (leaf for axis in dims for leaf in leaves(axis)):
                name = self.names.get(leaf)
                if name is not None and function not in found.setdefault(name, []):
                    found[name].append(function)
        return {name: tuple(functions) for name, functions in found.items()}


def _apart(vectors: Iterable[Expression]) -> tuple[list[Expression], list[Expression]]:
    """Solutions over tensors alone, and those in which a sine is turned."""
    listed = list(vectors)
    turned = [any(is_virtual(variable.tensor) for variable in vector) for vector in listed]
    return (
        [vector for vector, turn in zip(listed, turned, strict=True) if not turn],
        [vector for vector, turn in zip(listed, turned, strict=True) if turn],
    )


def _unique(name: str, taken: set[str]) -> str:
    """The name, or the name with the first free number behind it; marks it as taken."""
    numbered = itertools.chain((name,), (f"{name}#{number}" for number in itertools.count(2)))
    unique = next(candidate for candidate in numbered if candidate not in taken)
    taken.add(unique)
    return unique
