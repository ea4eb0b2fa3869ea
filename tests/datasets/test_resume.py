"""Does a build that was killed with SIGKILL end with the very bytes of one that was not?"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from metanet.datasets import BuildProgress, Zoo, build_zoo, load_zoo_config
from metanet.datasets.worker import environment
from metanet.errors import ZooError

# Forks a build again and again and kills it, so that a dozen kills cost one start of the interpreter.
KILLER = """
import json, os, random, signal, sys, time
import torch
from metanet.datasets import build_zoo
torch.set_num_threads(1)
raw, folder, kills = json.loads(sys.argv[1]), sys.argv[2], int(sys.argv[3])
generator, killed = random.Random(kills), 0
for i in range(kills):
    child = os.fork()
    if child == 0:
        build_zoo(raw, folder, threads=1)
        os._exit(0)
    time.sleep(generator.uniform(0.0, 0.1 * (i + 1)))
    os.kill(child, signal.SIGKILL)
    killed += os.waitpid(child, 0)[1] == signal.SIGKILL
    if os.path.exists(folder + "/manifest.json"):
        break
print(killed)
"""

PROGRAM = """
import json, sys
from metanet.datasets import build_zoo
build_zoo(json.loads(sys.argv[1]), sys.argv[2], threads=2, progress=lambda p: print(p.done, flush=True))
"""


def several_groups() -> dict[str, Any]:
    """Ten groups of a few hundredths of a second each: a kill meets every phase of a build."""
    raw = load_zoo_config("digits_tiny", runs=40, architectures=5, children=0.2, group=4).to_json()
    raw["training"]["steps"] = {"integer": [20, 60]}
    return raw


def contents(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("whole") / "zoo"
    build_zoo(several_groups(), folder, threads=1)
    found = contents(folder)
    assert set(found) == {
        "config.json",
        "index.jsonl",
        "manifest.json",
        *(f"shards/group-{i:05d}.safetensors" for i in range(10)),
    }
    return found


def test_killed_at_random_and_resumed(whole: dict[str, str], tmp_path: Path) -> None:
    folder = tmp_path / "zoo"
    command = [sys.executable, "-c", KILLER, json.dumps(several_groups()), str(folder), "12"]
    killed = int(subprocess.run(command, stdout=subprocess.PIPE, env=environment(), check=True).stdout)
    assert killed >= 1
    if not (folder / "manifest.json").exists():
        with pytest.raises(ZooError):
            Zoo.open(folder)
    build_zoo(several_groups(), folder, threads=1)
    assert contents(folder) == whole


def test_killed_with_its_workers_and_resumed_with_others(whole: dict[str, str], tmp_path: Path) -> None:
    folder = tmp_path / "zoo"
    command = [sys.executable, "-c", PROGRAM, json.dumps(several_groups()), str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment())
    assert process.stdout is not None
    while process.stdout.readline().strip() == "0":
        pass
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    workers = [int(pid) for pid in children.read_text().split()] if children.exists() else []
    process.send_signal(signal.SIGKILL)
    process.stdout.close()
    assert process.wait() == -signal.SIGKILL
    assert not (folder / "manifest.json").exists()
    deadline = time.monotonic() + 60
    while any(_runs(pid) for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(_runs(pid) for pid in workers)
    states: list[BuildProgress] = []
    build_zoo(several_groups(), folder, threads=2, progress=states.append)
    assert contents(folder) == whole
    assert [state.done for state in states] == sorted(state.done for state in states)
    assert states[-1].done == states[-1].total > 0
    assert (states[-1].groups_done, states[-1].groups, states[-1].failed) == (10, 10, 0)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in ("Z", "X")
    except OSError:
        return False


def test_a_damaged_shard_is_built_again(whole: dict[str, str], tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop(state: BuildProgress) -> None:
        if state.groups_done == 4:
            raise Stop

    folder = tmp_path / "zoo"
    with pytest.raises(Stop):
        build_zoo(several_groups(), folder, threads=1, progress=stop)
    shards = sorted((folder / "shards").iterdir())
    assert len(shards) == 4
    shards[0].write_bytes(shards[0].read_bytes()[:-1] + b"?")
    shards[1].unlink()
    (folder / "parts" / ".group-00009.json.x.tmp").write_text("{")
    build_zoo(several_groups(), folder, threads=1)
    assert contents(folder) == whole


def test_a_finished_zoo_is_left_as_it_is(tiny_copy: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in tiny_copy.rglob("*")}
    assert len(build_zoo(load_zoo_config("digits_tiny"), tiny_copy)) == 36
    assert {path: path.stat().st_mtime_ns for path in tiny_copy.rglob("*")} == before


def test_another_configuration_is_refused_with_the_difference(tiny_copy: Path) -> None:
    raw = load_zoo_config("digits_tiny").to_json()
    raw["optimisers"]["sgd"]["momentum"] = 0.5
    with pytest.raises(ZooError, match=r"config\.optimisers\.sgd\.momentum\..* was .*; give another folder"):
        build_zoo(raw, tiny_copy)
    config = json.loads((tiny_copy / "config.json").read_text())
    config["versions"]["torch"] = "1.0"
    (tiny_copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(ZooError, match=r"versions\.torch was '1\.0'"):
        build_zoo(load_zoo_config("digits_tiny"), tiny_copy)


def test_a_folder_with_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(ZooError, match=r"holds 'thesis\.tex' but no zoo"):
        build_zoo(load_zoo_config("digits_tiny"), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(ZooError, match="cannot be made"):
        build_zoo(load_zoo_config("digits_tiny"), tmp_path / "thesis.tex" / "zoo")


def test_two_builds_at_once_are_refused(tmp_path: Path) -> None:
    fcntl = pytest.importorskip("fcntl")
    descriptor = os.open(tmp_path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with pytest.raises(ZooError, match="another process is building this zoo"):
            build_zoo(load_zoo_config("digits_tiny"), tmp_path)
    finally:
        os.close(descriptor)


def test_a_worker_that_dies_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(ZooError, match="a worker process ended"):
        build_zoo(several_groups(), tmp_path / "zoo", threads=2)
    assert not (tmp_path / "zoo" / "manifest.json").exists()
