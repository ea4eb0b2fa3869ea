"""What can be compared, and how is it run without a trace of that on the user's own objects?

Everything runs on a private copy, in eval mode and in the dtype asked for. Hooks, modes, buffers and dtypes of the
given modules are never touched, whatever happens.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from metanet.checkpoint import Checkpoint
from metanet.errors import ScoreError, clean

__all__ = ["Comparable", "Subject", "tensor_leaves"]

Comparable: TypeAlias = nn.Module | Checkpoint | tuple[nn.Module, Mapping[str, Tensor]]


def private_copy(model: nn.Module) -> nn.Module:
    """A copy that shares nothing with ``model``; tensors that a graph hangs on (pruning, weight norm) are detached.

    Raises:
        ScoreError: where something in the module cannot be copied.
    """
    # deepcopy refuses tensors that were computed from others, such as `weight` of a module pruned by torch.nn.utils.
    known: dict[int, Any] = {}
    for module in model.modules():
        for value in vars(module).values():
            if isinstance(value, Tensor) and not value.is_leaf:
                known[id(value)] = value.detach().clone()
    try:
        return copy.deepcopy(model, known)
    except Exception as error:
        raise ScoreError(
            f"{type(model).__name__} cannot be copied: {type(error).__name__}: {clean(error, 120)}",
            hint="networks are run on copies; take out what cannot be copied (locks, files, generators)",
        ) from error


def convert(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Every number of ``model`` in ``dtype``, complex ones in the complex type of that precision, in place."""

    def cast(tensor: Tensor) -> Tensor:
        if tensor.is_complex():
            return tensor.to(dtype.to_complex())
        return tensor.to(dtype) if tensor.is_floating_point() else tensor

    model._apply(cast)
    # Constants that are neither parameters nor buffers stay behind otherwise, and products of mixed types fail.
    for module in model.modules():
        for name, value in list(vars(module).items()):
            if isinstance(value, Tensor):
                vars(module)[name] = cast(value.detach())
    return model


def tensor_leaves(value: Any) -> list[tuple[str, Tensor]]:
    """All tensors in a nested value, each with its place in it; the only one has no name."""
    leaves = [
        (pytree.keystr(path).replace("][", ".").strip("[].'\"").replace("'", ""), leaf)
        for path, leaf in pytree.tree_flatten_with_path(value)[0]
        if isinstance(leaf, Tensor)
    ]
    return [("", leaves[0][1])] if len(leaves) == 1 else leaves


@dataclass(frozen=True, eq=False)
class Subject:
    """One of the two networks, as a private copy that is ready to run.

    Args:
        name: for messages.
        model: the copy, in eval mode.
        dtype: of its numbers, or ``None`` where they were left as they are.
        device: where it runs.
        takes: the shapes of its inputs, where they are known.
    """

    name: str
    model: nn.Module
    dtype: torch.dtype | None
    device: torch.device
    takes: str = ""

    @classmethod
    def of(
        cls,
        given: Comparable,
        name: str,
        dtype: torch.dtype | None,
        device: str | torch.device | None = None,
    ) -> Subject:
        """A copy of what the user gave.

        Args:
            given: a module, a checkpoint, or a module and a state.
            name: for messages.
            dtype: to convert it to, or ``None``.
            device: to move it to, or ``None``.

        Raises:
            ScoreError: for anything that is no network, or a state that does not fit its module.
        """
        state: Mapping[str, Tensor] | None = None
        if isinstance(given, Checkpoint):
            # A new module by itself; the error of an unknown architecture says what to do.
            model, state = given.architecture.build(), given.state
        elif isinstance(given, nn.Module):
            model = private_copy(given)
        elif isinstance(given, tuple) and len(given) == 2 and isinstance(given[0], nn.Module):
            model, state = private_copy(given[0]), given[1]
        else:
            raise ScoreError(
                f"network {name} is a {type(given).__name__}",
                hint="give a module, a checkpoint, or a pair of a module and its state",
            )
        model = model.eval()
        if state is not None:
            _load(model, state, name, dtype)
        elif dtype is not None:
            convert(model, dtype)
        if device is not None:
            model = model.to(device)
        devices = {tensor.device for tensor in (*model.parameters(), *model.buffers())}
        if len(devices) > 1:
            shown = ", ".join(sorted(map(str, devices)))
            raise ScoreError(f"network {name} lies on several devices ({shown})", hint="move it to one")
        where = devices.pop() if devices else torch.device("cpu")
        takes = ""
        if isinstance(given, Checkpoint):
            takes = ", ".join(str(list(example.shape[1:])) for example in given.architecture.example_inputs())
        return cls(name, model, dtype, where, takes)

    def run(
        self, positional: Sequence[Any], keywords: Mapping[str, Any], state: Mapping[str, Tensor] | None = None
    ) -> Any:
        """What the network answers; with ``state``, what it would answer with these tensors.

        Raises:
            ScoreError: where it fails on these inputs.
        """
        try:
            with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
                arguments, named = self.placed(positional), self.placed(dict(keywords))
                if state is None:
                    return self.model(*arguments, **named)
                return torch.func.functional_call(self.model, dict(state), tuple(arguments), named)
        except Exception as error:
            shapes = ", ".join(str(list(leaf.shape)) for _, leaf in tensor_leaves((positional, keywords)))
            hint = f"one input of it has shape {self.takes}" if self.takes else "correct the inputs"
            if self.dtype is not None and "dtype" in str(error):
                hint = "its code fixes a dtype: compare with dtype=None, as it is"
            raise ScoreError(
                f"network {self.name} does not run on inputs {shapes}: {type(error).__name__}: {clean(error, 160)}",
                hint=hint,
            ) from error

    def placed(self, value: Any) -> Any:
        """Arguments on the network's device, real numbers in its dtype."""

        def place(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor):
                return leaf
            wide = self.dtype is not None and leaf.is_floating_point()
            return leaf.to(self.device, self.dtype if wide else leaf.dtype)

        return pytree.tree_map(place, value)


def _load(model: nn.Module, state: Mapping[str, Tensor], name: str, dtype: torch.dtype | None) -> None:
    """Put ``state`` into ``model``, in ``dtype``, or in the state's own precision."""
    own = {tensor.dtype for tensor in state.values() if tensor.is_floating_point()}
    # First the dtype, then the numbers: the other way round would round them to what the module had.
    chosen = dtype if dtype is not None else (own.pop() if len(own) == 1 else None)
    if chosen is not None:
        convert(model, chosen)
    expected = model.state_dict()
    for key, tensor in expected.items():
        if not isinstance(tensor, Tensor):
            continue  # what a module stores beside its tensors is its own business
        if key not in state:
            raise ScoreError(f"the state of network {name} has no {clean(repr(key), 80)}", hint="give its own state")
        if state[key].shape != tensor.shape:
            raise ScoreError(
                f"{clean(repr(key), 80)} has shape {list(state[key].shape)} in the state of network {name}, the module "
                f"expects {list(tensor.shape)}",
                hint="give the state with the module that it belongs to",
            )
    extra = [key for key in state if key not in expected]
    if extra:
        raise ScoreError(f"the module of network {name} has no {clean(repr(extra[0]), 80)}", hint="give its own state")
    model.load_state_dict(dict(state))


@contextmanager
def undisturbed() -> Iterator[None]:
    """Networks that draw numbers while they run leave the global generator as it was.

    PyTorch's fused kernel of a transformer layer is off meanwhile: it calls none of the layer's modules, and knows no
    stacks of networks.
    """
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
