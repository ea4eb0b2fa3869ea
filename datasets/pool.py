"""Who runs the worker processes of a build, hands out groups, and notices when one dies?"""

from __future__ import annotations

import contextlib
import json
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from metanet.errors import ZooError, clean

from .worker import environment

__all__ = ["Pool"]


class Pool:
    """Worker processes for one folder, as a context manager.

    Args:
        folder: with the configuration in it.
        size: how many processes.
    """

    def __init__(self, folder: Path, size: int) -> None:
        self._folder = folder
        self._errors: list[IO[bytes]] = [tempfile.TemporaryFile() for _ in range(size)]  # noqa: SIM115 - see __exit__
        command = [sys.executable, "-c", "from metanet.datasets.worker import main; main()", str(folder)]
        self._processes = [
            subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, env=environment(), text=True
            )
            for errors in self._errors
        ]

    def __enter__(self) -> Pool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for process in self._processes:
            # Nothing that it was writing counts until it is whole, so there is no need to ask it nicely.
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    # A request that a dead worker never read is flushed in vain.
                    with contextlib.suppress(OSError):
                        pipe.close()
        for errors in self._errors:
            errors.close()

    def run(self, groups: Sequence[int]) -> Iterator[dict[str, Any]]:
        """Build these groups; yields ``{"steps": n}`` and ``{"done": group, "failed": n}`` as they come.

        Raises:
            ZooError: if a worker reports an error or dies.
        """
        todo: queue.SimpleQueue[int] = queue.SimpleQueue()
        for group in groups:
            todo.put(group)
        events: queue.Queue[dict[str, Any]] = queue.Queue()
        for process, errors in zip(self._processes, self._errors, strict=True):
            threading.Thread(target=self._serve, args=(process, errors, todo, events), daemon=True).start()
        left = len(groups)
        while left:
            event = events.get()
            if "error" in event:
                raise ZooError(event["error"], where=self._folder, hint="run the same build again to go on")
            left -= "done" in event
            yield event

    def _serve(
        self,
        process: subprocess.Popen[str],
        errors: IO[bytes],
        todo: queue.SimpleQueue[int],
        events: queue.Queue[dict[str, Any]],
    ) -> None:
        if process.stdin is None or process.stdout is None:
            return
        try:
            while True:
                try:
                    group = todo.get_nowait()
                except queue.Empty:
                    return
                process.stdin.write(json.dumps({"group": group}) + "\n")
                process.stdin.flush()
                for line in process.stdout:
                    event = json.loads(line)
                    events.put(event)
                    if "done" in event or "error" in event:
                        break
                else:
                    raise EOFError
        except (OSError, EOFError, ValueError) as error:
            events.put({"error": f"a worker process ended: {self._why(process, errors, error)}"})

    def _why(self, process: subprocess.Popen[str], errors: IO[bytes], error: Exception) -> str:
        try:
            code = process.wait(timeout=5)
            errors.seek(0)
            lines = errors.read().decode("utf-8", "replace").strip().splitlines()
        except (subprocess.TimeoutExpired, OSError, ValueError):
            return clean(error)
        return clean(f"exit status {code}; {lines[-1] if lines else 'it said nothing'}", 300)
