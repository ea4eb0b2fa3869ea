"""Does the report find what was planted, and say what it means?"""

from __future__ import annotations

import json

import pytest
import torch

import symmetry

from .models import conv_bn, draw, mlp, resnet, seeded


def planted() -> tuple[symmetry.SymmetrySpec, dict[str, torch.Tensor]]:
    model = seeded(lambda: mlp([3, 6, 5, 2], torch.relu))
    state = {name: value.clone() for name, value in model.state_dict().items()}
    state["0.weight"][1] = 3 * state["0.weight"][4]
    state["0.bias"][1] = 3 * state["0.bias"][4]
    state["2.weight"][:, 2] = 0
    state["2.weight"][3] = 0
    return symmetry.trace(model, (draw(7, 3),)), state


def test_planted_units_are_found() -> None:
    spec, state = planted()
    report = symmetry.analyze(spec, state)
    first, second = report.spaces
    assert first.unread == (2,)
    assert first.twins == ((1, 4),)
    assert second.constant == (3,)
    assert (first.constant, second.unread, second.twins) == ((), (), ())
    assert (first.writes, first.reads) == (("0.weight",), ("2.weight",))
    assert report.permutation_order == 720 * 120
    assert report.scale_dimension == 11


def test_a_clean_network_has_none() -> None:
    model = seeded(lambda: mlp([3, 6, 5, 2], torch.relu))
    report = symmetry.analyze(symmetry.trace(model, (draw(7, 3),)), model.state_dict())
    assert all(space.unread == space.constant == space.twins == () for space in report.spaces)


@pytest.mark.parametrize(
    ("function", "factor", "found"), [(torch.tanh, -1.0, True), (torch.tanh, 2.0, False), (torch.relu, -1.0, False)]
)
def test_twins_follow_the_group(function: object, factor: float, found: bool) -> None:
    """Up to sign under tanh, up to scale under relu, never otherwise."""
    model = seeded(lambda: mlp([3, 6, 2], function))  # type: ignore[arg-type]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    for name in ("0.weight", "0.bias"):
        state[name][1] = factor * state[name][4]
    report = symmetry.analyze(symmetry.trace(model, (draw(7, 3),)), state)
    assert report.spaces[0].twins == (((1, 4),) if found else ())


def test_twins_behind_a_batch_norm_are_compared_after_folding() -> None:
    model = seeded(conv_bn)
    spec = symmetry.trace(model, (draw(7, 2, 4, 4),))
    state = {name: value.clone() for name, value in model.state_dict().items()}
    state["1.running_mean"] += 0.5
    for name in ("0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var"):
        state[name][3] = state[name][0]
    state["0.weight"][3] *= 5
    state["0.bias"][3] *= 5
    state["1.running_mean"][3] *= 5
    state["1.weight"][3] /= 5
    assert symmetry.analyze(spec, state).spaces[0].twins == ((0, 3),)
    state["1.running_mean"][3] += 1
    assert symmetry.analyze(spec, state).spaces[0].twins == ()


def test_text_and_json() -> None:
    spec, state = planted()
    report = symmetry.analyze(spec, state)
    text = report.text()
    assert "6 interchangeable units, each with a free positive scale (relu)" in text
    assert "1 unread (2)" in text
    assert "twins" in text
    value = json.loads(json.dumps(report.to_json()))
    assert value["permutation_order"] == "86400"
    assert value["spaces"][0]["name"] == "0"


def test_long_orders_are_written_short() -> None:
    model = seeded(lambda: mlp([3, 400, 2], torch.relu))
    report = symmetry.analyze(symmetry.trace(model, (draw(7, 3),)), model.state_dict())
    assert "about 10^868." in report.text()
    deep = seeded(resnet)
    assert "214,990,848,000" in symmetry.analyze(symmetry.trace(deep, (draw(7, 3, 8, 8),)), deep.state_dict()).text()


def test_a_state_of_another_network_is_refused() -> None:
    spec, state = planted()
    with pytest.raises(symmetry.SpecError, match="expected"):
        symmetry.analyze(spec, {name: value[:1] for name, value in state.items()})
