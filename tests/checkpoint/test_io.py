"""Is a file whole or not there at all, and is JSON read strictly?"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metanet.errors import CheckpointError, MetanetError, clean
from metanet.io import open_atomic, parse_json, read_json, write_bytes_atomic, write_json_atomic

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


@given(json_values)
def test_json_round_trip(value: object) -> None:
    assert parse_json(json.dumps(value)) == value


def test_writes_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    for value in ({"é": [1, 2.5, None]}, {"b": 1}):
        write_json_atomic(path, value)
        assert read_json(path) == value
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.json"]


def test_a_failure_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    write_bytes_atomic(path, b"old")
    with pytest.raises(RuntimeError, match="stop"), open_atomic(path) as file:
        file.write(b"new")
        raise RuntimeError("stop")
    assert path.read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1


def test_permissions_are_the_usual_ones(tmp_path: Path) -> None:
    path, plain = tmp_path / "a", tmp_path / "b"
    write_bytes_atomic(path, b"x")
    plain.write_bytes(b"x")
    assert path.stat().st_mode == plain.stat().st_mode
    path.chmod(0o600)
    write_bytes_atomic(path, b"y")
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_json_is_not_written(tmp_path: Path, value: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json_atomic(tmp_path / "a.json", {"a": value})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "says"),
    [('{"a": 1, "a": 2}', "duplicate key 'a'"), ("[NaN]", "NaN"), ("[" * 10**5, "too deeply"), ("{", "Expecting")],
)
def test_what_is_no_json_is_not_read(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        parse_json(text)


def test_large_json_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("[" + "1," * 1000 + "1]")
    assert len(read_json(path)) == 1001
    with pytest.raises(ValueError, match="more than 100 bytes"):
        read_json(path, max_bytes=100)


WRITER = """
import sys
from metanet.io import write_bytes_atomic
print("ready", flush=True)
while True:
    for letter in (b"a", b"b"):
        write_bytes_atomic(sys.argv[1], letter * 2_000_000)
"""


def test_killed_at_any_moment(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    for wait in (0.0, 0.013, 0.03):
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        while not path.exists():
            time.sleep(0.001)
        time.sleep(wait)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
        content = path.read_bytes()
        assert len(content) == 2_000_000
        assert len(set(content)) == 1


@given(st.text())
def test_messages_are_one_printable_line(text: str) -> None:
    assert clean(text).isprintable()
    error = CheckpointError(text, hint=text, file=text, tensor=text)
    assert str(error).isprintable()
    assert isinstance(error, MetanetError)


def test_message_has_all_parts() -> None:
    error = CheckpointError("is wrong", hint="mend it", tensor="w").within("a.pt").within("b.pt")
    assert str(error) == "a.pt: tensor 'w': is wrong; mend it"
    assert (error.file, error.tensor, error.reason, error.hint) == ("a.pt", "w", "is wrong", "mend it")
    assert str(MetanetError("is wrong", where="here")) == "here: is wrong"
    assert len(str(MetanetError("x" * 10**6))) <= 400
