"""Does a parameter graph give its checkpoint back bit by bit?"""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from metanet.errors import GraphError
from metanet.graph import ParameterGraph
from symmetry import Atom, Axis, Concat, Fixed, NeuronSpace, Product, SpecError, SymmetrySpec, TensorInfo
from tests.graph.specs import SPECS, chains, mlp, random_state

SPACES = tuple(NeuronSpace(name, size) for name, size in (("a", 1), ("b", 2), ("c", 3)))
ROLES = ("out", "in", "unit", "position", "none")
KINDS = ("linear.weight", "conv.weight", "bias", "norm.running_var", "parameter", "unused", "an unknown kind")
DTYPES = ("float32", "float64", "float16", "bfloat16", "int64", "int8", "bool", "complex64")
SPECIAL = (math.nan, math.inf, -math.inf, -0.0, 0.0, 1.0, 5e-324)

leaves = st.one_of(
    st.sampled_from(SPACES).map(Atom),
    st.builds(Fixed, st.integers(0, 3), st.sampled_from((None, "input", "output"))),
)
axes = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.builds(Product, inner, inner),
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: Concat(tuple(parts))),
    ),
    max_leaves=4,
)


@st.composite
def specs(draw: st.DrawFn) -> SymmetrySpec:
    tensors: dict[str, TensorInfo] = {}
    layout: dict[str, tuple[Axis, ...]] = {}
    for number in range(draw(st.integers(1, 4))):
        name = f"t{number}"
        mine = tuple(draw(st.lists(axes, max_size=3)))
        dtype = draw(st.sampled_from(DTYPES))
        tied = draw(st.sampled_from([None, *tensors])) if tensors else None
        if tied is not None:
            mine, dtype = layout[tied], tensors[tied].dtype
            tied = tensors[tied].tied_to or tied
        layout[name] = mine
        tensors[name] = TensorInfo(
            shape=tuple(axis.size for axis in mine),
            dtype=dtype,
            kind=draw(st.sampled_from(KINDS)),
            roles=tuple(draw(st.sampled_from(ROLES)) for _ in mine),
            order=draw(st.integers(0, 3)),
            tied_to=tied,
        )
    within = draw(st.sampled_from(({}, {"c": ("b",)})))
    return SymmetrySpec(spaces=SPACES, axes=layout, tensors=tensors, within=within)


def any_tensor(info: TensorInfo, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    dtype = getattr(torch, info.dtype)
    bits = torch.randint(0, 256, (math.prod(info.shape) * dtype.itemsize,), generator=generator, dtype=torch.uint8)
    if dtype == torch.bool:
        return (bits > 127).reshape(info.shape)
    tensor = bits.view(dtype).reshape(info.shape)  # any bit pattern, NaN payloads and subnormal numbers included
    if dtype.is_floating_point and tensor.numel():
        tensor.view(-1)[0] = SPECIAL[seed % len(SPECIAL)]
    return tensor


def bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].shape == tensor.shape
        assert torch.equal(bits(found[name]), bits(tensor)), name
    for first in expected:
        for second in expected:
            assert (found[first] is found[second]) == (expected[first] is expected[second]), (first, second)


@given(specs(), st.integers(0, 10**6), st.booleans(), st.randoms(use_true_random=False))
@settings(max_examples=200, deadline=None)
def test_any_state_of_any_spec_comes_back_bit_by_bit(spec, seed, together, random):
    names = list(spec.tensors)
    random.shuffle(names)
    drawn = {name: any_tensor(spec.tensors[name], seed + i) for i, name in enumerate(spec.tensors)}
    state = {}
    for name in names:
        owner = spec.tensors[name].tied_to
        if owner is None:
            state[name] = drawn[name]
        else:  # tied entries come as one tensor or, as from a safetensors file, as equal copies
            state[name] = drawn[owner] if together else drawn[owner].clone()
    graph = ParameterGraph.build(spec, state)
    assert_same(graph.state(), state)
    assert graph.topology is ParameterGraph.build(spec, state).topology


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_round_trip_of_known_architectures(name, dtype):
    spec = SPECS[name]()
    state = random_state(spec, torch.Generator().manual_seed(1), dtype)
    assert_same(ParameterGraph.build(spec, state).state(), state)


def test_entries_that_are_one_tensor_stay_one_also_where_the_spec_does_not_tie_them():
    spec = mlp(3, 4, 4, 2)
    state = random_state(spec, torch.Generator().manual_seed(1))
    state["layers.1.bias"] = state["layers.0.bias"]
    assert_same(ParameterGraph.build(spec, state).state(), state)


def test_graph_and_state_own_their_memory():
    spec = SPECS["cnn"]()
    state = random_state(spec, torch.Generator().manual_seed(1))
    kept = {name: tensor.clone() for name, tensor in state.items()}
    graph = ParameterGraph.build(spec, state)
    for tensor in state.values():
        tensor.zero_()
    first = graph.state()
    assert_same(first, kept)
    for tensor in first.values():
        tensor.zero_()
    assert_same(graph.state(), kept)


def test_gradients_flow_through_the_graph():
    spec = SPECS["lstm"]()
    state = random_state(spec, torch.Generator().manual_seed(1))
    leaves = {name: tensor.requires_grad_() for name, tensor in state.items()}
    sum(tensor.square().sum() for tensor in ParameterGraph.build(spec, leaves).state().values()).backward()
    for name, leaf in leaves.items():
        torch.testing.assert_close(leaf.grad, 2 * leaf.detach(), msg=name)


def test_non_contiguous_tensors_are_read_by_value():
    spec = mlp(3, 4, 2)
    state = random_state(spec, torch.Generator().manual_seed(1))
    state["layers.0.weight"] = state["layers.0.weight"].T.contiguous().T
    assert_same(ParameterGraph.build(spec, state).state(), state)


def test_a_wrong_state_is_refused():
    spec = mlp(3, 4, 2)
    state = random_state(spec, torch.Generator().manual_seed(1))
    with pytest.raises(SpecError, match=r"layers\.1\.bias"):
        ParameterGraph.build(spec, {name: tensor for name, tensor in state.items() if name != "layers.1.bias"})
    with pytest.raises(SpecError, match="shape"):
        ParameterGraph.build(spec, {**state, "layers.1.bias": torch.zeros(3)})
    with pytest.raises(GraphError, match=r"layers\.1\.bias: dtype torch\.int64"):
        ParameterGraph.build(spec, {**state, "layers.1.bias": torch.zeros(2, dtype=torch.int64)})


def test_tied_tensors_that_differ_are_refused_even_by_the_sign_of_zero():
    spec = chains()
    state = random_state(spec, torch.Generator().manual_seed(1))
    state["policy.0.weight"][0, 0] = 0.0
    copy = state["policy.0.weight"].clone()
    ParameterGraph.build(spec, {**state, "again.weight": copy})
    copy[0, 0] = -0.0
    with pytest.raises(GraphError, match=r"again\.weight: differs from 'policy\.0\.weight'"):
        ParameterGraph.build(spec, {**state, "again.weight": copy})
