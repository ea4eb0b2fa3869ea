"""Do networks that a field writes for described tasks differ as the tasks do, and is one of them an ordinary field?"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

import symmetry
from metanet import Architecture
from metanet.errors import FieldError, TrainError
from metanet.fields import (
    DescriptorField,
    FieldSettings,
    KnotsField,
    Sampling,
    Skeletons,
    StoredField,
    Task,
    Training,
    materialise,
    open_field,
    save_field,
    sizes_of,
    train_family,
    training,
)

ARCHITECTURE = Architecture("mlp", {"inputs": 2, "widths": [12], "outputs": 2, "activation": "relu"})
SETTINGS = FieldSettings(steps=150, batch=32, rate=0.05)


def directions(*degrees: float) -> torch.Tensor:
    angle = torch.tensor(degrees).deg2rad()
    return torch.stack([angle.cos(), angle.sin()], -1)


def side_of(degrees: float) -> Training:
    """Points, and on which side of a line in some direction each lies."""
    points = torch.randn(400, 2, generator=torch.Generator().manual_seed(1))
    return Training(points, (points @ directions(degrees)[0] > 0).long())


def field_of(moves: int = 4) -> DescriptorField:
    model, example = ARCHITECTURE.build(0).eval(), ARCHITECTURE.example_inputs()
    spec = symmetry.trace(model, example)
    return DescriptorField(
        spec,
        model.state_dict(),
        Sampling("cut", "copies"),
        description=2,
        moves=moves,
        width_knots=2,
        generator=torch.Generator().manual_seed(0),
    )


def skeletons(field: DescriptorField) -> Skeletons:
    return Skeletons(ARCHITECTURE.build(0).eval(), field.spec, ARCHITECTURE.example_inputs())


@pytest.fixture(scope="module")
def trained() -> DescriptorField:
    """Lines in six directions, 60 degrees apart."""
    field = field_of()
    tasks = [Task(directions(k)[0].tolist(), side_of(k)) for k in range(0, 360, 60)]
    train_family(field, skeletons(field), tasks, SETTINGS, 0)
    return field


def right(field: DescriptorField, described: float, asked: float, share: float) -> float:
    model, sizes = ARCHITECTURE.build(0).eval(), sizes_of(field.spec, share)
    made = materialise(field.given(directions(described)[0]), model, sizes, ARCHITECTURE.example_inputs())
    data = side_of(asked)
    assert data.targets is not None
    with torch.no_grad():
        return float((made(data.inputs).argmax(1) == data.targets).float().mean())


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_unseen_tasks_are_done_at_any_width(trained: DescriptorField, share: float) -> None:
    for unseen in (30, 90, 210):
        assert right(trained, unseen, unseen, share) > 0.9
        # The network of another task: by its angle, a third of the points are on the other side.
        assert right(trained, unseen + 90, unseen, share) < 0.75


def test_one_task_is_an_ordinary_field_of_the_numbers_that_were_told(trained: DescriptorField) -> None:
    description = directions(40)[0]
    single = trained.given(description)
    assert type(single) is KnotsField
    trained.current = description
    for sizes in ({}, {"layers.0": 5}, {"layers.0": 20}):
        found, wanted = single(None, sizes), trained(None, sizes)
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    other = trained.given(directions(41)[0])()
    assert any(not torch.equal(other[name], value) for name, value in single().items())
    # It shares nothing with the family: training goes on there without moving it.
    assert not {p.data_ptr() for p in single.parameters()} & {p.data_ptr() for p in trained.parameters()}


def test_numbers_are_linear_in_the_embedding(trained: DescriptorField) -> None:
    descriptions = directions(10, 70, 200)
    told = torch.stack([trained.embedding(d) for d in descriptions])
    numbers = [trained.numbers(d) for d in descriptions]
    for (name, base), move in zip(trained.base.named_parameters(), trained.moves, strict=True):
        for row, found in zip(told, numbers, strict=True):
            wanted = base + sum(move[..., k] * row[k] for k in range(len(row)))
            assert torch.allclose(found[name], wanted, atol=1e-5)
    assert float((told[0] - told[1]).detach().abs().max()) > 0.1


@pytest.mark.parametrize("bits", [32, 8])
def test_the_family_is_kept_in_a_folder(trained: DescriptorField, bits: int, tmp_path: Path) -> None:
    given = StoredField(trained, (0.25, 1.0), ("layers.0",), ARCHITECTURE, {"seed": 0})
    opened = open_field(save_field(tmp_path / "family", given, bits)).field
    assert isinstance(opened, DescriptorField)
    one, other = (f.given(directions(25)[0])(None, {"layers.0": 7}) for f in (trained, opened))
    for name, value in one.items():
        far = float((value - other[name]).detach().abs().max() / value.detach().abs().max())
        assert far == 0 if bits == 32 else 0 < far < 0.1
    assert trained.stored == sum(value.numel() for value in trained.state_dict().values())


def test_a_resumed_run_repeats_the_whole_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "KEEP_EVERY", 10)
    tasks = [Task(directions(k)[0].tolist(), side_of(k)) for k in (0, 120)]
    settings = dataclasses.replace(SETTINGS, steps=30)

    class Stopped(Exception):
        pass

    def stop(step: int, steps: int) -> None:
        if step == 25:
            raise Stopped

    whole, cut, other = field_of(), field_of(), field_of()
    train_family(whole, skeletons(whole), tasks, settings, 3)
    with pytest.raises(Stopped):
        train_family(cut, skeletons(cut), tasks, settings, 3, tmp_path / "state", stop)
    again = field_of()
    train_family(again, skeletons(again), tasks, settings, 3, tmp_path / "state")
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))
    # Another description of the second task is another run.
    changed = [tasks[0], Task([0.0, 1.0], tasks[1].data)]
    with pytest.raises(TrainError):
        train_family(other, skeletons(other), changed, settings, 3, tmp_path / "state")


def test_refusals() -> None:
    field = field_of()
    with pytest.raises(FieldError, match="no description is given"):
        field()
    with pytest.raises(FieldError, match=r"shape \[3\]; expected 2 numbers"):
        field.given([1.0, 2.0, 3.0])
    with pytest.raises(FieldError, match="not finite"):
        field.given([1.0, float("nan")])
    with pytest.raises(FieldError, match="moves=0"):
        field_of(moves=0)
    wide = Architecture("mlp", {"inputs": 2, "widths": [300, 300], "outputs": 2, "activation": "relu"})
    with pytest.raises(FieldError, match=r"4000 moves of \d+ numbers"):
        model, spec = wide.build(0), symmetry.trace(wide.build(0).eval(), wide.example_inputs())
        DescriptorField(spec, model.state_dict(), description=2, moves=4000)
    with pytest.raises(FieldError, match="no tasks"):
        train_family(field, skeletons(field), [], SETTINGS, 0)
    tasks = [Task([1.0, 0.0], side_of(0))]
    with pytest.raises(FieldError, match="order of units"):
        train_family(field, skeletons(field), tasks, dataclasses.replace(SETTINGS, reconstruct=1.0), 0)
