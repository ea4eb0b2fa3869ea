"""How are the statistics of a network between two others put right?

Averaged weights make averaged units, and averages vary less than what they are averages of: halfway between two
networks the activations shrink from layer to layer. Jordan et al., REPAIR (2023): set mean and standard deviation of
every unit to the interpolation of those at the two ends. Where a batch norm follows, its running statistics are
re-estimated, which does exactly that; elsewhere the correction is folded into weight and bias.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from symmetry.align.barrier import interpolate
from symmetry.errors import SpecError
from symmetry.spaces import Atom
from symmetry.spec import SymmetrySpec

__all__ = ["repair"]

Layer = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d
LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
STILL = 1e-6


def repair(
    spec: SymmetrySpec,
    model: nn.Module,
    first: Mapping[str, Tensor],
    second: Mapping[str, Tensor],
    inputs: Sequence[Any],
    weight: float = 0.5,
) -> dict[str, Tensor]:
    """The state between two others with its units' statistics put right, layer by layer, on one batch of data.

    Corrected are linear and convolution layers whose outputs are hidden units, unless a batch norm reads them (then its
    running statistics are re-estimated), they run more than once, or share their weight with another layer. A layer
    without a bias can be rescaled but not shifted.

    Args:
        spec: of the model.
        model: the module; it is not changed.
        first: a state.
        second: another, aligned to the first.
        inputs: one entry per argument of ``forward``; all the data that statistics are taken from, a few hundred rows.
        weight: the place on the line from the first (0) to the second (1).

    Returns:
        The repaired state, with the names of the first.

    Raises:
        SpecError: if the states do not belong to the spec.
    """
    if isinstance(inputs, Tensor):
        raise SpecError("inputs: a tensor, expected a tuple with one entry per argument; write (tensor,)")
    spec.check(first)
    spec.check(second)
    ends = [_Run(spec, model, state) for state in (first, second)]
    for end in ends:
        end.measure(inputs)
    middle = _Run(spec, model, interpolate(first, second, weight))
    middle.measure(inputs, renew=True, target=lambda name: _between(ends[0].seen[name], ends[1].seen[name], weight))
    state = middle.model.state_dict()
    return {name: state[name].detach().to(tensor.dtype).clone() for name, tensor in first.items()}


def _between(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor], weight: float) -> tuple[Tensor, Tensor]:
    return first[0].lerp(second[0], weight), first[1].lerp(second[1], weight)


class _Run:
    """A copy of the model on some state, and the statistics of its layers' outputs: (mean, deviation) by layer."""

    def __init__(self, spec: SymmetrySpec, model: nn.Module, state: Mapping[str, Tensor]) -> None:
        self.model = copy.deepcopy(model).eval()
        dtypes = {tensor.dtype for tensor in state.values() if tensor.is_floating_point()}
        if len(dtypes) == 1:
            self.model.to(dtypes.pop())
        self.model.load_state_dict(dict(state))
        self.seen: dict[str, tuple[Tensor, Tensor]] = {}
        hidden = {space.name for space in spec.permuted}
        self.layers: dict[str, Layer] = {}
        owners: dict[int, int] = {}
        for module in self.model.modules():
            for parameter in module.parameters(recurse=False):
                owners[id(parameter)] = owners.get(id(parameter), 0) + 1
        for name, module in self.model.named_modules():
            axes = spec.axes.get(f"{name}.weight" if name else "weight")
            if isinstance(module, LAYERS) and axes and owners[id(module.weight)] == 1:
                leaves = axes[0].leaves()
                if all(isinstance(leaf, Atom) and leaf.space.name in hidden for leaf in leaves):
                    self.layers[name] = module

    def measure(
        self,
        inputs: Sequence[Any],
        renew: bool = False,
        target: Callable[[str], tuple[Tensor, Tensor]] | None = None,
    ) -> None:
        """Run once and note statistics; with ``renew`` re-estimate running ones; with a target, set layers right."""
        skipped = self._skipped(inputs)
        handles = []
        for name, layer in self.layers.items():
            if name not in skipped:
                handles.append(layer.register_forward_hook(self._hook(name, target)))
        norms = [m for m in self.model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)] if renew else []
        norms = [norm for norm in norms if norm.running_mean is not None]
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.train()
            norm.reset_running_stats()
            norm.momentum = None
        with torch.no_grad():
            self.model(*inputs)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.eval()
            norm.momentum = momentum
        for handle in handles:
            handle.remove()

    def _skipped(self, inputs: Sequence[Any]) -> set[str]:
        """Layers that run more or less than once, and those that a batch norm reads."""
        calls: dict[str, int] = dict.fromkeys(self.layers, 0)
        made: dict[int, str] = {}
        kept: list[Tensor] = []
        normed: set[str] = set()
        handles = []

        def note(name: str) -> Callable[..., None]:
            def hook(_module: nn.Module, _inputs: tuple[Any, ...], output: Tensor) -> None:
                calls[name] += 1
                made[id(output)] = name
                kept.append(output)  # an id is only unique as long as its tensor lives

            return hook

        def read(_module: nn.Module, given: tuple[Any, ...]) -> None:
            normed.update(made[id(item)] for item in given if id(item) in made)

        for name, layer in self.layers.items():
            handles.append(layer.register_forward_hook(note(name)))
        for module in self.model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                handles.append(module.register_forward_pre_hook(read))
        with torch.no_grad():
            self.model(*inputs)
        for handle in handles:
            handle.remove()
        return normed | {name for name, count in calls.items() if count != 1}

    def _hook(self, name: str, target: Callable[[str], tuple[Tensor, Tensor]] | None) -> Callable[..., Tensor | None]:
        def hook(module: Layer, _inputs: tuple[Any, ...], output: Tensor) -> Tensor | None:
            unit = output.ndim - 1 if isinstance(module, nn.Linear) else output.ndim - module.weight.ndim + 1
            rest = [dim for dim in range(output.ndim) if dim != unit]
            deviation, mean = torch.std_mean(output, dim=rest, correction=0)
            self.seen[name] = (mean, deviation)
            if target is None:
                return None
            wanted_mean, wanted_deviation = target(name)
            # A unit that does not move has no scale to set.
            moving = deviation > STILL * deviation.max()
            scale = torch.where(moving, wanted_deviation / torch.where(moving, deviation, 1.0), 1.0)
            shift = torch.zeros_like(mean) if module.bias is None else wanted_mean - scale * mean
            module.weight.mul_(scale.reshape(-1, *[1] * (module.weight.ndim - 1)))
            if module.bias is not None:
                module.bias.mul_(scale).add_(shift)
            shape = [-1 if dim == unit else 1 for dim in range(output.ndim)]
            return output * scale.reshape(shape) + shift.reshape(shape)

        return hook
