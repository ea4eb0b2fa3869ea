"""Does the report find what was planted, and say what it means?"""

from __future__ import annotations

import json

import pytest
import torch

import symmetry

from .families import Encoder, Recurrent
from .models import conv_bn, draw, mlp, resnet, seeded
from .wide import Experts


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


def test_a_nearly_twin_is_none() -> None:
    model = seeded(lambda: mlp([3, 6, 2], torch.relu))
    spec = symmetry.trace(model, (draw(7, 3),))
    for off, found in ((1e-5, ((1, 4),)), (0.01, ())):
        for dtype in (torch.float32, torch.float64):
            state = {name: value.to(dtype, copy=True) for name, value in model.state_dict().items()}
            for name in ("0.weight", "0.bias"):
                state[name][1] = 3 * state[name][4]
            state["0.weight"][1, 0] *= 1 + off
            assert symmetry.analyze(spec, state).spaces[0].twins == found, (off, dtype)


def test_gates_allow_a_sign_only_where_the_group_does() -> None:
    """An LSTM's unit with the signs of its cell flipped is a twin; one with all gates flipped is not."""
    model = seeded(lambda: Recurrent(torch.nn.LSTM))
    spec = symmetry.trace(model, (draw(7, 5, 3),))
    for gates, found in (((8,), ((0, 1),)), ((0, 4, 8, 12), ())):
        state = {name: value.clone() for name, value in model.state_dict().items()}
        for name in ("cell.weight_ih_l0", "cell.weight_hh_l0", "cell.bias_ih_l0", "cell.bias_hh_l0"):
            for gate in (0, 4, 8, 12):
                state[name][gate + 1] = state[name][gate] * (-1 if gate in gates else 1)
        assert symmetry.analyze(spec, state).spaces[0].twins == found


def test_twins_and_dead_units_inside_groups() -> None:
    model = seeded(Experts)
    spec = symmetry.trace(model, (draw(7, 3),))
    state = {name: value.clone() for name, value in model.state_dict().items()}
    state["w1"][1, :, 2], state["b1"][1, 2] = 2 * state["w1"][1, :, 4], 2 * state["b1"][1, 4]
    state["w2"][2, 3] = 0
    report = symmetry.analyze(spec, state)
    inner = next(space for space in report.spaces if space.within)
    assert inner.twins == (((1, 2), (1, 4)),)
    assert inner.unread == ((2, 3),)
    assert "2/3" in inner.words
    again = symmetry.SymmetryReport.from_json(json.loads(json.dumps(report.to_json())))
    assert again == report


def test_condition_of_matrix_spaces() -> None:
    """Singular values of the composite, by hand and after any element of the group; a lost direction is infinite."""
    model = seeded(lambda: mlp([5, 3, 4], None))
    spec = symmetry.trace(model, (draw(7, 5),))
    state = {name: value.double() for name, value in model.state_dict().items()}
    values = torch.linalg.svdvals(state["1.weight"] @ state["0.weight"])
    for given in (state, spec.act(spec.sample(torch.Generator().manual_seed(1)), state)):
        matrix = symmetry.analyze(spec, given).spaces[0].matrix
        assert matrix is not None
        assert (matrix.measured, matrix.ranks) == ("composite", (3,))
        assert matrix.conditions[0] == pytest.approx(float(values[0] / values[2]), rel=1e-9)
    state["0.weight"][2] = state["0.weight"][0] + state["0.weight"][1]
    report = symmetry.analyze(spec, state)
    assert report.spaces[0].matrix is not None
    assert (report.spaces[0].matrix.ranks, report.spaces[0].matrix.conditions) == ((2,), (float("inf"),))
    assert symmetry.SymmetryReport.from_json(json.loads(json.dumps(report.to_json()))) == report


def test_heads_in_words() -> None:
    model = seeded(lambda: Encoder(dropout=0.0))
    report = symmetry.analyze(symmetry.trace(model, (draw(7, 5, 3),)), model.state_dict())
    assert "2 heads, interchangeable; inside each head any invertible 2x2 matrix between" in report.text()


def test_the_gauge_is_that_of_the_frames() -> None:
    model = seeded(resnet)
    spec = symmetry.trace(model, (draw(7, 3, 8, 8),))
    distance = symmetry.gauge_distance(spec, model.state_dict())
    for space in symmetry.analyze(spec, model.state_dict()).spaces:
        names = [factor.name for factor in spec.factors if factor.kind == "scale" and factor.space == space.name]
        expected = (sum(distance[f"scale {name}"] ** 2 for name in names) / len(names)) ** 0.5
        assert space.gauge == pytest.approx(expected, rel=1e-6)


def test_values_that_are_not_finite_are_named() -> None:
    spec, state = planted()
    state["2.weight"][0, 0] = float("nan")
    report = symmetry.analyze(spec, state)
    assert report.not_finite == ("2.weight",)
    assert "not finite in 2.weight" in report.text()
    assert all(space.clean and space.gauge is None for space in report.spaces)
