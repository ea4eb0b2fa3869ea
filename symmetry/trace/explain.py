"""Why can a model not be exported? One line: what, at which line of whose code, and what to do about it."""

from __future__ import annotations

import inspect
import linecache
import os
import sysconfig
from collections.abc import Sequence
from types import FrameType
from typing import Any

import torch
from torch import nn

__all__ = ["explain", "misfit"]

_OURS = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_TORCH = os.path.dirname(os.path.abspath(torch.__file__))
_STANDARD = sysconfig.get_paths()["stdlib"]
_MOST = 300
# Where torch's own reports turn to advice about its environment variables.
_NOISE = (" (unhinted", " Caused by:", " For more information", " (Size-like symbols", " The above exception")


def misfit(model: nn.Module, example_inputs: Sequence[Any]) -> str | None:
    """What is wrong with the number of inputs, before anything is run; ``None`` if they fit ``forward``."""
    try:
        signature = inspect.signature(model.forward)
    except (TypeError, ValueError):
        return None
    try:
        signature.bind(*example_inputs)
    except TypeError as error:
        count = len(example_inputs)
        return (
            f"{type(model).__name__}: example_inputs has {count} {'entry' if count == 1 else 'entries'}, but forward "
            f"takes {signature} ({error}); give one entry per argument of forward"
        )
    return None


def explain(model: nn.Module, error: BaseException) -> str:
    """Torch's reason in one line, with the operation, the module and the line of code it stopped at, and what to do."""
    frames = _frames(error)
    text = " ".join(str(error).split())
    for mark in _NOISE:
        text = text.partition(mark)[0]
    text = text if len(text) <= _MOST else text[:_MOST] + " ..."
    hint = "call torch.export.export(model, example_inputs) to see torch's full report"
    if "data-dependent" in text.lower() or "DataDependent" in type(error).__name__:
        hint = (
            "control flow or a size depends on the values of tensors; use torch.where or torch.cond, or trace a "
            "variant of the module without it"
        )
    where = [part for part in (_operation(frames), _module(model, frames), _line(frames)) if part]
    place = f" at {', '.join(where)}" if where else ""
    return f"{type(model).__name__} cannot be exported{place}: {type(error).__name__}: {text}; {hint}"


def _frames(error: BaseException) -> list[tuple[FrameType, int]]:
    """Every frame the error passed, the innermost last, with its line."""
    found, entry = [], error.__traceback__
    while entry is not None:
        found.append((entry.tb_frame, entry.tb_lineno))
        entry = entry.tb_next
    return found


def _operation(frames: Sequence[tuple[FrameType, int]]) -> str:
    """The operation that torch was about to run, if it failed inside one."""
    for frame, _ in frames:
        for value in (frame.f_locals.get("func"), frame.f_locals.get("op")):
            if isinstance(value, torch._ops.OpOverload):
                return f"operation {value}"
    return ""


def _module(model: nn.Module, frames: Sequence[tuple[FrameType, int]]) -> str:
    """The innermost submodule whose ``forward`` was running."""
    names = {id(module): name for name, module in model.named_modules() if name}
    for frame, _ in reversed(frames):
        owner = frame.f_locals.get("self")
        if isinstance(owner, nn.Module) and id(owner) in names:
            return f"module {names[id(owner)]} ({type(owner).__name__})"
    return ""


def _line(frames: Sequence[tuple[FrameType, int]]) -> str:
    """File, line and code of the innermost frame that belongs neither to torch, nor to Python, nor to this library."""
    for frame, number in reversed(frames):
        name = frame.f_code.co_filename
        foreign = name.startswith((_TORCH, _OURS)) or (name.startswith(_STANDARD) and "site-packages" not in name)
        if not foreign and not name.startswith("<"):
            return f"{os.path.basename(name)}:{number}: {linecache.getline(name, number).strip()}"
    return ""
