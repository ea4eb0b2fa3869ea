"""How well does a predictor narrow networks that it never saw, beside made-up inputs and the images themselves?"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from metanet.errors import TaskError
from metanet.nn.rich_inputs import smooth_inputs
from metanet.tasks.evaluate import Evaluation, ModelScore
from metanet.tasks.metrics import bootstrap_interval
from metanet.tasks.morph_data import MorphData, MorphGroup
from metanet.tasks.morph_model import MorphModel
from metanet.tasks.morph_task import SHARES, MorphTask, measured
from metanet.tasks.virtual import Virtual

__all__ = ["GivenInputs", "evaluate_morph"]

_RIDGE = 1e-3
_CHUNK = 32
_WIDEST = 1e-4  # nats; divergence below it is no matter


class GivenInputs(nn.Module):
    """The same inputs for every network: what a predictor is compared with.

    Args:
        inputs: of any number.

    Shapes:
        inputs (n, *input)
    """

    def __init__(self, inputs: Tensor) -> None:
        super().__init__()
        self.inputs = inputs

    def forward(self, *_: object) -> Virtual:
        """Those inputs, whatever the network."""
        return Virtual(self.inputs, torch.tensor(_RIDGE), own=False)


def evaluate_morph(
    model: MorphModel | str | os.PathLike[str], data: MorphData, seed: int = 0, part: str = "test"
) -> Evaluation:
    """Narrow networks that the predictor was not trained on to each of `SHARES`, beside baselines.

    The metric, "closeness", is minus the decimal logarithm of the divergence, mean over networks and shares.

    Args:
        model: the predictor, or its folder.
        data: the data that it was trained on, or others that it can read.
        seed: of the bootstrap.
        part: the part to test on.

    Raises:
        TaskError: The part is empty.
    """
    opened = model if isinstance(model, MorphModel) else MorphModel.open(Path(model))
    names = [group.item.names[i] for group in data.groups for i in group.part(part)]
    groups = [f"{group.item.name}, run {group.item.groups[i]}" for group in data.groups for i in group.part(part)]
    if not names:
        raise TaskError(f"the part {part!r} is empty", hint="give it a share of the groups")
    scores: list[ModelScore] = []
    each_of: dict[str, list[float]] = {}
    ways = (
        ("metanet", "model", "inputs made from the weights alone"),
        ("smooth", "baseline", "1,024 smooth random inputs"),
        ("images", "part", "256 of the images that each network learned: what data would give"),
    )
    for name, kind, words in ways:
        tables = {group.item.name: _table(name, opened, group, part) for group in data.groups if len(group.part(part))}
        kl = {share: torch.cat([table[share]["kl"] for table in tables.values()]).double() for share in SHARES}
        agreement = {share: torch.cat([table[share]["agreement"] for table in tables.values()]) for share in SHARES}
        each = -torch.stack([kl[share].clamp_min(_WIDEST).log10() for share in SHARES]).mean(0)
        values = {"closeness": float(each.mean())}
        values |= {f"kl_{share:g}": float(kl[share].mean()) for share in SHARES}
        values |= {f"agreement_{share:g}": float(agreement[share].mean()) for share in SHARES}
        shown = " / ".join(f"{values[f'kl_{share:g}']:.3g}" for share in SHARES)
        sizes = " / ".join(f"{share:.0%}" for share in SHARES)
        interval = bootstrap_interval(
            lambda one, _: float(one.mean()), each.numpy(), each.numpy(), groups, np.random.default_rng(seed)
        )
        told = f"{words}; KL {shown} at {sizes} of the units"
        scores.append(ModelScore(name, kind, told, values, {"closeness": interval}))
        each_of[name] = each.tolist()
    return Evaluation(
        MorphTask.column,
        part,
        "closeness",
        tuple(scores),
        tuple(names),
        tuple(groups),
        tuple(each_of["images"]),
        tuple(each_of["metanet"]),
        1.0,
        seed,
    )


def _table(name: str, model: MorphModel, group: MorphGroup, part: str) -> dict[float, dict[str, Tensor]]:
    shape = tuple(group.item.images.shape[1:])
    maker: nn.Module = model.model
    if name == "smooth":
        maker = GivenInputs(smooth_inputs(shape, 1024).to(group.item.images.dtype))
    elif name == "images":
        maker = GivenInputs(group.item.images[:256])
    places = torch.from_numpy(group.part(part))
    chunks = [measured(maker, group, chunk) for chunk in places.split(_CHUNK)]
    return {share: {key: torch.cat([c[share][key] for c in chunks]) for key in chunks[0][share]} for share in SHARES}
