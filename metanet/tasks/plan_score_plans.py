"""Which plans does a predictor of scores learn from? Drawn for stacks of networks, with the states that they leave."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from metanet.morph import importance
from metanet.morph.batched import Masked, rebuilding, refitted
from metanet.morph.batched_refit import input_moments, masked_only, narrowed_in_turn
from metanet.morph.compensate import readers
from metanet.morph.orders import obs_orders, reader_grams
from metanet.morph.search import droppable
from metanet.morph.structure import Drop
from symmetry import Atom, Product, SymmetrySpec
from symmetry.spaces import Axis

__all__ = ["FEATURES", "WAYS", "Variant", "drawn_variants", "run_stack"]

WAYS = (
    "random",
    "l2",
    "l1",
    "random, refitted",
    "l2, refitted",
    "obs, refitted",
    "obs, merged",
    "obs, refitted in turn",
    "obs on data, refitted in turn on data",
    "l2, refitted on data",
)
"""How units are chosen, and what makes up for those that go; on made-up inputs where it does not say "on data"."""

FEATURES = (
    "smallest share kept",
    "mean share kept",
    "smallest share of the importance kept",
    "mean share of the importance kept",
    "share of blocks dropped",
    "share of heads kept",
    "way",
)
"""What is known of a plan without running anything."""

_CHUNK, _RIDGE = 64, 1e-3


@dataclass(frozen=True, eq=False)
class Variant:
    """One plan for each network of a stack.

    Attributes:
        kind: In which way it was drawn: one of `WAYS`, "heads", or "drop" and the block.
        module: What the edited states belong to; None for the networks' own module.
        changed: The tensors that the plan changed, for all networks.
        features: What is known of the plan alone, see `FEATURES`.

    Shapes:
        changed: (B, ...) each
        features: (B, len(FEATURES))
    """

    kind: str
    module: nn.Module | None
    changed: Mapping[str, Tensor]
    features: Tensor


def run_stack(module: nn.Module, states: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
    """What the networks of a stack answer to the same inputs; tensors that the module does not have are left out.

    Shapes:
        states (B, ...), inputs (n, ...) -> (B, n, outputs)
    """

    def run(state: dict[str, Tensor], x: Tensor) -> Tensor:
        answers: Tensor = torch.func.functional_call(module, state, (x,))
        return answers

    own = {name: states[name] for name in module.state_dict() if name in states}
    return torch.func.vmap(run, in_dims=(0, None))(own, inputs)


@torch.no_grad()
def drawn_variants(
    module: nn.Module,
    spec: SymmetrySpec,
    states: Mapping[str, Tensor],
    smooth: Tensor,
    images: Tensor,
    plans: int,
    generator: torch.Generator,
) -> list[Variant]:
    """Plans for all networks of one architecture.

    The ways of `WAYS` come in turn, each network and each space with a size of its own; then, where there are any, one
    plan for every block that can be dropped, and one that drops heads.

    Args:
        module: Of the architecture, in eval mode.
        spec: Of the architecture.
        states: Of all networks, in one dtype.
        smooth: Made-up inputs, for what is refitted without data.
        images: Inputs of the networks' own kind, for what is refitted on data.
        plans: How many of each network are narrowed.
        generator: Draws units and sizes.

    Raises:
        PlanError: No space of the networks can be narrowed.
    """
    ways = _Ways(Masked(module, spec), states, smooth, images, generator)
    found = []
    for number in range(plans):
        way = WAYS[number % len(WAYS)]
        masks = ways.masks(way)
        found.append(Variant(way, None, ways.done(way, masks), ways.features(way, masks)))
    blocks = droppable(module, (smooth[:2],))
    for block in blocks:
        shallow = copy.deepcopy(module)
        Drop(block).restructure(shallow, (smooth[:2],))
        row = [1.0, 1.0, 1.0, 1.0, 1 / len(blocks), 1.0, len(WAYS)]
        found.append(Variant(f"drop {block}", shallow, {}, _same(ways.count, row)))
    return found + _without_heads(spec, states, generator)


def drawn_sizes(spaces: Mapping[str, int], count: int, generator: torch.Generator) -> dict[str, Tensor]:
    """How many units stay, for one plan of each network: near a share that the spaces of a plan have in common.

    Some spaces are left out, never all, and the same for all networks.

    Shapes:
        -> (count,) for each space that is narrowed, whole numbers
    """
    level = 0.1 + 0.85 * torch.rand(count, generator=generator)
    touched = torch.rand(len(spaces), generator=generator) > 0.3
    touched[torch.randint(len(spaces), (), generator=generator)] = True
    found = {}
    for (space, size), chosen in zip(spaces.items(), touched.tolist(), strict=True):
        share = level + 0.2 * torch.randn(count, generator=generator)
        if chosen:
            found[space] = (share * size).round().clamp(1, max(size - 1, 1))
    return found


def kept_first(scores: Tensor, sizes: Tensor) -> Tensor:
    """Masks of the units with the highest scores.

    Shapes:
        (B, n), (B,) -> (B, n)
    """
    rank = scores.argsort(1, descending=True).argsort(1)
    return (rank < sizes.unsqueeze(1)).to(torch.float32)


class _Ways:
    """What choosing units needs to know of a stack, measured once."""

    def __init__(
        self, masked: Masked, states: Mapping[str, Tensor], smooth: Tensor, images: Tensor, generator: torch.Generator
    ) -> None:
        self.masked, self.states, self.generator = masked, states, generator
        self.count = len(next(iter(states.values())))
        self.inputs = {"smooth": smooth, "data": images}
        self.moments = {where: self._moments(inputs) for where, inputs in self.inputs.items()}
        self.known: dict[tuple[str, str], Tensor] = {}
        for space, readings in masked.readings.items():
            grams = reader_grams(states, readings, masked.spec.sizes[space])
            for criterion in ("l2", "l1"):
                rows = ({name: value[row] for name, value in states.items()} for row in range(self.count))
                scores = [importance(masked.spec, row, space, criterion) for row in rows]
                self.known[criterion, space] = torch.stack(scores)
            self.known["both", space] = self.known["l2", space] * grams.diagonal(dim1=1, dim2=2).sqrt()
            for where, name in (("smooth", "obs"), ("data", "obs on data")):
                covariance = torch.stack([self.moments[where][one.weight][1] for one in readings]).mean(0)
                order = obs_orders(covariance, grams)
                places = torch.arange(order.shape[1], dtype=torch.float64).expand(self.count, -1)
                self.known[name, space] = torch.zeros_like(places).scatter_(1, order, places)

    def _moments(self, inputs: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        parts = [input_moments(self.masked, some, [inputs]) for some in self._chunks()]
        return {
            name: (torch.cat([part[name][0] for part in parts]), torch.cat([part[name][1] for part in parts]))
            for name in parts[0]
        }

    def _chunks(self) -> Iterator[dict[str, Tensor]]:
        for start in range(0, self.count, _CHUNK):
            yield {name: value[start : start + _CHUNK] for name, value in self.states.items()}

    def masks(self, way: str) -> dict[str, Tensor]:
        """Which units of each space stay. Shapes: (B, units) each."""
        order, found = way.split(",")[0], {}
        sizes = drawn_sizes(
            {space: self.masked.spec.sizes[space] for space in self.masked.spaces}, self.count, self.generator
        )
        for space, kept in sizes.items():
            drawn = torch.rand(self.count, self.masked.spec.sizes[space], generator=self.generator)
            found[space] = kept_first(drawn if order == "random" else self.known[order, space], kept)
        return found

    def done(self, way: str, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors that change when these units are left and the way has made up for the others."""
        where = "data" if way.endswith("on data") else "smooth"
        if "," not in way:
            made = masked_only(self.masked, self.states, masks)
        elif "in turn" in way:
            made = self._in_turn(masks, self.inputs[where])
        else:
            made = dict(self.states)
            for space, mask in masks.items():
                for reading in self.masked.readings[space]:
                    mean, covariance = self.moments[where][reading.weight]
                    if "merged" in way:
                        rebuilt, constant = merging(covariance, mask), torch.zeros_like(mean)
                    else:
                        rebuilt = rebuilding(covariance, mask.double(), _RIDGE)
                        constant = mean - torch.einsum("bmu,bm->bu", rebuilt, mean * mask)
                    like = self.states[reading.weight].dtype
                    made |= refitted(made, reading, rebuilt.to(like), constant.to(like))
        return {name: value for name, value in made.items() if value is not self.states[name]}

    def _in_turn(self, masks: Mapping[str, Tensor], inputs: Tensor) -> dict[str, Tensor]:
        parts: dict[str, list[Tensor]] = {}
        for number, some in enumerate(self._chunks()):
            rows = slice(number * _CHUNK, (number + 1) * _CHUNK)
            own = {space: mask[rows] for space, mask in masks.items()}
            for name, value in narrowed_in_turn(self.masked, some, [inputs], own, _RIDGE).items():
                if value is not some[name]:
                    parts.setdefault(name, []).append(value)
        return {**self.states, **{name: torch.cat(values) for name, values in parts.items()}}

    def features(self, way: str, masks: Mapping[str, Tensor]) -> Tensor:
        """See `FEATURES`. Shapes: -> (B, len(FEATURES))."""
        rest = torch.ones(self.count, len(self.masked.spaces) - len(masks), dtype=torch.float64)
        shares = [mask.double().mean(1, keepdim=True) for mask in masks.values()]
        matter = []
        for space, mask in masks.items():
            weights = self.known["both", space]
            matter.append((mask * weights).sum(1, keepdim=True) / weights.sum(1, keepdim=True).clamp_min(1e-300))
        both = [torch.cat([*values, rest], 1) for values in (shares, matter)]
        rows = torch.stack([value for one in both for value in (one.amin(1), one.mean(1))], 1)
        return torch.cat([rows.float(), _same(self.count, [0.0, 1.0, WAYS.index(way)])], 1)


def merging(covariance: Tensor, mask: Tensor) -> Tensor:
    """R with x ~ R^T x', where each dropped unit is a multiple of one kept unit; rows of dropped units are zero.

    Shapes:
        (B, n, n), (B, n) -> (B, n, n)
    """
    variance = covariance.diagonal(dim1=-2, dim2=-1)
    likeness = covariance / (variance.unsqueeze(-1) * variance.unsqueeze(-2)).clamp_min(1e-30).sqrt()
    best = likeness.masked_fill(mask.unsqueeze(-1) == 0, -torch.inf).argmax(1)
    gain = covariance.gather(1, best.unsqueeze(1)).squeeze(1) / variance.gather(1, best).clamp_min(1e-30)
    rebuilt = torch.zeros_like(covariance).scatter_(1, best.unsqueeze(1), gain.unsqueeze(1))
    return torch.where(mask.unsqueeze(1) > 0, torch.diag_embed(mask).to(covariance), rebuilt)


def _without_heads(spec: SymmetrySpec, states: Mapping[str, Tensor], generator: torch.Generator) -> list[Variant]:
    """A plan that drops heads of the attention layers that have several, with nothing to make up for them."""
    count = len(next(iter(states.values())))
    outer = {space for around in spec.within.values() for space in around if spec.sizes[space] > 1}
    reading = {space: readers(spec, space) for space in sorted(outer)}
    # What reads a head must read nothing else with the same column.
    sizes = {
        space: spec.sizes[space]
        for space, found in reading.items()
        if found and all(_head_by_head(axis, space) for axis in found.values())
    }
    if not sizes:
        return []
    changed: dict[str, Tensor] = {}
    shares = []
    for space, kept in drawn_sizes(sizes, count, generator).items():
        mask = kept_first(torch.rand(count, spec.sizes[space], generator=generator), kept)
        shares.append(mask.mean(1))
        for name, axis in reading[space].items():
            weight, dim = changed.get(name, states[name]), spec.axes[name].index(axis) + 1
            columns = mask.repeat_interleave(axis.size // spec.sizes[space], 1).to(weight)
            changed[name] = (weight.movedim(dim, -1) * columns.reshape(count, *[1] * (weight.ndim - 2), -1)).movedim(
                -1, dim
            )
    share = torch.stack(shares, 1).mean(1, keepdim=True)
    row = torch.cat([_same(count, [1.0, 1.0, 1.0, 1.0, 0.0]), share, _same(count, [len(WAYS) + 1])], 1)
    return [Variant("heads", None, changed, row)]


def _head_by_head(axis: Axis, space: str) -> bool:
    return isinstance(axis, Product) and isinstance(axis.outer, Atom) and axis.outer.space.name == space


def _same(count: int, row: Sequence[float]) -> Tensor:
    return torch.tensor(row, dtype=torch.float32).expand(count, -1)
