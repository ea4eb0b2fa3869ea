"""Is an architecture a value, does it build what it says, and does it take no memory before it is checked?"""

from __future__ import annotations

import json
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import functional_call, vmap

import symmetry
from metanet.checkpoint import Architecture
from metanet.checkpoint.options import ACTIVATIONS
from metanet.errors import CheckpointError

from .subjects import ARCHITECTURES, random_state

every_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES.values(), ids=ARCHITECTURES.keys())


@every_architecture
class TestEveryArchitecture:
    def test_value(self, architecture: Architecture) -> None:
        again = Architecture.from_json(json.loads(json.dumps(architecture.to_json())))
        assert again == architecture
        assert hash(again) == hash(architecture)
        assert again.fingerprint == architecture.fingerprint
        assert pickle.loads(pickle.dumps(architecture)) == architecture
        assert architecture.family in str(architecture)
        assert sum(other == architecture for other in ARCHITECTURES.values()) == 1

    def test_read_only(self, architecture: Architecture) -> None:
        with pytest.raises(TypeError):
            architecture.options["inputs"] = 3  # type: ignore[index]
        with pytest.raises(AttributeError):
            architecture.family = "mlp"  # type: ignore[misc]

    def test_shapes_are_those_of_the_module(self, architecture: Architecture) -> None:
        state = architecture.build().state_dict()
        assert architecture.shapes() == {name: tuple(tensor.shape) for name, tensor in state.items()}
        assert list(architecture.shapes()) == list(state)

    def test_seed(self, architecture: Architecture) -> None:
        before = torch.random.get_rng_state()
        one, same, other = (architecture.build(seed).state_dict() for seed in (1, 1, 2))
        assert torch.equal(torch.random.get_rng_state(), before), "the global generator moved"
        assert all(torch.equal(one[name], same[name]) for name in one)
        assert any(not torch.equal(one[name], other[name]) for name in one)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_runs_with_a_state(self, architecture: Architecture, dtype: torch.dtype) -> None:
        model = architecture.build().to(dtype).eval()
        model.load_state_dict(random_state(architecture, dtype=dtype))
        inputs = [value.to(dtype) for value in architecture.example_inputs(batch=3)]
        made = model(*inputs)
        for output in made if isinstance(made, tuple) else (made,):
            assert output.shape[0] == 3
            assert output.dtype == dtype
            assert output.isfinite().all()

    def test_example_inputs_are_the_same_every_time(self, architecture: Architecture) -> None:
        one, two = architecture.example_inputs(), architecture.example_inputs()
        assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
        assert all(value.shape[0] == 7 for value in one)

    def test_many_at_once(self, architecture: Architecture) -> None:
        """Stacked networks under vmap give what each gives alone."""
        model, inputs = architecture.build().eval(), architecture.example_inputs(batch=4)
        states = [random_state(architecture, seed) for seed in range(3)]
        stacked = {name: torch.stack([state[name] for state in states]) for name in states[0]}
        together = vmap(lambda state: functional_call(model, state, inputs))(stacked)
        for i, state in enumerate(states):
            alone = functional_call(model, state, inputs)
            pairs = zip(alone, together, strict=True) if isinstance(alone, tuple) else [(alone, together)]
            for one, many in pairs:
                torch.testing.assert_close(many[i], one, rtol=1e-4, atol=1e-5)

    def test_first_difference_is_named(self, architecture: Architecture) -> None:
        state = random_state(architecture)
        architecture.check_state(state)
        name = list(state)[-1]
        wrong = {**state, name: torch.zeros(9, 9, 9)}
        with pytest.raises(CheckpointError, match=rf"tensor '{name}': has shape \[9, 9, 9\], the architecture expects"):
            architecture.check_state(wrong)
        with pytest.raises(CheckpointError, match="tensor 'other': is not in the architecture"):
            architecture.check_state({**state, "other": torch.zeros(1)})
        del state[name]
        with pytest.raises(CheckpointError, match=f"tensor '{name}': is in the architecture and not in the file"):
            architecture.check_state(state)

    def test_symmetry(self, architecture: Architecture) -> None:
        """Every family can be traced, and what is found holds."""
        model, inputs = architecture.build().eval(), architecture.example_inputs()
        spec = symmetry.trace(model, inputs)
        found = symmetry.verify(model, inputs, spec, trials=1)
        assert found.passed, str(found)
        assert not spec.pinned
        hidden = [space for space in spec.spaces if space.size > 1]
        assert bool(hidden) == bool(architecture.options.get("widths", True))


def test_residual_layers_share_one_space() -> None:
    options = {"channels": 1, "size": 6, "widths": [4, 4, 4], "outputs": 2, "activation": "relu"}
    spaces = {}
    for residual in (False, True):
        architecture = Architecture("cnn", {**options, "residual": residual})
        spec = symmetry.trace(architecture.build().eval(), architecture.example_inputs())
        writers = [f"blocks.{i}.conv{2 if residual else ''}.weight" for i in range(3)]
        spaces[residual] = {str(spec.axes[writer][0]) for writer in writers}
    assert len(spaces[True]) == 1
    assert len(spaces[False]) == 3


def test_size_is_refused_before_memory_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("a tensor was initialised")

    monkeypatch.setattr(torch.nn.Linear, "reset_parameters", forbidden)
    with pytest.raises(CheckpointError, match="at most 512"):
        Architecture("mlp", {"inputs": 1, "widths": [1] * 513, "outputs": 1, "activation": "relu"})
    monkeypatch.setattr(torch.nn.Linear, "reset_parameters", lambda self: None)
    with pytest.raises(CheckpointError, match="needs more than"):
        Architecture("mlp", {"inputs": 1 << 20, "widths": [1 << 20], "outputs": 1, "activation": "relu"})


@settings(max_examples=25, deadline=None)
@given(
    inputs=st.integers(1, 6),
    widths=st.lists(st.integers(1, 6), max_size=4),
    outputs=st.integers(1, 4),
    activation=st.sampled_from(ACTIVATIONS),
    norm=st.sampled_from(["none", "batch"]),
)
def test_any_mlp(inputs: int, widths: list[int], outputs: int, activation: str, norm: str) -> None:
    options = {"inputs": inputs, "widths": widths, "outputs": outputs, "activation": activation, "norm": norm}
    architecture = Architecture("mlp", options)
    assert Architecture.from_json(architecture.to_json()) == architecture
    assert architecture.build().eval()(*architecture.example_inputs(2)).shape == (2, outputs)


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_cnn(data: st.DataObject) -> None:
    widths = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    options = {
        "channels": data.draw(st.integers(1, 3)),
        "size": data.draw(st.integers(8, 12)),
        "widths": widths,
        "outputs": 2,
        "activation": data.draw(st.sampled_from(ACTIVATIONS)),
        "norm": data.draw(st.sampled_from(["none", "batch"])),
        "residual": data.draw(st.booleans()),
        "kernel": data.draw(st.sampled_from([1, 3, 5])),
        "strides": data.draw(st.lists(st.sampled_from([1, 2]), min_size=len(widths), max_size=len(widths))),
        "reduce": data.draw(st.sampled_from(["stride", "max", "average"])),
        "head": data.draw(st.sampled_from(["average", "flatten"])),
    }
    architecture = Architecture("cnn", options)
    assert Architecture.from_json(architecture.to_json()) == architecture
    assert architecture.build().eval()(*architecture.example_inputs(2)).shape == (2, 2)


def test_order_of_options_does_not_matter() -> None:
    options = {"inputs": 5, "widths": [6], "outputs": 3, "activation": "relu"}
    one = Architecture("mlp", options)
    two = Architecture("mlp", dict(reversed(options.items())), provenance="elsewhere")
    assert one == two
    assert one.fingerprint == two.fingerprint
    assert one != Architecture("mlp", {**options, "activation": "tanh"})
