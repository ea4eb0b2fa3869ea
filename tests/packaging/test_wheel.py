"""Does the built wheel work by itself, and beside another package that is named `datasets`?

The wheel is built from the source distribution, as a release is, and installed without its dependencies into an empty
environment; a path file then lends it those of the running one (an editable install there is not followed).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

SOURCES = ("pyproject.toml", "setup.py", "README.md", "LICENSE", "metanet", "symmetry", "datasets", "configs")
IGNORED = shutil.ignore_patterns("__pycache__", "*.pyc")
OTHER = "other project's datasets"


def run(words: list[str], cwd: Path, expect: int = 0) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    done = subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == expect, f"{words} exited {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Path:
    folder = tmp_path_factory.mktemp("source")
    for name in SOURCES:
        source = root / name
        if source.is_dir():
            shutil.copytree(source, folder / name, symlinks=True, ignore=IGNORED)
        else:
            shutil.copy(source, folder / name)
    run([sys.executable, "-m", "build", "--no-isolation", "--outdir", "dist"], folder)
    (built,) = (folder / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def other_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package of another project that owns the name `datasets`, with modules that ours might be taken for."""
    path = tmp_path_factory.mktemp("other") / "datasets-9.9-py3-none-any.whl"
    files = {
        "datasets/__init__.py": f"NAME = {OTHER!r}\n",
        "datasets/zoo.py": f"NAME = {OTHER!r}\n",
        "datasets-9.9.dist-info/METADATA": "Metadata-Version: 2.1\nName: datasets\nVersion: 9.9\n",
        "datasets-9.9.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
        record = "".join(f"{name},,\n" for name in [*files, "datasets-9.9.dist-info/RECORD"])
        archive.writestr("datasets-9.9.dist-info/RECORD", record)
    return path


class Environment:
    """An empty virtual environment, worked on with the running pip."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "environment"
        self.empty = folder / "empty"
        self.empty.mkdir()
        venv.create(self.folder, with_pip=False)
        self.python = self.folder / "bin" / "python"
        (site,) = (self.folder / "lib").glob("python*/site-packages")
        self.lent = site / "lent.pth"

    def pip(self, *words: str) -> None:
        # While pip works, the lent packages are out of sight: it would take them for a part of this environment.
        self.lent.unlink(missing_ok=True)
        run([sys.executable, "-m", "pip", "-q", "--python", str(self.python), *words], self.empty)
        self.lent.write_text(sysconfig.get_path("purelib") + "\n")

    def install(self, built: Path) -> None:
        self.pip("install", "--no-deps", "--no-index", str(built))

    def uninstall(self, name: str) -> None:
        self.pip("uninstall", "-y", name)

    def says(self, code: str, expect: int = 0) -> str:
        return run([str(self.python), "-c", code], self.empty, expect).stdout.strip()


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    return Environment(tmp_path)


def ours_works(environment: Environment) -> bool:
    code = "import metanet, symmetry, metanet.datasets, metanet.configs; print(metanet.datasets.__file__)"
    said = environment.says(code)
    assert str(environment.folder) in said, f"not the installed one: {said}"
    return True


def other_works(environment: Environment) -> bool:
    said = environment.says("import datasets, datasets.zoo; print(datasets.NAME, datasets.zoo.NAME)")
    assert said == f"{OTHER} {OTHER}"
    return True


def other_is_gone(environment: Environment) -> bool:
    return environment.says("import importlib.util; print(importlib.util.find_spec('datasets'))") == "None"


def test_only_two_names_at_the_top(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    top = {name.split("/")[0] for name in names if not name.split("/")[0].endswith(".dist-info")}
    assert top == {"metanet", "symmetry"}
    assert len(names) == len(set(names))


def test_everything_needed_is_inside(wheel: Path, root: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for package, folder in (("metanet", "metanet"), ("symmetry", "symmetry"), ("metanet/datasets", "datasets")):
        modules = [p for p in (root / folder).rglob("*.py") if (root / folder / "datasets") not in p.parents]
        missing = {f"{package}/{p.relative_to(root / folder)}" for p in modules} - names
        assert not missing
    configs = {f"metanet/configs/{p.relative_to(root / 'configs')}" for p in (root / "configs").rglob("*.yaml")}
    assert configs
    assert configs <= names
    assert {"metanet/py.typed", "symmetry/py.typed", "metanet/report/templates/report.html.j2"} <= names


def test_works_from_an_empty_folder(wheel: Path, environment: Environment) -> None:
    environment.install(wheel)
    assert ours_works(environment)
    command = str(environment.folder / "bin" / "metanet")
    assert "metanet demo" in run([command, "--help"], environment.empty).stdout
    assert "example" in run([command, "zoo", "build", "--help"], environment.empty).stdout
    found = environment.says("from metanet.commands._compose import options; print(options('zoo'), options('task'))")
    assert "digits_cnn" in found
    assert "property" in found
    code = "from metanet.commands._compose import compose; print(compose('zoo_build', ['zoo=digits_cnn']))"
    assert "digits_cnn" in environment.says(code)
    assert list(environment.empty.iterdir()) == []


def test_symmetry_stands_alone(wheel: Path, environment: Environment) -> None:
    environment.install(wheel)
    code = "import sys, symmetry; print([m for m in ('metanet', 'torch_geometric', 'hydra') if m in sys.modules])"
    assert environment.says(code) == "[]"


@pytest.mark.parametrize("first", ["ours", "other"])
@pytest.mark.parametrize("leaves", ["ours", "other"])
def test_beside_another_package_named_datasets(
    wheel: Path, other_wheel: Path, environment: Environment, first: str, leaves: str
) -> None:
    order: dict[str, list[Path]] = {"ours": [wheel, other_wheel], "other": [other_wheel, wheel]}
    for built in order[first]:
        environment.install(built)
    assert ours_works(environment)
    assert other_works(environment)
    if leaves == "ours":
        environment.uninstall("metanet")
        assert other_works(environment)
        environment.says("import metanet", expect=1)
    else:
        environment.uninstall("datasets")
        assert ours_works(environment)
        assert other_is_gone(environment)


def test_the_check_would_notice_a_clash(wheel: Path, other_wheel: Path, environment: Environment) -> None:
    """The negative control: a wheel that does bring a top-level `datasets` fails the very checks above."""
    clashing = other_wheel.with_name("clash-1.0-py3-none-any.whl")
    with zipfile.ZipFile(other_wheel) as source, zipfile.ZipFile(clashing, "w") as target:
        for name in source.namelist():
            text = source.read(name).decode().replace(OTHER, "clash").replace("Name: datasets", "Name: clash")
            text = text.replace("datasets-9.9.dist-info", "clash-1.0.dist-info").replace("Version: 9.9", "Version: 1.0")
            target.writestr(name.replace("datasets-9.9.dist-info", "clash-1.0.dist-info"), text)
    environment.install(other_wheel)
    environment.install(clashing)
    check: Callable[[Environment], bool] = other_works
    with pytest.raises(AssertionError):
        check(environment)
