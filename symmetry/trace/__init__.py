"""Which weight changes leave a given model's function alone? Read its operations and derive the group."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from symmetry.spec import SymmetrySpec
from symmetry.trace.axis_pass import AxisPass
from symmetry.trace.derive import Derivation
from symmetry.trace.export import Graph, export
from symmetry.trace.rewrite import drop_checks, fold_numbers, fuse_rms_norms, take_apart
from symmetry.trace.rules import rule_table

__all__ = ["derive", "rule_table", "trace"]


def trace(
    model: nn.Module,
    example_inputs: Sequence[Any],
    strict: bool = False,
    frozen_buffers: bool = False,
    fold_gains: bool = False,
) -> SymmetrySpec:
    """Derive the symmetry group of a model from its operations.

    The model is exported in eval mode and walked: once to find which axes run over the same units, then to find which
    scalings, signs and matrices cancel. An operation without a rule pins the axes it touches and is named in
    ``spec.pinned``: the group may be smaller than the true one, never larger.

    Args:
        model: any module that ``torch.export`` can export.
        example_inputs: one entry per argument of ``forward``; a tuple.
        strict: raise on an operation without a rule instead of pinning.
        frozen_buffers: let buffers (running statistics) be permuted but not scaled.
        fold_gains: let orthogonal matrices act on residual streams under RMSNorm. Behind a norm with gain g a weight W
            then becomes ``W diag(g) M^T diag(1 / g)``, so that g must have no zeros. Without it such a stream has
            permutations and signs.

    Returns:
        The spec; it depends on the architecture only, not on the values of the weights.

    Raises:
        TraceError: if the model cannot be exported or, in strict mode, an operation has no rule.
    """
    return derive(export(model, example_inputs), model, strict, frozen_buffers, fold_gains)


def derive(
    graph: Graph, model: nn.Module, strict: bool = False, frozen_buffers: bool = False, fold_gains: bool = False
) -> SymmetrySpec:
    """Derive the group from operations that are exported already; see :func:`trace`. The graph is used up."""
    drop_checks(graph)
    fold_numbers(graph)
    take_apart(graph)
    if fold_gains:
        fuse_rms_norms(graph)
    state = model.state_dict(keep_vars=True)
    canonical: dict[int, str] = {}
    used = set(graph.tensors.values())
    for name in sorted(state, key=lambda name: name not in used):
        canonical.setdefault(id(state[name]), name)
    tied = {name: canonical[id(tensor)] for name, tensor in state.items() if canonical[id(tensor)] != name}
    graph.tensors = {place: tied.get(name, name) for place, name in graph.tensors.items()}
    graph.buffers = {tied.get(name, name) for name in graph.buffers}
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    # Buffers that are not saved have no entry in a state dict: they are constants of the architecture.
    unsaved = {place for place, name in graph.tensors.items() if name not in state}
    for place in unsaved:
        name = graph.tensors.pop(place)
        graph.constants[place] = tuple(dict(model.named_buffers())[name].shape)
    floating = {name for name, tensor in state.items() if tensor.is_floating_point()}
    walk = AxisPass(graph, shapes, floating, strict)
    walk.run()
    return Derivation(walk, state, tied, frozen_buffers).spec()
