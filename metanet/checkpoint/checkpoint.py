"""What is one network on disk, as a value: its tensors, architecture and symmetry, and where they came from?"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn

import symmetry
from metanet.checkpoint.architecture import Architecture
from metanet.checkpoint.factory import FactoryArchitecture
from metanet.checkpoint.infer import infer
from metanet.checkpoint.readers import read
from metanet.checkpoint.save import ARCHITECTURE_FILE, ARCHITECTURE_KEY, METRICS_KEY, save_like
from metanet.checkpoint.source import Raw, Source
from metanet.checkpoint.unknown import UnknownArchitecture
from metanet.errors import CheckpointError, clean
from metanet.io import parse_json, read_json

__all__ = ["Checkpoint", "load"]

MAX_ARCHITECTURE_BYTES = 4 * 1024 * 1024
# Kinds of file that open without an architecture: their tensors are of use by themselves, and no name tells more.
OPEN_KINDS = ("lightning", "torchscript", "npz", "keras-h5", "keras-zip", "huggingface")


@functools.lru_cache(maxsize=1024)
def _traced(architecture: Architecture) -> symmetry.SymmetrySpec:
    # Architectures compare by fingerprint, so a zoo of one architecture is traced once per process.
    return symmetry.trace(architecture.build().eval(), architecture.example_inputs())


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """One network: its tensors, its architecture, and where they came from.

    Args:
        state: the state dict, in the order of the file; the mapping is read-only.
        architecture: what the tensors belong to; ``architecture.provenance`` says where that is known from.
        source: the file.
        metrics: what was measured on this network and stored with it.
        metadata: other text that stood in the file.
    """

    state: Mapping[str, Tensor]
    architecture: Architecture
    source: Source
    metrics: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    metadata: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def spec(self) -> symmetry.SymmetrySpec:
        """The symmetry of the architecture, traced on first use and then shared by all checkpoints of it.

        Raises:
            CheckpointError: where nothing says what is computed with the tensors; the message says what to do.
            symmetry.TraceError: where the model cannot be traced.
        """
        return _traced(self.architecture)

    @property
    def parameters(self) -> int:
        """How many numbers the state holds, buffers included."""
        return sum(tensor.numel() for tensor in self.state.values())

    @property
    def extras(self) -> tuple[str, ...]:
        """Tensors that are kept but take no part in the function, such as ``log_std``."""
        return tuple(self.architecture.options.get("extras", ()))

    def model(self) -> nn.Module:
        """The module with these tensors in it, in eval mode, in the state's dtype."""
        model = self.architecture.build()
        dtypes = {tensor.dtype for tensor in self.state.values() if tensor.is_floating_point()}
        if len(dtypes) == 1:
            model = model.to(dtypes.pop())
        model.load_state_dict(dict(self.state))
        return model.eval()

    def save(self, path: str | os.PathLike[str], state: Mapping[str, Tensor] | None = None) -> None:
        """Write this checkpoint in the kind of file that it came from, the tensors bit by bit as they are.

        A Stable-Baselines3 agent needs its original file, whose other members are copied; other entries of a torch file
        (optimiser, epoch) are not kept.

        Args:
            path: the new file.
            state: other tensors of the same names and shapes, instead of its own.

        Raises:
            CheckpointError: where the state does not fit the architecture or the original is gone.
        """
        chosen = self.state if state is None else state
        try:
            self.architecture.check_state(chosen)
        except CheckpointError as error:
            raise error.within(path) from None
        save_like(self.source, path, chosen, self.architecture, self.metrics, self.metadata)

    def __repr__(self) -> str:
        return (
            f"Checkpoint({self.source}: {len(self.state)} tensors, {self.parameters} numbers, "
            f"family {self.architecture.family})"
        )


@functools.lru_cache(maxsize=1024)
def _parse_architecture(text: str, provenance: str) -> Architecture:
    return Architecture.from_json(parse_json(text), provenance)


def _stored_architecture(raw: Raw, path: Path) -> Architecture | None:
    """The architecture that came with the file: in its metadata, else in the file beside it."""
    text = raw.metadata.get(ARCHITECTURE_KEY)
    if text is not None:
        try:
            return _parse_architecture(text, "the file's own metadata")
        except CheckpointError as error:
            raise error.within(path) from None
        except ValueError as error:
            raise CheckpointError(
                f"metadata '{ARCHITECTURE_KEY}' is not JSON ({clean(error, 80)})",
                file=path,
                hint="save the file again, or give the architecture with architecture=",
            ) from None
    if raw.architecture is not None:
        found: Architecture = raw.architecture
        return found
    beside = (path if path.is_dir() else path.parent) / ARCHITECTURE_FILE
    return _architecture_file(beside) if beside.is_file() else None


def _architecture_file(path: Path) -> Architecture:
    try:
        return Architecture.from_json(read_json(path, MAX_ARCHITECTURE_BYTES), f"the file {path.name}")
    except CheckpointError as error:
        raise error.within(path) from None
    except OSError as error:
        raise CheckpointError(f"cannot be read ({error.strerror})", file=path, hint="check the path") from None
    except ValueError as error:
        raise CheckpointError(f"is not JSON ({clean(error, 80)})", file=path, hint="correct the file") from None


def _given_architecture(value: Architecture | Mapping[str, Any] | str | os.PathLike[str]) -> Architecture:
    if isinstance(value, Architecture):
        return value
    if isinstance(value, Mapping):
        return Architecture.from_json(value, "given by the user")
    return _architecture_file(Path(value))


def _inferred(raw: Raw, activation: str | None) -> Architecture:
    """What names and shapes tell; for files that rarely hold chains of linear layers, possibly nothing."""
    try:
        return infer(raw.state, activation, raw.source.path, raw.source.prefix)
    except CheckpointError as error:
        if activation is not None or raw.source.kind not in OPEN_KINDS:
            raise
        return UnknownArchitecture(error.within(raw.source.path), raw.state)


def _metrics(raw: Raw, path: Path) -> Mapping[str, Any]:
    text = raw.metadata.get(METRICS_KEY)
    if text is None:
        return MappingProxyType({})
    try:
        value = parse_json(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise CheckpointError(f"metadata '{METRICS_KEY}' is no JSON object", file=path, hint="save the file again")
    return MappingProxyType(value)


def load(
    path: str | os.PathLike[str],
    architecture: Architecture | Mapping[str, Any] | str | os.PathLike[str] | None = None,
    factory: str | Callable[[], Any] | None = None,
    *,
    activation: str | None = None,
    key: str | None = None,
    example_inputs: Sequence[Any] | None = None,
) -> Checkpoint:
    """Read a checkpoint file; nothing in it is ever run.

    What the tensors belong to is known, in this order, from: ``architecture`` or ``factory``; the file's own metadata;
    ``architecture.json`` beside it; the names and shapes of chains of linear layers.

    Args:
        path: a file of a kind that can be read (see the page on checkpoint files), a folder with one of them, or a
            model folder of the Hugging Face Hub. The kind is told from what is in it, not from its name.
        architecture: an :class:`Architecture`, its JSON value, or a file that holds it.
        factory: ``"package.module:function"``, or a function, that returns ``(model, example_inputs)``. It is code
            and is run.
        activation: the function between linear layers, where names and shapes tell the rest.
        key: where in a torch file the state dict is, where it has no usual name; parts joined by ``/``.
        example_inputs: for the graph in an ONNX file, one for each of its inputs, where the sizes in the file are not
            enough; an integer without axes is fixed to what is given.

    Raises:
        CheckpointError: for anything that is not such a file, with the file, the tensor, the reason and what to do.
    """
    file = Path(path)
    if sum(given is not None for given in (architecture, factory, activation)) > 1:
        raise CheckpointError("architecture=, factory= and activation= exclude each other", file=file, hint="give one")
    raw = read(file, key, example_inputs)
    file = raw.source.path
    if example_inputs is not None and raw.source.kind != "onnx":
        raise CheckpointError("example_inputs= is for ONNX files", file=file, hint="a factory gives its own")
    try:
        if factory is not None:
            found: Architecture | None = FactoryArchitecture(factory)
        elif architecture is not None:
            found = _given_architecture(architecture)
        else:
            found = None if activation is not None else _stored_architecture(raw, file)
        if found is None:
            found = _inferred(raw, activation)
        found.check_state(raw.state)
    except CheckpointError as error:
        raise error.within(file) from None
    metadata = {name: text for name, text in raw.metadata.items() if name not in (ARCHITECTURE_KEY, METRICS_KEY)}
    return Checkpoint(
        MappingProxyType(dict(raw.state)), found, raw.source, _metrics(raw, file), MappingProxyType(metadata)
    )
