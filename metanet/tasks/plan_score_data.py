"""What is a predictor of scores trained on? Networks, plans, and what each plan was measured to cost on real inputs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from metanet.errors import PlanError, TaskError
from metanet.nn.rich_inputs import probe_inputs
from metanet.tasks.plan_score_plans import Variant, drawn_variants, run_stack
from metanet.tasks.splits import PARTS, SHARES, check_no_leak, split_by_group
from symmetry import SymmetrySpec

__all__ = [
    "FLOOR",
    "REFERENCE",
    "NetworkStack",
    "PlanScoreData",
    "ScoredStack",
    "cost_of",
    "logit_of",
    "plan_score_data",
]

FLOOR = 1e-5
"""Divergences are learned as log(KL + FLOOR): what is smaller than this is nothing."""

REFERENCE = 64
"""Real inputs that are kept apart, see `NetworkStack`."""

_CHUNK = 32


@dataclass(frozen=True, eq=False)
class NetworkStack:
    """Networks of one architecture, before any plan.

    Attributes:
        module: Of the architecture, in eval mode.
        spec: Of the architecture.
        states: Of all networks.
        groups: What each network shares with others; groups are never split.
        parts: "train", "val" or "test" of each network, or None for all of them.
        names: How messages call them.
        fitting: Real inputs, for plans that are refitted on data.
        inputs: Further real inputs, on which plans are measured; the last `REFERENCE` are kept apart, to compare with
            what that few real inputs tell.

    Shapes:
        states: (B, ...) each
        fitting, inputs: (n, ...)
    """

    module: nn.Module
    spec: SymmetrySpec
    states: Mapping[str, Tensor]
    groups: tuple[str, ...]
    parts: tuple[str | None, ...]
    names: tuple[str, ...]
    fitting: Tensor
    inputs: Tensor


@dataclass(frozen=True, eq=False)
class ScoredStack:
    """Networks of one architecture, the same number of plans for each, and what these were measured to cost.

    Attributes:
        networks: The networks.
        variants: The plans.
        kl: Mean divergence of the edited network from the network, nats.
        agreement: Share of inputs on which both decide alike.
        few: The divergence on 64 other real inputs.
        measured: On how many inputs.

    Shapes:
        kl, agreement, few: (B, plans)
    """

    networks: NetworkStack
    variants: tuple[Variant, ...]
    kl: Tensor
    agreement: Tensor
    few: Tensor
    measured: int

    @property
    def kinds(self) -> tuple[str, ...]:
        """In which way each plan was drawn; blocks are dropped in one way, whichever it is."""
        return tuple("drop" if one.kind.startswith("drop ") else one.kind for one in self.variants)

    @property
    def targets(self) -> Tensor:
        """What is learned: log(KL + floor), and the logit of the share of inputs decided otherwise.

        Shapes:
            return: (B, plans, 2)
        """
        return torch.stack([(self.kl + FLOOR).log(), logit_of(self.agreement, self.measured)], -1)

    @property
    def features(self) -> Tensor:
        """What is known of the plans alone. Shapes: (B, plans, features)."""
        return torch.stack([one.features for one in self.variants], 1)

    def answers(self, rows: Tensor, plans: Sequence[int], inputs: Tensor) -> tuple[Tensor, Tensor]:
        """What some networks answer before and after some plans.

        Shapes:
            rows (b,), inputs (n, ...) -> (b, n, outputs), (b, len(plans), n, outputs)
        """
        states = {name: value[rows] for name, value in self.networks.states.items()}
        after = []
        for plan in plans:
            one = self.variants[plan]
            edited = {**states, **{name: value[rows] for name, value in one.changed.items()}}
            after.append(run_stack(one.module or self.networks.module, edited, inputs))
        return run_stack(self.networks.module, states, inputs), torch.stack(after, 1)


@dataclass(frozen=True, eq=False)
class PlanScoreData:
    """Networks with measured plans, in parts that share no group.

    Attributes:
        stacks: The networks, architecture by architecture.
        groups: The group of each network, stack after stack.
        split: The part of each network.
        names: The name of each network.
        dropped: Name and reason of every network that was left out.
    """

    stacks: tuple[ScoredStack, ...]
    groups: NDArray[np.str_]
    split: NDArray[np.str_]
    names: tuple[str, ...]
    dropped: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        check_no_leak(self.groups, self.split)

    def __len__(self) -> int:
        return len(self.split)

    def part(self, name: str) -> NDArray[np.intp]:
        """The places of one part's networks."""
        return np.flatnonzero(self.split == name)

    def rows(self, name: str) -> Iterator[tuple[ScoredStack, Tensor, NDArray[np.intp]]]:
        """One part's networks: each stack that has some, their rows in it, and their places."""
        start = 0
        for stack in self.stacks:
            end = start + len(stack.kl)
            places = np.flatnonzero(self.split[start:end] == name)
            if len(places):
                yield stack, torch.from_numpy(places), places + start
            start = end

    @property
    def numbers(self) -> int:
        """How many numbers one input of the networks has."""
        return int(self.stacks[0].networks.inputs[0].numel())

    def describe(self) -> dict[str, Any]:
        """Sizes and fingerprint as JSON."""
        sizes = {part: int(np.sum(self.split == part)) for part in PARTS}
        groups = {part: len(np.unique(self.groups[self.split == part])) for part in PARTS}
        pairs = sum(stack.kl.numel() for stack in self.stacks)
        told = {"column": "cost of a plan", "networks": sizes, "groups": groups, "plans": pairs}
        return {**told, "dropped": len(self.dropped), "fingerprint": self._fingerprint()}

    def _fingerprint(self) -> str:
        digest = hashlib.sha256("\x1f".join((*self.groups, *self.split, *self.names)).encode())
        for stack in self.stacks:
            digest.update(stack.networks.spec.fingerprint.encode())
            for value in (*stack.networks.states.values(), stack.kl, stack.agreement):
                digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()


def logit_of(agreement: Tensor, measured: int) -> Tensor:
    """The logit of the share of inputs decided otherwise, finite for none and for all of them."""
    other = ((1 - agreement) * measured + 0.5) / (measured + 1)
    return (other / (1 - other)).log()


def cost_of(before: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
    """Mean divergence KL(before || after) of class logits, and share of equal decisions.

    Shapes:
        (..., n, classes) twice -> (...) twice
    """
    one, two = before.double().log_softmax(-1), after.double().log_softmax(-1)
    same = before.argmax(-1) == after.argmax(-1)
    return (one.exp() * (one - two)).sum(-1).mean(-1).clamp_min(0), same.double().mean(-1)


def plan_score_data(
    stacks: Iterable[NetworkStack],
    plans: int,
    seed: int = 0,
    shares: Mapping[str, float] = SHARES,
    resplit: bool = False,
) -> PlanScoreData:
    """Draw plans for networks and measure what they cost.

    Networks that are not finite, or become so, are left out, and so are architectures without a space to narrow;
    `dropped` has the reasons.

    Args:
        stacks: The networks.
        plans: How many of each network are narrowed; blocks and heads come on top.
        seed: Draws the plans, and the split where the networks have no part.
        shares: Share of the groups in each part, where the networks have no part.
        resplit: Split anew even where they have one.

    Raises:
        TaskError: No usable network, or only some with a part, or inputs of several sizes.
    """
    found: list[ScoredStack] = []
    dropped: list[tuple[str, str]] = []
    for number, stack in enumerate(stacks):
        generator = torch.Generator().manual_seed((seed << 16) + number)
        finite = torch.stack([value.reshape(len(value), -1).isfinite().all(1) for value in stack.states.values()]).all(
            0
        )
        try:
            if bool(finite.any()):
                made = _scored(_chosen(stack, finite), plans, generator)
                usable = (made.kl.isfinite() & made.few.isfinite()).all(1)
                finite[finite.clone()] = usable
                found += [_narrowed(made, usable)] if bool(usable.any()) else []
        except PlanError as error:
            dropped += [(name, error.reason) for name in stack.names]
            continue
        dropped += [(stack.names[int(row)], "not finite") for row in (~finite).nonzero().flatten()]
    if not found:
        raise TaskError(f"no usable network; {len(dropped)} dropped" + (f", first: {dropped[0]}" if dropped else ""))
    sizes = sorted({stack.networks.inputs[0].numel() for stack in found})
    if len(sizes) > 1:
        raise TaskError(f"networks read {sizes[0]} and {sizes[1]} numbers, expected as many each")
    groups = np.array([group for stack in found for group in stack.networks.groups])
    parts = [part for stack in found for part in stack.networks.parts]
    names = tuple(name for stack in found for name in stack.networks.names)
    if resplit or all(part is None for part in parts):
        split = split_by_group(groups, np.random.default_rng(np.random.SeedSequence([seed, 0x5917])), shares)
    elif any(part is None for part in parts):
        raise TaskError(
            f"{parts.count(None)} of {len(parts)} networks have no part", hint="give all of them one, or none"
        )
    else:
        split = np.array(parts, dtype=np.str_)
    return PlanScoreData(tuple(found), groups, split, names, tuple(dropped))


def _scored(stack: NetworkStack, plans: int, generator: torch.Generator) -> ScoredStack:
    """Plans for the networks of a stack, and what they cost."""
    shape = tuple(stack.inputs.shape[1:])
    like = next(value for value in stack.states.values() if value.is_floating_point())
    smooth = probe_inputs(shape, 32).to(like.dtype)
    variants = drawn_variants(
        stack.module, stack.spec, stack.states, smooth, stack.fitting.to(like.dtype), plans, generator
    )
    empty = torch.zeros(len(like), len(variants))
    scored = ScoredStack(stack, tuple(variants), empty, empty, empty, len(stack.inputs) - REFERENCE)
    measured = [
        [cost_of(before.unsqueeze(1), after) for before, after in _both(scored, inputs.to(like.dtype))]
        for inputs in (stack.inputs[:-REFERENCE], stack.inputs[-REFERENCE:])
    ]
    (kl, agreement), (few, _) = ([torch.cat([part[i] for part in parts]) for i in (0, 1)] for parts in measured)
    return replace(scored, kl=kl, agreement=agreement, few=few)


@torch.no_grad()
def _both(stack: ScoredStack, inputs: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    plans = range(len(stack.variants))
    for rows in torch.arange(len(stack.kl)).split(_CHUNK):
        yield stack.answers(rows, plans, inputs)


def _chosen(stack: NetworkStack, keep: Tensor) -> NetworkStack:
    rows = keep.nonzero().flatten().tolist()
    return replace(
        stack,
        states={name: value[keep] for name, value in stack.states.items()},
        groups=tuple(stack.groups[row] for row in rows),
        parts=tuple(stack.parts[row] for row in rows),
        names=tuple(stack.names[row] for row in rows),
    )


def _narrowed(stack: ScoredStack, keep: Tensor) -> ScoredStack:
    """Only some networks of a stack."""
    variants = (
        replace(one, changed={name: value[keep] for name, value in one.changed.items()}, features=one.features[keep])
        for one in stack.variants
    )
    kept = {name: getattr(stack, name)[keep] for name in ("kl", "agreement", "few")}
    return replace(stack, networks=_chosen(stack.networks, keep), variants=tuple(variants), **kept)
