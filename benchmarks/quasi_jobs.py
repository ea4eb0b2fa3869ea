"""How is the metanetwork of `quasi.py` trained for a job, and how well does it do it on networks it has not seen?

Three jobs: the average of two networks after matching, rounding of the weights, and pruning. Each has a loss on the
edited networks, run on training images, a measure on test images, and rivals in closed form. Images are used to train
the metanetwork; an edit reads weights only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import quasi_forms as forms
import torch
from quasi_reader import Reader, Variant, as_state
from quasi_zoo import State, activations, divergences, kl, losses, outputs, rows
from torch import Tensor

from metanet.nn.quasi import Moved
from metanet.nn.quasi_check import orbit_distance
from symmetry import SymmetrySpec

Measures = dict[str, dict[str, float]]
JOBS = ("merge", "quantise", "prune")
CASES = {"merge": ("merge",), "quantise": ("quantise4", "quantise8"), "prune": ("prune50",)}
IMAGES, SHARPNESS = 192, 3.0


@dataclass(frozen=True)
class Data:
    """Networks in the gauge that the job starts from, and images.

    Args:
        raw: the networks as they were trained.
        states: the same in the starting gauge.
        held_out: how many at the end are not trained on.
        images: to train metanetworks with; test and labels: to measure with.
        start: learned inputs at the start.
        spec: of the architecture.
    """

    raw: State
    states: State
    held_out: int
    images: Tensor
    test: Tensor
    labels: Tensor
    start: Tensor
    spec: SymmetrySpec

    @property
    def training(self) -> int:
        """Number of networks to train on."""
        return len(self.states[0]) - self.held_out

    def unseen(self, raw: bool = False) -> State:
        """The networks to measure on."""
        return rows(self.raw if raw else self.states, slice(self.training, None))


def noise_like(images: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Normal noise with the mean and covariance of the training images: where learned inputs start."""
    size = images.shape[1]
    covariance = torch.cov(images.T) + 1e-4 * torch.eye(size)
    drawn = torch.randn(count, size, generator=generator)
    return images.mean(0) + drawn @ torch.linalg.cholesky(covariance).T


def learn(
    job: str, variant: Variant, data: Data, seed: int, steps: int, progress: Callable[[int], None]
) -> tuple[Reader, float]:
    """Train a metanetwork for a job; returns it with its last loss."""
    reader = Reader(data.spec, variant, data.start, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    others = [p for name, p in reader.named_parameters() if name != "probes"]
    groups = [{"params": others, "lr": 2e-3}, {"params": [reader.probes], "lr": 1e-2}]
    optimiser = torch.optim.AdamW(groups, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    loss = {"merge": _merge_loss, "quantise": _rounding_loss, "prune": _pruning_loss}[job]
    last = 0.0
    for _ in range(steps):
        chosen = rows(data.states, torch.randperm(data.training, generator=generator)[:48])
        x = data.images[torch.randint(len(data.images), (IMAGES,), generator=generator)]
        value = loss(reader, chosen, x, generator)
        optimiser.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(reader.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        last = float(value.detach())
        progress(1)
    return reader, last


def measure(job: str, reader: Reader, data: Data) -> Measures:
    """Results on networks that were not trained on, by case."""
    with torch.no_grad():
        states = data.unseen()
        edited, moved = reader(states, reader.answers(states))
        kept = float(divergences(states, edited, data.test).mean())
    found: Measures = {}
    extra = {"edit_kl": kept, "parameters": float(sum(p.numel() for p in reader.parameters()))}
    if reader.variant != "strict":
        extra["defect"] = float(orbit_distance(moved, steps=20)[0].mean())
    with torch.no_grad():
        if job == "merge":
            a, b = _halves(states)
            answers = [reader.answers(part) for part in (a, b)]
            order = forms.match_answers(a, b, *answers)
            first, second = _halves(edited)
            middle = forms.averaged(first, forms.permuted(second, *order))
            found["merge"] = {"barrier": _barrier(middle, a, b, data)}
        elif job == "quantise":
            for bits, case in ((4, "quantise4"), (8, "quantise8")):
                after = forms.quantised(edited, bits)
                found[case] = {"kl": float(divergences(states, after, data.test).mean())}
        else:
            after = _pruned(reader, edited, moved, states, None)
            found["prune50"] = {"kl": float(divergences(states, after, data.test).mean())}
    return {case: {**values, **extra} for case, values in found.items()}


def closed_forms(job: str, data: Data, seed: int) -> dict[str, Measures]:
    """The rivals that learn nothing, by name."""
    raw = data.unseen(raw=True)
    gauges = {
        "raw": raw,
        "unit": forms.unit_gauge(raw),
        "balanced": as_balanced(raw, data.spec),
        "equalised": forms.equalised(raw),
    }
    found: dict[str, Measures] = {}
    for name, states in gauges.items():
        if job == "merge":
            a, b = _halves(states)
            order = forms.match_weights(a, b, 4, torch.Generator().manual_seed(seed))
            middle = forms.averaged(a, forms.permuted(b, *order))
            found[name] = {"merge": {"barrier": _barrier(middle, a, b, data)}}
        elif job == "quantise":
            each = {4: forms.quantised(states, 4), 8: forms.quantised(states, 8)}
            found[name] = {
                f"quantise{bits}": {"kl": float(divergences(raw, after, data.test).mean())}
                for bits, after in each.items()
            }
        else:
            after = forms.pruned(states, [states[n].abs() for n in (0, 2, 4)])
            title = "magnitude" if name == "raw" else name
            found[title] = {"prune50": {"kl": float(divergences(raw, after, data.test).mean())}}
    if job == "merge":
        a, b = _halves(gauges["balanced"])
        inputs = {"noise": data.start, "512 images": data.images[:512]}
        for name, x in inputs.items():
            order = forms.match_answers(a, b, activations(a, x), activations(b, x))
            found[f"balanced, {name}"] = {
                "merge": {"barrier": _barrier(forms.averaged(a, forms.permuted(b, *order)), a, b, data)}
            }
    elif job == "prune":
        states = gauges["balanced"]
        for name, x in {"score, noise": data.start, "score, 512 images": data.images[:512]}.items():
            after = forms.pruned(states, forms.saliencies(states, activations(states, x), x))
            found[name] = {"prune50": {"kl": float(divergences(raw, after, data.test).mean())}}
    return found


def as_balanced(states: State, spec: SymmetrySpec) -> State:
    """The library's balanced gauge."""
    from quasi_reader import balanced

    return balanced(states, spec)


def _halves(states: State) -> tuple[State, State]:
    half = len(states[0]) // 2
    return rows(states, slice(0, half)), rows(states, slice(half, 2 * half))


def _barrier(middle: State, a: State, b: State, data: Data) -> float:
    """Cross-entropy above the mean of both ends', mean over the pairs."""
    at = [losses(state, data.test, data.labels) for state in (middle, a, b)]
    return float((at[0] - (at[1] + at[2]) / 2).mean())


def _merge_loss(reader: Reader, chosen: State, x: Tensor, generator: torch.Generator) -> Tensor:
    """log KL between both ends and their average, and how well learned inputs stand for images in the matching."""
    answers = reader.answers(chosen)
    edited, _ = reader(chosen, answers)
    a, b = _halves(chosen)
    here = [[part[s] for part in answers] for s in (slice(0, len(a[0])), slice(len(a[0]), None))]
    with torch.no_grad():  # the matching is a constant
        order = forms.match_answers(a, b, *here)
        real = activations(chosen, x)
        there = [[part[s] for part in real] for s in (slice(0, len(a[0])), slice(len(a[0]), None))]
    first, second = _halves(edited)
    middle = outputs(forms.averaged(first, forms.permuted(second, *order)), x)
    ends = (kl(there[0][2], middle) + kl(there[1][2], middle)) / 2
    return (ends + 0.01).log().mean() + 0.1 * _moments(a, b, here, there)


def _moments(a: State, b: State, here: list[list[Tensor]], there: list[list[Tensor]]) -> Tensor:
    """Relative error of the similarity of units on learned inputs, against that on images."""
    total = torch.zeros(())
    for layer in range(2):
        found = []
        for answers in (here, there):
            u, v = (forms.contributions(s, h)[layer] for s, h in zip((a, b), answers, strict=True))
            found.append(torch.einsum("nioh,niok->nhk", u, v) / u.shape[1])
        error = (found[0] - found[1]).square().sum((1, 2)) / found[1].square().sum((1, 2)).clamp_min(1e-12)
        total = total + error.mean()
    return total


def _rounding_loss(reader: Reader, chosen: State, x: Tensor, generator: torch.Generator) -> Tensor:
    """log KL at 4 and at 8 bits; rounding errors are drawn at random, which is smooth in the weights and the step."""
    edited, _ = reader(chosen, reader.answers(chosen))
    before = outputs(chosen, x)
    total = torch.zeros(())
    for bits in (4, 8):
        noisy = list(edited)
        for number in (0, 2, 4):
            step = edited[number].abs().amax((1, 2), keepdim=True) / (2 ** (bits - 1) - 1)
            noisy[number] = edited[number] + step * (torch.rand(edited[number].shape, generator=generator) - 0.5)
        total = total + (kl(before, outputs(tuple(noisy), x)).clamp_min(0) + 1e-6).log().mean()
    return total


def _pruning_loss(reader: Reader, chosen: State, x: Tensor, generator: torch.Generator) -> Tensor:
    edited, moved = reader(chosen, reader.answers(chosen))
    after = outputs(_pruned(reader, edited, moved, chosen, SHARPNESS), x)
    return (kl(outputs(chosen, x), after).clamp_min(0) + 1e-3).log().mean()


def _pruned(reader: Reader, edited: State, moved: Moved, states: State, sharpness: float | None) -> State:
    """Half of the weights removed: by magnitude in the predicted gauge, or ("strict") by an invariant score.

    The score is the saliency on the learned inputs times the gains that the head predicts for what comes into a unit
    and for what goes out of it; of its edit the network keeps the biases only.
    """
    if reader.variant != "strict":
        return forms.pruned(edited, [edited[n].abs() for n in (0, 2, 4)], sharpness=sharpness)
    base = forms.saliencies(states, reader.answers(states), reader.probes)
    gains = [edited[n].abs() / states[n].abs().clamp_min(1e-12) for n in (0, 2, 4)]
    scores = [score * gain for score, gain in zip(base, gains, strict=True)]
    kept = (states[0], edited[1], states[2], edited[3], states[4], states[5])
    return forms.pruned(kept, scores, sharpness=sharpness)


__all__ = ["CASES", "JOBS", "Data", "as_state", "closed_forms", "learn", "measure", "noise_like"]
