"""Does reading many networks at once give what reading them one by one gives, and refuse what cannot be stacked?"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from metanet.checkpoint import Checkpoint, Source
from metanet.commands._zoo_data import zoo_graphs, zoo_items
from metanet.datasets import Zoo
from metanet.datasets.bulk import read_stacked
from metanet.errors import GraphError, ZooError
from metanet.graph import ParameterGraph, program_of


def rows_of(zoo: Zoo, architecture: int) -> np.ndarray:
    return np.flatnonzero(zoo.index["architecture"] == architecture)


def test_rows_come_in_the_order_that_was_asked_for(tiny_zoo: Zoo) -> None:
    generator = np.random.default_rng(0)
    for number in range(len(tiny_zoo.architectures)):
        rows = generator.choice(rows_of(tiny_zoo, number), 5)  # some twice, in any order
        stacked = tiny_zoo.stacked(rows)
        assert list(stacked) == list(tiny_zoo.architectures[number].shapes())
        for place, row in enumerate(rows.tolist()):
            for name, tensor in tiny_zoo[row].state.items():
                assert stacked[name].dtype == tensor.dtype
                assert torch.equal(stacked[name][place], tensor), (name, row)


def test_rows_far_apart_and_in_several_shards(tmp_path: Path) -> None:
    """Pieces of a shard that lie far apart are read one by one: a shard of 300 rows, of which three are wanted."""
    tensors = [torch.randn(300, 3, generator=torch.Generator().manual_seed(seed)) for seed in range(2)]
    shards = {}
    for number, tensor in enumerate(tensors):
        save_file({"a": tensor}, tmp_path / f"{number}.safetensors")
        shards[str(number)] = tensor
    opened = {name: safe_open(tmp_path / f"{name}.safetensors", framework="pt") for name in shards}
    places = [("1", 299), ("0", 3), ("0", 290), ("1", 0), ("0", 7), ("0", 3)]
    records = [{"architecture": 0, "shard": shard, "key": key} for shard, key in places]
    found = read_stacked(tmp_path, records, None, lambda number: {"a": (3,)}, opened.__getitem__)
    assert torch.equal(found["a"], torch.stack([shards[shard][key] for shard, key in places]))


def test_what_cannot_be_stacked_is_refused(tiny_copy: Path) -> None:
    zoo = Zoo.open(tiny_copy)
    one, other = (rows_of(zoo, number)[0] for number in (0, 1))
    with pytest.raises(ZooError, match="of 2 architectures"):
        zoo.stacked([one, other])
    for rows in ([], [len(zoo)], [-1], [0.5], [[0]]):
        with pytest.raises(ZooError):
            zoo.stacked(rows)
    path = tiny_copy / zoo.index[int(one)]["shard"]
    state = load_file(path)
    name = next(iter(state))
    save_file({**state, name: state[name][:1].clone()}, path)
    with pytest.raises(ZooError, match="behind more than"):
        Zoo(zoo.folder, zoo.manifest, [*zoo.index]).stacked(rows_of(zoo, 0)[1:])


def test_graphs_built_at_once_are_those_built_one_by_one(tiny_zoo: Zoo) -> None:
    rows = [*range(len(tiny_zoo))][::-1]
    for row, graph in zip(rows, zoo_graphs(tiny_zoo, rows), strict=True):
        entry = tiny_zoo[row]
        checkpoint = Checkpoint(entry.state, entry.architecture, Source(tiny_zoo.folder, "safetensors"))
        alone = ParameterGraph.build(checkpoint.spec, checkpoint.state, program_of(entry.architecture))
        assert graph.topology is alone.topology
        assert graph.names == alone.names
        assert graph.program is alone.program
        assert all(torch.equal(a, b) for a, b in zip(graph.values, alone.values, strict=True))
        assert all(torch.equal(graph.state()[name], tensor) for name, tensor in entry.state.items())
    items = list(zoo_items(tiny_zoo, "test_accuracy"))
    assert [item.target for item in items] == tiny_zoo.index["test_accuracy"].tolist()
    assert [item.part for item in items] == [entry.split for entry in tiny_zoo]


def test_stacks_that_are_no_networks_are_refused(tiny_zoo: Zoo) -> None:
    rows = rows_of(tiny_zoo, 0)
    states = tiny_zoo.stacked(rows)
    spec = Checkpoint(tiny_zoo[rows[0]].state, tiny_zoo.architectures[0], Source(tiny_zoo.folder, "safetensors")).spec
    name = next(iter(states))
    with pytest.raises(GraphError, match="rows"):
        ParameterGraph.build_many(spec, {**states, name: states[name][:1]})
    with pytest.raises(GraphError, match="dtype"):
        ParameterGraph.build_many(spec, {**states, name: states[name].long()})
    with pytest.raises(Exception, match=name):
        ParameterGraph.build_many(spec, {**states, name: states[name][:, :1]})
    assert ParameterGraph.build_many(spec, {key: value[:0] for key, value in states.items()}) == []
