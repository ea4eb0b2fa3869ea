"""Is the split kernel on dense blocks the same mathematics as concatenate and scatter?"""

from __future__ import annotations

import pytest
import torch

from metanet.graph import GraphBatch, ParameterGraph, collate
from metanet.nn import Metanet
from metanet.nn.structure import structure_of
from tests.graph.specs import SPECS, random_state
from tests.nn import reference


def mixed_batch(copies: int = 2) -> GraphBatch:
    generator = torch.Generator().manual_seed(3)
    specs = [make() for _ in range(copies) for make in SPECS.values()]
    return collate([ParameterGraph.build(spec, random_state(spec, generator)) for spec in specs], torch.float64)


def differences(change: float = 0.0) -> list[float]:
    """Largest differences of nodes, edges and layers after each of three rounds."""
    batch = mixed_batch()
    net = Metanet(level="edge", hidden=12, layers=3, partial=True, seed=4).double()
    dense = [net.embedding(bucket) for bucket in batch]
    found = []
    with torch.no_grad():
        for layer in net.layers:
            plain = reference.run(layer, reference.flatten(batch, dense))
            layer.to_source.weight[0, 0] += change
            pairs = zip(batch, dense, strict=True)
            dense = [layer(structure_of(bucket.topology), bucket, *features) for bucket, features in pairs]
            flat = reference.flatten(batch, dense)
            for ours, theirs in zip((flat.nodes, flat.edges, flat.layers), plain, strict=True):
                found.append(float((ours - theirs).abs().max() / theirs.std()))
    return found


def test_dense_split_kernel_equals_the_plain_message_passing_form():
    assert max(differences()) < 1e-10


def test_the_comparison_notices_a_changed_weight():
    assert max(differences(change=1e-3)) > 1e-6


@pytest.mark.parametrize("edges", [True, False])
def test_repr(edges):
    from metanet.nn import MessageLayer

    assert f"hidden=8, edges={edges}" in repr(MessageLayer(8, edges=edges))
