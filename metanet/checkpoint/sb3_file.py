"""How are the weights of a Stable-Baselines3 agent read out of its zip, and put back?

Only the member ``policy.pth`` is read. The member ``data`` holds pickled Python objects; it is never decoded. When an
agent is saved again, all other members are copied byte by byte, unread.
"""

from __future__ import annotations

import dataclasses
import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from metanet.checkpoint.limits import MAX_RATIO
from metanet.checkpoint.source import Raw
from metanet.checkpoint.torch_file import read_torch
from metanet.checkpoint.zip_file import open_zip, read_member
from metanet.errors import CheckpointError
from metanet.io import open_atomic

__all__ = ["POLICY", "read_sb3", "write_sb3"]

POLICY = "policy.pth"


def read_sb3(archive: zipfile.ZipFile, path: Path, size: int) -> Raw:
    """The policy's state dict.

    Args:
        archive: as checked by ``open_zip``.
        path: of the archive.
        size: of the archive in bytes.

    Raises:
        CheckpointError: where the policy is not a state dict of tensors.
    """
    data = read_member(archive, POLICY, path, MAX_RATIO * size)
    raw = read_torch(io.BytesIO(data), path, len(data))
    skipped = tuple(member for member in archive.namelist() if member != POLICY)
    return Raw(raw.state, dataclasses.replace(raw.source, kind="sb3", skipped=skipped))


def _policy_bytes(state: Mapping[str, Tensor]) -> bytes:
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    return buffer.getvalue()


def write_sb3(path: Path, state: Mapping[str, Tensor], original: Path) -> None:
    """An agent like ``original`` with other weights.

    Args:
        path: where to write.
        state: the policy's new state dict.
        original: the agent whose other members are copied.

    Raises:
        CheckpointError: where the original is gone or is no agent.
    """
    try:
        file: BinaryIO = open(original, "rb")  # noqa: SIM115
    except OSError as error:
        raise CheckpointError(
            f"the agent that this state came from cannot be read ({error.strerror})",
            file=original,
            hint="save to a .safetensors file instead",
        ) from None
    with file, open_zip(file, original) as source:
        if POLICY not in source.namelist():
            raise CheckpointError(f"has no {POLICY}", file=original, hint="name a Stable-Baselines3 zip")
        limit = MAX_RATIO * original.stat().st_size
        with open_atomic(path) as target, zipfile.ZipFile(target, "w") as archive:
            for info in source.infolist():
                replaced = info.filename == POLICY
                archive.writestr(
                    info, _policy_bytes(state) if replaced else read_member(source, info.filename, original, limit)
                )
