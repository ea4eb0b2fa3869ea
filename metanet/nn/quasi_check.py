"""Does a layer keep its word: is its answer in the orbit of its strict part, with the witness that it names?

The oracle is :meth:`symmetry.SymmetrySpec.act` and the networks themselves, run in float64; nothing of what made the
answer is used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.func import functional_call

from metanet.graph import Bucket, ParameterGraph, collate
from metanet.nn.frames.motion import Motion
from metanet.nn.quasi import Moved, learnable, relative_square
from symmetry import GroupElement, SymmetrySpec

__all__ = ["OrbitCheck", "check_orbit", "orbit_distance"]

_STATE, _FUNCTION = 1e-10, 1e-9


@dataclass(frozen=True)
class OrbitCheck:
    """The worst of several trials, each with a random g of the whole group.

    Args:
        orbit: ``||F(g . theta) - g' . F(theta)|| / ||F(theta)||`` with ``g' = alpha(g . theta) @ g @ ~alpha(theta)``.
        member: ``||F(theta) - alpha(theta) . beta(theta)|| / ||F(theta)||``: is it alpha that made the answer?
        function: largest difference between the outputs of F(g . theta) and F(theta), over the deviation of these.
        kept: the same between F(theta) and beta(theta): an element of the group leaves the function alone.
        moved: smallest ``||F(theta) - beta(theta)|| / ||F(theta)||``: 0 would mean that alpha is the identity.
        turned: smallest ``||g' . F(theta) - g . F(theta)|| / ||F(theta)||``: 0 would mean that the layer is strict.
    """

    orbit: float
    member: float
    function: float
    kept: float
    moved: float
    turned: float

    @property
    def passed(self) -> bool:
        """Whether states agree to 1e-10 and functions to 1e-9."""
        return max(self.orbit, self.member) <= _STATE and max(self.function, self.kept) <= _FUNCTION


def check_orbit(
    layer: Callable[[Bucket], Moved],
    spec: SymmetrySpec,
    module: nn.Module,
    state: Mapping[str, Tensor],
    inputs: tuple[Tensor, ...],
    trials: int = 2,
    generator: torch.Generator | None = None,
) -> OrbitCheck:
    """Measure a quasi-equivariant layer on one network.

    Args:
        layer: in float64.
        spec: of the module.
        module: run in eval mode; its own weights are not used.
        state: the network.
        inputs: what the networks are run on; 7 rows or more.
        trials: random elements of the group.
        generator: draws them; a fresh one with seed 0 if ``None``.
    """
    generator = generator or torch.Generator().manual_seed(0)
    model = module.double().eval()
    wide = {name: value.double() if value.is_floating_point() else value for name, value in state.items()}
    inputs = tuple(x.double() if x.is_floating_point() else x for x in inputs)
    first, beta, moved = _run(layer, spec, wide)
    alpha, outputs = moved.alpha.element(0), _outputs(model, first, inputs)
    member = _away(first, spec.act(alpha, beta))
    kept = _apart(outputs, _outputs(model, beta, inputs))
    found = []
    for _ in range(trials):
        g = spec.sample(generator)
        second, _, other = _run(layer, spec, spec.act(g, wide))
        witness = _witness(moved, g, other)
        expected = spec.act(witness, first)
        found.append(
            (
                _away(first, second, expected),
                _apart(outputs, _outputs(model, second, inputs)),
                _away(first, expected, spec.act(g, first)),
            )
        )
    orbit, function, turned = zip(*found, strict=True)
    return OrbitCheck(max(orbit), member, max(function), kept, _away(first, beta), min(turned))


def _witness(moved: Moved, g: GroupElement, other: Moved) -> GroupElement:
    return moved.witness(0, g, other)


def _run(
    layer: Callable[[Bucket], Moved], spec: SymmetrySpec, state: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor], Moved]:
    """F(theta) and beta(theta) as states, and the answer that holds them."""
    graph = ParameterGraph.build(spec, state)
    with torch.no_grad():
        moved = layer(collate([graph], torch.float64).buckets[0])

    def as_state(values: Sequence[Tensor | None]) -> dict[str, Tensor]:
        rows = tuple(old if new is None else new[0] for old, new in zip(graph.values, values, strict=True))
        return replace(graph, values=rows).state()

    return as_state(moved.values), as_state(moved.beta), moved


def _outputs(model: nn.Module, state: Mapping[str, Tensor], inputs: tuple[Tensor, ...]) -> Tensor:
    with torch.no_grad():
        answer: Tensor = functional_call(model, dict(state), inputs)
    return answer


def _away(first: Mapping[str, Tensor], a: Mapping[str, Tensor], b: Mapping[str, Tensor] | None = None) -> float:
    """``||a - b|| / ||first||`` over all floating tensors; b is the first if left out."""
    other = first if b is None else b
    names = [name for name, value in first.items() if value.is_floating_point()]
    whole = sum(float(first[name].square().sum()) for name in names)
    return float((sum(float((a[name] - other[name]).square().sum()) for name in names) / whole) ** 0.5)


def _apart(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / a.std().clamp(min=1e-12))


def orbit_distance(moved: Moved, steps: int = 60) -> tuple[Tensor, Motion]:
    """How far an answer is from the orbit of its strict part: the smallest ``||F - h . beta|| / ||F||`` that was found.

    L-BFGS over the connected part of the group, from alpha on; an upper bound, and zero exactly for "quasi".

    Args:
        moved: the answer.
        steps: of L-BFGS.

    Returns:
        The distance of each network, ``(B,)``, and the elements h.
    """
    start = moved.alpha
    scales, linear = learnable(moved.bucket.topology)
    values, beta = ([None if v is None else v.detach().double() for v in part] for part in (moved.values, moved.beta))
    logs = {f.name: start.log_scales[f.name].detach().double().requires_grad_() for f in scales}
    matrices = {f.space: start.matrices[f.space].detach().double().requires_grad_() for f in linear}
    free = [*logs.values(), *matrices.values()]

    def element() -> Motion:
        return Motion(
            start.topology, start.size, {**start.log_scales, **logs}, start.flips, {**start.matrices, **matrices},
            start.shifts,
        )  # fmt: skip

    def square() -> Tensor:
        return relative_square(values, element().act(beta))

    before = square().detach()
    if free:
        optimiser = torch.optim.LBFGS(free, max_iter=steps, line_search_fn="strong_wolfe", tolerance_grad=1e-12)

        def closure() -> Tensor:
            optimiser.zero_grad()
            loss = square().sum()
            loss.backward()  # type: ignore[no-untyped-call]
            return loss

        optimiser.step(closure)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        return torch.minimum(square(), before).sqrt(), element()
