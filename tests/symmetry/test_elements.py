"""Do elements form a group, act as one, and go to JSON and back?"""

from __future__ import annotations

import json
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import symmetry
from symmetry import Atom, Concat, Factor, Fixed, GroupElement, NeuronSpace, Product, SymmetrySpec, TensorInfo
from symmetry.spec import Slot

from .models import SUBJECTS, draw, seeded


def wreath() -> SymmetrySpec:
    """Heads of units inside: products, concatenations, a space within another and factors of every form."""
    heads, units, other = NeuronSpace("heads", 3), NeuronSpace("units", 4), NeuronSpace("other", 5)
    both = Product(Atom(heads), Atom(units))
    axes = {
        "w": (both, Fixed(2, "input")),
        "v": (Fixed(2, "output"), Concat((both, Atom(other), both))),
        "b": (Atom(heads),),
        "k": (Atom(units), Atom(heads), Atom(other)),
        "n": (),
    }
    shapes = {"w": (12, 2), "v": (2, 29), "b": (3,), "k": (4, 3, 5), "n": ()}
    tensors = {name: TensorInfo(shape, "float64", order=k) for k, (name, shape) in enumerate(shapes.items())}
    half = Fraction(1, 2)
    factors = (
        Factor(
            "units", "scale", "units", 4, (Slot("w", 0, 1, half), Slot("v", 0, 2, Fraction(-1)), Slot("k", 0, 0, half))
        ),
        Factor("heads", "sign", "heads", 3, (Slot("w", 0, 0, Fraction(1)), Slot("b", 0, 0, Fraction(1)))),
        Factor("all", "scale", None, 1, (Slot("w", 0, None, Fraction(2)),)),
        Factor("input", "scale", "input", 2, (Slot("w", 0, 2, Fraction(1)),)),
    )
    return SymmetrySpec((heads, units, other), axes, tensors, {"units": ("heads",)}, factors, 1, 1)


SPECS = {"wreath": wreath()} | {
    subject.name: symmetry.trace(seeded(subject.build), (draw(*subject.shape),))
    for subject in SUBJECTS[:2] + SUBJECTS[6:7]
}


def random_state(spec: SymmetrySpec, seed: int, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.rand(info.shape, generator=generator, dtype=dtype) + 0.1
        if info.dtype.startswith("float")
        else torch.zeros(info.shape, dtype=torch.long)
        for name, info in spec.tensors.items()
    }


def distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    return max(float((a[k].double() - b[k].double()).abs().max()) for k in a if a[k].numel())


specs = st.sampled_from(sorted(SPECS))
seeds = st.integers(0, 2**31)


@settings(max_examples=40, deadline=None)
@given(name=specs, seed=seeds)
def test_group_laws(name: str, seed: int) -> None:
    spec = SPECS[name]
    generator = torch.Generator().manual_seed(seed)
    a, b, c = (spec.sample(generator) for _ in range(3))
    neutral = spec.identity()
    assert (a @ b) @ c == a @ (b @ c)
    assert a @ ~a == neutral
    assert ~a @ a == neutral
    assert a @ neutral == a
    assert neutral @ a == a
    assert ~(a @ b) == ~b @ ~a


@settings(max_examples=40, deadline=None)
@given(name=specs, seed=seeds)
def test_action_is_one(name: str, seed: int) -> None:
    spec, state = SPECS[name], random_state(SPECS[name], seed)
    generator = torch.Generator().manual_seed(seed)
    a, b = spec.sample(generator), spec.sample(generator)
    twice = spec.act(a, spec.act(b, state))
    assert distance(spec.act(a @ b, state), twice) < 1e-10
    assert distance(spec.act(~a, spec.act(a, state)), state) < 1e-10
    # Negative control: the other order is another element, unless the two happen to commute.
    if a @ b != b @ a:
        assert distance(spec.act(b @ a, state), twice) > 1e-6


@settings(max_examples=20, deadline=None)
@given(name=specs, seed=seeds)
def test_json_round_trip(name: str, seed: int) -> None:
    spec = SPECS[name]
    assert SymmetrySpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec
    element = spec.sample(torch.Generator().manual_seed(seed))
    assert GroupElement.from_json(spec, json.loads(json.dumps(element.to_json()))) == element


def test_wreath_by_hand() -> None:
    """One entry, followed by hand: unit i of head h comes from unit p[h, i] of head q[h]."""
    spec, state = wreath(), random_state(wreath(), 0)
    element = spec.sample(torch.Generator().manual_seed(1), kinds=("permutation",))
    q, p = element.permutations["heads"], element.permutations["units"]
    acted = spec.act(element, state)
    for h in range(3):
        for i in range(4):
            old = int(q[h]) * 4 + int(p[h, i])
            assert torch.equal(acted["w"][h * 4 + i], state["w"][old])
            assert torch.equal(acted["v"][:, 17 + h * 4 + i], state["v"][:, 17 + old])
            order = element.permutations["other"]
            assert torch.equal(acted["k"][i, h], state["k"][int(p[h, i]), int(q[h])][order])


def test_permuting_is_bit_exact_in_every_dtype() -> None:
    spec = wreath()
    element = spec.sample(torch.Generator().manual_seed(1), kinds=("permutation",))
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int8):
        state = {name: value.mul(50).to(dtype) for name, value in random_state(spec, 0).items()}
        back = spec.act(~element, spec.act(element, state))
        assert all(torch.equal(back[name], state[name]) and back[name].dtype == dtype for name in state)


def test_kinds_are_drawn_apart() -> None:
    spec, generator = wreath(), torch.Generator().manual_seed(1)
    neutral = spec.identity()
    for kind in ("permutation", "scale", "sign"):
        element = next(e for e in (spec.sample(generator, kinds=(kind,)) for _ in range(20)) if e != neutral)
        assert (element.permutations["other"] == torch.arange(5)).all() == (kind != "permutation")
        assert bool(element.log_scales["units"].any()) == (kind == "scale")
        assert bool(element.flips["heads"].any()) <= (kind == "sign")
    assert spec.sample(generator, kinds=("linear",)) == neutral


def test_an_untouched_tensor_is_not_copied_and_tied_ones_stay_one() -> None:
    spec = wreath()
    state = random_state(spec, 0)
    acted = spec.act(spec.sample(torch.Generator().manual_seed(0)), state)
    assert acted["n"] is state["n"]
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Tanh(), torch.nn.Linear(4, 4), torch.nn.Linear(4, 2))
    model[2].weight = model[0].weight
    tied = symmetry.trace(model, (draw(7, 4),))
    assert tied.tensors["2.weight"].tied_to == "0.weight"
    moved = tied.act(tied.sample(torch.Generator().manual_seed(0)), model.state_dict(keep_vars=True))
    assert moved["2.weight"] is moved["0.weight"]
    assert list(moved) == list(model.state_dict())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: {k: v for k, v in s.items() if k != "w"}, "no entry 'w' of shape (12, 2)"),
        (lambda s: s | {"w": s["w"].T}, "w: shape (2, 12), expected (12, 2)"),
        (lambda s: s | {"extra": s["w"]}, "entry 'extra' that the spec does not know"),
    ],
)
def test_a_state_of_another_network_is_refused(change: object, message: str) -> None:
    spec = wreath()
    with pytest.raises(symmetry.SpecError) as caught:
        spec.act(spec.identity(), change(random_state(spec, 0)))  # type: ignore[operator]
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_wrong_elements_are_refused() -> None:
    spec, neutral = wreath(), wreath().identity()
    other = SPECS["mlp relu"]
    with pytest.raises(symmetry.SpecError, match="another spec"):
        other.act(neutral, random_state(other, 0))
    with pytest.raises(symmetry.SpecError, match="different specs"):
        _ = neutral @ other.identity()
    with pytest.raises(symmetry.SpecError, match="no permutation"):
        GroupElement(
            spec, {**neutral.permutations, "heads": torch.tensor([0, 0, 1])}, neutral.log_scales, neutral.flips
        )
    with pytest.raises(symmetry.SpecError, match=r"shape \(4,\), expected \(3, 4\)"):
        GroupElement(spec, {**neutral.permutations, "units": torch.arange(4)}, neutral.log_scales, neutral.flips)
    with pytest.raises(symmetry.SpecError, match="missing for the spec"):
        GroupElement(spec, {}, neutral.log_scales, neutral.flips)
    with pytest.raises(symmetry.SpecError, match="unknown; expected some of"):
        spec.sample(kinds=("rotation",))
    with pytest.raises(symmetry.SpecError, match="cannot be scaled"):
        element = spec.sample(torch.Generator().manual_seed(0), kinds=("scale",))
        spec.act(element, {name: value.to(torch.int32) for name, value in random_state(spec, 0).items()})


@pytest.mark.parametrize(
    "value", [{}, {"format": "symmetry.spec/1"}, {"format": "x"}, [], {"format": "symmetry.spec/1", "spaces": 3}]
)
def test_other_json_is_refused(value: object) -> None:
    with pytest.raises(symmetry.SpecError, match="not the JSON of a spec"):
        SymmetrySpec.from_json(value)  # type: ignore[arg-type]


def test_a_spec_that_does_not_fit_itself_is_refused() -> None:
    info = {"w": TensorInfo((3,), "float32")}
    space = NeuronSpace("s", 4)
    with pytest.raises(symmetry.SpecError, match="do not fit its shape"):
        SymmetrySpec((space,), {"w": (Atom(space),)}, info)
    with pytest.raises(symmetry.SpecError, match="not among the spec's spaces"):
        SymmetrySpec((), {"w": (Atom(NeuronSpace("s", 3)),)}, info)
    with pytest.raises(symmetry.SpecError, match="same names in the same order"):
        SymmetrySpec((), {}, info)
    with pytest.raises(symmetry.SpecError, match="share one name"):
        SymmetrySpec((space, space), {}, {})
    with pytest.raises(symmetry.SpecError, match="at least 1"):
        NeuronSpace("s", 0)


def test_values_print_well() -> None:
    spec = wreath()
    assert str(spec.axes["v"][1]) == "[(heads[3] x units[4]) + other[5] + (heads[3] x units[4])]"
    assert "3 spaces" in repr(spec)
    assert repr(spec.identity()) == "GroupElement(0 of 20 units moved, 0 scales, 0 signs)"
    assert spec.permutation_order == 6 * 24**3 * 120
