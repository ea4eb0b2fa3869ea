"""Where did a state come from, and what in the file was not read?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import Tensor

__all__ = ["KINDS", "Raw", "Source"]

KINDS = (
    "safetensors", "torch", "torch-legacy", "sb3", "lightning", "torchscript", "npz", "keras-h5", "keras-zip",
    "huggingface", "onnx",
)  # fmt: skip


@dataclass(frozen=True)
class Source:
    """Where a state came from.

    Args:
        path: the file that held the tensors, or the folder where several did.
        kind: one of :data:`KINDS`.
        key: where the state dict was inside the file, such as ``state_dict``; empty at the top.
        skipped: other entries of the file, which were not used.
        devices: the devices that the tensors were saved on, where the file says so; they were all read to the CPU.
        prefix: ``module.`` where every name has it (saved from ``DataParallel``), otherwise empty; names are kept.
        files: the files that were read, by their names in the folder, where ``path`` is a folder.
        config: what the file says about its network, as data: ``config.json`` of a Hugging Face folder, the
            configuration in a Keras file, the hyper parameters of a Lightning checkpoint. Nothing is built from it.
    """

    path: Path
    kind: str
    key: str = ""
    skipped: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    prefix: str = ""
    files: tuple[str, ...] = ()
    config: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}), hash=False)

    def __str__(self) -> str:
        inside = f" ['{self.key}']" if self.key else ""
        return f"{self.path}{inside} ({self.kind})"


@dataclass(frozen=True)
class Raw:
    """What a reader returns: the tensors in the order of the file, their source, and text that came with them.

    Args:
        state: name to tensor.
        source: where they come from.
        metadata: text that stood in the file.
        architecture: what the tensors belong to, where the file has the graph of the network itself.
    """

    state: Mapping[str, Tensor]
    source: Source
    metadata: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    architecture: Any = None
