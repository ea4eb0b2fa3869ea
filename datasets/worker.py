"""How does a process build groups for another one?

Requests come on standard input, one JSON object per line: ``{"group": 3}``. Replies go to standard output:
``{"steps": 120}`` while it works, ``{"done": 3, "failed": 0}`` when the group is on the disk, ``{"error": "..."}``
otherwise. The process ends as soon as its input does, in the middle of a group too: its owner was killed.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
from pathlib import Path
from typing import Any

__all__ = ["environment", "main"]


def environment() -> dict[str, str]:
    """The environment of a worker: its own single thread, and memory that is kept.

    Large tensors would otherwise be given back to the system after every operation, and the page faults of getting them
    again cost several times what the operation does. (33554432 is the highest threshold that glibc takes.)
    """
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "MALLOC_MMAP_THRESHOLD_": "33554432",
        "MALLOC_TRIM_THRESHOLD_": "1073741824",
        "MALLOC_TOP_PAD_": "67108864",
    }


def _requests(lines: queue.Queue[dict[str, Any]]) -> None:
    for line in sys.stdin:
        lines.put(json.loads(line))
    os._exit(0)


def main() -> None:
    """Serve one owner until it goes."""
    # Ctrl-C reaches the whole process group; the owner decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Whatever a library prints must not end up among the replies.
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def reply(value: dict[str, Any]) -> None:
        replies.write(json.dumps(value) + "\n")
        replies.flush()

    lines: queue.Queue[dict[str, Any]] = queue.Queue()
    threading.Thread(target=_requests, args=(lines,), daemon=True).start()

    import torch

    from metanet.errors import MetanetError

    from .images import load_images
    from .plan import parse_config, plan_zoo
    from .storage import CONFIG, read_object

    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    try:
        config = parse_config(read_object(folder / CONFIG)["config"])
        plan = plan_zoo(config, load_images(config.data))
        while True:
            number = lines.get()["group"]
            failed = plan.build(plan.groups[number], folder, lambda n: reply({"steps": n}))
            reply({"done": number, "failed": failed})
    except (MetanetError, OSError) as error:
        reply({"error": str(error)})


if __name__ == "__main__":
    main()
