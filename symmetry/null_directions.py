"""Which directions in weight space change nothing at first order, beyond those of the group?

Some functions are the same along whole lines of weights that no scaling and no matrix moves: a key's bias under
softmax, a value's bias that the output's bias undoes, whatever LayerNorm projects out, a bias before a batch norm. They
are counted here, and named, by the kernel of the Jacobian df/dtheta; nothing acts on them.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from symmetry.elements import GroupElement
from symmetry.errors import SpecError
from symmetry.spec import SymmetrySpec
from symmetry.verify import generic_state

__all__ = ["NullDirection", "NullDirections", "null_directions"]

MOST_PARAMETERS = 2000
ZERO = 1e-10
SUPPORTED = 1e-9
INDEPENDENT = 1e-6
STEP = 1e-3
SURE = 100.0
POINTS, AGREEING = 12, 3


@dataclass(frozen=True, slots=True)
class NullDirection:
    """Null directions that are carried by the same few tensors.

    Args:
        tensors: the entries of the state that move together.
        dimension: how many independent ones.
    """

    tensors: tuple[str, ...]
    dimension: int


@dataclass(frozen=True, slots=True)
class NullDirections:
    """The outcome of :func:`null_directions`.

    Args:
        parameters: how many numbers were varied.
        kernel: dimension of the Jacobian's kernel.
        group: how many of those are tangents of the group (scalings and matrices).
        remaining: the others: ``kernel - group``.
        carried: what carries the others: first what one tensor carries alone, then pairs, then what is left.
        gap: smallest singular value that counts as positive over the largest that counts as zero; the count is sure
            where it is large (below 100 it is not).
        defect: how far the group's tangents are from the kernel, relative to their length: 0 up to rounding for a
            sound spec.
    """

    parameters: int
    kernel: int
    group: int
    remaining: int
    carried: tuple[NullDirection, ...]
    gap: float
    defect: float

    def __str__(self) -> str:
        lines = [
            f"{self.kernel} directions of {self.parameters} leave the function alone at first order: "
            f"{self.group} of the group, {self.remaining} more"
        ]
        lines += [f"  {found.dimension} in {' with '.join(found.tensors)}" for found in self.carried]
        if self.gap < SURE:
            lines.append(f"  not sure: singular values leave a gap of only {self.gap:.1f} between zero and not")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """A JSON value with all fields; an infinite gap (full rank, or exact zeros) is ``None``."""
        return {**asdict(self), "gap": None if self.gap == float("inf") else self.gap}


def null_directions(
    model: nn.Module,
    example_inputs: Sequence[Any],
    spec: SymmetrySpec,
    frozen_buffers: bool = False,
    most: int = MOST_PARAMETERS,
    generator: torch.Generator | None = None,
) -> NullDirections:
    """Count the null directions of a small network, and say which tensors carry them.

    At points in general position the Jacobian of the outputs by all weights is computed in float64, on half as many
    rows again as there are weights. Its kernel has the dimension ``kernel``; the smallest of several points counts (a
    unit that is dead at one point of weight space adds to the kernel there; deep narrow ReLU networks may have such
    directions at every point). Directions that exist only for the given
    inputs (embeddings of words that do not occur) are counted too.

    Args:
        model: the module that the spec was traced from; it is not changed.
        example_inputs: one entry per argument of ``forward``; further inputs are drawn like them: normal numbers, and
            integers among those of the example.
        spec: its spec.
        frozen_buffers: whether buffers (running statistics) are constants; otherwise they vary like weights.
        most: refuse networks with more numbers than this: the work grows with their cube.
        generator: source of randomness; a fresh one with seed 0 if ``None``.

    Raises:
        SpecError: if the network is too large, or the spec is of another network.
    """
    generator = generator or torch.Generator().manual_seed(0)
    state = model.state_dict(keep_vars=True)
    spec.check(state)
    names = [
        name
        for name, info in spec.tensors.items()
        if info.tied_to is None
        and info.kind != "unused"
        and state[name].is_floating_point()
        and not (frozen_buffers and info.buffer)
    ]
    count = sum(state[name].numel() for name in names)
    if count > most:
        raise SpecError(
            f"null_directions: {count:,} parameters, at most {most:,}: a Jacobian is decomposed in full; use a "
            "narrower network of the same architecture, or raise most"
        )
    runner = copy.deepcopy(model).to(torch.float64).eval()
    expected = spec.scale_dimension + spec.linear_dimension + spec.orthogonal_dimension
    best, times = None, 0
    for number in range(POINTS):
        point = generic_state(spec, state, generator, fresh=number > 0)
        with _PlainBatchNorm():
            found = _Kernel.of(_jacobian(runner, example_inputs, spec, names, point, generator), point)
        if best is None or found.size < best.size:
            best, times = found, 0
        times += found.size == best.size
        if best.size == expected or times == AGREEING:
            break
    if best is None:
        raise SpecError("null_directions: no point was looked at")
    return _explained(best, spec, names)


@dataclass(frozen=True, slots=True, eq=False)
class _Kernel:
    """Orthonormal columns that span the kernel of the Jacobian at a point, in weights multiplied by ``lengths``."""

    state: Mapping[str, Tensor]
    columns: Tensor
    lengths: Tensor
    gap: float

    @property
    def size(self) -> int:
        return self.columns.shape[1]

    @classmethod
    def of(cls, jacobian: Tensor, state: Mapping[str, Tensor]) -> _Kernel:
        # Columns of one length: the rank is the same, and its singular values are comparable. Columns that are zero up
        # to rounding (a key's bias) stay so.
        lengths = jacobian.norm(dim=0)
        lengths = torch.where(lengths > ZERO * lengths.max(), lengths, lengths.max())
        triangle = torch.linalg.qr(jacobian / lengths, mode="r").R
        _, values, right = torch.linalg.svd(triangle, full_matrices=True)
        rank = int((values > ZERO * values[0]).sum())
        below = float(values[rank]) if rank < len(values) else 0.0
        gap = float(values[rank - 1]) / below if rank and below > 0 else float("inf")
        return cls(state, right[rank:].T, lengths, gap)


class _PlainBatchNorm(TorchFunctionMode):
    """Batch norm in eval mode written out: torch's own has no derivative by the running statistics."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is nn.functional.batch_norm:
            return _batch_norm(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _batch_norm(
    values: Tensor,
    mean: Tensor | None,
    variance: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """``torch.nn.functional.batch_norm``."""
    if training or mean is None or variance is None:
        return nn.functional.batch_norm(values, mean, variance, weight, bias, training, momentum, eps)
    shape = [1, -1, *(1,) * (values.ndim - 2)]
    made = (values - mean.view(shape)) / (variance.view(shape) + eps).sqrt()
    made = made if weight is None else made * weight.view(shape)
    return made if bias is None else made + bias.view(shape)


def _explained(kernel: _Kernel, spec: SymmetrySpec, names: Sequence[str]) -> NullDirections:
    """What of a kernel the group's tangents span, and which tensors carry the rest."""
    tangents = _tangents(spec, names, kernel.state) * kernel.lengths[:, None]
    tangents = tangents / tangents.norm(dim=0).clamp_min(1e-300)
    inside = kernel.columns.T @ tangents
    group = _basis(inside)
    defect = float((tangents - kernel.columns @ inside).norm(dim=0).max()) if tangents.shape[1] else 0.0
    sizes = {name: kernel.state[name].numel() for name in names}
    return NullDirections(
        len(kernel.columns),
        kernel.size,
        group.shape[1],
        kernel.size - group.shape[1],
        _carriers(kernel.columns, group, sizes, spec),
        kernel.gap,
        defect,
    )


def _jacobian(
    model: nn.Module,
    example_inputs: Sequence[Any],
    spec: SymmetrySpec,
    names: Sequence[str],
    state: Mapping[str, Tensor],
    generator: torch.Generator,
) -> Tensor:
    """Rows: outputs on random inputs, half as many again as there are columns (weights)."""
    leaves = {name: state[name].detach().clone().requires_grad_() for name in names}
    given = {name: leaves.get(spec.tensors[name].tied_to or name, value) for name, value in state.items()}
    count = sum(leaf.numel() for leaf in leaves.values())
    rows: list[Tensor] = []
    while len(rows) < 1.5 * count + 16:
        made = torch.func.functional_call(model, given, tuple(_draw(item, generator) for item in example_inputs))
        outputs = [out.reshape(-1) for out in pytree.tree_leaves(made) if isinstance(out, Tensor)]
        before = len(rows)
        for output in torch.cat([out for out in outputs if out.requires_grad]):
            found = torch.autograd.grad(output, list(leaves.values()), retain_graph=True, allow_unused=True)
            rows.append(
                torch.cat(
                    [
                        torch.zeros(leaf.numel(), dtype=torch.float64) if grad is None else grad.reshape(-1)
                        for grad, leaf in zip(found, leaves.values(), strict=True)
                    ]
                )
            )
        if len(rows) == before:
            raise SpecError("null_directions: the model has no outputs that depend on its weights")
    return torch.stack(rows)


def _draw(item: Any, generator: torch.Generator) -> Any:
    """An input like the given one."""
    if not isinstance(item, Tensor):
        return item
    if item.is_floating_point():
        # Rows of different lengths: units whose bias outweighs an input of length 1 are seen on both sides of zero.
        lengths = torch.randn(item.shape[:1], generator=generator, dtype=torch.float64).exp()
        drawn = torch.randn(item.shape, generator=generator, dtype=torch.float64)
        return drawn * lengths.reshape(-1, *(1,) * (item.ndim - 1)) if item.ndim else drawn
    flat = item.reshape(-1)
    return flat[torch.randint(0, len(flat), item.shape, generator=generator)] if len(flat) else item


def _tangents(spec: SymmetrySpec, names: Sequence[str], state: Mapping[str, Tensor]) -> Tensor:
    """One column per generator of the continuous part: the velocity of the state under it.

    Differentiated through the action itself, by central differences extrapolated to fourth order, so that whatever the
    action does (epsilons, gains) is in it. Where buffers are left out, only what moves none of them counts.
    """
    moving = [name for name, info in spec.tensors.items() if info.tied_to is None and state[name].is_floating_point()]

    def velocity(scale: Any) -> Tensor:
        def difference(step: float) -> Tensor:
            ahead, behind = spec.act(scale(step), state), spec.act(scale(-step), state)
            return torch.cat([(ahead[name] - behind[name]).reshape(-1) for name in moving]) / (2 * step)

        return (4 * difference(STEP / 2) - difference(STEP)) / 3

    columns = [velocity(scale) for scale in _generators(spec)]
    total = sum(state[name].numel() for name in moving)
    found = torch.stack(columns, 1) if columns else torch.zeros(total, 0, dtype=torch.float64)
    kept = torch.cat([torch.full((state[name].numel(),), name in set(names)) for name in moving])
    if bool(kept.all()) or not columns:
        return found[kept]
    _, values, right = torch.linalg.svd(found[~kept], full_matrices=True)
    rank = int((values > INDEPENDENT * float(values.max())).sum()) if len(values) else 0
    return found[kept] @ right[rank:].T


def _generators(spec: SymmetrySpec) -> list[Any]:
    """For each continuous direction of the group the function from a step to an element."""
    neutral = spec.identity()
    found: list[Any] = []
    for factor in spec.factors:
        if factor.kind == "scale":
            for unit in range(neutral.log_scales[factor.name].numel()):

                def scaled(step: float, name: str = factor.name, unit: int = unit) -> GroupElement:
                    logs = neutral.log_scales[name].clone()
                    logs.view(-1)[unit] = step
                    return replace(neutral, log_scales={**neutral.log_scales, name: logs})

                found.append(scaled)
    for linear in spec.linear:
        square = itertools.product(range(linear.size), repeat=2)
        pairs = [(i, j) for i, j in square if linear.kind == "linear" or i < j]
        for head, (i, j) in itertools.product(range(spec.copies(linear.space)), pairs):

            def turned(
                step: float,
                space: str = linear.space,
                size: int = linear.size,
                orthogonal: bool = linear.kind == "orthogonal",
                at: tuple[int, int, int] = (head, i, j),
            ) -> GroupElement:
                velocity = torch.zeros(size, size, dtype=torch.float64)
                velocity[at[1], at[2]] = step
                if orthogonal:
                    velocity[at[2], at[1]] = -step
                matrices = neutral.matrices[space].clone()
                matrices.view(-1, size, size)[at[0]] = torch.linalg.matrix_exp(velocity)
                return replace(neutral, matrices={**neutral.matrices, space: matrices})

            found.append(turned)
    return found


def _basis(columns: Tensor) -> Tensor:
    """Orthonormal columns that span the same space."""
    if not columns.numel():
        return columns[:, :0]
    left, values, _ = torch.linalg.svd(columns, full_matrices=False)
    return left[:, values > INDEPENDENT * values[0].clamp_min(INDEPENDENT)]


def _carriers(kernel: Tensor, group: Tensor, sizes: Mapping[str, int], spec: SymmetrySpec) -> tuple[NullDirection, ...]:
    """Directions of the kernel that the group does not explain, by the fewest tensors that carry them.

    With orthonormal columns K, a direction K c lies in a set of tensors alone if the sum of K_t^T K_t over them leaves
    c as it is.
    """
    names, grams, start = list(sizes), {}, 0
    for name in names:
        rows = kernel[start : start + sizes[name]]
        grams[name] = rows.T @ rows
        start += sizes[name]
    found: list[NullDirection] = []
    covered = group

    def cover(tensors: tuple[str, ...], candidates: Tensor) -> None:
        nonlocal covered
        new = candidates - covered @ (covered.T @ candidates)
        left, values, _ = torch.linalg.svd(new, full_matrices=False)
        left = left[:, values > INDEPENDENT]
        if left.shape[1]:
            found.append(NullDirection(tensors, left.shape[1]))
            covered = torch.linalg.qr(torch.cat([covered, left], 1)).Q

    def share(name: str) -> float:
        """How much of what is not yet covered lies in a tensor."""
        gram = grams[name]
        return float(gram.diagonal().sum() - (covered.T @ gram @ covered).diagonal().sum())

    for width in (1, 2):
        if covered.shape[1] == kernel.shape[1]:
            break
        involved = [name for name in names if share(name) > SUPPORTED]
        choices = sorted(
            itertools.combinations(involved, width),
            key=lambda chosen: abs(spec.tensors[chosen[0]].order - spec.tensors[chosen[-1]].order),
        )
        for chosen in choices:
            if covered.shape[1] == kernel.shape[1]:
                break
            values, vectors = torch.linalg.eigh(torch.stack([grams[name] for name in chosen]).sum(0))
            alone = vectors[:, values > 1 - SUPPORTED]
            if alone.shape[1]:
                cover(chosen, alone)
    left = kernel.shape[1] - covered.shape[1]
    if left:
        found.append(NullDirection(tuple(name for name in names if share(name) > INDEPENDENT), left))
    return tuple(found)
