"""What do all tests share? Where the real data is, and one thread for each of the two test processes."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parent.parent


def data_folder() -> Path | None:
    """The folder of real data, by METANET_DATA or beside the repository, or None."""
    named = os.environ.get("METANET_DATA")
    folder = Path(named) if named else ROOT.parent / "shared" / "data"
    return folder if folder.is_dir() else None


@pytest.fixture(scope="session")
def real_data() -> Path:
    folder = data_folder()
    if folder is None:
        pytest.skip("no real data: set METANET_DATA to the folder that holds mnist.npz and rl-agents/")
    return folder


@pytest.fixture(scope="session")
def real_agents(real_data: Path) -> Path:
    """The folder of agents that other people have trained."""
    folder = real_data / "rl-agents"
    if not (folder / "labels.csv").is_file():
        pytest.skip(f"no agents in {folder}")
    return folder


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torch
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
