"""How do tensors of other shapes get into a user's own module, with every attribute that states a size kept right?

The module is copied first, so that the user's own is never half edited. torch's layers state their sizes in attributes
that are known here (:data:`_LAYERS`). A module of the user's own may state a size too (``self.num_heads = 4``):
integers equal to a size that changed are candidates, and the combination is kept that changes most of them and with
which the module runs and has the layout that was meant.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from metanet.errors import PlanError
from metanet.morph.attention import FreeAttention, free_heads
from metanet.morph.running import evaluating
from symmetry import Concat, Product, SymmetrySpec
from symmetry.spaces import Axis

__all__ = ["has_choice", "output_shapes", "put_tensors", "rebuild"]

MAX_CANDIDATES = 8


def rebuild(
    model: nn.Module,
    before: SymmetrySpec,
    after: SymmetrySpec,
    state: Mapping[str, Tensor],
    example_inputs: Sequence[Any],
    accept: Callable[[nn.Module], bool],
) -> nn.Module:
    """A copy of the module that holds a state of other shapes and runs.

    Args:
        model: the module of ``before``; it is not changed.
        before: the layout of its tensors.
        after: the layout of those of ``state``.
        state: what the copy shall hold.
        example_inputs: one entry per argument of ``forward``.
        accept: whether a copy that runs is the network that was meant.

    Raises:
        PlanError: if no setting of the module's attributes makes it run.
    """
    made = copy.deepcopy(model)
    put_tensors(made, state)
    for path, module in made.named_modules():
        _fix_layer(path, module, before, after)
    expected = output_shapes(model, example_inputs)
    failure: Exception | None = None
    for setting in _settings(made, before, after):
        for module, attribute, value in setting:
            setattr(module, attribute, value[1])
        try:
            if output_shapes(made, example_inputs) == expected and accept(made):
                return made
        except (RuntimeError, ValueError, TypeError, IndexError, AttributeError, AssertionError) as error:
            failure = failure or error
        for module, attribute, value in setting:
            setattr(module, attribute, value[0])
    reason = str(failure).splitlines()[0] if failure else "its outputs have another shape or its layout is another one"
    raise PlanError(
        f"the edited {type(model).__name__} does not run: {reason}",
        hint="one size probably stands for several (a stream and its heads): change those spaces in one plan; or one "
        "is written into its forward method: state it as an attribute or read it from a tensor",
    )


def has_choice(model: nn.Module, before: SymmetrySpec, after: SymmetrySpec) -> bool:
    """Whether an attribute of the user's own modules may state a size that changes.

    Then several copies may run, and not all of them are the network that was meant.
    """
    return any(_settings(model, before, after))


def output_shapes(model: nn.Module, example_inputs: Sequence[Any]) -> list[tuple[int, ...]]:
    """The shapes of all output tensors, in eval mode."""
    with evaluating(model):
        out = model(*example_inputs)
    return [tuple(leaf.shape) for leaf in pytree.tree_leaves(out) if isinstance(leaf, Tensor)]


def put_tensors(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Put a state of any shapes into a module, in place; entries that were one tensor stay one."""
    made: dict[int, nn.Parameter | Tensor] = {}
    for name, value in state.items():
        path, _, attribute = name.rpartition(".")
        owner = model.get_submodule(path)
        old = getattr(owner, attribute)
        if id(old) not in made:
            # Values are copied: two states in one program never share memory by accident.
            fresh = value.detach().clone(memory_format=torch.contiguous_format)
            made[id(old)] = nn.Parameter(fresh, old.requires_grad) if isinstance(old, nn.Parameter) else fresh
            made[id(made[id(old)])] = made[id(old)]
        setattr(owner, attribute, made[id(old)])


def _settings(
    model: nn.Module, before: SymmetrySpec, after: SymmetrySpec
) -> Iterator[tuple[tuple[nn.Module, str, tuple[int, int]], ...]]:
    """Combinations of integer attributes to be set, those that set most of them first."""
    changed = _changed_sizes(before, after)
    owners = {name.rpartition(".")[0] for name in after.axes if before.tensors[name].shape != after.tensors[name].shape}
    found = []
    for path, module in model.named_modules():
        inside = any(owner == path or owner.startswith(f"{path}.") or not path for owner in owners)
        if inside and not isinstance(module, tuple(_LAYERS)):
            for attribute, value in vars(module).items():
                for new in sorted(changed.get(value, ())) if type(value) is int else ():
                    found.append((module, attribute, (value, new)))
    found = found[:MAX_CANDIDATES]
    for number in range(len(found), -1, -1):
        for setting in itertools.combinations(found, number):
            if len({(id(module), attribute) for module, attribute, _ in setting}) == number:
                yield setting


def _changed_sizes(before: SymmetrySpec, after: SymmetrySpec) -> dict[int, set[int]]:
    """Old size -> new sizes, of every space and every factor of an axis that changed."""
    found: dict[int, set[int]] = {}
    for name, axes in before.axes.items():
        for old, new in zip(axes, after.axes[name], strict=True):
            for one, other in zip(_parts(old), _parts(new), strict=True):
                if one.size != other.size:
                    found.setdefault(one.size, set()).add(other.size)
    return found


def _parts(axis: Axis) -> Iterator[Axis]:
    yield axis
    match axis:
        case Product(outer, inner):
            yield from _parts(outer)
            yield from _parts(inner)
        case Concat(parts):
            for part in parts:
                yield from _parts(part)
        case _:
            return


def _outer_count(before: Axis, after: Axis, count: int) -> int:
    """How many groups an axis has now, if it had ``count`` of them before: its slowest factors make them up."""
    old, new = [leaf.size for leaf in before.leaves()], [leaf.size for leaf in after.leaves()]
    for number in range(len(old) + 1):
        if math.prod(old[:number]) == count:
            return math.prod(new[:number])
    raise PlanError(f"{count} groups do not fit an axis {before}", hint="widths must stay multiples of the groups")


Fix = Callable[[Any, Mapping[str, tuple[tuple[Axis, ...], tuple[Axis, ...]]]], None]


def _fix_linear(layer: Any, _: object) -> None:
    layer.out_features, layer.in_features = layer.weight.shape


def _fix_bilinear(layer: Any, _: object) -> None:
    layer.out_features, layer.in1_features, layer.in2_features = layer.weight.shape


def _fix_conv(layer: Any, axes: Mapping[str, tuple[tuple[Axis, ...], tuple[Axis, ...]]]) -> None:
    pair = next((found for name, found in axes.items() if len(found[0]) == layer.weight.ndim), None)
    if layer.groups > 1 and pair is not None:
        layer.groups = _outer_count(pair[0][0], pair[1][0], layer.groups)
    if layer.transposed:
        layer.in_channels, layer.out_channels = layer.weight.shape[0], layer.weight.shape[1] * layer.groups
    else:
        layer.out_channels, layer.in_channels = layer.weight.shape[0], layer.weight.shape[1] * layer.groups
    if layer.in_channels % layer.groups or layer.out_channels % layer.groups:
        raise PlanError(
            f"{layer.in_channels} and {layer.out_channels} channels do not divide into {layer.groups} groups"
        )


def _fix_batch_norm(layer: Any, _: object) -> None:
    known = [tensor for tensor in (layer.weight, layer.running_mean) if tensor is not None]
    if known:
        layer.num_features = known[0].shape[0]


def _fix_group_norm(layer: Any, axes: Mapping[str, tuple[tuple[Axis, ...], tuple[Axis, ...]]]) -> None:
    if layer.weight is not None:
        before, after = axes["weight"]
        layer.num_groups = _outer_count(before[0], after[0], layer.num_groups)
        layer.num_channels = layer.weight.shape[0]


def _fix_layer_norm(layer: Any, _: object) -> None:
    if layer.weight is not None:
        layer.normalized_shape = tuple(layer.weight.shape)


def _fix_embedding(layer: Any, _: object) -> None:
    layer.num_embeddings, layer.embedding_dim = layer.weight.shape


def _fix_recurrent(layer: Any, _: object) -> None:
    cell = not isinstance(layer, nn.RNNBase)
    inner = {getattr(layer, name).shape[1] for name in vars(layer)["_parameters"] if name.startswith("weight_hh")}
    if len(inner) != 1:
        raise PlanError(
            f"layers of one {type(layer).__name__} have {sorted(inner)} units, and it has one hidden_size",
            hint="change the spaces of all its layers and directions to the same size in one plan",
        )
    layer.hidden_size = inner.pop()
    layer.input_size = (layer.weight_ih if cell else layer.weight_ih_l0).shape[1]
    if not cell and layer.proj_size:
        layer.proj_size, layer.hidden_size = layer.hidden_size, layer.weight_hr_l0.shape[1]


def _fix_attention(layer: Any, axes: Mapping[str, tuple[tuple[Axis, ...], tuple[Axis, ...]]]) -> None:
    joined = axes.get("in_proj_weight")
    old, new = joined if joined is not None else axes["v_proj_weight"]
    heads = _outer_count(_parts_of(old[0])[-1], _parts_of(new[0])[-1], layer.num_heads)
    queries = _parts_of(new[0])[0].size if joined is not None else layer.q_proj_weight.shape[0]
    width, values = layer.out_proj.weight.shape
    scale = getattr(layer, "scale", layer.head_dim**-0.5)
    plain = queries == values == width and width % heads == 0 and scale == (width // heads) ** -0.5
    layer.embed_dim, layer.num_heads, layer.head_dim = width, heads, queries // heads
    layer.out_proj.out_features, layer.out_proj.in_features = width, values
    layer.kdim = width if joined is not None else layer.k_proj_weight.shape[1]
    layer.vdim = width if joined is not None else layer.v_proj_weight.shape[1]
    if not plain or isinstance(layer, FreeAttention):
        free_heads(layer, values // heads, scale)


def _parts_of(axis: Axis) -> tuple[Axis, ...]:
    return axis.parts if isinstance(axis, Concat) else (axis,)


def _fix_prelu(layer: Any, _: object) -> None:
    layer.num_parameters = layer.weight.shape[0]


def _fix_nothing(layer: Any, _: object) -> None:
    """Containers state no sizes."""


_LAYERS: dict[type[nn.Module], Fix] = {
    nn.MultiheadAttention: _fix_attention,
    nn.Linear: _fix_linear,
    nn.Bilinear: _fix_bilinear,
    nn.modules.conv._ConvNd: _fix_conv,
    nn.modules.batchnorm._NormBase: _fix_batch_norm,
    nn.GroupNorm: _fix_group_norm,
    nn.LayerNorm: _fix_layer_norm,
    nn.RMSNorm: _fix_layer_norm,
    nn.Embedding: _fix_embedding,
    nn.EmbeddingBag: _fix_embedding,
    nn.RNNBase: _fix_recurrent,
    nn.RNNCellBase: _fix_recurrent,
    nn.PReLU: _fix_prelu,
    nn.Sequential: _fix_nothing,
    nn.ModuleList: _fix_nothing,
    nn.ModuleDict: _fix_nothing,
}


def _fix_layer(path: str, module: nn.Module, before: SymmetrySpec, after: SymmetrySpec) -> None:
    fix = next((found for kind, found in _LAYERS.items() if isinstance(module, kind)), None)
    if fix is None:
        return
    prefix = f"{path}." if path else ""
    mine = {
        name.removeprefix(prefix): (before.axes[name], after.axes[name])
        for name in before.axes
        if name.startswith(prefix)
    }
    if not any(before.tensors[prefix + name].shape != after.tensors[prefix + name].shape for name in mine):
        return
    try:
        fix(module, mine)
    except PlanError as error:
        raise PlanError(error.reason, hint=error.hint, where=path) from None
