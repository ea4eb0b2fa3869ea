"""Files that several command tests ask about: made once for each test process."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import metanet
from metanet.datasets import build_zoo, load_zoo_config

ARCHITECTURE = {"inputs": 64, "widths": [32, 16], "outputs": 10, "activation": "relu"}


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of docs/inspect.md: an MLP with an unread unit and a pair of twins."""
    architecture = metanet.Architecture("mlp", ARCHITECTURE)
    state = architecture.build(seed=0).state_dict()
    state["layers.1.weight"][:, 5] = 0
    state["layers.0.weight"][3] = 2 * state["layers.0.weight"][7]
    state["layers.0.bias"][3] = 2 * state["layers.0.bias"][7]
    path = tmp_path_factory.mktemp("file") / "weights.safetensors"
    metanet.save_checkpoint(path, state, architecture)
    return path


@pytest.fixture(scope="session")
def bare(weights: Path) -> Path:
    """The same tensors in a PyTorch file that says nothing of the architecture."""
    path = weights.with_name("bare.pt")
    torch.save(dict(metanet.load(weights).state), path)
    return path


@pytest.fixture(scope="session")
def tiny_zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("zoo") / "tiny"
    build_zoo(load_zoo_config("digits_tiny"), folder, threads=1)
    return folder
