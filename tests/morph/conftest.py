"""What do the tests of this folder share? A trace for each structure that a test meets."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from torch import nn

from symmetry import SymmetrySpec


@pytest.fixture
def traced_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks of one structure share a trace: the tracer reads no weights."""
    module: Any = importlib.import_module("metanet.morph.apply")
    real: Callable[[nn.Module, Sequence[Any]], SymmetrySpec] = module._trace
    known: dict[object, SymmetrySpec] = {}

    def trace(model: nn.Module, inputs: Sequence[Any]) -> SymmetrySpec:
        key = repr(model), tuple((name, value.shape) for name, value in model.state_dict().items())
        if key not in known:
            known[key] = real(model, inputs)
        return known[key]

    monkeypatch.setattr(module, "_trace", trace)
