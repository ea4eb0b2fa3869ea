"""Are chains of linear layers recognised by their names and shapes, and nothing else?"""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import symmetry
from metanet.checkpoint import Architecture, infer
from metanet.errors import CheckpointError

from .subjects import linear_state


def chains(architecture: Architecture) -> dict[str, tuple[str, list[int], list[str]]]:
    return {
        chain["name"]: (chain["input"], list(chain["widths"]), list(chain["activations"]))
        for chain in architecture.options["chains"]
    }


def shaped(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    return {name: torch.zeros(shape) for name, shape in shapes.items()}


def layers(**sizes: tuple[int, int]) -> dict[str, tuple[int, ...]]:
    """Weights and biases of layers ``name=(inputs, outputs)``; ``__`` stands for a dot."""
    result: dict[str, tuple[int, ...]] = {}
    for name, (inputs, outputs) in sizes.items():
        result[f"{name.replace('__', '.')}.weight"] = (outputs, inputs)
        result[f"{name.replace('__', '.')}.bias"] = (outputs,)
    return result


@settings(max_examples=30, deadline=None)
@given(
    widths=st.lists(st.integers(1, 9), min_size=2, max_size=5),
    names=st.sampled_from(["{}", "net.{}", "fc{}", "layers.{}.linear", "a.b.layer_{}"]),
    step=st.integers(1, 3),
    prefix=st.sampled_from(["", "module."]),
)
def test_any_sequence(widths: list[int], names: str, step: int, prefix: str) -> None:
    state = {prefix + name: tensor for name, tensor in linear_state(*widths, names=names, step=step).items()}
    shuffled = dict(sorted(state.items(), reverse=True))
    architecture = infer(shuffled, "relu", prefix=prefix)
    ((_, found, activations),) = chains(architecture).values()
    assert found == widths
    assert activations == ["relu"] * (len(widths) - 2) + ["identity"]
    architecture.check_state(state)


def test_the_function_is_the_sequence() -> None:
    """An oracle: the same layers in an nn.Sequential."""
    reference = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2))
    architecture = infer(reference.state_dict(), "tanh")
    model = architecture.build()
    model.load_state_dict(reference.state_dict())
    inputs = architecture.example_inputs()
    assert torch.equal(model(*inputs)[0], reference(*inputs))


def test_ten_layers_are_ordered_by_number() -> None:
    widths = list(range(2, 15))
    architecture = infer(linear_state(*widths, step=1), "relu")
    assert next(iter(chains(architecture).values()))[1] == widths


@pytest.mark.parametrize("head", ["head", "out", "classifier"])
def test_a_named_head_ends_the_sequence(head: str) -> None:
    state = shaped(layers(net__0=(3, 5), net__2=(5, 4)) | layers(**{head: (4, 2)}))
    ((source, widths, _),) = chains(infer(state, "relu")).values()
    assert (source, widths) == ("input", [3, 5, 4, 2])


def test_heads_end_the_sequence_in_their_own_folder() -> None:
    state = shaped(layers(a__net__0=(3, 5), a__net__2=(5, 4), a__head=(4, 2), b__net__0=(3, 5), b__head=(5, 1)))
    found = chains(infer(state, "relu"))
    assert found == {
        "a.net": ("a.net.input", [3, 5, 4, 2], ["relu", "relu", "identity"]),
        "b.net": ("b.net.input", [3, 5, 1], ["relu", "identity"]),
    }


def test_what_merely_could_follow_stays_apart() -> None:
    """The space between would be permuted although it may be an output: the group must not become too large."""
    state = shaped(layers(actor__0=(8, 6), actor__2=(6, 8), critic__0=(8, 6), critic__2=(6, 1)))
    found = chains(infer(state, "relu"))
    assert found == {
        "actor": ("actor.input", [8, 6, 8], ["relu", "identity"]),
        "critic": ("critic.input", [8, 6, 1], ["relu", "identity"]),
    }
    spec = symmetry.trace(infer(state, "relu").build(), infer(state, "relu").example_inputs())
    assert spec.permutation_order == 720**2


def test_layers_without_bias() -> None:
    state = {name: tensor for name, tensor in linear_state(3, 5, 2).items() if name != "0.bias"}
    architecture = infer(state, "relu")
    assert list(architecture.options["chains"][0]["bias"]) == [False, True]
    architecture.check_state(state)


ON_POLICY = layers(
    mlp_extractor__policy_net__0=(4, 5), mlp_extractor__policy_net__2=(5, 6),
    mlp_extractor__value_net__0=(4, 7), action_net=(6, 2), value_net=(7, 1),
)  # fmt: skip
SOFT = layers(
    actor__latent_pi__0=(4, 5), actor__latent_pi__2=(5, 6), actor__mu=(6, 2), actor__log_std=(6, 2),
    critic__qf0__0=(6, 5), critic__qf0__2=(5, 1), critic__qf1__0=(6, 5), critic__qf1__2=(5, 1),
)  # fmt: skip
LAYOUTS = {
    "on_policy": (ON_POLICY, {
        "policy": ("observation", [4, 5, 6, 2], ["tanh", "tanh", "identity"]),
        "value": ("observation", [4, 7, 1], ["tanh", "identity"]),
    }),
    "on_policy_noise": (ON_POLICY | {"log_std": (6, 2)}, {
        "policy": ("observation", [4, 5, 6], ["tanh", "tanh"]),
        "action": ("policy", [6, 2], ["identity"]),
        "value": ("observation", [4, 7, 1], ["tanh", "identity"]),
    }),
    "on_policy_shared": (
        layers(
            mlp_extractor__shared_net__0=(4, 5), mlp_extractor__value_net__0=(5, 6),
            action_net=(5, 2), value_net=(6, 1),
        ), {
        "shared": ("observation", [4, 5], ["tanh"]),
        "policy": ("shared", [5, 2], ["identity"]),
        "value": ("shared", [5, 6, 1], ["tanh", "identity"]),
    }),
    "no_hidden_layer": (layers(action_net=(4, 2), value_net=(4, 1)), {
        "policy": ("observation", [4, 2], ["identity"]),
        "value": ("observation", [4, 1], ["identity"]),
    }),
    "ars": (layers(action_net__0=(4, 5), action_net__2=(5, 2)), {
        "policy": ("observation", [4, 5, 2], ["relu", "identity"]),
    }),
    "ars_linear": ({"action_net.weight": (2, 4)}, {"policy": ("observation", [4, 2], ["identity"])}),
    "soft": (SOFT, {
        "actor": ("observation", [4, 5, 6], ["relu", "relu"]),
        "actor.mu": ("actor", [6, 2], ["identity"]),
        "actor.log_std": ("actor", [6, 2], ["identity"]),
        "critic.qf0": ("observation_action", [6, 5, 1], ["relu", "identity"]),
        "critic.qf1": ("observation_action", [6, 5, 1], ["relu", "identity"]),
    }),
    "td3": (layers(actor__mu__0=(4, 5), actor__mu__2=(5, 2), critic__qf0__0=(6, 5), critic__qf0__2=(5, 1)), {
        "actor": ("observation", [4, 5, 2], ["relu", "identity"]),
        "critic.qf0": ("observation_action", [6, 5, 1], ["relu", "identity"]),
    }),
    "dqn": (layers(
        q_net__q_net__0=(4, 5), q_net__q_net__2=(5, 2), q_net_target__q_net__0=(4, 5), q_net_target__q_net__2=(5, 2),
    ), {
        "q_net": ("observation", [4, 5, 2], ["relu", "identity"]),
        "q_net_target": ("observation", [4, 5, 2], ["relu", "identity"]),
    }),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("prefix", ["", "module."])
def test_layouts(name: str, prefix: str) -> None:
    shapes, expected = LAYOUTS[name]
    state = {prefix + key: tensor for key, tensor in shaped(shapes).items()}
    architecture = infer(state, prefix=prefix)
    assert chains(architecture) == expected
    assert "its default, the file does not say it" in architecture.provenance
    architecture.check_state(state)
    told = infer(state, "gelu", prefix=prefix)
    assert "activation gelu: given by the user" in told.provenance


def test_log_std_without_a_state_is_an_extra() -> None:
    architecture = infer(shaped(ON_POLICY | {"log_std": (2,)}))
    assert dict(architecture.options["extras"]) == {"log_std": (2,)}
    assert not architecture.options["noises"]


def test_noise_moves_with_the_units_it_weighs() -> None:
    """Left alone, the noise would change under a permutation: both are checked here."""
    architecture = infer(shaped(ON_POLICY | {"log_std": (6, 2)}))
    generator = torch.Generator().manual_seed(0)
    state = {name: torch.randn(shape, generator=generator) for name, shape in architecture.shapes().items()}
    spec = symmetry.trace(architecture.build(), architecture.example_inputs())
    moved = spec.act(spec.sample(generator, kinds=("permutation",)), state)
    model, inputs = architecture.build(), architecture.example_inputs()

    def noise(weights: Mapping[str, Tensor]) -> Tensor:
        return torch.func.functional_call(model, dict(weights), inputs)[-1]

    spread = noise(state).std()
    assert (noise(moved) - noise(state)).abs().max() / spread < 1e-5
    assert (noise({**moved, "log_std": state["log_std"]}) - noise(state)).abs().max() / spread > 1e-2


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"log_std": (5, 2)}, "one row for each of the 6 units"),
        ({"features_extractor.0.weight": (4, 4)}, "belongs to no chain"),
        ({"extra": (3,)}, "only chains of linear layers"),
        ({"value_net.bias": (2,)}, "the bias of a layer with 1 outputs"),
        ({"value_net.weight": (1, 8)}, "reads 8 units, but 'mlp_extractor.value_net.0' writes 7"),
    ],
)
def test_agents_that_do_not_fit(change: dict[str, tuple[int, ...]], says: str) -> None:
    with pytest.raises(CheckpointError, match=says) as caught:
        infer(shaped(ON_POLICY | change), file="agent.zip")
    assert str(caught.value).startswith(f"agent.zip: tensor '{next(iter(change))}': ")
