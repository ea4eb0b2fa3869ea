"""Do the import contracts hold, and would they notice an arrow in the wrong direction?"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PLANTED = [
    ("symmetry/errors.py", "import metanet.errors", "symmetry is a library of its own"),
    ("symmetry/errors.py", "import torch_geometric", "symmetry is a library of its own"),
    ("metanet/tasks/metrics.py", "import metanet.datasets", "only the command line imports metanet.datasets"),
    ("metanet/datasets/ranges.py", "import metanet.commands", "stand on each other in one direction"),
    ("metanet/graph/layout.py", "import metanet.checkpoint", "stand on each other in one direction"),
    ("metanet/score/values.py", "import metanet.graph", "scores stand on symmetry and checkpoints alone"),
    ("metanet/train/settings.py", "import metanet.tasks.property", "the trainer knows no task by name"),
    ("metanet/report/page.py", "import torch", "the report draws values and computes none"),
]


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as run; run()", "--no-cache"]
    environment = os.environ | {"PYTHONPATH": str(folder), "PYTHONSAFEPATH": "1"}
    return subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Path:
    """A copy of the sources with the folders where they are installed."""
    folder = tmp_path_factory.mktemp("tree")
    ignored = shutil.ignore_patterns("__pycache__", "*.yaml")
    for name in ("metanet", "symmetry"):
        shutil.copytree(root / name, folder / name, ignore=ignored)
    for name in ("datasets", "configs"):
        shutil.copytree(root / name, folder / "metanet" / name, ignore=ignored, dirs_exist_ok=True)
    shutil.copy(root / "pyproject.toml", folder)
    return folder


def test_the_contracts_hold(tree: Path) -> None:
    done = lint_imports(tree)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


@pytest.mark.parametrize(("file", "line", "contract"), PLANTED)
def test_a_planted_arrow_is_noticed(tree: Path, file: str, line: str, contract: str) -> None:
    path = tree / file
    before = path.read_text()
    path.write_text(before + f"\n{line}\n")
    try:
        done = lint_imports(tree)
    finally:
        path.write_text(before)
    assert done.returncode == 1, done.stdout + done.stderr
    assert any(contract in row and "BROKEN" in row for row in done.stdout.splitlines()), done.stdout
