"""Does a comparison see no difference where there is none, every difference where there is one, and touch nothing?"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metanet.errors import ScoreError
from metanet.score import Preservation, compare
from symmetry import SymmetrySpec
from symmetry.verify import generic_state
from tests.symmetry import families, models

SUBJECTS = {subject.name: subject for subject in (*models.SUBJECTS, *families.FACTS)}
FAMILIES = (
    "mlp relu",
    "mlp sin",
    "conv, batch norm",
    "resnet",
    "group norm, depthwise",
    "encoder layer",
    "lstm",
    "swiglu",
    "actor and critic",
)
# Matrices act on what these give out: only whitened features are the same afterwards.
MATRICES = ("lora", "deep linear")


@cache
def moved(name: str) -> tuple[nn.Module, dict[str, Tensor], dict[str, Tensor], Tensor, SymmetrySpec]:
    """A network in general position, the same under a random element of its whole group, and inputs."""
    subject = SUBJECTS[name]
    model, _, spec = models.traced(subject)
    generator = torch.Generator().manual_seed(3)
    state = generic_state(spec, model.state_dict(keep_vars=True), generator)
    inputs = torch.randn(40, *subject.shape[1:], generator=generator, dtype=torch.float64)
    return model, state, spec.act(spec.sample(generator), state), inputs, spec


@pytest.mark.parametrize("name", FAMILIES + MATRICES)
def test_an_element_of_the_group_changes_nothing(name: str) -> None:
    model, state, acted, inputs, _ = moved(name)
    features = "whitened" if name in MATRICES else "standard"
    found = compare(
        (model, state),
        (model, acted),
        inputs,
        kind="classes" if name != "actor and critic" else "auto",
        features=features,
        batch=40,
    )
    assert found.verdict == "exact", str(found)
    assert found.error < 1e-12
    assert found.agreement == 1.0
    assert found.kl is not None
    assert found.kl < 1e-12
    assert found.layers
    assert all(abs(layer.cka.value - 1.0) < 1e-9 for layer in found.layers), str(found)


@pytest.mark.parametrize("name", FAMILIES + MATRICES)
def test_one_tensor_left_as_it_was_is_seen(name: str) -> None:
    model, state, acted, inputs, spec = moved(name)
    # The tensor that moved most: negative control for every family.
    own = [key for key, info in spec.tensors.items() if info.tied_to is None]
    key = max(
        own, key=lambda key: float((acted[key] - state[key]).abs().max()) if acted[key].is_floating_point() else 0
    )
    names = {key, *(other for other, info in spec.tensors.items() if info.tied_to == key)}
    found = compare((model, state), (model, {k: state[k] if k in names else v for k, v in acted.items()}), inputs)
    assert found.verdict == "approximate"
    assert found.error > 1e-3


def test_noise_moves_every_measure_one_way(pair: tuple[nn.Module, nn.Module, Tensor, Tensor]) -> None:
    a, _, inputs, labels = pair
    generator = torch.Generator().manual_seed(1)
    noise = {k: torch.randn(v.shape, generator=generator) for k, v in a.state_dict().items()}
    found = []
    for size in (0.0, 1e-6, 1e-3, 0.03, 0.3):
        state = {k: v + size * noise[k] for k, v in a.state_dict().items()}
        found.append(compare(a, (a, state), inputs, labels))
    for name in ("max_error", "error", "relative_l2", "kl"):
        values = [getattr(one, name) for one in found]
        assert values == sorted(values), name
        assert values[0] < 1e-15 < values[1]
    assert [one.agreement for one in found] == sorted((one.agreement for one in found), reverse=True)
    similar = [one.layers[-1].cka.value for one in found]
    assert similar == sorted(similar, reverse=True)
    assert similar[0] == pytest.approx(1.0, abs=1e-12)
    assert similar[-1] < 0.99
    assert [one.verdict for one in found] == ["exact", *["approximate"] * 4]


def test_symmetric_where_it_should_be(pair: tuple[nn.Module, nn.Module, Tensor, Tensor]) -> None:
    a, b, inputs, labels = pair
    for given in (labels, None):
        one, two = compare(a, b, inputs, given), compare(b, a, inputs, given)
        assert one.max_error == two.max_error
        assert one.agreement == two.agreement
        assert one.main.kl == two.main.kl_reverse
        assert one.main.kl_symmetric == two.main.kl_symmetric
        assert one.kl != two.kl
        assert [layer.cka.value for layer in one.layers] == pytest.approx([layer.cka.value for layer in two.layers])
        assert one.barrier == pytest.approx(two.barrier, rel=1e-9, abs=1e-12)
        if given is not None:
            assert one.accuracy_change == -two.accuracy_change  # type: ignore[operator]


def test_measures_against_their_definitions(pair: tuple[nn.Module, nn.Module, Tensor, Tensor]) -> None:
    a, b, inputs, labels = pair
    found = compare(a, b, inputs, labels, batch=64).main
    with torch.no_grad():
        x, y = (model.double()(inputs.double()) for model in (models.seeded(lambda: a), models.seeded(lambda: b)))
    a.float(), b.float()
    p, q = x.softmax(1), y.softmax(1)
    assert found.max_error == pytest.approx(float((x - y).abs().max()))
    assert found.worst == int((x - y).abs().amax(1).argmax())
    assert found.spread == pytest.approx(float((x - x.mean(0)).square().mean().sqrt()))
    assert found.relative_l2.value == pytest.approx(float((x - y).norm() / x.norm()))
    assert found.kl is not None
    assert found.kl.value == pytest.approx(float((p * (p / q).log()).sum(1).mean()))
    assert found.agreement is not None
    assert found.agreement.value == pytest.approx(float((x.argmax(1) == y.argmax(1)).double().mean()))
    assert found.accuracy == pytest.approx([float((v.argmax(1) == labels).double().mean()) for v in (x, y)])
    assert found.loss == pytest.approx([float(nn.functional.cross_entropy(v, labels)) for v in (x, y)])


def test_line_against_the_barrier_of_symmetry(pair: tuple[nn.Module, nn.Module, Tensor, Tensor]) -> None:
    import symmetry

    a, b, inputs, labels = pair
    found = compare(a, b, inputs, labels, layers=None, resamples=0)
    expected = symmetry.barrier(a, a.state_dict(), b.state_dict(), [((inputs,), labels)], points=5)
    assert found.line is not None
    assert found.line.losses == pytest.approx(expected.losses, rel=1e-5)
    assert found.barrier == pytest.approx(expected.highest, abs=1e-6)
    # Other shapes and other functions of the same shapes have no line between them.
    wider = models.mlp([6, 13, 9, 4], torch.relu)
    other = models.mlp([6, 12, 9, 4], torch.tanh)
    assert compare(a, wider, inputs, layers=None, resamples=0).line is None
    assert compare(a, other, inputs, layers=None, resamples=0).line is None


class Everything(nn.Module):
    """Several outputs, two inputs, a buffer that running changes, hooks of the user's own, dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 8), nn.Linear(8, 4)
        self.drop, self.norm = nn.Dropout(0.5), nn.BatchNorm1d(8)
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor, shift: Tensor) -> dict[str, Any]:
        self.calls += 1
        h = self.drop(self.norm(torch.relu(self.first(x) + shift)))
        logits = self.second(h)
        return {"logits": logits, "hidden": h, "class": logits.argmax(1), "scale": torch.ones(3), "name": "x"}


def test_many_outputs_and_nothing_is_touched() -> None:
    model = models.seeded(Everything)
    other = models.seeded(Everything, 1)
    model.train()
    model.drop.eval()
    heard: list[int] = []
    handle = model.first.register_forward_hook(lambda *_: heard.append(1))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    inputs = {"shift": torch.randn(30, 8, generator=generator), "x": torch.randn(30, 3, generator=generator)}
    drawn = torch.random.get_rng_state()
    found = compare(model, other, inputs)
    assert [output.name for output in found.outputs] == ["logits", "hidden", "class"]
    assert [output.kind for output in found.outputs] == ["classes", "values", "decisions"]
    assert any("scale" in note for note in found.notes)
    assert found.outputs[2].agreement.value == found.agreement  # type: ignore[union-attr]
    read = compare(model, other, inputs, kind={"hidden": "classes"})
    assert [output.kind for output in read.outputs] == ["classes", "classes", "decisions"]
    with pytest.raises(ScoreError, match="does not run"):
        compare(model, other, {"x": torch.zeros(30, 4), "shift": inputs["shift"]})
    assert model.training
    assert not model.drop.training
    assert model.norm.training
    assert all(torch.equal(before[k], v) and v.dtype == before[k].dtype for k, v in model.state_dict().items())
    assert len(model.first._forward_hooks) == 1
    assert len(model.second._forward_hooks) == 0
    assert torch.equal(drawn, torch.random.get_rng_state())
    handle.remove()


def test_answers_that_are_no_numbers_are_reported(pair: tuple[nn.Module, nn.Module, Tensor, Tensor]) -> None:
    a, _, inputs, labels = pair

    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = a

        def forward(self, x: Tensor) -> Tensor:
            return torch.where(x[:, :1] > 1.5, torch.nan, self.net(x))

    count = int((inputs[:, 0] > 1.5).sum())
    assert count > 3
    found = compare(a, Broken(), inputs, labels, layers=None)
    assert found.verdict == "not finite"
    assert found.main.not_finite == (0, count)
    assert found.kl == math.inf
    assert found.agreement == pytest.approx(1 - count / 200)
    assert found.main.accuracy is not None
    assert found.main.accuracy[1] < found.main.accuracy[0]
    assert found.main.kl is not None
    assert found.main.kl.low is None
    assert Preservation.from_json(json.loads(json.dumps(found.to_json(), allow_nan=False))) == found


def test_masked_classes_are_no_error(pair: tuple[nn.Module, nn.Module, Tensor, Tensor]) -> None:
    a, b, inputs, _ = pair

    class Masked(nn.Module):
        def __init__(self, net: nn.Module) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x).masked_fill(torch.tensor([False, False, True, False]), -torch.inf)

    same = compare(Masked(a), Masked(a), inputs)
    assert same.verdict == "exact"
    assert same.kl == 0
    other = compare(Masked(a), Masked(b), inputs)
    assert other.main.not_finite == (0, 0)
    assert 0 < other.kl < math.inf  # type: ignore[operator]


def test_json_and_text(pair: tuple[nn.Module, nn.Module, Tensor, Tensor]) -> None:
    a, b, inputs, labels = pair
    for given in (labels, None):
        found = compare(a, b, inputs, given, origin="200 normal draws")
        assert Preservation.from_json(json.loads(json.dumps(found.to_json(), allow_nan=False))) == found
        text = str(found)
        assert "approximate" in text
        assert "200 normal draws" in text
        assert "barrier" in text
    with pytest.raises(ScoreError, match="no preservation"):
        Preservation.from_json({"format": "other"})
    damaged = found.to_json()
    damaged["outputs"] = [{}]
    with pytest.raises(ScoreError, match="damaged"):
        Preservation.from_json(damaged)


KINDS: list[tuple[str, Callable[[], nn.Module], Tensor | None, str]] = [
    ("regression", lambda: models.mlp([6, 8, 1], torch.tanh), None, "values"),
    ("targets", lambda: models.mlp([6, 8, 3], torch.tanh), torch.zeros(50, 3), "values"),
    ("one logit", lambda: models.mlp([6, 8, 1], torch.tanh), torch.arange(50) % 2, "binary"),
    ("softmax inside", lambda: nn.Sequential(nn.Linear(6, 3), nn.Softmax(1)), torch.arange(50) % 3, "probabilities"),
    ("logits", lambda: models.mlp([6, 8, 3], torch.tanh), torch.arange(50) % 3, "classes"),
]


@pytest.mark.parametrize(("name", "build", "labels", "kind"), KINDS, ids=[case[0] for case in KINDS])
def test_kinds_of_output(name: str, build: Callable[[], nn.Module], labels: Tensor | None, kind: str) -> None:
    inputs = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    one, two = models.seeded(build), models.seeded(build, 1)
    found = compare(one, two, inputs, labels).main
    assert found.kind == kind
    assert (found.kl is None) == (kind == "values")
    assert (found.accuracy is None) == (kind == "values")
    assert (found.loss is None) == (labels is None)
    if kind == "probabilities":
        assert found.kl is not None
        logits = compare(one[0], two[0], inputs, labels).main
        assert logits.kl is not None
        assert found.kl.value == pytest.approx(logits.kl.value, rel=1e-9)
    if kind == "binary":
        # The same numbers as two logits, the first of them 0.
        pairs = [nn.Sequential(model, nn.ConstantPad1d((1, 0), 0.0)) for model in (one, two)]
        logits = compare(*pairs, inputs, labels).main
        assert found.kl is not None
        assert logits.kl is not None
        assert found.kl.value == pytest.approx(logits.kl.value, rel=1e-9)
        assert found.accuracy == logits.accuracy
