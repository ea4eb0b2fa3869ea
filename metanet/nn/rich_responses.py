"""How does a network answer to inputs that nobody has measured? Its real operations, run on random smooth inputs.

The answers are functions of the function alone, so they are the same all along an orbit of the whole group.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from metanet.graph import Bucket, InputForm
from metanet.nn.rich_inputs import KINDS_OF_INPUT, probe_inputs

__all__ = ["EACH", "RESPONSES", "answers_to", "bucket_responses", "inputs_of", "summary", "SUMMARY"]

EACH = 32
"""Inputs of every kind."""
_CHUNK = 64  # networks that run together
_SINGULAR, _SHARES = 9, 5
_TINY = 1e-12

SUMMARY: tuple[str, ...] = (
    "spread over outputs", "spread over inputs", "offset", "entropy", "entropy of the mean", "information",
    "largest share", "variation of the largest share", "classes answered", "entropy of answers",
    "margin 10", "margin 50", "margin 90",
    *(f"singular value {i + 1}" for i in range(_SINGULAR)),
    *(f"share of class rank {i + 1}" for i in range(_SHARES)),
)  # fmt: skip
"""What is told of the answers to one kind of input."""

_SEEN = ("field", "blob", "stroke", "bright stroke")
_PAIRS = (("stroke", "moved stroke"), ("blob", "moved blob"), ("stroke", "noisy stroke"), ("stroke", "bright stroke"))
_CHANGE = ("agreement", "log divergence", "log change")

RESPONSES: tuple[str, ...] = (
    "runs",
    *(f"{kind}: {name}" for kind in _SEEN for name in SUMMARY),
    *(f"{one} to {two}: {name}" for one, two in _PAIRS for name in _CHANGE),
)
"""Names of all features of the answers, in order; all are 0 where the operations are not known."""


def bucket_responses(bucket: Bucket) -> Tensor:
    """The features of one bucket, computed in float64 without gradient and kept with it.

    Shapes:
        returns ``(B, len(RESPONSES))`` in float64.
    """
    return bucket.remember("rich responses", _responses)


@torch.no_grad()
def _responses(bucket: Bucket) -> Tensor:
    if bucket.program is None:
        return torch.zeros(len(bucket), len(RESPONSES), dtype=torch.float64, device=bucket.index.device)
    x = answers_to(bucket, inputs_of(bucket.program.inputs, EACH))
    kinds = dict(zip(KINDS_OF_INPUT, x.split(EACH, dim=1), strict=True))
    told = [x.new_ones(len(bucket), 1)]
    told += [summary(kinds[kind]) for kind in _SEEN]
    told += [_change(kinds[one], kinds[two]) for one, two in _PAIRS]
    return torch.cat(told, dim=1).clamp(-1e6, 1e6)


def inputs_of(forms: Sequence[InputForm], each: int) -> list[Tensor]:
    """Random smooth inputs for every input of a network; token ids become weights over the vocabulary.

    Shapes:
        returns ``(len(KINDS_OF_INPUT) * each, *form.shape)`` per form, in float64.
    """
    found = []
    for form in forms:
        x = probe_inputs(tuple(form.shape), each)
        found.append(x if form.vocabulary is None else torch.softmax(4 * x, dim=-1))
    return found


@torch.no_grad()
def answers_to(bucket: Bucket, inputs: Sequence[Tensor]) -> Tensor:
    """The answers of all networks of a bucket that knows its program, in float64; what is not finite becomes 0.

    Shapes:
        inputs: ``(n, ...)`` each. Returns ``(B, n, outputs)``: all outputs of a network behind each other.
    """
    rows = [_run(part, inputs) for part in _parts(bucket)]
    return torch.nan_to_num(torch.cat(rows), 0, 0, 0).clamp(-1e6, 1e6)


def _parts(bucket: Bucket) -> Iterator[Bucket]:
    places = torch.arange(len(bucket), device=bucket.index.device)
    for rows in places.split(_CHUNK):
        yield bucket.select(rows, rows)


def _run(bucket: Bucket, inputs: Sequence[Tensor]) -> Tensor:
    if bucket.program is None:
        raise ValueError("the bucket does not know its program")
    state = {name: value.double() if value.is_floating_point() else value for name, value in bucket.state().items()}
    given = [x.to(bucket.index.device, torch.float64) for x in inputs]
    outputs = bucket.program.run(state, given)
    return torch.cat([value.reshape(len(bucket), len(given[0]), -1).double() for value in outputs], dim=2)


def summary(x: Tensor) -> Tensor:
    """What is told of the answers to inputs of one kind.

    Shapes:
        x: ``(B, n, outputs)``; returns ``(B, len(SUMMARY))``.
    """
    if x.shape[2] == 1:  # one output is a class against nothing
        x = torch.cat([x, torch.zeros_like(x)], dim=2)
    share = x.softmax(-1)
    mean = share.mean(1)
    top = x.topk(2, dim=-1).values
    margin = top[..., 0] - top[..., 1]
    answered = torch.zeros_like(x).scatter(-1, x.argmax(-1, keepdim=True), 1.0).mean(1)
    largest = share.amax(-1)
    doubt = _entropy(share).mean(1)
    told = [
        (x.var(-1, correction=0) + _TINY).log().mean(1) / 2,
        ((x - x.mean(1, keepdim=True)).square().mean((1, 2)) + _TINY).log() / 2,
        (x.mean(1).var(-1, correction=0) + _TINY).log() / 2,
        doubt, _entropy(mean), _entropy(mean) - doubt, largest.mean(1), largest.std(1, correction=0),
        (answered > 0).to(x).mean(1), _entropy(answered),
    ]  # fmt: skip
    cuts = torch.quantile(margin, x.new_tensor([0.1, 0.5, 0.9]), dim=1).T
    centred = x - x.mean(-1, keepdim=True)
    centred = centred - centred.mean(1, keepdim=True)
    size = centred.square().sum((1, 2), keepdim=True).sqrt()
    singular = torch.linalg.svdvals(centred / (size + _TINY))
    ranks = mean.sort(-1, descending=True).values
    columns = [torch.stack(told, 1), (cuts + 1e-6).log(), _first(singular, _SINGULAR).add(1e-6).log()]
    return torch.cat([*columns, _first(ranks, _SHARES)], dim=1)


def _first(x: Tensor, count: int) -> Tensor:
    """The first columns, with zeros where there are fewer."""
    return torch.nn.functional.pad(x[:, :count], (0, max(count - x.shape[1], 0)))


def _entropy(share: Tensor) -> Tensor:
    return -(share * (share + _TINY).log()).sum(-1)


def _change(one: Tensor, two: Tensor) -> Tensor:
    """How far the answers move when the inputs do: ``(B, n, outputs)`` twice -> ``(B, len(_CHANGE))``."""
    before, after = one.log_softmax(-1), two.log_softmax(-1)
    agreement = (one.argmax(-1) == two.argmax(-1)).to(one).mean(1)
    divergence = (before.exp() * (before - after)).sum(-1).mean(1).clamp(min=0)
    size = (one - one.mean(1, keepdim=True)).square().mean((1, 2))
    change = (one - two).square().mean((1, 2)) / (size + _TINY)
    return torch.stack([agreement, (divergence + 1e-6).log(), (change + 1e-9).log() / 2], dim=1)
