"""Do networks of every family that can be traced make graphs, give back their exact tensors, and mix in a batch?"""

from __future__ import annotations

import pytest
import torch

import symmetry
from metanet.graph import ParameterGraph, collate
from tests.symmetry.families import FACTS
from tests.symmetry.models import Subject, seeded
from tests.symmetry.wide import WIDE


def graph_of(subject: Subject) -> ParameterGraph:
    model = seeded(subject.build)
    return ParameterGraph.build(symmetry.trace(model, subject.inputs()), model.state_dict())


@pytest.mark.parametrize("subject", [*FACTS, *WIDE], ids=lambda subject: subject.name)
def test_every_family_comes_back_bit_by_bit(subject: Subject) -> None:
    model = seeded(subject.build)
    state = model.state_dict()
    graph = ParameterGraph.build(symmetry.trace(model, subject.inputs()), state)
    back = graph.state()
    assert list(back) == list(state)
    assert all(torch.equal(back[name], tensor) and back[name].dtype == tensor.dtype for name, tensor in state.items())
    assert graph.to_pyg().num_nodes > 0


def test_families_mix_in_a_batch() -> None:
    graphs = [graph_of(subject) for subject in FACTS[:5]]
    batch = collate([*graphs, *graphs])
    assert (len(batch), len(batch.buckets)) == (10, 5)
