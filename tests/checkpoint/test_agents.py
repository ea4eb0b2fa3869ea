"""Do all eighty real agents open, with a verified symmetry, and come back bit by bit?

The files are trained Stable-Baselines3 agents that nobody on this project made.
"""

from __future__ import annotations

import csv
import io
import zipfile
from pathlib import Path

import pytest
import torch

import metanet
import symmetry

from .subjects import same

COUNT = 80
# Architectures are split over a few tests, so that test processes share the work and trace each only once.
SHARES = 6


@pytest.fixture(scope="module")
def agents(real_agents: Path) -> list[Path]:
    return sorted(real_agents.glob("*.zip"))


def test_all_come_back_bit_by_bit(agents: list[Path], tmp_path: Path) -> None:
    assert len(agents) == COUNT
    for path in agents:
        with zipfile.ZipFile(path) as archive:
            reference = torch.load(io.BytesIO(archive.read("policy.pth")), map_location="cpu", weights_only=True)
        checkpoint = metanet.load(path)
        assert same(checkpoint.state, reference), path.name
        checkpoint.save(tmp_path / "agent.zip")
        metanet.save_checkpoint(tmp_path / "agent.safetensors", checkpoint.state, checkpoint.architecture)
        for copy in (tmp_path / "agent.zip", tmp_path / "agent.safetensors"):
            again = metanet.load(copy)
            assert same(again.state, reference), path.name
            assert again.architecture == checkpoint.architecture
            assert again.parameters == sum(tensor.numel() for tensor in reference.values())


def test_sizes_are_those_of_the_labels(agents: list[Path], real_agents: Path) -> None:
    with (real_agents / "labels.csv").open(newline="") as file:
        labels = {row["file"]: row for row in csv.DictReader(file)}
    for path in agents:
        checkpoint, row = metanet.load(path), labels[path.name]
        assert (len(checkpoint.state), checkpoint.parameters) == (int(row["tensors"]), int(row["parameters"]))


def test_activation_is_that_of_the_algorithm(agents: list[Path]) -> None:
    for path in agents:
        tanh = path.name.split("__")[0] in ("a2c", "ppo", "trpo")
        found = {name for chain in metanet.load(path).architecture.options["chains"] for name in chain["activations"]}
        assert found - {"identity"} <= {"tanh" if tanh else "relu"}, path.name


def test_some_were_saved_on_cuda(agents: list[Path]) -> None:
    """And one in the older torch format: the files cover what they are meant to cover."""
    devices = [metanet.load(path).source.devices for path in agents]
    assert devices.count(("cuda:0",)) == 12
    starts = [zipfile.ZipFile(path).read("policy.pth")[:2] for path in agents]
    assert starts.count(b"PK") == COUNT - 1


@pytest.mark.parametrize("share", range(SHARES))
def test_every_spec_is_verified_and_makes_a_graph(agents: list[Path], share: int) -> None:
    checkpoints = [metanet.load(path) for path in agents]
    mine = [c for c in checkpoints if int(c.architecture.fingerprint, 16) % SHARES == share]
    verified: set[metanet.Architecture] = set()
    for checkpoint in mine:
        spec, architecture = checkpoint.spec, checkpoint.architecture
        spec.check(dict(checkpoint.state))
        assert same(metanet.ParameterGraph.build(spec, checkpoint.state).state(), checkpoint.state)
        assert not spec.pinned, checkpoint
        if architecture not in verified:
            found = symmetry.verify(architecture.build(), architecture.example_inputs(), spec, trials=1)
            assert found.passed, f"{checkpoint}\n{found}"
            verified.add(architecture)
        hidden = sum(
            width
            for chain in architecture.options["chains"]
            for width, activation in zip(chain["widths"][1:], chain["activations"], strict=True)
            if activation != "identity"
        )
        assert sum(space.size for space in spec.spaces) == hidden, "every hidden unit, and nothing else, is in a space"
        signs, scales = (hidden, 0) if "tanh" in str(architecture) else (0, hidden)
        noisy = sum(noise["shape"][0] for noise in architecture.options["noises"])
        assert (spec.sign_bits, spec.scale_dimension) == (signs, scales - noisy * bool(scales)), checkpoint
    assert mine


def test_the_weights_of_a_real_agent_can_be_moved(agents: list[Path]) -> None:
    """On the real weights, not random ones, with a control that must fail."""
    checkpoint = metanet.load(agents[0])
    spec, model, inputs = checkpoint.spec, checkpoint.model().double(), checkpoint.architecture.example_inputs()
    inputs = tuple(value.double() for value in inputs)
    state = {name: tensor.double() for name, tensor in checkpoint.state.items()}
    moved = spec.act(spec.sample(torch.Generator().manual_seed(0)), state)

    def error(weights: dict[str, torch.Tensor]) -> float:
        with torch.no_grad():
            pairs = zip(torch.func.functional_call(model, weights, inputs), model(*inputs), strict=True)
            return max(float((a - b).abs().max() / b.std()) for a, b in pairs)

    assert error(dict(moved)) < 1e-10
    name = "action_net.weight"
    assert error({**moved, name: state[name]}) > 1e-3
