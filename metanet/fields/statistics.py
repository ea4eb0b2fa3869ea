"""Which running statistics do the batch norms of the networks of a field have?

Training uses the statistics of each batch, at every width. Afterwards they are estimated, as plain averages over
batches, for networks at the widths for which the tables of the field have values of their own, and written into these
tables: then a network of any width comes with statistics and needs no data. Statistics for sizes of spaces that differ
in ratio, or between coarse widths, are better estimated again (:func:`metanet.morph.recalibrate`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from metanet.fields.field import Field
from metanet.fields.fitting import sizes_of
from metanet.fields.generate import Skeletons
from metanet.fields.parts import Table, to_knots
from metanet.morph import recalibrate

__all__ = ["estimate"]


def estimate(
    field: Field,
    skeletons: Skeletons,
    batches: Sequence[Sequence[Tensor]],
    spaces: tuple[str, ...] | None = None,
    width: float = 1.0,
) -> int:
    """Put estimated statistics into the tables of a field, in place.

    Args:
        field: whose tables.
        skeletons: of its architecture.
        batches: argument lists of ``forward``.
        spaces: that vary; see :func:`metanet.fields.varying`.
        width: at which they are estimated if the tables do not vary.

    Returns:
        At how many widths there are statistics now; 0 for a network without batch norms.
    """
    pieces = field.statistics()
    if not pieces:
        return 0
    first = field.parts[pieces[0].key]
    if not isinstance(first, Table):
        raise TypeError(f"{type(first).__name__}, expected a table")
    count = len(first.table) if first.varies else 1
    low, high = first.widths
    ratios = [low + (high - low) * number / (count - 1) for number in range(count)] if count > 1 else [width]
    # The widest first: units that a narrower network of a cut field does not have keep the statistics of the next wider
    # one. Their neighbours say nothing of them, and widths between both tables mix the two.
    for number in reversed(range(len(ratios))):
        sizes = sizes_of(field.spec, ratios[number], spaces)
        measured = _measured(field, skeletons, batches, sizes)
        for piece in pieces:
            table = field.parts[piece.key].get_buffer("table")
            target = table[number] if count > 1 else table
            values = field.layout.read(piece, measured, sizes).to(table)
            for dim, here in enumerate(field.places(piece, sizes)):
                if here is not None:
                    knots = target.shape[dim]
                    values = to_knots(values, dim, here, knots)
                    if field.sampling.way == "cut" and number + 1 < count:
                        missing = (here.hats(knots).sum(0) == 0).nonzero().flatten()
                        values = values.index_copy(dim, missing, table[number + 1].index_select(dim, missing))
            target.copy_(values)
    return count


def _measured(
    field: Field, skeletons: Skeletons, batches: Sequence[Sequence[Tensor]], sizes: Mapping[str, int]
) -> dict[str, Tensor]:
    with torch.no_grad():
        state = field(None, sizes)
        module = skeletons.get(state, sizes)
        module.load_state_dict(state)
        recalibrate(module, batches)
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
