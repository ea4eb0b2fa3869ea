"""What do trained predictors do with the networks of `morph.py`? They make inputs from the weights; the rest is alike.

A predictor is what `metanet train task=morph zoo=...` leaves: learned inputs that all networks share, or inputs of each
network's own. Three ways use them: least squares at the predictor's own ridge, refitting in turn, and rounds.
"""

from __future__ import annotations

from pathlib import Path

import torch
from morph_subjects import CHUNK, Images, State, Subject
from morph_ways import ROUNDS, Choice, Edit, Way, by_inputs, by_rounds, masks_of, surgeon_orders
from torch import Tensor

from metanet.morph.batched_refit import input_moments, narrowed_in_turn
from metanet.tasks.morph_model import MorphModel


def predictor_ways(name: str, folder: Path) -> dict[str, Choice]:
    """The variants that a predictor gives, by name; only the number of rounds is chosen.

    Args:
        name: of the first.
        folder: of the predictor.
    """
    rounds = {words: _way(folder, "rounds", count) for words, count in ROUNDS.items()}
    return {
        name: Choice({"": _way(folder, "at once")}, (0.0,)),
        f"{name}_sequential": Choice({"": _way(folder, "in turn")}, (0.0,)),
        f"{name}_rounds": Choice(rounds, (0.0,)),
    }


def _way(folder: Path, kind: str, rounds: int = 0) -> Way:
    def way(subject: Subject, images: Images, generator: torch.Generator) -> Edit:
        inputs, own, ridge = _inputs(folder, subject)
        if kind == "rounds":
            edit = by_rounds(subject, inputs, rounds, own)
        elif kind == "in turn":
            edit = _in_turn(subject, inputs, own)
        else:
            edit = by_inputs(subject, inputs, own)
        return lambda share, _: edit(share, ridge)

    return way


@torch.no_grad()
def _inputs(folder: Path, subject: Subject) -> tuple[Tensor, bool, float]:
    """Inputs, whether they are each network's own, and the ridge. Shapes: (n, ...) or (networks, n, ...)."""
    read_as = tuple(subject.architecture.example_inputs(1)[0].shape[1:])
    made = MorphModel.open(folder).model(subject.masked, subject.spec, subject.states, read_as)
    return made.inputs, made.own, float(made.ridge)


def _in_turn(subject: Subject, inputs: Tensor, own: bool) -> Edit:
    with torch.no_grad():
        moments = input_moments(subject.masked, subject.states, (inputs,), CHUNK, own)

    def edit(share: float, ridge: float) -> State:
        masks = masks_of(subject, surgeon_orders(subject, moments, ridge), share)
        with torch.no_grad():
            return narrowed_in_turn(subject.masked, subject.states, (inputs,), masks, ridge, CHUNK, own)

    return edit
