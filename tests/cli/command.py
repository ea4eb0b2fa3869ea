"""Run a command: in a process of its own, as a person would, or within this one, which is ten times faster."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metanet import cli


@dataclass(frozen=True)
class Answer:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    def refuses(self, *parts: str) -> bool:
        """Exit 2 and one line on stderr that holds all `parts`; never a traceback."""
        assert self.code == 2, f"exit {self.code}\n{self.out}\n{self.err}"
        lines = self.err.strip().splitlines()
        assert len(lines) == 1, self.err
        assert "Traceback" not in self.err
        missing = [part for part in parts if part not in self.err]
        assert missing == [], self.err
        return True

    def works(self) -> Answer:
        assert self.code == 0, f"exit {self.code}\n{self.out}\n{self.err}"
        return self


def metanet(*words: str | Path, cwd: Path | None = None, timeout: float = 300) -> Answer:
    """`metanet WORDS...`, without a terminal."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "120"}
    done = subprocess.run(
        [sys.executable, "-m", "metanet.cli", *map(str, words)],
        cwd=cwd,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    return Answer(done.returncode, done.stdout, done.stderr)


def within(*words: str | Path, cwd: Path | None = None) -> Answer:
    """The same within this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), contextlib.chdir(cwd or Path.cwd()):
        code = cli.main([str(word) for word in words])
    return Answer(code, out.getvalue(), err.getvalue())
