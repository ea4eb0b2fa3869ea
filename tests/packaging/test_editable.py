"""Can a type checker follow the editable install, the packages that are installed under another name included?"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from tests.packaging.test_wheel import IGNORED, SOURCES

# What mypy itself uses to find a module for the interpreter of an environment; analysing torch would take a minute.
FIND = """
import sys
from mypy.fscache import FileSystemCache
from mypy.modulefinder import FindModuleCache, SearchPaths, get_search_dirs
system, site = get_search_dirs(sys.argv[1])
finder = FindModuleCache(SearchPaths((), (), tuple(system + site), ()), FileSystemCache(), None)
for name in sys.argv[2:]:
    print(finder.find_module(name))
"""
NAMES = ["metanet.datasets.zoo", "metanet.checkpoint.checkpoint", "metanet.configs", "symmetry.spec"]


def install(root: Path, folder: Path, links: bool) -> Path:
    """The sources, installed editable into an environment of their own; returns its interpreter."""
    for name in SOURCES:
        source = root / name
        if source.is_dir():
            shutil.copytree(source, folder / "source" / name, symlinks=True, ignore=IGNORED)
        else:
            (folder / "source").mkdir(parents=True, exist_ok=True)
            shutil.copy(source, folder / "source" / name)
    if not links:
        for name in ("datasets", "configs"):
            (folder / "source" / "metanet" / name).unlink()
    venv.create(folder / "environment", with_pip=False)
    python = folder / "environment" / "bin" / "python"
    words = [sys.executable, "-m", "pip", "-q", "--python", str(python), "install", "--no-deps", "--no-index"]
    # The build needs setuptools, which the empty environment does not have.
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p.endswith("site-packages"))}
    subprocess.run([*words, "--no-build-isolation", "-e", "."], cwd=folder / "source", env=environment, check=True)
    return python


def found(python: Path, folder: Path) -> list[str]:
    words = [sys.executable, "-c", FIND, str(python), *NAMES]
    return subprocess.run(words, cwd=folder, capture_output=True, text=True, check=True).stdout.splitlines()


def imported(python: Path, folder: Path) -> str:
    code = "import importlib.util as u; print(u.find_spec('metanet.configs').origin)"
    return subprocess.run([str(python), "-c", code], cwd=folder, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("links", [True, False], ids=["with links", "without links"])
def test_editable_install(root: Path, tmp_path: Path, links: bool) -> None:
    python = install(root, tmp_path, links)
    assert str(tmp_path / "source") in imported(python, tmp_path)
    paths = found(python, tmp_path)
    if links:
        assert all(path.startswith(str(tmp_path / "source")) for path in paths), paths
    else:
        # The control: through the import hook that is left without the links, the program runs but mypy sees nothing.
        assert not any(path.startswith(str(tmp_path / "source")) for path in paths), paths
