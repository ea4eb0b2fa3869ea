"""How would somebody change a zoo so that its manifest still agrees with its files?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from metanet.datasets.storage import digest


def restate(folder: Path, *names: str) -> None:
    """Make the manifest agree with files that a test has changed."""
    manifest = json.loads((folder / "manifest.json").read_text())
    for name in names:
        manifest["files"][name] = digest(folder / name)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def change_records(folder: Path, wanted: dict[str, Any], **changes: Any) -> None:
    """Change the index where records have these values, and the manifest with it."""
    lines = []
    for line in (folder / "index.jsonl").read_text().splitlines():
        record = json.loads(line)
        if all(record[key] == value for key, value in wanted.items()):
            record.update(changes)
        lines.append(json.dumps(record))
    (folder / "index.jsonl").write_text("\n".join(lines) + "\n")
    restate(folder, "index.jsonl")
