"""How does a trained network become a field, and how well is its function kept at each width?

The network's units are put in order, a field starts at its weights, as closely as its form allows, and is trained with
the network as teacher at all widths. Each width is then certified by running the generated network beside the teacher.
"""

from __future__ import annotations

import copy
import importlib.metadata
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from metanet.checkpoint import Architecture
from metanet.checkpoint.options import MAX_PARAMETERS
from metanet.errors import FieldError
from metanet.fields.fitting import sizes_of, varying
from metanet.fields.folder import KINDS, StoredField
from metanet.fields.generate import Skeletons, materialise
from metanet.fields.order import ordered
from metanet.fields.places import Sampling
from metanet.fields.settings import FieldSettings
from metanet.fields.statistics import estimate
from metanet.fields.training import Training, train
from metanet.morph import cost
from metanet.morph.modules import put_tensors
from metanet.morph.resize import resized_spec
from metanet.score import compare
from metanet.score.certificate import Certificate
from symmetry import SymmetrySpec

__all__ = ["Recipe", "certify", "distil"]

# Statistics are averages over this many inputs; more change them by less than widths between the tables do.
MOST_INPUTS = 2048
# Chosen on held-out images, perceptrons on MNIST and convolutions with batch norm on digits (benchmarks/README.md).
SETTINGS = FieldSettings(steps=3000, rate=0.03, task=0.0, distil=1.0, average=0.995)
# Numbers that inputs and mixed inputs hold together, at most.
MOST_NUMBERS = 1 << 28
OPTIONS: Mapping[str, Any] = MappingProxyType({"width_knots": 7})


@dataclass(frozen=True)
class Recipe:
    """What is made of a network, and how.

    Args:
        kind: of the field: ``knots`` or ``mlp``.
        options: of its class; what is not named is as in :data:`OPTIONS`.
        sampling: how coordinates are laid out.
        order: of the units: see :mod:`metanet.fields.order`; ``None``: ``importance`` for coordinates that are cut,
            ``smooth`` for those that are spread.
        settings: of the training.
        mixed: so many sums of two inputs for each input, with random shares, to be taught on as well: the teacher
            knows its training inputs too well to say much by them (Zhang et al. 2018; Beyer et al. 2022, function
            matching). None where there are targets to learn, or inputs are whole numbers.
        seed: of everything that is drawn.

    Raises:
        FieldError: for an unknown kind, or less than no mixed inputs.
    """

    kind: str = "knots"
    options: Mapping[str, Any] = field(default_factory=dict)
    sampling: Sampling = field(default_factory=lambda: Sampling("cut", "copies"))
    order: str | None = None
    settings: FieldSettings = SETTINGS
    mixed: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise FieldError(f"kind of field {self.kind!r}", hint=f"expected one of {', '.join(KINDS)}")
        if self.mixed < 0:
            raise FieldError(f"mixed={self.mixed}", hint="expected 0 or more")


def distil(
    model: nn.Module,
    spec: SymmetrySpec,
    example_inputs: Sequence[Any],
    data: Training,
    recipe: Recipe,
    architecture: Architecture | None = None,
    state_file: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> StoredField:
    """Make a field of a network.

    Args:
        model: the trained network, the teacher; it is not changed.
        spec: of it.
        example_inputs: one entry per argument of ``forward``.
        data: inputs to learn on; its teacher is set here.
        recipe: see :class:`Recipe`.
        architecture: of the network, to be stored with the field.
        state_file: see :func:`metanet.fields.train`.
        progress: see there.

    Raises:
        FieldError: if the network has no width that can change, none below the full one is asked for, the widest is too
            large, or the data do not fit.
    """
    spaces = varying(spec, data.spaces)
    _check_widths(spec, recipe.settings, spaces)
    order = recipe.order or ("importance" if recipe.sampling.way == "cut" else "smooth")
    found = ordered(spec, model.state_dict(), order)
    teacher = copy.deepcopy(model).eval()
    put_tensors(teacher, found.state)
    settings = recipe.settings
    options = {"widths": (settings.low, max(settings.high, 1.0)), "start": "fit", **OPTIONS, **recipe.options}
    if recipe.kind == "knots" and options.get("rank") is not None:
        options.setdefault("normalised", False)
    generator = torch.Generator().manual_seed(recipe.seed)
    made = KINDS[recipe.kind](spec, found.state, recipe.sampling, generator=generator, **options)
    skeletons = Skeletons(teacher, spec, example_inputs)
    taught = replace(data, teacher=teacher, spaces=spaces)
    if not settings.task:
        taught = replace(taught, inputs=_mixed(data.inputs, recipe.mixed, generator), targets=None)
    history = train(made, skeletons, taught, settings, recipe.seed, state_file, progress)
    batches = [(rows,) for rows in data.inputs[:MOST_INPUTS].split(max(settings.batch, 256)) if len(rows) > 1]
    estimate(made, skeletons, batches, spaces)
    made.fold()
    record = {
        "settings": settings.to_json(),
        "seed": recipe.seed,
        "order": order,
        "variation": [found.before, found.after],
        "inputs": len(data.inputs),
        "mixed": recipe.mixed,
        "last": history[-1] if history else {},
        "stored": made.stored,
    }
    widest = max(settings.high, 1.0) if settings.full else settings.high
    return StoredField(made, (settings.low, widest), spaces, architecture, record)


def _mixed(inputs: Tensor, number: int, generator: torch.Generator) -> Tensor:
    """The inputs, and sums of two of them with random shares. Shapes: (n, ...) -> at most ((1 + number) n, ...)."""
    if not inputs.is_floating_point():
        return inputs
    found = [inputs]
    for _ in range(min(number, MOST_NUMBERS // max(inputs.numel(), 1) - 1)):
        share = torch.rand(len(inputs), *[1] * (inputs.ndim - 1), generator=generator).to(inputs)
        found.append(share * inputs + (1 - share) * inputs[torch.randperm(len(inputs), generator=generator)])
    return torch.cat(found)


def _check_widths(spec: SymmetrySpec, settings: FieldSettings, spaces: tuple[str, ...]) -> None:
    if settings.low >= 1:
        raise FieldError(
            f"narrowest width {settings.low:g}", hint="expected below 1: wider networks come without training"
        )
    widest = resized_spec(spec, sizes_of(spec, settings.high, spaces))
    numbers = sum(math.prod(info.shape) for info in widest.tensors.values())
    if numbers > MAX_PARAMETERS:
        raise FieldError(
            f"widest width {settings.high:g}: a network of {numbers:,} numbers",
            hint=f"expected at most {MAX_PARAMETERS:,}",
        )


def certify(
    stored: StoredField,
    model: nn.Module,
    example_inputs: Sequence[Any],
    inputs: Any,
    labels: Tensor | None,
    widths: Sequence[float],
    origin: str | None = None,
    seed: int = 0,
) -> dict[str, Certificate]:
    """How far the networks of some widths are from a given one; both are run.

    Args:
        stored: the field.
        model: the network of full width to compare with.
        example_inputs: one entry per argument of ``forward``.
        inputs: to compare on; see :func:`metanet.score.compare`.
        labels: classes or targets, if there are any.
        widths: shares of the full width.
        origin: of the inputs, in words.
        seed: of the intervals.
    """
    before = cost(model, example_inputs).to_json()
    versions = {name: importlib.metadata.version(name) for name in ("metanet", "torch")}
    found = {}
    for width in widths:
        sizes = sizes_of(stored.field.spec, width, stored.spaces)
        made = materialise(stored.field, model, sizes, example_inputs)
        score = compare(model, made, inputs, labels, origin=origin, seed=seed, layers=None, line=0, resamples=200)
        plan = {"field": stored.field.kind, "width": width, "sizes": sizes}
        found[f"{width:g}"] = Certificate(plan, score, before, cost(made, example_inputs).to_json(), versions)
    return found
