"""Does a folder of checkpoints with a table become training data, and is a bad table refused?"""

from __future__ import annotations

import csv

import numpy as np
import pytest

from metanet.checkpoint import save_checkpoint
from metanet.errors import CheckpointError, ConfigError, TaskError
from metanet.tasks import LabelledFolder, labelled_folder, property_data

from .conftest import ARCHITECTURES, network


@pytest.fixture
def folder(tmp_path):
    with open(tmp_path / "labels.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file", "kind", "world", "score"])
        for i in range(6):
            save_checkpoint(tmp_path / f"net{i}.safetensors", network(ARCHITECTURES[i % 2], i)[0], ARCHITECTURES[i % 2])
            table.writerow([f"net{i}.safetensors", "ab"[i % 2], f"w{i // 2}", i / 10])
    return tmp_path


def test_reads_rows_targets_and_groups(folder):
    items = list(LabelledFolder(folder, group="world").items("kind"))
    assert [item.target for item in items] == list("ababab")
    assert [item.group for item in items] == ["w0", "w0", "w1", "w1", "w2", "w2"]
    assert [item.target for item in LabelledFolder(folder).items("score")] == [0.0, 0.1, 0.2, 0.3, 0.4, 0.5]
    assert len({item.group for item in LabelledFolder(folder).items("score")}) == 6
    kept = LabelledFolder(folder, group="world", keep={"kind": ["b"]})
    assert [item.target for item in kept.items("kind")] == ["b"] * 3


def test_from_a_configuration(folder):
    options = {
        "name": "mine",
        "kind": "labelled_folder",
        "folder": folder.name,
        "group": "world",
        "keep": {"kind": ["a"]},
    }
    assert labelled_folder(options, folder.parent) == LabelledFolder(folder, group="world", keep={"kind": ["a"]})
    for bad, message in (
        ({**options, "folder": ""}, r"dataset\.folder: not given"),
        ({**options, "folder": "nowhere"}, "no such folder"),
        ({**options, "colour": "red"}, "no such setting: 'colour'"),
    ):
        with pytest.raises(ConfigError, match=message):
            labelled_folder(bad, folder.parent)


def test_a_bad_table_is_refused(folder):
    with pytest.raises(ConfigError, match="no column 'planet'; there are file, kind, world, score"):
        LabelledFolder(folder, group="planet").rows()
    with pytest.raises(ConfigError, match="no column 'planet'"):
        list(LabelledFolder(folder).items("planet"))
    with pytest.raises(ConfigError, match=r"other\.csv: no such table"):
        LabelledFolder(folder, table="other.csv").rows()
    with pytest.raises(TaskError, match="no row is left"):
        LabelledFolder(folder, keep={"kind": ["z"]}).rows()
    (folder / "labels.csv").write_text("file,kind\n../secret.pt,a\n")
    with pytest.raises(TaskError, match=r"file name '\.\./secret\.pt'"):
        LabelledFolder(folder).rows()


def test_a_file_that_cannot_be_read_stops_the_reading_by_name(folder):
    (folder / "net3.safetensors").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match=r"net3\.safetensors"):
        list(LabelledFolder(folder).items("kind"))


def test_agents_of_other_people(real_agents):
    """The four agents of one small environment, as the configuration of the real zoo reads them."""
    agents = LabelledFolder(
        real_agents,
        group="environment",
        keep={"algorithm": ["a2c", "ars", "ppo", "trpo"], "environment": ["CartPole-v1"]},
    )
    rows = agents.rows()
    assert {row["algorithm"] for row in rows} == {"a2c", "ars", "ppo", "trpo"}
    items = list(agents.items("algorithm"))
    assert {item.group for item in items} == {"CartPole-v1"}
    data = property_data(items, "algorithm", shares={"train": 1.0})
    assert data.labelled
    assert np.isfinite(data.statistics).all()
