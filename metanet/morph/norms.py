"""How are norms folded into the layers beside them, and running statistics estimated again?"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from metanet.errors import PlanError
from metanet.morph.edits import ModuleEdit
from metanet.morph.running import evaluating
from metanet.morph.structure import find, replace_module

__all__ = ["Fold", "recalibrate"]

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_LINEAR = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True)
class Fold(ModuleEdit):
    """A norm folded into a layer beside it.

    A batch norm (with its running statistics) goes into the linear layer or convolution that it reads, and vanishes.
    A layer norm or RMS norm gives its gain and shift to the linear layers that read it, and stays without them.

    Source: y = (W x + b - mean) g / sqrt(var + eps) + shift is linear in x.

    Args:
        norm: name of the norm.
    """

    norm: str
    kind: ClassVar[str] = "fold"
    exact: ClassVar[bool] = True

    def restructure(self, model: nn.Module, example_inputs: Sequence[Any]) -> None:
        """See :class:`ModuleEdit`."""
        norm = find(model, self.norm)
        calls = _calls(model, example_inputs)
        if isinstance(norm, _BATCH_NORMS):
            self._into_writer(model, norm, calls)
        elif isinstance(norm, nn.LayerNorm | nn.RMSNorm):
            self._into_readers(norm, calls)
        else:
            raise PlanError(
                f"{type(norm).__name__} cannot be folded",
                where=self.norm,
                hint="batch norms fold into the layer before them, layer norms and RMS norms into those behind",
            )

    def _into_writer(self, model: nn.Module, norm: Any, calls: list[_Call]) -> None:
        mine = [call for call in calls if call.module is norm]
        writers = [call.module for call in calls if any(call.output is one.given for one in mine)]
        if len(mine) != 1 or len(writers) != 1 or not isinstance(writers[0], _LINEAR):
            raise PlanError(
                "does not read the output of exactly one linear layer or convolution",
                where=self.norm,
                hint="only such a batch norm can be folded",
            )
        layer: Any = writers[0]
        if sum(call.module is layer for call in calls) != 1 or norm.running_var is None:
            raise PlanError(
                "its layer is used more than once, or it has no running statistics", where=self.norm, hint="keep it"
            )
        gain = torch.ones_like(norm.running_var) if norm.weight is None else norm.weight.detach()
        shift = torch.zeros_like(gain) if norm.bias is None else norm.bias.detach()
        factor = gain.double() / (norm.running_var.double() + norm.eps).sqrt()
        old = layer.weight.detach()
        # The output channels of a transposed convolution stand in its second place, group by group.
        if isinstance(layer, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d):
            groups = layer.groups
            split = old.double().reshape(groups, old.shape[0] // groups, old.shape[1], *old.shape[2:])
            scale = factor.reshape(groups, 1, old.shape[1], *[1] * (old.ndim - 2))
            weight = (split * scale).reshape(old.shape)
        else:
            weight = old.double() * factor.reshape(-1, *[1] * (old.ndim - 1))
        bias = torch.zeros_like(factor) if layer.bias is None else layer.bias.detach().double()
        bias = (bias - norm.running_mean.double()) * factor + shift.double()
        layer.weight = nn.Parameter(weight.to(old), layer.weight.requires_grad)
        layer.bias = nn.Parameter(bias.to(old), layer.weight.requires_grad)
        replace_module(model, self.norm, nn.Identity())

    def _into_readers(self, norm: Any, calls: list[_Call]) -> None:
        outputs = [call.output for call in calls if call.module is norm]
        readers = {id(call.module): call.module for call in calls if any(call.given is out for out in outputs)}
        if not readers or not all(isinstance(layer, nn.Linear) for layer in readers.values()):
            raise PlanError(
                "is not read by linear layers alone", where=self.norm, hint="only such a norm can give its gain away"
            )
        if norm.weight is None or len(norm.weight.shape) != 1:
            raise PlanError("has no gain of its own, or one of several axes", where=self.norm, hint="nothing to fold")
        gain = norm.weight.detach().double()
        shift = getattr(norm, "bias", None)
        with torch.no_grad():
            for layer in readers.values():
                reader: Any = layer
                if shift is not None:
                    moved = reader.weight.double() @ shift.double()
                    bias = moved if reader.bias is None else reader.bias.double() + moved
                    reader.bias = nn.Parameter(bias.to(reader.weight))
                reader.weight.copy_(reader.weight.double() * gain)
            norm.weight.fill_(1.0)
            if shift is not None:
                shift.zero_()

    def __str__(self) -> str:
        return f"fold {self.norm}"


@dataclass(frozen=True, eq=False)
class _Call:
    module: nn.Module
    given: Any
    output: Any


def _calls(model: nn.Module, example_inputs: Sequence[Any]) -> list[_Call]:
    """Every call of a module without children: which tensor came in, and which went out."""
    found: list[_Call] = []
    handles = [
        module.register_forward_hook(lambda own, given, out: found.append(_Call(own, given[0] if given else None, out)))
        for module in model.modules()
        if not any(True for _ in module.children())
    ]
    try:
        with evaluating(model):
            model(*example_inputs)
    finally:
        for handle in handles:
            handle.remove()
    return found


def recalibrate(model: nn.Module, batches: Iterable[Sequence[Any]]) -> int:
    """Estimate the running statistics of all batch norms again, in place, as plain averages over batches.

    Args:
        model: any module; its parameters and modes are left as they are.
        batches: argument lists of ``forward``.

    Returns:
        How many batch norms there are.

    Raises:
        PlanError: without batches, or where the statistics do not come out finite; the old ones are then put back.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    norms = [norm for norm in norms if norm.running_mean is not None]
    old = [(norm.running_mean, norm.running_var, norm.num_batches_tracked, norm.momentum) for norm in norms]
    kept: list[list[Tensor]] = [[value.clone() for value in values[:3] if isinstance(value, Tensor)] for values in old]
    seen = 0
    try:
        with evaluating(model):
            for norm in norms:
                norm.reset_running_stats()
                norm.momentum = None  # torch then averages over all batches with equal weight
                norm.train()
            for batch in batches:
                model(*batch)
                seen += 1
    finally:
        for norm, values in zip(norms, old, strict=True):
            norm.momentum = values[3]
        bad = not seen or any(not bool(norm.running_var.isfinite().all()) for norm in norms)  # type: ignore[union-attr]
        if bad:
            for norm, saved in zip(norms, kept, strict=True):
                for name, value in zip(("running_mean", "running_var", "num_batches_tracked"), saved, strict=False):
                    getattr(norm, name).copy_(value)
    if norms and bad:
        raise PlanError(
            f"statistics of {seen} batches are not finite", hint="give finite batches of at least two inputs"
        )
    return len(norms)
