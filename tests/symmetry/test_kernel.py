"""Do the tangents of the continuous group lie in the kernel of df/dtheta, and span what is not named besides?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import symmetry
from symmetry.verify import generic_state

from .families import FACTS, LoRALinear
from .models import SUBJECTS, ResidualMLP, Subject, draw, mlp, seeded, traced
from .wide import WIDE

STEP = 1e-4
# Where the group's action has a stabiliser: a chain 3-4-3-2 without bias has a part of the middle that no side sees.
STILL = {"deep linear without bias": 1}


def tangents_of(spec: symmetry.SymmetrySpec, state: dict[str, Tensor], names: list[str]) -> list[Tensor]:
    """One tangent per generator of the scalings, of GL and of O(n), by central differences of the action."""
    neutral = spec.identity()
    lines: list[Callable[[float], symmetry.GroupElement]] = []
    for name, value in neutral.log_scales.items():
        for place in range(value.numel()):
            step = torch.zeros_like(value)
            step.view(-1)[place] = 1.0
            lines.append(
                lambda t, name=name, step=step: replace(neutral, log_scales={**neutral.log_scales, name: t * step})
            )
    for factor in spec.linear:
        units = neutral.matrices[factor.space]
        orthogonal = factor.kind == "orthogonal"
        for place in range(units.numel()):
            step = torch.zeros_like(units)
            step.view(-1)[place] = 1.0
            if orthogonal:
                step = step - step.mT
                if place // factor.size % factor.size >= place % factor.size:
                    continue
            lines.append(
                lambda t, space=factor.space, step=step: replace(
                    neutral, matrices={**neutral.matrices, space: torch.linalg.matrix_exp(t * step)}
                )
            )
    found = []
    for line in lines:
        plus, minus = (
            torch.cat([acted[name].flatten() for name in names])
            for acted in (spec.act(line(t), state) for t in (STEP, -STEP))
        )
        found.append((plus - minus) / (2 * STEP))
    return found


class ExplicitNorm(nn.Module):
    """Batch norm in eval mode, written out so that it can be differentiated with respect to its statistics."""

    def __init__(self, norm: nn.modules.batchnorm._BatchNorm) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            self.register_buffer(name, getattr(norm, name))

    def forward(self, x: Tensor) -> Tensor:
        mean, var, weight, bias = (
            t.view(1, -1, *[1] * (x.ndim - 2)) for t in (self.running_mean, self.running_var, self.weight, self.bias)
        )
        return (x - mean) / (var + self.eps).sqrt() * weight + bias


def explicit(model: nn.Module) -> nn.Module:
    for name, child in model.named_children():
        if isinstance(child, nn.modules.batchnorm._BatchNorm):
            setattr(model, name, ExplicitNorm(child))
        else:
            explicit(child)
    return model


@pytest.mark.parametrize(
    ("build", "shape", "extra", "wide"),
    [
        (lambda: mlp([3, 4, 4, 2], torch.relu), (400, 3), 0, 4),
        (lambda: mlp([3, 4, 4, 2], torch.tanh), (64, 3), 0, 1),
        (lambda: ResidualMLP(4, 5, torch.tanh), (400, 3), 14, 1),
        (
            lambda: nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2), nn.ReLU(), nn.Conv2d(2, 2, 1)),
            (64, 2, 3, 3),
            4,
            4,
        ),
        (lambda: mlp([3, 2, 2], None, bias=False), (64, 3), 0, 1),
        (lambda: mlp([3, 2, 2, 2], None, bias=False), (64, 3), 0, 1),
        (lambda: LoRALinear(3, 4), (64, 3), 10, 1),
    ],
    ids=["relu", "tanh", "residual", "batch norm", "linear", "deep linear", "lora"],
)
def test_scalings_span_the_kernel_of_the_jacobian(
    build: Callable[[], nn.Module], shape: tuple[int, ...], extra: int, wide: float
) -> None:
    """Tangents of the scalings lie in the kernel of df/dtheta, are independent, and span it where nothing is named.

    ``extra`` says how many additive null directions are known besides: the bias before a batch norm against its running
    mean, and that mean against the bias behind it, two per channel; what the last layer, two rows on a stream of four,
    does not see of the branch that writes into the stream: 2 x 5 weights, and its 4 biases against the last one; what
    the base takes up of both low-rank factors, 2 (3 + 4), less the 4 of their GL(2).
    """
    # Wide inputs switch every unit on and off; a unit that is always on has more symmetries than its architecture.
    model, x = seeded(build).eval(), wide * draw(*shape, dtype=torch.float64)
    spec = symmetry.trace(model, (x.float(),))
    state = generic_state(spec, model.state_dict(), torch.Generator().manual_seed(5))
    model = explicit(model.to(torch.float64))
    names = [k for k, v in state.items() if v.is_floating_point()]
    fixed = {k: v for k, v in state.items() if k not in names}

    def f(given: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(model, given | fixed, (x,)).flatten()

    def jacobian_at(state: dict[str, Tensor]) -> Tensor:
        point = {k: state[k] for k in names}
        return torch.cat([j.flatten(1) for j in torch.func.jacrev(f)(point).values()], dim=1)

    def kernel_at(jacobian: Tensor) -> int:
        return jacobian.shape[1] - int(torch.linalg.matrix_rank(jacobian, rtol=1e-9))

    jacobian = jacobian_at(state)
    tangents = tangents_of(spec, state, names)
    elsewhere = [generic_state(spec, state, torch.Generator().manual_seed(seed), fresh=True) for seed in range(4)]
    kernel = min(kernel_at(jacobian), *(kernel_at(jacobian_at(point)) for point in elsewhere))
    scale, dimension = jacobian.norm(), spec.scale_dimension + spec.linear_dimension
    if tangents:
        stacked = torch.stack(tangents, dim=1)
        assert float((jacobian @ stacked).norm() / (scale * stacked.norm())) < 1e-8
        assert int(torch.linalg.matrix_rank(stacked, rtol=1e-7)) == dimension
        random = draw(*stacked.shape, seed=8, dtype=torch.float64)
        assert float((jacobian @ random).norm() / (scale * random.norm())) > 1e-3
    assert kernel == dimension + extra


@pytest.mark.parametrize(
    "subject",
    [subject for subject in SUBJECTS + FACTS + WIDE if subject.scales + subject.linear + subject.orthogonal],
    ids=lambda subject: subject.name,
)
def test_tangents_lie_in_the_kernel_of_the_jacobian(subject: Subject) -> None:
    """All of them, as many independent ones as the spec says; a random direction does not."""
    model, inputs, spec = traced(subject)
    state = generic_state(spec, model.state_dict(keep_vars=True), torch.Generator().manual_seed(5))
    model = explicit(seeded(subject.build)).eval().to(torch.float64)
    inputs = tuple(x.to(torch.float64) if x.is_floating_point() else x for x in inputs)
    names = [k for k, info in spec.tensors.items() if info.tied_to is None and state[k].is_floating_point()]
    leaves = {name: state[name].clone().requires_grad_() for name in names}
    point = {k: leaves.get(spec.tensors[k].tied_to or k, v) for k, v in state.items()}
    made = torch.func.functional_call(model, point, inputs)
    outputs = torch.cat([item.flatten() for item in made]) if isinstance(made, tuple) else made.flatten()
    rows = []
    for output in outputs[:: max(1, len(outputs) // 12)]:
        grads = torch.autograd.grad(output, list(leaves.values()), retain_graph=True, materialize_grads=True)
        rows.append(torch.cat([grad.flatten() for grad in grads]))
    jacobian = torch.stack(rows)
    tangents = torch.stack(tangents_of(spec, state, names), dim=1)
    error = (jacobian @ tangents).norm() / (jacobian.norm() * tangents.norm())
    random = draw(*tangents.shape, seed=8, dtype=torch.float64)
    assert float(error) < 1e-8
    assert float((jacobian @ random).norm() / (jacobian.norm() * random.norm())) > 1e-4
    dimension = spec.scale_dimension + spec.linear_dimension + spec.orthogonal_dimension
    rank = int(torch.linalg.matrix_rank(tangents / tangents.norm(dim=0).clamp_min(1e-12), rtol=1e-6))
    assert rank == dimension - STILL.get(subject.name, 0)
