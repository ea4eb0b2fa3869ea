"""Which inputs does the user name, and do they fit what the network takes?"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from metanet.errors import ConfigError, clean

if TYPE_CHECKING:
    from torch import Tensor

    from metanet.checkpoint import Architecture

__all__ = ["SETS", "read_data"]

SETS = ("digits", "mnist", "fashion_mnist", "textures", "gaussian_mixture", "signals1d")
INPUT_NAMES = ("inputs", "x", "images", "data", "x_test")
LABEL_NAMES = ("labels", "y", "targets", "y_test")


def read_data(
    architecture: Architecture, data: str, labels: str | None, rows: int | None
) -> tuple[Tensor, Tensor | None, str]:
    """The inputs that the user named, their labels, and where they come from.

    Args:
        architecture: of the network that is to be run on them.
        data: a file, ``FILE:ARRAY``, or a name in :data:`SETS`.
        labels: a file or ``FILE:ARRAY``; what comes with the data if ``None``.
        rows: only the first so many.

    Raises:
        ConfigError: for a name that means nothing, or inputs that do not fit.
        CheckpointError: for a file that cannot be read.
    """
    examples = architecture.example_inputs()
    if len(examples) != 1:
        reason = f"the network takes {len(examples)} inputs, --data names one"
        raise ConfigError(reason, hint="call metanet.score.compare from Python")
    example = examples[0]
    known = data in SETS and not Path(data).exists()
    inputs, found, origin = _image_set(data, example) if known else _from_file(data)
    if labels is not None:
        found = _array(labels, LABEL_NAMES, "--labels")[0]
    if rows is not None:
        inputs, found = inputs[:rows], None if found is None else found[:rows]
        origin = f"the first {len(inputs):,} of {origin}"
    inputs, note = _fitted(inputs, example)
    if found is not None and found.ndim == 2 and found.shape[1] == 1 and not found.is_floating_point():
        found = found[:, 0]
    return inputs, found, origin + note


def _image_set(name: str, example: Tensor) -> tuple[Tensor, Tensor | None, str]:
    from metanet.datasets.images import image_sizes, load_images

    fitting = [size for size in image_sizes(name) if size * size == example[0].numel()]
    images = load_images({"name": name, "size": (fitting or image_sizes(name))[0]})
    height, width = images.shape[1:]
    origin = f"{len(images.test_labels):,} test images of {name}, {height}x{width}"
    return images.test_images, images.test_labels, origin


def _from_file(name: str) -> tuple[Tensor, Tensor | None, str]:
    inputs, arrays, key = _array(name, INPUT_NAMES, "--data")
    beside = [other for other in LABEL_NAMES if other in arrays and other != key]
    labels = arrays[beside[0]] if beside and ":" not in Path(name).name else None
    return inputs, labels, f"{len(inputs) if inputs.ndim else 0:,} inputs of {clean(name, 120)}"


def _array(name: str, known: tuple[str, ...], option: str) -> tuple[Tensor, dict[str, Tensor], str]:
    """The array that is meant, all arrays of its file, and its name there."""
    path, key = Path(name), ""
    if not path.exists() and ":" in path.name:
        head, _, key = name.rpartition(":")
        path = Path(head)
    if not path.exists():
        told = f"{clean(name, 120)} is no file" + (" and no set" if option == "--data" else "")
        raise ConfigError(told, where=option, hint=f"give a file, FILE:ARRAY, or a set: {', '.join(SETS)}")
    arrays = _arrays(path)
    if not key:
        named = [other for other in known if other in arrays]
        if len(arrays) > 1 and not named:
            reason = f"holds {len(arrays)} arrays ({clean(', '.join(arrays), 120)})"
            raise ConfigError(reason, where=path, hint=f"say which one: {path.name}:NAME")
        key = named[0] if named else next(iter(arrays))
    if key not in arrays:
        there = clean(", ".join(arrays), 120)
        raise ConfigError(f"no array {clean(repr(key), 60)}", where=path, hint=f"there are {there}")
    if arrays[key].ndim == 0:
        raise ConfigError(f"array {clean(repr(key), 60)} is a single number", where=path, hint="one entry per input")
    return arrays[key], arrays, key


def _arrays(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".npy":
        import numpy as np

        from metanet.checkpoint.npz_file import as_tensor

        try:
            # Mapped, so that a forged header takes no memory.
            return {path.stem: as_tensor(np.load(path, mmap_mode="r", allow_pickle=False))}
        except (ValueError, TypeError, EOFError) as error:
            raise ConfigError(f"is no .npy file of numbers ({clean(error, 80)})", where=path) from None
    from metanet.checkpoint import read

    return dict(read(path).state)


def _fitted(inputs: Tensor, example: Tensor) -> tuple[Tensor, str]:
    """The inputs in the shape that the network takes, and a note if that was another one."""
    if inputs.is_floating_point() != example.is_floating_point():
        raise ConfigError(
            f"--data holds {inputs.dtype}, the network takes {example.dtype}".replace("torch.", ""),
            hint="bring the inputs into the form that the network was trained on",
        )
    expected, shape = tuple(example.shape[1:]), tuple(inputs.shape[1:])
    # Other sizes along axes of the same kind (longer sequences, larger images) are for the network to refuse.
    if shape == expected or (len(shape) == len(expected) and math.prod(shape) != math.prod(expected)):
        return inputs, ""
    if math.prod(shape) != math.prod(expected):
        reason = f"inputs of shape {list(shape)}, the network takes {list(expected)}"
        raise ConfigError(reason, where="--data", hint="give inputs for this network")
    return inputs.reshape(len(inputs), *expected), f", laid out as {list(expected)}"
