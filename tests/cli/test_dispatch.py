"""Does `metanet` find its commands, explain itself, and say in one line what is wrong with a command line?"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import metanet as package
from metanet import cli
from metanet.errors import ConfigError
from symmetry.errors import TraceError
from tests.cli.command import metanet

COMMANDS = sorted(cli.COMMANDS)


def test_the_overview_names_every_command() -> None:
    shown = metanet("--help").works().out
    assert all(" ".join(path) in shown for path in COMMANDS)
    assert metanet().works().out == shown


def test_the_overview_imports_nothing_heavy() -> None:
    code = (
        "import sys; from metanet.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'numpy', 'hydra', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_command_has_help_with_an_example(path: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([*path, "--help"])
    shown = capsys.readouterr().out
    assert ended.value.code == 0
    assert "example" in shown
    assert f"  metanet {' '.join(path)}" in shown.split("\nexample")[1]
    assert all(len(line) <= 120 for line in shown.splitlines())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["inspct"], "'inspct' is no command; expected one of: demo, inspect"),
        (["zoo"], "'zoo' is no command; expected one of: zoo build, zoo import, zoo verify"),
        (["zoo", "destroy"], "'zoo destroy' is no command"),
        (["--colour"], "--colour"),
        (["inspect"], "FILE"),
        (["inspect", "a", "--no-such"], "--no-such"),
        (["demo", "--seed", "x"], "--seed"),
        (["report", "no/such/folder"], "no report.json here"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_command_line_is_one_line(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words) == cli.BAD_INPUT
    shown = capsys.readouterr()
    assert shown.out == ""
    assert said in shown.err
    assert len(shown.err.strip().splitlines()) == 1


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--version"])
    assert capsys.readouterr().out.strip() == f"metanet {package.__version__}"


def test_the_groups_have_an_overview(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["zoo", "--help"])
    assert ended.value.code == 0
    assert "zoo verify" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("two\nlines", where="here", hint="mend it"), cli.BAD_INPUT),
        (TraceError("node cumsum: no rule\nadd one"), cli.BAD_INPUT),
        (FileNotFoundError(2, "No such file or directory", "weights.pt"), cli.BAD_INPUT),
        (KeyboardInterrupt(), cli.INTERRUPTED),
        (ZeroDivisionError("a fault of ours"), cli.PROGRAM_ERROR),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else str(value),
)
def test_which_error_gives_which_exit_code(
    error: BaseException,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    def fail(arguments: object) -> int:
        raise error

    monkeypatch.setattr("metanet.commands.report.run", fail)
    assert cli.main(["report", str(tmp_path)]) == code
    shown = capsys.readouterr().err
    # A fault of the program is the one case in which a traceback helps; it is never taken for a failed check.
    assert ("Traceback" in shown) == (code == cli.PROGRAM_ERROR)
    if code == cli.BAD_INPUT:
        assert len(shown.strip().splitlines()) == 1


def test_a_reader_that_leaves_early_is_no_error(tmp_path: Path) -> None:
    words = f"{sys.executable} -m metanet.cli --help | head -n 1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", words], capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr


def test_public_names_are_there() -> None:
    missing = [name for name in package.__all__ if not hasattr(package, name)]
    assert missing == []
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = package.no_such_name
