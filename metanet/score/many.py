"""How far apart are thousands of pairs of networks? Pairs of the same two architectures are run at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from metanet.errors import ScoreError, clean
from metanet.score.compare import TOLERANCE, made_up
from metanet.score.groups import Group
from metanet.score.inputs import Inputs
from metanet.score.stacks import key_of
from metanet.score.subjects import Comparable, undisturbed

__all__ = ["ManyScores", "compare_many"]

MEMORY = 256 << 20


@dataclass(frozen=True, eq=False)
class ManyScores:
    """The distances of many pairs of networks, one entry of every column for each pair.

    Args:
        columns: ``max_error``, ``spread``, ``error`` (over spread, the largest of all outputs), ``relative_l2``,
            ``not_finite_a`` and ``not_finite_b`` (inputs), ``exact`` (1 or 0); where the first output is a distribution
            ``kl``, ``kl_reverse`` and ``agreement``; with labels ``accuracy_a``, ``accuracy_b``, ``accuracy_change``,
            ``loss_a``, ``loss_b``, ``loss_change``. Every mean over inputs has its standard error beside it, as in
            ``kl_standard_error``. NaN for pairs that have no such column.
        inputs: on how many inputs.
        origin: where these come from.
        made_up: whether they are no data.
        dtype: in which the networks were run.
        groups: how many pairs of architectures there are.
        tolerance: for ``exact``.
        notes: what else has to be known, such as networks that could not be run at once.

    Shapes:
        columns: (pairs,) float64.
    """

    columns: Mapping[str, Tensor]
    inputs: int
    origin: str
    made_up: bool
    dtype: str
    groups: int
    tolerance: float
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.columns["max_error"])

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.columns:
            raise ScoreError(f"no column {clean(repr(name), 60)}", hint=f"there are {', '.join(self.columns)}")
        return self.columns[name]

    def row(self, number: int) -> dict[str, float]:
        """What was measured of one pair."""
        return {name: float(column[number]) for name, column in self.columns.items()}

    def __repr__(self) -> str:
        exact = int(self.columns["exact"].sum())
        return f"ManyScores({len(self)} pairs, {exact} exact, {self.groups} groups; {self.dtype}, {self.origin})"


def compare_many(
    pairs: Sequence[tuple[Comparable, Comparable]],
    inputs: Any = None,
    labels: Any = None,
    *,
    origin: str | None = None,
    kind: str | Mapping[str, str] = "auto",
    class_axis: int | None = None,
    batch_axis: int = 0,
    dtype: torch.dtype | None = torch.float64,
    tolerance: float = TOLERANCE,
    batch: int = 256,
    memory: int = MEMORY,
    device: str | torch.device | None = None,
    seed: int = 0,
) -> ManyScores:
    """Measure what :func:`compare` measures of outputs, for many pairs of networks on the same inputs.

    Pairs whose first networks are of one architecture, and whose second networks are of one, are run at once with
    ``torch.func.vmap`` over their stacked states; large ones, and those that cannot be stacked, one by one, which is
    noted. A network that several pairs share is run once for those next to each
    other. Layers, the line between weights and the bootstrap are left to :func:`compare`.

    Args:
        pairs: as :func:`compare` takes them. Checkpoints of one architecture are stacked, and states for one and the
            same module object; bare modules are run one by one.
        inputs: as for :func:`compare`; shared by all pairs.
        labels: as for :func:`compare`.
        origin: as for :func:`compare`.
        kind: as for :func:`compare`.
        class_axis: as for :func:`compare`.
        batch_axis: as for :func:`compare`.
        dtype: as for :func:`compare`; float32 is faster, and nothing is called exact then.
        tolerance: as for :func:`compare`.
        batch: how many inputs are run at once.
        memory: about how many bytes the networks that are run at once may take.
        device: where to run them; where they are if ``None``.
        seed: of the order of the inputs.

    Raises:
        ScoreError: where something does not fit, with the number of the pair.
    """
    if not pairs:
        raise ScoreError("no pairs of networks", hint="give at least one pair")
    if inputs is None:
        inputs = made_up(pairs[0][0], seed)
    given = Inputs.of(inputs, labels, origin, batch_axis)
    groups: dict[tuple[Any, ...], list[int]] = {}
    for number, pair in enumerate(pairs):
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise ScoreError(f"pair {number} is a {type(pair).__name__}", hint="give pairs (a, b)")
        groups.setdefault((key_of(pair[0]), key_of(pair[1])), []).append(number)
    found: dict[str, Tensor] = {}
    dtypes, notes = set(), []
    with undisturbed():
        for numbers in groups.values():
            group = Group(pairs, numbers, given, dtype, device, kind, class_axis, tolerance, batch)
            dtypes.add(group.pair.dtype)
            for name, column in group.score(memory, seed).items():
                whole = found.setdefault(name, torch.full((len(pairs),), torch.nan, dtype=torch.float64))
                whole[torch.tensor(numbers)] = column
            notes += [note for note in group.notes if note not in notes]
    shown = ", ".join(sorted(dtypes))
    return ManyScores(found, given.count, given.origin, given.made_up, shown, len(groups), tolerance, tuple(notes))
