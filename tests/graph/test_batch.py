"""Do batches of mixed architectures keep order, values and buckets?"""

from __future__ import annotations

import pytest
import torch

from metanet.errors import GraphError
from metanet.graph import ParameterGraph, collate
from tests.graph.specs import SPECS, mlp, random_state


def graphs(count: int = 3) -> list[ParameterGraph]:
    generator = torch.Generator().manual_seed(0)
    specs = [SPECS[name]() for name in ("mlp", "cnn", "lstm")]
    return [ParameterGraph.build(spec, random_state(spec, generator)) for _ in range(count) for spec in specs]


def test_buckets_hold_equal_topologies_and_the_order_is_remembered():
    mixed = graphs()
    batch = collate(mixed)
    assert (len(batch), len(batch.buckets)) == (9, 3)
    assert "9 graphs in 3 buckets" in repr(batch)
    seen = []
    for bucket in batch:
        assert len(bucket) == 3
        for row, place in enumerate(bucket.index.tolist()):
            seen.append(place)
            assert mixed[place].topology is bucket.topology
            for number, block in enumerate(bucket.topology.blocks):
                if block.level == "raw":
                    assert bucket.values[number] is None
                else:
                    value = mixed[place].values[number]
                    torch.testing.assert_close(bucket.value(number)[row], value.float(), rtol=0, atol=0)
    assert sorted(seen) == list(range(9))
    names = batch.gather(bucket.index.float()[:, None] for bucket in batch)
    assert names.squeeze(1).tolist() == list(range(9))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype(dtype):
    batch = collate(graphs(1), dtype=dtype)
    assert {value.dtype for bucket in batch for value in bucket.values if value is not None} == {dtype}
    moved = batch.to(dtype=torch.float64)
    assert {value.dtype for bucket in moved for value in bucket.values if value is not None} == {torch.float64}


def test_select_equals_collate_of_the_selection_and_keeps_cached_results():
    mixed = graphs()
    batch = collate(mixed)
    calls = []
    for bucket in batch:
        bucket.remember("place", lambda bucket: calls.append(1) or bucket.index.clone())
    wanted = [4, 0, 7, 7, 2]
    chosen, expected = batch.select(wanted), collate([mixed[i] for i in wanted])
    assert len(chosen) == 5
    by_topology = {bucket.topology: bucket for bucket in expected}
    for bucket in chosen:
        other = by_topology[bucket.topology]
        assert bucket.index.tolist() == other.index.tolist()
        for ours, theirs in zip(bucket.values, other.values, strict=True):
            assert (ours is None) == (theirs is None)
            if ours is not None:
                torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
        places = bucket.remember("place", lambda bucket: calls.append(1) or bucket.index)
        assert places.tolist() == [wanted[i] for i in bucket.index.tolist()]
    again = chosen.select([0, 1]).to(dtype=torch.float32).to("cpu")
    for bucket in again:
        bucket.remember("place", lambda bucket: calls.append(1) or bucket.index)
    assert len(calls) == 3  # once per bucket of the whole batch
    for bucket in chosen.to(dtype=torch.float64):
        bucket.remember("place", lambda bucket: calls.append(1) or bucket.index)
    assert len(calls) == 3 + len(chosen.buckets)  # another dtype is computed anew
    assert len(batch.select([])) == 0


def test_a_selection_computes_for_the_whole_batch():
    batch = collate(graphs())
    seen = []
    for bucket in batch.select([0, 3, 1]):
        bucket.remember("size", lambda bucket: seen.append(len(bucket)) or bucket.index)
    assert seen == [3, 3]
    assert sum("size" in bucket.cache for bucket in batch) == 2


def test_errors():
    with pytest.raises(GraphError, match="at least one graph"):
        collate([])
    with pytest.raises(GraphError, match="item 1 is a str"):
        collate([graphs(1)[0], "no graph"])
    with pytest.raises(GraphError, match=r"dtype=torch\.int64"):
        collate(graphs(1), dtype=torch.int64)
    with pytest.raises(GraphError, match="index 9 of a batch of 9"):
        collate(graphs()).select([1, 9])
    with pytest.raises(GraphError, match="index -1"):
        collate(graphs()).select([-1])
    spec = SPECS["cnn"]()
    bucket = collate([ParameterGraph.build(spec, random_state(spec, torch.Generator()))]).buckets[0]
    with pytest.raises(GraphError, match="is raw"):
        bucket.value(bucket.topology.raw[0])


def test_equal_architectures_with_different_sizes_are_different_buckets():
    generator = torch.Generator().manual_seed(0)
    specs = [mlp(3, width, 2) for width in (4, 5, 4)]
    batch = collate([ParameterGraph.build(spec, random_state(spec, generator)) for spec in specs])
    assert [bucket.index.tolist() for bucket in batch] == [[0, 2], [1]]
