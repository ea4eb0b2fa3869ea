"""Does a field belong to an architecture, and can it be asked for these sizes?"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping

from torch import Tensor

from metanet.checkpoint.options import MAX_PARAMETERS
from metanet.errors import FieldError, PlanError, clean
from metanet.morph import resizable, to_sizes
from metanet.morph.resize import resized_spec
from symmetry import Atom, Concat, Fixed, Product, SymmetrySpec
from symmetry.spaces import Axis

__all__ = ["check_finite", "check_numbers", "check_range", "check_sizes", "check_spec", "sizes_of", "varying"]


def check_spec(own: SymmetrySpec, other: SymmetrySpec) -> None:
    """Whether a spec is of the architecture of a field, at any width.

    Raises:
        FieldError: with the first axis that differs.
    """
    for name, axes in own.axes.items():
        found = other.axes.get(name)
        if found is None:
            raise FieldError(
                f"tensor {clean(repr(name), 80)} is missing: the field is for another architecture",
                hint="fit a field to a network of this architecture",
            )
        if len(found) != len(axes):
            raise FieldError(
                f"{clean(name, 80)} has {len(found)} axes, the field writes {len(axes)}",
                hint="the field is for another architecture",
            )
        for number, (mine, given) in enumerate(zip(axes, found, strict=True)):
            if _form(mine) != _form(given):
                raise FieldError(
                    f"{clean(name, 80)}, axis {number}: {clean(given, 80)}, the field has {clean(mine, 80)}",
                    hint="the field is for another architecture",
                )
    extra = [name for name in other.axes if name not in own.axes]
    if extra:
        raise FieldError(
            f"tensor {clean(repr(extra[0]), 80)} is not written by the field",
            hint="the field is for another architecture",
        )


def _form(axis: Axis) -> object:
    """An axis without the sizes of its spaces."""
    match axis:
        case Fixed(size, _):
            return size
        case Atom(space):
            return space.name
        case Product(outer, inner):
            return ("product", _form(outer), _form(inner))
        case Concat(parts):
            return ("concat", *(_form(part) for part in parts))


def check_sizes(spec: SymmetrySpec, sizes: Mapping[str, int]) -> None:
    """Whether a network can have these sizes.

    Raises:
        FieldError: for a space that is not there (or is pinned, with the operation that pins it), or a size below 1.
    """
    known = {space.name: space.size for space in spec.spaces}
    for name, size in sizes.items():
        if name not in known:
            raise _unknown(spec, name)
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise FieldError(
                f"{size!r} units of {clean(repr(name), 80)}", hint=f"expected 1 or more; it has {known[name]}"
            )


def _unknown(spec: SymmetrySpec, name: str) -> FieldError:
    """What to say of a space that does not exist: pinned axes know why."""
    for pin in spec.pinned:
        for place in pin.tensors:
            tensor, _, axis = place.rpartition("[")
            axes = spec.axes.get(tensor, ())
            number = int(axis[:-1]) if axis[:-1].isdigit() else -1
            names = {tensor, tensor.rpartition(".")[0], place}
            if 0 <= number < len(axes):
                names |= {leaf.name or "" for leaf in axes[number].leaves() if isinstance(leaf, Fixed)}
            if name in names:
                return FieldError(f"{clean(repr(name), 80)} cannot change: {clean(pin, 300)}")
    shown = ", ".join(space.name for space in spec.spaces[:8]) + (", ..." if len(spec.spaces) > 8 else "")
    return FieldError(f"no space {clean(repr(name), 80)}", hint=f"the network has {shown or 'none'}")


def varying(spec: SymmetrySpec, spaces: tuple[str, ...] | None = None) -> tuple[str, ...]:
    """The spaces whose size a field varies.

    Args:
        spec: of the architecture.
        spaces: chosen by the user; all that :func:`metanet.morph.resizable` names by default.

    Raises:
        FieldError: if there are none; if units are pinned and the user did not choose which others should vary.
    """
    if spaces is not None:
        if not spaces:
            raise FieldError("no space shall vary", hint="name some, as metanet inspect shows them")
        check_sizes(spec, dict.fromkeys(spaces, 1))
        return tuple(dict.fromkeys(spaces))
    if spec.pinned:
        raise FieldError(
            f"some widths cannot change: {clean(spec.pinned[0], 300)}",
            hint="name the spaces that shall vary, as metanet inspect shows them",
        )
    found = resizable(spec)
    if not found:
        raise FieldError("the network has no width that can change", hint="metanet inspect shows its spaces")
    return found


def sizes_of(spec: SymmetrySpec, width: float, spaces: tuple[str, ...] | None = None) -> dict[str, int]:
    """Sizes of the varying spaces at a share of the full width.

    Raises:
        FieldError: for a width that is not positive; as :func:`varying`.
    """
    if not 0 < width < math.inf:
        raise FieldError(f"width {width}", hint="expected a positive number: 0.5 halves, 2 doubles")
    try:
        return to_sizes(spec, width, varying(spec, spaces))
    except PlanError as error:
        raise FieldError(error.reason, hint=error.hint) from None


def check_finite(state: Mapping[str, Tensor], where: str | os.PathLike[str] = "") -> None:
    """Whether all numbers that a field has written are numbers.

    Raises:
        FieldError: with the first tensor that holds others.
    """
    for name, tensor in state.items():
        if not bool(tensor.isfinite().all()):
            raise FieldError(
                f"the field writes numbers in {clean(name, 80)} that are not finite", where=where, hint="fit it again"
            )


def check_numbers(spec: SymmetrySpec, sizes: Mapping[str, int]) -> None:
    """Whether a network of these sizes is one that a machine can hold.

    Raises:
        FieldError: if it has more numbers than any checkpoint may have.
    """
    numbers = sum(math.prod(info.shape) for info in resized_spec(spec, sizes).tensors.values())
    if numbers > MAX_PARAMETERS:
        told = f"{numbers:,}" if numbers < 10**15 else "more than 10^15"
        raise FieldError(f"a network of {told} numbers", hint=f"expected at most {MAX_PARAMETERS:,}")


def check_range(spec: SymmetrySpec, sizes: Mapping[str, int], widths: tuple[float, float]) -> None:
    """Whether sizes are within the range that a field was trained for.

    Args:
        spec: of full width.
        sizes: that are asked for.
        widths: lowest and highest share of the full width.

    Raises:
        FieldError: with the first space that is outside.
    """
    full = {space.name: space.size for space in spec.spaces}
    for name, size in sizes.items():
        low, high = (max(1, round(ratio * full[name])) for ratio in widths)
        if not low <= size <= high:
            raise FieldError(
                f"{size} units of {clean(repr(name), 80)}: the field was trained for {low} to {high} "
                f"(widths {widths[0]:g} to {widths[1]:g})",
                hint="ask with --extrapolate (extrapolate=True) if that is meant",
            )
