"""How much does a unit or a weight matter to a network? Measured by running it: what unit and edge tasks learn."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from metanet.errors import TaskError
from metanet.graph import ParameterGraph

__all__ = ["Run", "unit_effects", "unit_norms", "weight_changes", "weight_saliency", "weight_sizes"]

Run: TypeAlias = Callable[[Mapping[str, Tensor]], Tensor]
"""A state -> the network's answers (examples, outputs) to inputs that are fixed."""

_FLOOR = 1e-6  # a removal that changes less than this share of the answers' spread changes nothing


@torch.no_grad()
def unit_effects(graph: ParameterGraph, run: Run, labels: Tensor | None = None) -> dict[str, Tensor]:
    """What happens when one unit is silenced: all that later layers hear of it becomes zero.

    Args:
        graph: The network.
        run: Runs it; its inputs decide on which side of the world a unit matters.
        labels: Classes of the inputs: then the answer is the change of the mean cross-entropy, not of the answers.

    Returns:
        By space, for every unit: the decimal logarithm of the answers' root mean square change over their spread (at
        least -6), or with `labels` the increase of the loss in nats.

    Shapes:
        labels: (examples,)
        return: (units,) each
    """
    state = graph.state()
    whole = run(state).double()
    spread = (whole - whole.mean(0)).square().mean().sqrt().clamp(min=1e-12)
    before = None if labels is None else cross_entropy(whole, labels)
    found: dict[str, Tensor] = {}
    for number, group in enumerate(graph.topology.groups):
        if group.fixed:
            continue
        effects = []
        for unit in range(group.size):
            answers = run(_silenced(graph, state, number, unit)).double()
            if before is not None and labels is not None:
                effects.append(cross_entropy(answers, labels) - before)
            else:
                effects.append(((answers - whole).square().mean().sqrt() / spread).clamp(min=_FLOOR).log10())
        found[group.name] = torch.stack(effects).float()
    return found


def _silenced(graph: ParameterGraph, state: Mapping[str, Tensor], group: int, unit: int) -> dict[str, Tensor]:
    changed = dict(state)
    for number in graph.topology.edges:
        block = graph.topology.blocks[number]
        if block.groups[1] != group:
            continue
        values = block.region.read(changed[block.tensor]).clone()
        values[:, unit] = 0
        tensor = changed[block.tensor].clone()
        block.region.write(values, tensor)
        # A tied tensor is one tensor under several names.
        changed |= {name: tensor for name in changed if graph.topology.owners[name] == block.tensor}
    return changed


def weight_saliency(graph: ParameterGraph, run: Run, labels: Tensor) -> dict[str, Tensor]:
    """How much of the loss hangs on each weight, to first order: log10 of ``|w dL/dw|`` over the network's mean of it.

    Source: Mozer and Smolensky 1989, "Skeletonization"; as a score of single weights, Lee et al. 2019, "SNIP".

    Args:
        graph: The network.
        run: Runs it on inputs.
        labels: The classes of the inputs.

    Shapes:
        labels: (examples,)
        return: the shape of each tensor that the graph interprets and the loss depends on, at least -6 everywhere
    """
    state = graph.state()
    seen = [name for name in _interpreted(graph) if not graph.spec.tensors[name].kind.startswith("norm.running")]
    leaves = {name: state[name].detach().double().requires_grad_() for name in seen if state[name].is_floating_point()}
    doubles = {name: value.double() if value.is_floating_point() else value for name, value in state.items()}
    given = {name: leaves.get(graph.topology.owners[name], value) for name, value in doubles.items()}
    loss = cross_entropy(run(given), labels)
    gradients = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    pairs = zip(leaves.items(), gradients, strict=True)
    scores = {name: (leaf * slope).abs().detach() for (name, leaf), slope in pairs if slope is not None}
    if not scores:
        raise TaskError("the loss depends on no weight that the graph holds")
    mean = torch.cat([score.reshape(-1) for score in scores.values()]).mean().clamp(min=1e-30)
    return {name: (score / mean).clamp(min=_FLOOR).log10().float() for name, score in scores.items()}


def weight_changes(graph: ParameterGraph, later: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """How every weight moves until a later state of the same training, in units of its tensor's root mean square.

    Shapes:
        return: the shape of each tensor that the graph interprets
    """
    state = graph.state()
    found = {}
    for name in _interpreted(graph):
        if state[name].is_floating_point():
            now, then = state[name].double(), later[name].double()
            found[name] = ((then - now) / (now.square().mean() + 1e-4).sqrt()).float()
    return found


def _interpreted(graph: ParameterGraph) -> list[str]:
    topology = graph.topology
    blocks = (topology.blocks[i] for i in (*topology.edges, *topology.nodes))
    return list(dict.fromkeys(block.tensor for block in blocks))


def unit_norms(graph: ParameterGraph) -> dict[str, Tensor]:
    """The simple baseline of a unit: the logarithm of its incoming norm times its outgoing norm.

    Shapes:
        return: (units,) by space
    """
    topology = graph.topology
    found = {}
    for number, group in enumerate(topology.groups):
        if group.fixed:
            continue
        into, out = torch.zeros(group.size, dtype=torch.float64), torch.zeros(group.size, dtype=torch.float64)
        for i in topology.edges:
            square = graph.values[i].double().square()
            if topology.blocks[i].groups[0] == number:
                into += square.sum((1, 2))
            if topology.blocks[i].groups[1] == number:
                out += square.sum((0, 2))
        found[group.name] = ((into + 1e-12).log10() + (out + 1e-12).log10()).float() / 2
    return found


def weight_sizes(graph: ParameterGraph) -> dict[str, Tensor]:
    """The simple baseline of a weight: the logarithm of its absolute value over its network's root mean square.

    Shapes:
        return: the shape of each tensor that the graph interprets
    """
    state = graph.state()
    tensors = {name: state[name].double() for name in _interpreted(graph) if state[name].is_floating_point()}
    whole = torch.cat([tensor.reshape(-1) for tensor in tensors.values()])
    size = whole.square().mean().sqrt().clamp(min=1e-30)
    return {name: (tensor.abs() / size).clamp(min=_FLOOR).log10().float() for name, tensor in tensors.items()}
