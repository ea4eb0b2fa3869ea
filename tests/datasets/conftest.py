"""What do the zoo's tests share? One small zoo, built once for each test process."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from metanet.datasets import Zoo, build_zoo, load_zoo_config


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished zoo that no test may change."""
    folder = tmp_path_factory.mktemp("zoo") / "tiny"
    build_zoo(load_zoo_config("digits_tiny"), folder, threads=1)
    return folder


@pytest.fixture
def tiny_zoo(tiny_folder: Path) -> Zoo:
    return Zoo.open(tiny_folder)


@pytest.fixture
def tiny_copy(tiny_folder: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may spoil."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "copy"))
