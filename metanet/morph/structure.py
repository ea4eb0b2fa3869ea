"""How are layers added, taken out or exchanged?"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from metanet.errors import PlanError, clean
from metanet.morph.blocks import Pass, Residual, activation, identity_map, same_kind_of_map
from metanet.morph.edits import ModuleEdit
from metanet.morph.running import evaluating

__all__ = ["Deepen", "Drop", "Insert", "Swap", "find", "observe", "replace_module"]


def find(model: nn.Module, path: str) -> nn.Module:
    """The module of a name.

    Raises:
        PlanError: if there is none, or it is the model itself.
    """
    if not isinstance(path, str) or not path:
        raise PlanError("the model itself cannot be replaced", hint="name a module inside it")
    try:
        return model.get_submodule(path)
    except AttributeError:
        names = [name for name, _ in model.named_modules() if name]
        shown = ", ".join(names[:8]) + (f", ... ({len(names)} in all)" if len(names) > 8 else "")
        raise PlanError(f"no module {clean(repr(path), 80)}", hint=f"the model has {shown or 'none'}") from None


def replace_module(model: nn.Module, path: str, new: nn.Module) -> None:
    """Put a module in the place of another wherever that one is used, in place; modes of training are kept."""
    old = find(model, path)
    new.train(old.training)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            # The new module may hold the old one, which stays where it is in there.
            if child is old and parent is not new and not any(parent is inner for inner in new.modules()):
                setattr(parent, name, new)


def observe(model: nn.Module, path: str, example_inputs: Sequence[Any]) -> tuple[Tensor, Tensor]:
    """The first input and the output of a module when the model runs, in eval mode; those of its last call.

    Raises:
        PlanError: if it is not called, or not with tensors.
    """
    module = find(model, path)
    seen: list[tuple[Any, Any]] = []
    handle = module.register_forward_hook(lambda _, given, out: seen.append((given, out)))
    try:
        with evaluating(model):
            model(*example_inputs)
    finally:
        handle.remove()
    if not seen:
        raise PlanError("is never called as a module", where=path, hint="its tensors are read in another way")
    given, out = seen[-1]
    if not given or not isinstance(given[0], Tensor) or not isinstance(out, Tensor):
        raise PlanError("does not turn a tensor into a tensor", where=path, hint="name a layer inside it")
    return given[0], out


@dataclass(frozen=True)
class Deepen(ModuleEdit):
    """A layer that changes nothing in front of a layer that reads an activation.

    ``residual=False``: an identity map and the activation once more, exact where the activation leaves its own output
    alone (relu; Net2DeeperNet: Chen et al., Net2Net, 2016, section 2.3). ``residual=True``: with ``second`` zero,
    ``x + second(act(first x))``, exact for any activation.

    Args:
        before: name of a linear layer or convolution.
        activation: see :data:`metanet.morph.blocks.ACTIVATIONS`.
        residual: see above.
        hidden: units of the residual branch; as many as the layer reads by default.
        seed: of the first map of the residual branch.
    """

    before: str
    activation: str = "relu"
    residual: bool = False
    hidden: int | None = None
    seed: int = 0
    kind: ClassVar[str] = "deepen"
    exact: ClassVar[bool] = True

    def restructure(self, model: nn.Module, example_inputs: Sequence[Any]) -> None:
        """See :class:`ModuleEdit`."""
        layer = find(model, self.before)
        given, _ = observe(model, self.before, example_inputs)
        units = given.shape[-1] if isinstance(layer, nn.Linear) else given.shape[1]
        identity = identity_map(layer, units)
        if self.residual:
            branch = _branch(layer, units, self.hidden or units, self.activation, self.seed)
            made = nn.Sequential(OrderedDict(branch=branch, layer=layer))
        else:
            function = activation(self.activation)
            with torch.no_grad():
                changed = float((function(given) - given).abs().max())
            if changed > 0:
                raise PlanError(
                    f"{self.activation} changes what this layer reads by up to {changed:.3g}, so that an identity "
                    "layer in front of it is not exact",
                    where=self.before,
                    hint="use residual=True",
                )
            made = nn.Sequential(OrderedDict(identity=identity, function=function, layer=layer))
        replace_module(model, self.before, made)

    def __str__(self) -> str:
        return f"deepen {'with a residual branch' if self.residual else 'with an identity layer'} before {self.before}"


@dataclass(frozen=True)
class Insert(ModuleEdit):
    """A residual block that changes nothing, behind a module: ``x + second(act(first x))`` with ``second`` zero.

    Args:
        after: name of a module whose output has its units last (linear) or in the second place (convolution).
        hidden: units of the branch; as many as come out of the module by default.
        activation: see :data:`metanet.morph.blocks.ACTIVATIONS`.
        seed: of the first map.
    """

    after: str
    hidden: int | None = None
    activation: str = "relu"
    seed: int = 0
    kind: ClassVar[str] = "insert"
    exact: ClassVar[bool] = True

    def restructure(self, model: nn.Module, example_inputs: Sequence[Any]) -> None:
        """See :class:`ModuleEdit`."""
        module = find(model, self.after)
        _, out = observe(model, self.after, example_inputs)
        options: dict[str, Any] = {"device": out.device, "dtype": out.dtype}
        maps = {4: nn.Conv2d, 5: nn.Conv3d}
        layer = maps[out.ndim](1, 1, 1, **options) if out.ndim in maps else nn.Linear(1, 1, **options)
        units = out.shape[1] if out.ndim in maps else out.shape[-1]
        branch = _branch(layer, units, self.hidden or units, self.activation, self.seed)
        replace_module(model, self.after, nn.Sequential(OrderedDict(module=module, branch=branch)))

    def __str__(self) -> str:
        return f"insert a residual block after {self.after}"


@dataclass(frozen=True)
class Drop(ModuleEdit):
    """A block taken out: its first input passes.

    Args:
        module: its name; what comes out of it has the shape of its first input.
    """

    module: str
    kind: ClassVar[str] = "drop"
    exact: ClassVar[bool] = False

    def restructure(self, model: nn.Module, example_inputs: Sequence[Any]) -> None:
        """See :class:`ModuleEdit`."""
        given, out = observe(model, self.module, example_inputs)
        if given.shape != out.shape:
            raise PlanError(
                f"turns shape {tuple(given.shape)} into {tuple(out.shape)}",
                where=self.module,
                hint="only a block that keeps the shape can be dropped",
            )
        replace_module(model, self.module, Pass())

    def __str__(self) -> str:
        return f"drop {self.module}"


@dataclass(frozen=True)
class Swap(ModuleEdit):
    """A module without parameters (an activation) exchanged for another.

    Args:
        module: its name.
        by: see :data:`metanet.morph.blocks.ACTIVATIONS`.
    """

    module: str
    by: str
    kind: ClassVar[str] = "swap"
    exact: ClassVar[bool] = False

    def restructure(self, model: nn.Module, example_inputs: Sequence[Any]) -> None:
        """See :class:`ModuleEdit`."""
        old, new = find(model, self.module), activation(self.by)
        if any(True for _ in old.parameters()) or any(True for _ in old.buffers()):
            raise PlanError(
                f"{type(old).__name__} has tensors of its own", where=self.module, hint="swap activations; drop blocks"
            )
        replace_module(model, self.module, new)

    def __str__(self) -> str:
        return f"swap {self.module} for {self.by}"


def _branch(layer: nn.Module, units: int, hidden: int, function: str, seed: int) -> Residual:
    """A residual branch whose second map is zero; the first is drawn as torch draws linear layers."""
    if hidden < 1:
        raise PlanError(f"a residual branch of {hidden} units", hint="give at least 1")
    first: Any = same_kind_of_map(layer, units, hidden)
    second: Any = same_kind_of_map(layer, hidden, units)
    generator, bound = torch.Generator().manual_seed(seed), units**-0.5
    with torch.no_grad():
        for tensor in (first.weight, first.bias):
            drawn = torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
            tensor.copy_((2 * drawn - 1) * bound)
        second.weight.zero_()
        second.bias.zero_()
    return Residual(first, second, function)
