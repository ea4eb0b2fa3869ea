"""Do `metanet zoo build` and `metanet zoo verify` build what was asked for, and notice what was changed since?"""

from __future__ import annotations

import json
import os
import pty
import shutil
import subprocess
import sys
import termios
from pathlib import Path

from metanet.commands._zoo_data import lineage
from metanet.datasets import InrConfig, Zoo, load_zoo_config
from tests.cli.command import metanet, within

TINY = ("zoo", "build", "zoo=digits_tiny", "zoo.runs=4", "zoo.architectures=1", "zoo.children=0", "--threads", "1")


def test_build_then_verify_then_build_again(tmp_path: Path) -> None:
    told = metanet(*TINY, f"folder={tmp_path / 'my zoo'}", "--json").works().json
    zoo = Zoo.open(tmp_path / "my zoo")
    assert told["networks"] == len(zoo)
    assert told["runs"] == 4
    assert told["test_accuracy"]["highest"] == zoo.index["test_accuracy"].max()
    verified = within("zoo", "verify", tmp_path / "my zoo", "--json").works().json
    assert verified["passed"] is True
    before = (tmp_path / "my zoo" / "manifest.json").read_bytes()
    again = within(*TINY, "--folder", tmp_path / "my zoo").works()
    assert f"{len(zoo)} networks of 4 runs" in again.out
    assert (tmp_path / "my zoo" / "manifest.json").read_bytes() == before


def test_images_as_networks_are_built_and_verified(tmp_path: Path) -> None:
    whole = load_zoo_config("digits_inr")
    assert isinstance(whole, InrConfig)
    assert (whole.networks, whole.copies) == (7188, 4)
    few = ("zoo.images.train=9", "zoo.images.val=3", "zoo.images.test=4", "zoo.training.steps=40", "zoo.group=20")
    words = ("zoo", "build", "zoo=digits_inr", *few, "--folder", tmp_path / "zoo", "--threads", "1", "--json")
    told = within(*words).works().json
    assert (told["networks"], told["families"]) == (64, {"siren": 64})
    zoo = Zoo.open(tmp_path / "zoo")
    assert zoo.index["psnr"].min() == told["psnr"]["lowest"] > 5
    assert set(zoo.index["steps"]) == {40}
    assert [len(set(zoo.index["image"][zoo.split(part)])) for part in ("train", "val", "test")] == [9, 3, 4]
    assert set(lineage(zoo).values()) == {f"image {image}" for image in zoo.index["image"]}
    assert within("zoo", "verify", tmp_path / "zoo").works().out.rstrip().endswith("passed")


def test_verify_notices_a_changed_byte(tiny_zoo: Path, tmp_path: Path) -> None:
    folder = tmp_path / "zoo"
    shutil.copytree(tiny_zoo, folder)
    assert within("zoo", "verify", folder).works().out.rstrip().endswith("passed")
    shard = sorted((folder / "shards").iterdir())[0]
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    answer = within("zoo", "verify", folder, "--json")
    assert answer.code == 1
    assert answer.json["passed"] is False
    assert any(shard.name in problem for problem in answer.json["problems"])
    said = within("zoo", "verify", folder)
    assert said.code == 1
    assert "FAILED" in said.out


def test_bad_input(tiny_zoo: Path, tmp_path: Path) -> None:
    assert within("zoo", "verify", tmp_path).refuses(str(tmp_path), "no zoo")
    assert within("zoo", "build", "zoo=no_such_zoo").refuses("no_such_zoo", "digits_tiny")
    assert within(*TINY, "zoo.rums=3").refuses("zoo.rums")
    assert within(*TINY, "zoo.runs=none", "--folder", tmp_path / "a").refuses("runs")
    assert within(*TINY, "zoo.seed=9", "--folder", tiny_zoo).refuses("was begun differently")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("something else")
    assert within(*TINY, "--folder", tmp_path / "mine").refuses("notes.txt")
    assert within(*TINY, "--config-dir", tmp_path / "absent").refuses("absent")
    assert within("zoo", "verify", tiny_zoo, "--max-failed", "10").refuses("--max-failed", "from 0 to 1")
    assert within("zoo", "verify", tiny_zoo, "--sample", "-1").refuses("--sample")


def test_a_configuration_of_ones_own(tiny_zoo: Path, tmp_path: Path) -> None:
    config = json.loads((tiny_zoo / "config.json").read_text())["config"] | {"name": "mine", "runs": 4, "children": 0.0}
    (tmp_path / "configs" / "zoo").mkdir(parents=True)
    # JSON is YAML.
    (tmp_path / "configs" / "zoo" / "mine.yaml").write_text(json.dumps(config | {"architectures": 1}))
    words = ("zoo", "build", "--config-dir", "configs", "zoo=mine", "--threads", "1", "--json")
    told = within(*words, cwd=tmp_path).works().json
    assert (told["name"], told["runs"], told["folder"]) == ("mine", 4, "zoos/mine")
    assert (tmp_path / "zoos" / "mine" / "manifest.json").is_file()


def test_a_progress_bar_where_somebody_watches_and_only_there(tmp_path: Path) -> None:
    watcher, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (24, 80))
    command = [sys.executable, "-m", "metanet.cli", *TINY, "--folder", str(tmp_path / "watched")]
    ends = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": terminal}
    subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True, **ends)
    os.close(terminal)
    shown = b""
    try:
        while part := os.read(watcher, 65536):
            shown += part
    except OSError:  # the other end is closed
        pass
    finally:
        os.close(watcher)
    assert b"%|" in shown
    assert "%|" not in within(*TINY, "--folder", tmp_path / "unwatched").works().err
