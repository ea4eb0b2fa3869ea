"""What is an attack, and how is its file written?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .pickles import write


@dataclass(frozen=True)
class Attack:
    """One file that must be refused.

    Args:
        name: of the test.
        make: writes it into a folder and returns the path to load.
        says: what the reason must contain.
        tensor: the tensor that the message must name.
        early: whether it must be refused before torch sees it.
        file: the file that the message must name, where it is not the one that is loaded.
        options: further arguments of ``load``.
    """

    name: str
    make: Callable[[Path], Path]
    says: str
    tensor: str = ""
    early: bool = True
    file: str = ""
    options: dict[str, Any] = field(default_factory=dict)


def file(name: str, content: Callable[[], bytes]) -> Callable[[Path], Path]:
    return lambda folder: write(folder, name, content())


def pt(content: Callable[[], bytes]) -> Callable[[Path], Path]:
    return file("a.pt", content)


def agent(content: Callable[[], bytes]) -> Callable[[Path], Path]:
    return file("a.zip", content)
