"""A small world to learn in: networks of three architectures whose target is a known function of their weights."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch

import symmetry
from metanet.checkpoint import Architecture
from metanet.graph import ParameterGraph
from metanet.tasks import PropertyItem, property_data

ARCHITECTURES = (
    Architecture("mlp", {"inputs": 6, "widths": [8], "outputs": 3, "activation": "relu"}),
    Architecture("mlp", {"inputs": 6, "widths": [7, 5], "outputs": 3, "activation": "tanh"}),
    Architecture(
        "cnn", {"channels": 1, "size": 6, "widths": [4, 5], "outputs": 3, "activation": "relu", "norm": "batch"}
    ),
)


@cache
def spec_of(architecture):
    return symmetry.trace(architecture.build().eval(), architecture.example_inputs())


def network(architecture, seed):
    """A state and how large its weights are, which is what the targets tell of."""
    state = {name: tensor.clone() for name, tensor in architecture.build(seed=seed).state_dict().items()}
    size = float(np.random.default_rng(seed).uniform(-1, 1))
    for tensor in state.values():
        if tensor.ndim > 1:
            tensor *= float(np.exp(size))
    return state, size


def make_items(count=90, labels=False, per_group=3, architectures=ARCHITECTURES, seed=0):
    items = []
    for number in range(count):
        architecture = architectures[number % len(architectures)]
        state, size = network(architecture, 1000 * seed + number)
        target = (
            ("small" if size < -0.3 else "large" if size > 0.4 else "middle") if labels else 1 / (1 + np.exp(-2 * size))
        )
        graph = ParameterGraph.build(spec_of(architecture), state)
        items.append(PropertyItem(graph, target, f"run{number // per_group}", None, f"net{number}"))
    return items


@pytest.fixture(scope="session")
def number_data():
    return property_data(make_items(), "score")


@pytest.fixture(scope="session")
def label_data():
    return property_data(make_items(labels=True), "size")


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)
