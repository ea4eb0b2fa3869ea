"""Does each switch of a field's training do what it says? Runs of a few steps, beside what they must come to."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import symmetry
from metanet.fields import FieldSettings, KnotsField, Sampling, Skeletons, Training, train
from metanet.fields.losses import divergence, task_loss
from metanet.fields.training import Run, one_cycle

SETTINGS = FieldSettings(steps=4, batch=8, rate=0.05)
INPUTS = torch.randn(40, 5, generator=torch.Generator().manual_seed(1))
LABELS = torch.randint(3, (40,), generator=torch.Generator().manual_seed(2))


def network(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3)).eval()


MODEL = network()
SPEC = symmetry.trace(MODEL, (INPUTS[:4],))


def run(told: Training | None = None, **options: Any) -> tuple[KnotsField, list[dict[str, Any]], list[Tensor]]:
    """The field, the history, and the first parameter after every step."""
    field = KnotsField(SPEC, MODEL.state_dict(), Sampling("cut", "copies"), start="fit")
    seen: list[Tensor] = []

    def look(done: int, total: int) -> None:
        seen.append(next(field.parameters()).detach().clone())

    data = told or Training(INPUTS, LABELS)
    history = train(field, Skeletons(MODEL, SPEC, (INPUTS[:4],)), data, replace(SETTINGS, **options), 0, None, look)
    return field, history, seen


def sizes(**options: Any) -> list[list[dict[str, int]]]:
    field = KnotsField(SPEC, MODEL.state_dict())
    made = Run(field, Skeletons(MODEL, SPEC, ()), Training(INPUTS, LABELS), replace(SETTINGS, **options), 0)
    return [made._widths() for _ in range(40)]


def test_the_rate_is_one_cycle() -> None:
    for progress, rate in ((0.0, 0.04), (0.125, 0.52), (0.25, 1.0), (0.625, 0.50005), (1.0, 1e-4)):
        assert one_cycle(progress, 1.0) == pytest.approx(rate)


def test_widths_of_a_step() -> None:
    full, low = {"0": 8, "2": 6}, {"0": 4, "2": 3}
    told = sizes(low=0.5, random=2)
    assert all(step[:2] == [full, low] for step in told)
    drawn = [each for step in told for each in step[2:]]
    assert {len(step) for step in told} == {4}
    assert {each["0"] for each in drawn} == {4, 5, 6, 7, 8}
    # One share for all spaces, or one for each.
    assert all(abs(each["0"] / 8 - each["2"] / 6) <= 0.5 / 8 + 0.5 / 6 for each in drawn)
    apart = [each for step in sizes(low=0.5, random=2, separate=True) for each in step[2:]]
    assert any(each["0"] == 8 and each["2"] == 3 for each in apart)
    assert {len(step) for step in sizes(low=0.5, random=0, lowest=False)} == {1}
    assert all(step == [low] for step in sizes(low=0.5, random=0, full=False))
    assert all(step == [full] for step in sizes(low=1.0, random=0))


def test_the_average_is_of_the_second_half() -> None:
    field, _, seen = run(average=0.75, steps=6)
    wanted = seen[3]
    for each in seen[4:]:
        wanted = 0.75 * wanted + 0.25 * each
    assert torch.allclose(next(field.parameters()), wanted, atol=1e-6)
    assert not torch.allclose(wanted, seen[-1], atol=1e-4)
    plain, _, _ = run(steps=6)
    assert torch.equal(next(plain.parameters()), seen[-1])


def test_gradients_are_clipped() -> None:
    # Adam divides by gradients: only those far below its epsilon stay small.
    moved = {clip: float((run(clip=clip)[2][0] - run(clip=clip, rate=1e-9)[2][0]).abs().max()) for clip in (0.0, 1e-14)}
    assert moved[1e-14] < 1e-6 < 1e-4 < moved[0.0]


def test_the_own_network_teaches_the_others_and_only_them() -> None:
    _, history, _ = run(own=1.0, steps=1, random=0, batch=40)
    rows = torch.randint(40, (40,), generator=torch.Generator().manual_seed(0))
    field = KnotsField(SPEC, MODEL.state_dict(), Sampling("cut", "copies"), start="fit")
    skeletons = Skeletons(MODEL, SPEC, (INPUTS[:4],))
    with torch.no_grad():
        wide, narrow = (
            skeletons.run(field(None, each), each, (INPUTS[rows],), train=True) for each in ({}, {"0": 2, "2": 2})
        )
    assert history[0]["task"] == pytest.approx(float(task_loss(wide, LABELS[rows])), rel=1e-5)
    assert history[0]["own"] == pytest.approx(float(divergence(narrow, wide, True)), rel=1e-5)
    # With less of it, targets teach the narrow one too.
    part = run(own=0.5, steps=1, random=0, batch=40)[1]
    assert part[0]["task"] == pytest.approx(
        float(task_loss(wide, LABELS[rows]) + task_loss(narrow, LABELS[rows])), rel=1e-5
    )
    # There is nothing to teach where full width is not in the step.
    assert "own" not in run(own=0.5, full=False)[1][0]


def test_the_distance_to_the_teacher_falls_to_nothing() -> None:
    teacher = network(1)
    with torch.no_grad():
        teacher[4].bias.zero_()  # no size to measure a distance by
    told = Training(INPUTS, LABELS, teacher)
    _, history, _ = run(told, reconstruct=1.0, steps=4, reconstruct_until=0.5)
    assert "reconstruct" in history[0]
    assert "reconstruct" not in history[-1]
    assert "reconstruct" in run(told, reconstruct=1.0, steps=4, reconstruct_until=1.0)[1][-1]
    wanted = teacher.state_dict()
    state = MODEL.state_dict()
    parts = [
        float((state[name] - wanted[name]).square().mean() / wanted[name].square().mean())
        for name in state
        if name != "4.bias"
    ]
    assert history[0]["reconstruct"] == pytest.approx(sum(parts) / len(parts), rel=1e-4)


def test_small_weights_of_losses_change_little() -> None:
    """Each weight scales its loss: a tiny one is as good as none, a large one is not."""
    teacher = Training(INPUTS, LABELS, network(1))
    options = {"random": 0, "steps": 2}
    plain = run(teacher, **options)[2][-1]
    for name in ("regularise", "reconstruct", "distil", "own", "decay"):
        tiny, large = (run(teacher, **options, **{name: value})[2][-1] for value in (1e-7, 1.0))
        assert torch.allclose(plain, tiny, atol=1e-4), name
        assert not torch.allclose(plain, large, atol=1e-3), name
    assert math.isfinite(float(plain.sum()))
