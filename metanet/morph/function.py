"""How far is the function of an edited network from that of the one before, in units that mean something?

Both run in float64 on the same inputs. The error is the largest change of any output over the spread: the root mean
square difference between this network's outputs and those of other networks of the same architecture.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from metanet.errors import PlanError
from metanet.morph.modules import put_tensors
from metanet.morph.running import doubled
from symmetry import SymmetrySpec
from symmetry.verify import generic_state

__all__ = ["TOLERANCE", "Function", "outputs"]

TOLERANCE = 1e-10


def outputs(model: nn.Module, batches: Sequence[Sequence[Any]]) -> Tensor:
    """All outputs of a module in eval mode, one after the other.

    Shapes:
        one argument list per batch -> (numbers,)
    """
    with torch.no_grad():
        made = [model(*batch) for batch in batches]
    leaves = [leaf for out in made for leaf in pytree.tree_leaves(out) if isinstance(leaf, Tensor)]
    return torch.cat([leaf.reshape(-1).to(torch.float64) for leaf in leaves])


class Function:
    """What a network computes on some inputs, to hold other networks against.

    Args:
        model: the network; it is copied.
        example_inputs: one entry per argument of ``forward``. A second batch of normal numbers stands beside it.
        spec: of the network, for the spread.
        seed: of the inputs and of the other networks.
    """

    def __init__(self, model: nn.Module, example_inputs: Sequence[Any], spec: SymmetrySpec, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.batches = [doubled(example_inputs), _drawn(example_inputs, generator)]
        runner = copy.deepcopy(model).to(torch.float64).eval()
        self.reference = outputs(runner, self.batches)
        put_tensors(runner, generic_state(spec, runner.state_dict(keep_vars=True), generator, fresh=True))
        spread = float((outputs(runner, self.batches) - self.reference).square().mean().sqrt())
        own = float(self.reference.std()) if self.reference.numel() > 1 else 0.0
        # Fresh weights may give outputs that overflow: then the spread of the network's own outputs must do.
        self.spread = spread if 0 < spread < float("inf") else own or 1.0
        if not bool(self.reference.isfinite().all()):
            raise PlanError("the network's outputs are not finite", hint="look at its weights with metanet inspect")

    def error(self, model: nn.Module) -> float:
        """Largest change of any output over the spread; infinite where something is not finite or of another shape."""
        found = outputs(copy.deepcopy(model).to(torch.float64).eval(), self.batches)
        if found.shape != self.reference.shape or not bool(found.isfinite().all()):
            return float("inf")
        return float((found - self.reference).abs().max()) / self.spread


def _drawn(example_inputs: Sequence[Any], generator: torch.Generator) -> tuple[Any, ...]:
    """Normal numbers in place of floating point inputs."""
    return tuple(
        torch.randn(item.shape, generator=generator, dtype=torch.float64).to(item.device)
        if isinstance(item, Tensor) and item.is_floating_point()
        else item
        for item in example_inputs
    )
