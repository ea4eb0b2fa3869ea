"""Does training do what each of its parts promises, resume bit by bit, and refuse what cannot be learned?"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import metanet
from metanet.errors import FieldError, TrainError
from metanet.fields import (
    FieldSettings,
    KnotsField,
    Recipe,
    Sampling,
    Skeletons,
    Training,
    certify,
    distil,
    estimate,
    materialise,
    sizes_of,
    train,
)
from metanet.fields.distil import _mixed
from metanet.fields.losses import divergence, reconstruction, task_loss
from metanet.morph import recalibrate

OPTIONS = {"channels": 1, "size": 6, "widths": [6, 6], "outputs": 3, "activation": "relu", "norm": "batch"}
CNN = metanet.Architecture("cnn", OPTIONS)
SETTINGS = FieldSettings(steps=60, batch=32, rate=0.05)


def data(count: int = 200) -> tuple[Tensor, Tensor]:
    """Stripes along one axis, along the other, or none, in noise."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (count,), generator=generator)
    waves = torch.tensor([1.0, -1.0]).repeat(3)
    patterns = torch.stack([waves[:, None].expand(6, 6), waves[None].expand(6, 6), torch.zeros(6, 6)])
    return patterns[labels][:, None] + 0.5 * torch.randn(count, 1, 6, 6, generator=generator), labels


INPUTS, LABELS = data()
EXAMPLE = CNN.example_inputs()


@pytest.fixture(scope="module")
def spec() -> metanet.symmetry.SymmetrySpec:
    import symmetry

    return symmetry.trace(CNN.build(0).eval(), EXAMPLE)


def fresh(spec: object) -> tuple[KnotsField, Skeletons]:
    model = CNN.build(0).eval()
    generator = torch.Generator().manual_seed(0)
    field = KnotsField(spec, model.state_dict(), Sampling("cut", "copies"), width_knots=3, generator=generator)
    return field, Skeletons(model, spec, EXAMPLE)


def right(field: KnotsField, skeletons: Skeletons, width: float, estimated: bool = False) -> float:
    made = materialise(field, skeletons.model, sizes_of(field.spec, width), EXAMPLE)
    if estimated:
        recalibrate(made, [(INPUTS,)])
    with torch.no_grad():
        return float((made(INPUTS).argmax(1) == LABELS).float().mean())


@pytest.fixture(scope="module")
def trained(spec: object) -> tuple[KnotsField, Skeletons]:
    field, skeletons = fresh(spec)
    train(field, skeletons, Training(INPUTS, LABELS), SETTINGS, 0)
    return field, skeletons


def test_every_width_learns_and_statistics_come_with_the_field(trained: tuple[KnotsField, Skeletons]) -> None:
    field, skeletons = trained
    before = [right(field, skeletons, width) for width in (0.5, 1.0)]
    assert estimate(field, skeletons, [(INPUTS,)]) == 3
    for width in (0.25, 0.625, 1.0):  # where the tables have statistics of their own
        assert right(field, skeletons, width) == right(field, skeletons, width, estimated=True)
    assert right(field, skeletons, 1.0) > 0.9 > before[1]
    assert right(field, skeletons, 0.5, estimated=True) > 0.8
    # 2, 4 and 6 units: those that the narrower network does not have keep the statistics of the next wider one.
    table = field.parts[field.statistics()[-1].key].get_buffer("table")
    assert torch.equal(table[0, 2:4], table[1, 2:4])
    assert torch.equal(table[:2, 4:], table[2:, 4:].expand(2, 2))
    assert not torch.equal(table[0, :2], table[1, :2])
    assert not torch.equal(table[1, :4], table[2, :4])


def test_a_resumed_run_is_the_uninterrupted_one(spec: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = replace(SETTINGS, steps=16, noise=0.5, separate=True, average=0.9)
    told = Training(INPUTS, LABELS)
    whole, skeletons = fresh(spec)
    train(whole, skeletons, told, settings, 3)
    monkeypatch.setattr("metanet.fields.training.KEEP_EVERY", 5)

    def stop(done: int, total: int) -> None:
        if done == 12:
            raise KeyboardInterrupt

    state_file = tmp_path / "state.safetensors"
    with pytest.raises(KeyboardInterrupt):
        train(fresh(spec)[0], skeletons, told, settings, 3, state_file, stop)
    resumed, steps = fresh(spec)[0], []
    train(resumed, skeletons, told, settings, 3, state_file, lambda done, total: steps.append(done))
    assert steps[0] == 11
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), resumed.state_dict().values()))
    other, _ = fresh(spec)
    train(other, skeletons, told, settings, 4)
    assert not torch.equal(next(other.parameters()), next(whole.parameters()))
    with pytest.raises(TrainError, match="another configuration"):
        train(fresh(spec)[0], skeletons, told, settings, 4, state_file)


def test_parts_of_the_loss_pull_where_they_should(spec: object) -> None:
    teacher = CNN.build(1).eval()
    told = Training(INPUTS, LABELS, teacher)

    def distances(**options: float) -> tuple[float, float, float]:
        field, skeletons = fresh(spec)
        settings = replace(SETTINGS, steps=30, lowest=False, random=0, task=0.2, **options)
        train(field, skeletons, told, settings, 0)
        with torch.no_grad():
            state = field()
            output = skeletons.run(state, {}, (INPUTS,), train=True)
            weights = [piece.tensor for piece in field.layout.pieces if piece.weighs]
            far = float(reconstruction(state, teacher.state_dict(), weights))
            size = sum(float(state[name].square().sum()) for name in weights)
            return far, float(divergence(output, teacher(INPUTS), True)), size

    plain = distances()
    assert distances(reconstruct=10.0, reconstruct_until=1.0)[0] < 0.5 * plain[0]
    assert distances(distil=5.0)[1] < 0.5 * plain[1]
    assert distances(regularise=10.0)[2] < 0.8 * plain[2]


def test_losses_are_what_they_say() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(5, 3, generator=generator), torch.randn(5, 3, generator=generator)
    p, q = b.softmax(1), a.softmax(1)
    assert torch.allclose(divergence(a, b, True), (p * (p / q).log()).sum(1).mean())
    assert float(divergence(b, b, False)) == 0
    assert torch.allclose(task_loss(a, b), (a - b).square().mean())


def test_a_network_becomes_a_field(spec: metanet.symmetry.SymmetrySpec) -> None:
    model = CNN.build(0).eval()
    recalibrate(model, [(INPUTS,)])
    recipe = Recipe(settings=FieldSettings(steps=3, batch=16, rate=1e-6, task=0.0, distil=1.0), order="smooth")
    stored = distil(model, spec, EXAMPLE, Training(INPUTS), recipe, CNN)
    before, after = stored.record["variation"]
    assert after < before
    found = certify(stored, model, EXAMPLE, INPUTS, LABELS, [0.5, 1.0], "stripes")
    # Hardly trained: at full width the network itself, at half something else.
    assert found["1"].preservation.kl < 1e-6 < 1e-3 < found["0.5"].preservation.kl
    assert found["0.5"].after["parameters"] < found["0.5"].before["parameters"]


def test_mixed_inputs_lie_between_two_of_them(spec: metanet.symmetry.SymmetrySpec) -> None:
    inputs = torch.eye(5)
    found = _mixed(inputs, 2, torch.Generator().manual_seed(0))
    assert found.shape == (15, 5)
    assert torch.equal(found[:5], inputs)
    assert torch.allclose(found.sum(1), torch.ones(15))
    assert bool(((found > 0).sum(1) <= 2).all())
    assert bool(((found[5:] > 0).sum(1) == 2).any())
    assert torch.equal(_mixed(inputs.long(), 2, torch.Generator()), inputs.long())
    # They are taught on, and not where there are targets to learn.
    model = CNN.build(0).eval()
    weights = []
    for mixed, task in ((0, 0.0), (2, 0.0), (0, 1.0), (2, 1.0)):
        recipe = Recipe(settings=FieldSettings(steps=2, batch=16, task=task, distil=1.0), mixed=mixed)
        weights.append(distil(model, spec, EXAMPLE, Training(INPUTS, LABELS), recipe).field()["head.weight"])
    assert not torch.equal(weights[0], weights[1])
    assert torch.equal(weights[2], weights[3])


def test_refusals(spec: object) -> None:
    field, skeletons = fresh(spec)
    for told, settings, message in (
        (Training(INPUTS[:0], LABELS[:0]), SETTINGS, "no inputs"),
        (Training(INPUTS, LABELS[:5]), SETTINGS, "5 targets for 200 inputs"),
        (Training(INPUTS, LABELS), replace(SETTINGS, distil=1.0), "need a teacher"),
        (Training(INPUTS), SETTINGS, "nothing says what is right"),
        (Training(INPUTS * float("inf"), LABELS), SETTINGS, "not finite at step 0"),
    ):
        with pytest.raises(FieldError, match=message):
            train(field, skeletons, told, settings, 0)
    for options in (
        {"steps": 0},
        {"low": 0.0},
        {"low": 2.0},
        {"own": 1.5},
        {"full": False, "lowest": False, "random": 0},
    ):
        with pytest.raises(FieldError):
            FieldSettings(**options)  # type: ignore[arg-type]
    with pytest.raises(FieldError, match="mixed=-1"):
        Recipe(mixed=-1)
    assert FieldSettings.from_json(SETTINGS.to_json()) == SETTINGS
    with pytest.raises(FieldError, match="unknown setting 'stepz'"):
        FieldSettings.from_json({"stepz": 3})
