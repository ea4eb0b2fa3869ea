"""What do the layers of a network read? Means and covariances of the inputs of its linear maps, from runs on inputs.

Every call of a linear or convolution function is watched, whichever module or line of code makes it, and told by the
weight that it was given: modules that call ``functional.linear`` with parameters of their own are seen too.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from metanet.errors import PlanError
from metanet.morph.attention import FreeAttention, free_heads
from metanet.morph.running import doubled
from metanet.morph.unrolled import unroll
from symmetry import Fixed, Product
from symmetry.spaces import Axis

__all__ = ["Moments", "Watch", "features", "joint_moments", "reader_inputs", "watch", "watched"]

_CONVOLUTIONS = (
    functional.conv1d,
    functional.conv2d,
    functional.conv3d,
    functional.conv_transpose1d,
    functional.conv_transpose2d,
    functional.conv_transpose3d,
)


@dataclass(frozen=True, eq=False)
class Moments:
    """Means of two sets of features seen together, and covariances.

    Args:
        count: samples.
        mean: of the features of the edited network.
        other: of those of the old one.
        within: covariance of the edited network's features.
        across: covariance of the edited network's with the old one's.

    Shapes:
        mean (m,), other (n,), within (m, m), across (m, n)
    """

    count: int
    mean: Tensor
    other: Tensor
    within: Tensor
    across: Tensor

    def about_zero(self) -> Moments:
        """Second moments in place of covariances: where no bias takes a constant, means are rebuilt like the rest."""
        return Moments(
            self.count,
            torch.zeros_like(self.mean),
            torch.zeros_like(self.other),
            self.within + torch.outer(self.mean, self.mean),
            self.across + torch.outer(self.mean, self.other),
        )


class Watch(TorchFunctionMode):
    """Notes what every linear map reads, by the name of its weight, in the order of the calls.

    A part of a weight (the queries' rows of a fused projection) is known by the weight that it is a part of.

    Args:
        names: of weights, by identity.
        forced: by name, what the calls give in place of what they would, in their order.

    Attributes:
        seen: what was read. Shapes: each (..., features).
        made: what came out.
    """

    def __init__(self, names: Mapping[int, str], forced: Mapping[str, Sequence[Tensor]] | None = None) -> None:
        super().__init__()
        self.names, self.forced = names, forced or {}
        self.seen: dict[str, list[Tensor]] = {}
        self.made: dict[str, list[Tensor]] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not functional.linear and func not in _CONVOLUTIONS:
            return func(*args, **kwargs)
        given = args[0] if args else kwargs["input"]
        weight = args[1] if len(args) > 1 else kwargs["weight"]
        name = self.names.get(id(weight)) or self.names.get(id(weight._base))
        out = func(*args, **kwargs)
        if name is None:
            return out
        # Channels last, whatever reads them.
        x = given if func is functional.linear else given.movedim(-weight.ndim + 1, -1)
        self.seen.setdefault(name, []).append(x)
        self.made.setdefault(name, []).append(out)
        forced, number = self.forced.get(name, ()), len(self.made[name]) - 1
        return forced[number] if number < len(forced) else out


def watched(model: nn.Module) -> nn.Module:
    """A copy in float64 and eval mode whose attention and recurrent layers call functions that can be watched."""
    made = copy.deepcopy(model).to(torch.float64).eval()
    for module in made.modules():
        attention = isinstance(module, nn.MultiheadAttention) and not isinstance(module, FreeAttention)
        if attention and module.bias_k is None and not module.add_zero_attn:
            free_heads(module, module.head_dim, module.head_dim**-0.5)
        elif isinstance(module, nn.RNNBase) and not module.proj_size:
            unroll(module)
    return made


def reader_inputs(model: nn.Module, arguments: Sequence[Any]) -> dict[str, list[Tensor]]:
    """What the linear maps of a module read in one run, by the name of the weight.

    Args:
        model: made by :func:`watched`.
        arguments: of ``forward``.

    Shapes:
        each (..., features): features of a linear layer, channels of a convolution
    """
    return watch(model, arguments).seen


def watch(model: nn.Module, arguments: Sequence[Any], forced: Mapping[str, Sequence[Tensor]] | None = None) -> Watch:
    """One run of a module, watched.

    Args:
        model: made by :func:`watched`.
        arguments: of ``forward``.
        forced: see :class:`Watch`.
    """
    state = model.state_dict(keep_vars=True)
    mode = Watch({id(tensor): name for name, tensor in reversed(state.items())}, forced)
    with torch.no_grad(), mode:
        model(*arguments)
    return mode


def features(x: Tensor, axis: Axis) -> Tensor:
    """Samples of what one axis of a weight reads; positions that the axis runs over besides are samples too.

    Shapes:
        (..., axis size) -> (samples, units)
    """
    if isinstance(axis, Product) and isinstance(axis.inner, Fixed):
        x = x.unflatten(-1, (axis.outer.size, axis.inner.size)).movedim(-1, -2)
        return features(x, axis.outer)
    return x.reshape(-1, x.shape[-1])


class _Sums:
    """Sums of products, accumulated over batches."""

    def __init__(self) -> None:
        self.count = 0
        self.sums: list[Tensor] = []

    def add(self, new: Tensor, old: Tensor) -> None:
        parts = [new.sum(0), old.sum(0), new.mT @ new, new.mT @ old]
        self.sums = [a + b for a, b in zip(self.sums, parts, strict=True)] if self.sums else parts
        self.count += len(new)

    def moments(self) -> Moments:
        mean, other, within, across = (part / self.count for part in self.sums)
        return Moments(self.count, mean, other, within - torch.outer(mean, mean), across - torch.outer(mean, other))


def joint_moments(
    old: nn.Module,
    new: nn.Module,
    batches: Iterable[Sequence[Any]],
    axes: Mapping[str, tuple[Axis, Axis]],
    missing_ok: bool = False,
    forced: bool = False,
) -> dict[str, Moments]:
    """Moments of what weights read, in an old and an edited network that run on the same inputs.

    Args:
        old: the network before; a copy runs.
        new: the edited one; the same object where there was no edit.
        batches: argument lists of ``forward``.
        axes: for each weight the axis by which it reads, in the old and in the new network.
        missing_ok: leave out weights whose reading cannot be watched.
        forced: let every linear map of the edited network give what it gave in the old one, so that weights read only
            those differences which no other weight has passed on.

    Raises:
        PlanError: without batches, where the values are not finite, or where a weight is not read by a call of a linear
            map that can be watched.
    """
    a = watched(old)
    b = a if new is old else watched(new)
    sums = {name: _Sums() for name in axes}
    for batch in batches:
        arguments = doubled(batch)
        run = watch(a, arguments)
        first = run.seen
        second = first if b is a else watch(b, arguments, run.made if forced else None).seen
        for name, (before, after) in axes.items():
            reads = first.get(name, ()), second.get(name, ())
            if len(reads[0]) != len(reads[1]):
                continue  # a module that is used in several places, one of which is gone
            for x, y in zip(*reads, strict=True):
                if x.shape[-1] != before.size or y.shape[-1] != after.size:
                    break  # a grouped convolution reads more channels than each of its weights
                sums[name].add(features(y, after), features(x, before))
    found = {}
    for name, total in sums.items():
        if not total.count and missing_ok:
            continue
        if not total.count:
            raise PlanError(f"{name}: nothing was seen that it reads", hint="give batches; or leave it uncompensated")
        found[name] = total.moments()
        if not bool(found[name].within.isfinite().all() & found[name].across.isfinite().all()):
            raise PlanError(f"{name}: reads values that are not finite", hint="look at the network's weights")
    return found
