"""What does data-free parameter pruning make of a stack of networks? A rival of `morph.py`.

Source: Srinivas and Babu, Data-free Parameter Pruning for Deep Neural Networks, 2015, section 3: of two units whose
incoming weights are nearly the same one goes, and its outgoing weights are added to the other's; the pair is chosen for
which squared distance of the incoming times squared norm of the outgoing weights is smallest, again and again.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from morph_subjects import State, Subject
from torch import Tensor

from metanet.morph.batched import refitted
from metanet.morph.orders import reader_grams
from symmetry import SymmetrySpec
from symmetry.action import leaf_name

VARIANCE_FLOOR = 1e-5  # of torch's batch norm


def merged(subject: Subject, keeps: Mapping[str, int]) -> State:
    """The stack with units of every space merged until some are left."""
    made = dict(subject.states)
    for space, keep in keeps.items():
        size = subject.spec.sizes[space]
        x = incoming(subject.spec, subject.states, space)
        readings = subject.masked.readings[space]
        matrix = merging(torch.cdist(x, x).square(), reader_grams(subject.states, readings, size), size - keep)
        for reading in readings:
            made |= refitted(made, reading, matrix.to(x.dtype), torch.zeros(subject.count, size, dtype=x.dtype))
    return made


def merging(distance: Tensor, gram: Tensor, count: int) -> Tensor:
    """Which unit stands for which in the end.

    Args:
        distance: between the incoming weights of two units, squared.
        gram: of the outgoing weights.
        count: how many units go.

    Shapes:
        (B, n, n), (B, n, n) -> (B, n, n), 1 in row m and column u if m stands for u
    """
    networks, size = distance.shape[:2]
    everywhere = torch.arange(networks)
    gram, gone = gram.double().clone(), torch.eye(size, dtype=torch.bool).repeat(networks, 1, 1)
    matrix = torch.eye(size, dtype=torch.float64).repeat(networks, 1, 1)
    for _ in range(count):
        # Row: who stays; column: who goes.
        cost = distance.double() * gram.diagonal(dim1=1, dim2=2).unsqueeze(1)
        place = cost.masked_fill(gone, torch.inf).flatten(1).argmin(1)
        stays, goes = place // size, place % size
        matrix[everywhere, stays] += matrix[everywhere, goes]
        matrix[everywhere, goes] = 0
        gram[everywhere, stays] += gram[everywhere, goes]
        gram[everywhere, :, stays] += gram[everywhere, :, goes]
        gone[everywhere, goes] = True
        gone[everywhere, :, goes] = True
    return matrix


def incoming(spec: SymmetrySpec, states: Mapping[str, Tensor], space: str) -> Tensor:
    """All weights that write each unit, with the biases, and with batch norms folded into them.

    Shapes:
        -> (B, units, features)
    """
    size = spec.sizes[space]
    rows: list[Tensor] = []
    writer = ""
    for name in sorted(spec.tensors, key=lambda name: spec.tensors[name].order):
        info, axes = spec.tensors[name], spec.axes[name]
        places = [k for k, axis in enumerate(axes) if space in {leaf_name(leaf) for leaf in axis.leaves()}]
        written = [k for k in places if info.roles and info.roles[k] == "out"]
        if info.tied_to is not None or not written or axes[written[0]].size != size:
            continue
        head, _, last = name.rpartition(".")
        if f"{head}.running_mean" in states:
            if last == "weight":  # a norm behind what was written last; its shift, mean and bias in one
                part = (states[f"{head}.running_var"] + VARIANCE_FLOOR).rsqrt() * states[name]
                shift = states[f"{head}.bias"] - part * states[f"{head}.running_mean"]
                rows[-1] = torch.cat([rows[-1] * part.unsqueeze(2), shift.unsqueeze(2)], 2)
            continue
        found = states[name].movedim(written[0] + 1, 1).reshape(len(states[name]), size, -1)
        if head == writer:  # the bias beside a weight
            rows[-1] = torch.cat([rows[-1], found], 2)
        else:
            rows.append(found)
        writer = head
    return torch.cat(rows, 2)
