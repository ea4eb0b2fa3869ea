"""Does the sweep start as the network itself, run on learned probes?"""

from __future__ import annotations

import torch
from torch import Tensor

from metanet.graph import Bucket, ParameterGraph, collate
from metanet.nn.dense import make_generator
from metanet.nn.structure import structure_of
from metanet.nn.sweep import Sweep
from tests.graph.specs import SPECS, mlp, random_state

PROBES = 5


def bucket_of(*states: dict[str, Tensor]) -> Bucket:
    spec = mlp(4, 6, 5, 3)
    return collate([ParameterGraph.build(spec, state) for state in states], torch.float64).buckets[0]


def make_sweep() -> Sweep:
    sweep = Sweep(PROBES)
    sweep.reset_parameters(make_generator(0))
    return sweep.double()


def scaled(state: dict[str, Tensor], unit: int, factor: float) -> dict[str, Tensor]:
    """Another network of the same function: a ReLU unit's incoming weights times a factor, outgoing ones over it."""
    moved = {name: value.clone() for name, value in state.items()}
    moved["layers.0.weight"][unit] *= factor
    moved["layers.0.bias"][unit] *= factor
    moved["layers.1.weight"][:, unit] /= factor
    return moved


def test_at_the_start_the_answers_of_the_outputs_depend_on_the_function_alone():
    state = random_state(mlp(4, 6, 5, 3), torch.Generator().manual_seed(0))
    other = {**state, "layers.0.bias": state["layers.0.bias"] + 0.1}
    bucket = bucket_of(state, scaled(state, 2, 5.0), other)
    sweep = make_sweep()
    found = sweep(structure_of(bucket.topology), bucket).reshape(3, PROBES, -1)[..., 3:]  # behind those of hidden units
    torch.testing.assert_close(found[0], found[1])
    assert (found[0] - found[2]).abs().max() > 1e-3
    with torch.no_grad():
        sweep.mix.weight.normal_(generator=torch.Generator().manual_seed(0))
    moved = sweep(structure_of(bucket.topology), bucket).reshape(3, PROBES, -1)[..., 3:]
    assert (moved - found).abs().max() > 1e-3


def test_probes_exist_for_any_number_of_inputs_and_any_kernel():
    sweep = make_sweep()
    for name, make in SPECS.items():
        spec = make()
        state = random_state(spec, torch.Generator().manual_seed(0))
        bucket = collate([ParameterGraph.build(spec, state)], torch.float64).buckets[0]
        found = sweep(structure_of(bucket.topology), bucket)
        assert found.shape == (1, sweep.features), name
        assert torch.isfinite(found).all(), name
        assert found.abs().sum() > 0, name
