"""What do the metanetworks of `quasi.py` do to networks, and how are they trained for it?

Three jobs: the average of two networks after matching, rounding of the weights, and pruning. Images are used to train a
metanetwork; an edit reads weights only. It has two stages: what the head predicts, and what is made of that on the
learned inputs (steps down a slope for the average, trained through; the best of many tries for rounding and pruning).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import quasi_forms as forms
import torch
from quasi_reader import Reader, Variant
from quasi_zoo import State, activations, divergences, kl, losses, outputs, rows
from torch import Tensor

from metanet.nn.frames import Motion
from metanet.nn.quasi_check import orbit_distance
from metanet.nn.quasi_refine import GaugeSearch
from symmetry import SymmetrySpec

Measures = dict[str, dict[str, float]]
JOBS = ("merge", "quantise", "prune")
BITS = {"quantise4": 4, "quantise8": 8}
IMAGES, CHOSEN, SHARPNESS = 192, 48, 6.0
# Tries of the search, and the deviation of the log-scales at its start: for rounding in units of the rounding step.
ROUNDS, ROUNDING_SIZE, PRUNING_SIZE = 64, 0.14, 0.1


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


def halves(states: State) -> tuple[State, State]:
    """The networks as pairs."""
    half = len(states[0]) // 2
    return rows(states, slice(0, half)), rows(states, slice(half, 2 * half))


def barrier(middle: State, a: State, b: State, data: Data) -> float:
    """Cross-entropy above the mean of both ends', mean over the pairs."""
    at = [losses(state, data.test, data.labels) for state in (middle, a, b)]
    return float((at[0] - (at[1] + at[2]) / 2).mean())


# --- what is done to networks ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pair:
    """Two matched networks, the answers of both to the learned inputs, and the elements that move each."""

    a: State
    b: State
    answers: tuple[list[Tensor], list[Tensor]]
    alphas: tuple[list[Motion], list[Motion]]

    def middle(self, reader: Reader) -> State:
        """The average of both after the edit."""
        return forms.averaged(*(reader.edit(s, m) for s, m in zip((self.a, self.b), self.alphas, strict=True)))


def paired(reader: Reader, a: State, b: State, refine: bool = True) -> Pair:
    """Match two networks on the learned inputs, predict an edit of each, and go on with steps down the KL there."""
    answers_a, answers_b = reader.answers(a), reader.answers(b)
    with torch.no_grad():  # the matching is a constant
        order = forms.match_answers(a, b, answers_a, answers_b)
    b = forms.permuted(b, *order)
    index = torch.arange(len(a[0]))[:, None, None], torch.arange(len(reader.probes))[None, :, None]
    answers_b = [h[(*index, o[:, None])] for h, o in zip(answers_b, order, strict=False)] + answers_b[2:]
    x, y = reader.features(a, answers_a), reader.features(b, answers_b)

    def split(alphas: Sequence[Motion]) -> tuple[list[Motion], list[Motion]]:
        half = len(alphas) // 2
        return ([*alphas], [~m for m in alphas]) if reader.variant == "quasi" else ([*alphas[:half]], [*alphas[half:]])

    def loss(alphas: Sequence[Motion]) -> Tensor:
        logits = outputs(Pair(a, b, (answers_a, answers_b), split(alphas)).middle(reader), reader.probes)
        return kl(answers_a[2], logits) + kl(answers_b[2], logits)

    alphas = reader.alphas(x, y)
    if reader.variant != "quasi":
        alphas += reader.alphas(y, x)
    if refine:
        alphas = reader.descent(alphas, loss)
    return Pair(a, b, (answers_a, answers_b), split(alphas))


def rounded(reader: Reader, states: State, alphas: Sequence[Motion], bits: int) -> State:
    """The edited networks, rounded."""
    return forms.quantised(reader.edit(states, alphas), bits)


def pruned(reader: Reader, states: State, alphas: Sequence[Motion], sharpness: float | None = None) -> State:
    """Half of the weights removed: by magnitude in the predicted gauge, or ("strict") by an invariant score.

    The score is the saliency on the learned inputs times the gains that the head predicts for what comes into a unit
    and for what goes out of it; of its edit the network keeps the biases only.
    """
    edited = reader.edit(states, alphas)
    if reader.variant != "strict":
        return forms.pruned(edited, [edited[n].abs() for n in (0, 2, 4)], sharpness=sharpness)
    base = forms.saliencies(states, reader.answers(states), reader.probes)
    gains = [edited[n].abs() / states[n].abs().clamp_min(1e-12) for n in (0, 2, 4)]
    scores = [score * gain for score, gain in zip(base, gains, strict=True)]
    kept = (states[0], edited[1], states[2], edited[3], states[4], states[5])
    return forms.pruned(kept, scores, sharpness=sharpness)


def searched(
    reader: Reader, states: State, edit: Callable[[Sequence[Motion]], State], size: float, rounds: int = ROUNDS
) -> list[Motion]:
    """The best of many edits near the predicted one, by the KL on the learned inputs."""
    answers = reader.answers(states)
    features = reader.features(states, answers)
    # Differences between the units of a network, so that draws are independent for each and permutations carry them.
    apart = [(x - x.mean(1, keepdim=True)) / (x.std(1, keepdim=True) + 1e-3) for x in features]
    search = GaugeSearch(rounds, size)
    return search(
        reader.alphas(features),
        lambda alphas: kl(answers[2], outputs(edit(alphas), reader.probes)),
        dict(zip(reader.names, apart, strict=True)),
    )


# --- training -------------------------------------------------------------------------------------------------------


def learn(
    job: str,
    variant: Variant,
    data: Data,
    seed: int,
    steps: int,
    progress: Callable[[int], None],
    refine: bool = True,
) -> Reader:
    """Train a metanetwork for a job; ``refine``: where networks are merged, through the second stage."""
    reader = Reader(data.spec, variant, data.start, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    rates = {"probes": 1e-2, "descent.log_sizes": 2e-2}
    groups = [{"params": [p], "lr": rates.get(name, 2e-3)} for name, p in reader.named_parameters()]
    optimiser = torch.optim.AdamW(groups, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    loss = {"merge": partial(_merge_loss, refine=refine), "quantise": _rounding_loss, "prune": _pruning_loss}[job]
    for _ in range(steps):
        chosen = rows(data.states, torch.randperm(data.training, generator=generator)[:CHOSEN])
        x = data.images[torch.randint(len(data.images), (IMAGES,), generator=generator)]
        value = loss(reader, chosen, x, generator)
        optimiser.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(reader.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        progress(1)
    return reader


def _merge_loss(reader: Reader, chosen: State, x: Tensor, generator: torch.Generator, refine: bool) -> Tensor:
    """log KL between both ends and their average, and how well learned inputs stand for images in the matching."""
    pair = paired(reader, *halves(chosen), refine=refine)
    real = activations(pair.a, x), activations(pair.b, x)
    middle = outputs(pair.middle(reader), x)
    ends = (kl(real[0][2], middle) + kl(real[1][2], middle)) / 2
    return (ends + 0.01).log().mean() + 0.1 * _moments(pair, real)


def _moments(pair: Pair, real: tuple[list[Tensor], list[Tensor]]) -> Tensor:
    """Relative error of the similarity of units on learned inputs, against that on images."""
    total = torch.zeros(())
    for layer in range(2):
        found = []
        for answers in (pair.answers, real):
            u, v = (forms.contributions(s, h)[layer] for s, h in zip((pair.a, pair.b), answers, strict=True))
            found.append(torch.einsum("nioh,niok->nhk", u, v) / u.shape[1])
        error = (found[0] - found[1]).square().sum((1, 2)) / found[1].square().sum((1, 2)).clamp_min(1e-12)
        total = total + error.mean()
    return total


def _rounding_loss(reader: Reader, chosen: State, x: Tensor, generator: torch.Generator) -> Tensor:
    """log KL at 4 and at 8 bits; rounding errors are drawn at random, which is smooth in the weights and the step."""
    alphas = reader.alphas(reader.features(chosen, reader.answers(chosen)))
    edited = reader.edit(chosen, alphas)
    before = outputs(chosen, x)
    total = _judgement(reader, chosen, x, alphas, lambda m: rounded(reader, chosen, m, 4), 0.02, generator)
    for bits in BITS.values():
        noisy = list(edited)
        for number in (0, 2, 4):
            step = edited[number].abs().amax((1, 2), keepdim=True) / (2 ** (bits - 1) - 1)
            noisy[number] = edited[number] + step * (torch.rand(edited[number].shape, generator=generator) - 0.5)
        total = total + (kl(before, outputs(tuple(noisy), x)).clamp_min(0) + 1e-6).log().mean()
    return total


def _pruning_loss(reader: Reader, chosen: State, x: Tensor, generator: torch.Generator) -> Tensor:
    """log KL after pruning, with a slope through the threshold."""
    alphas = reader.alphas(reader.features(chosen, reader.answers(chosen)))
    after = outputs(pruned(reader, chosen, alphas, SHARPNESS), x)
    judged = _judgement(reader, chosen, x, alphas, lambda m: pruned(reader, chosen, m), PRUNING_SIZE, generator)
    return (kl(outputs(chosen, x), after).clamp_min(0) + 1e-3).log().mean() + judged


def _judgement(
    reader: Reader,
    chosen: State,
    x: Tensor,
    alphas: Sequence[Motion],
    edit: Callable[[Sequence[Motion]], State],
    size: float,
    generator: torch.Generator,
) -> Tensor:
    """Do learned inputs say, like images, which of two edits is the better one, and by how much? Trains them alone."""
    told = []
    for _ in range(2):
        with torch.no_grad():
            tried = [
                reader.motion([log + size * torch.randn(log.shape, generator=generator) for log in reader.logs(alpha)])
                for alpha in alphas
            ]
            after = edit(tried)
        told.append([(kl(outputs(chosen, p), outputs(after, p)) + 1e-6).log() for p in (reader.probes, x)])
    (here, there), (other_here, other_there) = told
    return ((here - other_here) - (there - other_there)).square().mean()


# --- measuring ------------------------------------------------------------------------------------------------------


@torch.no_grad()
def measure(job: str, reader: Reader, data: Data, refine: bool = True) -> Measures:
    """Results on networks that were not trained on, by case; without ``refine`` those of the head alone."""
    states = data.unseen()
    if job == "merge":
        pair = paired(reader, *halves(states), refine=refine)
        sides = [_facts(reader, s, m, data) for s, m in zip((pair.a, pair.b), pair.alphas, strict=True)]
        facts = {name: (sides[0][name] + sides[1][name]) / 2 for name in sides[0]}
        return {"merge": {"barrier": barrier(pair.middle(reader), pair.a, pair.b, data), **facts}}
    found: Measures = {}
    cases = BITS if job == "quantise" else {"prune50": 0}
    for case, bits in cases.items():

        def edit(alphas: Sequence[Motion], bits: int = bits) -> State:
            return rounded(reader, states, alphas, bits) if bits else pruned(reader, states, alphas)

        size = ROUNDING_SIZE / (2 ** (bits - 1) - 1) if bits else PRUNING_SIZE
        alphas = searched(reader, states, edit, size, ROUNDS if refine else 0)
        facts = _facts(reader, states, alphas, data)
        found[case] = {"kl": float(divergences(states, edit(alphas), data.test).mean()), **facts}
    return found


def _facts(reader: Reader, states: State, alphas: Sequence[Motion], data: Data) -> dict[str, float]:
    """What the edit does to the networks before the job: to their functions, and how far from the orbit it ends."""
    facts = {"edit_kl": float(divergences(states, reader.edit(states, alphas), data.test).mean())}
    if reader.variant != "strict":
        with torch.enable_grad():
            facts["defect"] = float(orbit_distance(reader.record(states, alphas), steps=20)[0].mean())
    return facts | {"parameters": float(sum(p.numel() for p in reader.parameters()))}
