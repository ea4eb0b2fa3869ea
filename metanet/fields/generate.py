"""How is what a field writes run as a network, and made an ordinary module?"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

import symmetry
from metanet.errors import FieldError, PlanError
from metanet.fields.field import Field
from metanet.morph.modules import has_choice, rebuild
from metanet.morph.resize import resized_spec
from symmetry import SymmetrySpec, TraceError

__all__ = ["Skeletons", "materialise"]


class Skeletons:
    """Modules of an architecture at any sizes, made once each; their own weights do not matter.

    Args:
        model: of full width; it is not changed.
        spec: of it.
        example_inputs: one entry per argument of ``forward``.
        most: how many are kept.
    """

    def __init__(self, model: nn.Module, spec: SymmetrySpec, example_inputs: Sequence[Any], most: int = 256) -> None:
        self.model, self.spec, self.example_inputs, self.most = model, spec, tuple(example_inputs), most
        self._made: OrderedDict[tuple[int, ...], nn.Module] = OrderedDict()

    def get(self, state: Mapping[str, Tensor], sizes: Mapping[str, int]) -> nn.Module:
        """The module for a state of these sizes.

        Raises:
            FieldError: if the module cannot be made to run at these sizes.
        """
        key = tuple(sizes.get(space.name, space.size) for space in self.spec.spaces)
        if key not in self._made:
            self._made[key] = self._make(state, sizes)
            if len(self._made) > self.most:
                self._made.popitem(last=False)
        self._made.move_to_end(key)
        return self._made[key]

    def _make(self, state: Mapping[str, Tensor], sizes: Mapping[str, int]) -> nn.Module:
        after = resized_spec(self.spec, sizes)
        plain = {name: tensor.detach() for name, tensor in state.items()}
        layout = _layout(after)

        def accept(made: nn.Module) -> bool:
            # Tracing takes much longer than all the rest, and only a choice of attributes needs it.
            chosen = has_choice(self.model, self.spec, after)
            return not chosen or layout == _layout(symmetry.trace(made, self.example_inputs))

        try:
            return rebuild(self.model, self.spec, after, plain, self.example_inputs, accept)
        except (PlanError, TraceError) as error:
            reason, hint = (error.reason, error.hint) if isinstance(error, PlanError) else (str(error), "")
            raise FieldError(f"the network cannot have these sizes: {reason}", hint=hint) from None

    def run(self, state: Mapping[str, Tensor], sizes: Mapping[str, int], inputs: Sequence[Any], train: bool) -> Any:
        """The outputs of the network that a state is, with gradients to the state.

        In training batch norms use the statistics of the batch, and the state is not changed. Everything else runs as
        in eval mode: dropout would draw from the global generator.
        """
        module = self.get(state, sizes).eval()
        if train:
            for norm in (each for each in module.modules() if isinstance(each, nn.modules.batchnorm._BatchNorm)):
                norm.train()
            state = {name: tensor if tensor.requires_grad else tensor.clone() for name, tensor in state.items()}
        return functional_call(module, dict(state), tuple(inputs))


def materialise(
    field: Field,
    model: nn.Module,
    sizes: Mapping[str, int] | None = None,
    example_inputs: Sequence[Any] = (),
    *,
    noise: float = 0.0,
    draws: int = 1,
    generator: torch.Generator | None = None,
) -> nn.Module:
    """An ordinary module with the weights that a field writes, in eval mode.

    Args:
        field: which.
        model: a module of the field's architecture at full width; it is not changed.
        sizes: numbers of units by space; full width where nothing is said.
        example_inputs: one entry per argument of ``forward``.
        noise: see :meth:`Field.forward`.
        draws: see :meth:`Field.forward`.
        generator: of the noise.

    Raises:
        FieldError: if the model is of another architecture, or sizes are impossible.
    """
    if not example_inputs:
        raise FieldError("no example inputs", hint="give one entry per argument of the network's forward")
    field.check_model(model)
    sizes = dict(sizes or {})
    with torch.no_grad():
        state = field(None, sizes, noise, generator, draws)
        made = Skeletons(model, field.spec, example_inputs).get(state, sizes)
    return made.eval()


def _layout(spec: SymmetrySpec) -> list[list[list[int]]]:
    """Sizes of the leaves of every axis; a leaf of one unit says nothing."""
    return [[[leaf.size for leaf in axis.leaves() if leaf.size > 1] for axis in spec.axes[name]] for name in spec.axes]
