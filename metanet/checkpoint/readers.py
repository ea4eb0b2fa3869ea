"""Which reader does a file need? Decided by what is in it, never by its name."""

from __future__ import annotations

from pathlib import Path

from metanet.checkpoint.limits import READABLE, file_size
from metanet.checkpoint.safetensors_file import looks_like_safetensors, read_safetensors
from metanet.checkpoint.sb3_file import POLICY, read_sb3
from metanet.checkpoint.source import Raw
from metanet.checkpoint.torch_file import LEGACY_START, read_torch
from metanet.checkpoint.zip_file import ZIP_START, open_zip
from metanet.errors import CheckpointError

__all__ = ["find_weights", "read"]

WEIGHTS = ("weights.safetensors", "model.safetensors")
SUFFIXES = (".safetensors", ".pt", ".pth", ".zip")

# Formats that people will try, told apart by their first bytes so that the refusal can say what the file is.
OTHERS = (
    (b"\x89HDF\r\n\x1a\n", "an HDF5 (Keras) file"),
    (b"GGUF", "a GGUF file"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\x1f\x8b", "a gzip file"),
    (b"\x80", "a pickle that torch did not write; pickles can run code"),
)


def find_weights(folder: Path) -> Path:
    """The file in ``folder`` that holds the weights.

    Raises:
        CheckpointError: where there is none, or several and none of the usual names.
    """
    for name in WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    try:
        files = sorted(p for p in folder.iterdir() if p.suffix in SUFFIXES and not p.name.startswith("."))
    except OSError as error:
        raise CheckpointError(f"cannot be listed ({error.strerror})", file=folder, hint="check the path") from None
    if len(files) != 1:
        found = "no checkpoint file" if not files else f"{len(files)} checkpoint files, such as '{files[0].name}'"
        raise CheckpointError(f"the folder holds {found}", file=folder, hint=f"name one file, or call it {WEIGHTS[0]}")
    return files[0]


def read(path: Path, key: str | None = None) -> Raw:
    """The tensors in ``path``.

    Args:
        path: a file.
        key: where the state dict is inside a torch file.

    Raises:
        CheckpointError: for anything that is no checkpoint, with the reason.
    """
    size = file_size(path)
    try:
        with path.open("rb") as file:
            start = file.read(16)
            file.seek(0)
            if start.startswith(ZIP_START):
                archive = open_zip(file, path)
                if POLICY in archive.namelist():
                    return read_sb3(archive, path, size)
                file.seek(0)
                return read_torch(file, path, size, key)
            if start.startswith(LEGACY_START):
                return read_torch(file, path, size, key)
            if path.suffix == ".safetensors" or looks_like_safetensors(start, size):
                return read_safetensors(file, path, size)
    except OSError as error:
        raise CheckpointError(f"cannot be read ({error.strerror or error})", file=path, hint="check the path") from None
    what = next((what for magic, what in OTHERS if start.startswith(magic)), "no checkpoint of a known format")
    raise CheckpointError(f"is {what}", file=path, hint=READABLE)
