"""Do the ways of `benchmarks/morph.py` do what their sources say, and what the package does network by network?"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

import symmetry
from metanet import morph
from metanet.checkpoint import Architecture
from metanet.morph.batched import Masked
from metanet.morph.batched_refit import masked_only
from symmetry.action import leaf_name

SCRIPTS = Path(__file__).resolve().parents[2] / "benchmarks"
CNN = {"channels": 1, "size": 6, "widths": [6, 5], "outputs": 3, "activation": "relu", "residual": False}
KINDS = {
    "mlp": Architecture("mlp", {"inputs": 36, "widths": [7, 6], "outputs": 3, "activation": "relu"}),
    "cnn": Architecture("cnn", {**CNN, "norm": "batch", "strides": [1, 2]}),
}


@pytest.fixture(scope="module")
def scripts() -> Iterator[SimpleNamespace]:
    """The benchmark's modules, which are no package."""
    sys.path.insert(0, str(SCRIPTS))
    try:
        import morph_merging
        import morph_subjects
        import morph_ways

        yield SimpleNamespace(merging=morph_merging, subjects=morph_subjects, ways=morph_ways)
    finally:
        sys.path.remove(str(SCRIPTS))


def subject_of(scripts: SimpleNamespace, kind: str) -> tuple[SimpleNamespace, SimpleNamespace]:
    """Two networks, batch norms with statistics, and images."""
    architecture = KINDS[kind]
    generator = torch.Generator().manual_seed(0)
    states: dict[str, list[Tensor]] = {}
    for seed in (0, 1):
        for name, value in architecture.build(seed).eval().state_dict().items():
            drawn = value
            if value.is_floating_point():
                noise = torch.rand(value.shape, generator=generator)
                drawn = noise + 0.5 if "running_var" in name else value + 0.3 * (noise - 0.5)
            states.setdefault(name, []).append(drawn)
    model = architecture.build().eval()
    spec = symmetry.trace(model, architecture.example_inputs())
    stacked = {name: torch.stack(values) for name, values in states.items()}
    images = torch.randn(200, 1, 6, 6, generator=generator)
    labels = torch.randint(3, (200,), generator=generator)
    return (
        scripts.subjects.Subject(architecture, spec, Masked(model, spec), stacked),
        scripts.subjects.Images(images[:150], labels[:150], images[150:], labels[150:], -1.0, 1.0),
    )


@pytest.mark.parametrize("kind", KINDS)
def test_stacks_are_the_networks_that_the_package_narrows(scripts: SimpleNamespace, kind: str) -> None:
    subject, images = subject_of(scripts, kind)
    edit = scripts.ways.least_squares(150)(subject, images, torch.Generator())
    made = subject.answers(edit(0.5, 1e-3), images.score)
    sizes = subject.keeps(0.5)
    batches = [(subject.shaped(images.fit),)]
    for number in range(2):
        model = KINDS[kind].build().eval()
        model.load_state_dict({name: value[number] for name, value in subject.states.items()})
        plan = morph.narrow_by_obs(model, subject.spec, sizes, batches)
        compensation = morph.Compensation(batches, sequential=False)
        inputs = (subject.shaped(images.score),)
        narrow = morph.apply(plan, model, inputs, spec=subject.spec, compensation=compensation).model
        with torch.no_grad():
            expected, whole = narrow(*inputs), model(*inputs)
        assert torch.allclose(made[number], expected, atol=1e-4)
        assert not torch.allclose(made[number], whole, atol=1e-2)


@pytest.mark.parametrize("kind", KINDS)
def test_merging_finds_copies(scripts: SimpleNamespace, kind: str) -> None:
    subject, images = subject_of(scripts, kind)
    space, units = subject.masked.spaces[0], subject.spec.sizes[subject.masked.spaces[0]]
    half = units // 2
    states = {name: value.clone() for name, value in subject.states.items()}
    for name, info in subject.spec.tensors.items():
        if info.roles[:1] == ("out",) and space in {leaf_name(leaf) for leaf in subject.spec.axes[name][0].leaves()}:
            states[name][:, half : 2 * half] = states[name][:, :half]
    copies = scripts.subjects.Subject(subject.architecture, subject.spec, subject.masked, states)
    merged = scripts.merging.merged(copies, {space: units - half})
    before = copies.answers(states, images.score)
    assert torch.allclose(copies.answers(merged, images.score), before, atol=1e-5)
    # One more is no copy; and what only drops copies changes the function.
    more = scripts.merging.merged(copies, {space: units - half - 1})
    assert not torch.allclose(copies.answers(more, images.score), before, atol=1e-3)
    mask = torch.ones(2, units)
    mask[:, half : 2 * half] = 0
    dropped = masked_only(copies.masked, states, {space: mask})
    assert not torch.allclose(copies.answers(dropped, images.score), before, atol=1e-3)


def test_incoming_weights_have_batch_norms_folded_in(scripts: SimpleNamespace) -> None:
    subject, images = subject_of(scripts, "cnn")
    model = KINDS["cnn"].build().eval()
    model.load_state_dict({name: value[0] for name, value in subject.states.items()})
    inputs = (subject.shaped(images.score),)
    folded = morph.apply(morph.Fold("blocks.0.norm"), model, inputs, spec=subject.spec).model.state_dict()
    expected = torch.cat([folded["blocks.0.conv.weight"].flatten(1), folded["blocks.0.conv.bias"][:, None]], 1)
    found = scripts.merging.incoming(subject.spec, subject.states, subject.masked.spaces[0])[0]
    assert torch.allclose(found, expected, atol=1e-5)


def test_gates_of_taylor_are_gradients(scripts: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    subject, images = subject_of(scripts, "mlp")
    monkeypatch.setattr(scripts.ways, "TAYLOR_BATCHES", 1)
    masks: dict[str, Tensor] = {}
    monkeypatch.setattr(scripts.ways, "_plain", lambda subject, orders: masks.update(orders))
    scripts.ways.taylor(subject, images, torch.Generator())
    for number in range(2):
        state = {name: value[number].double() for name, value in subject.states.items()}
        gates = torch.ones(7, dtype=torch.float64, requires_grad=True)
        x = images.fit[: scripts.ways.TAYLOR_BATCH].flatten(1).double()
        hidden = (x @ state["layers.0.weight"].T + state["layers.0.bias"]).relu() * gates
        hidden = (hidden @ state["layers.1.weight"].T + state["layers.1.bias"]).relu()
        logits = hidden @ state["layers.2.weight"].T + state["layers.2.bias"]
        loss = torch.nn.functional.cross_entropy(logits, images.fit_labels[: scripts.ways.TAYLOR_BATCH])
        (slopes,) = torch.autograd.grad(loss, gates)
        assert masks["layers.0"][number].tolist() == slopes.square().argsort().tolist()


def test_measures(scripts: SimpleNamespace) -> None:
    before = torch.tensor([[[2.0, 0.0], [0.0, 1.0]]])
    labels = torch.tensor([0, 0])
    same = scripts.subjects.measured(before, before, labels)
    assert same == {"kl": [0.0], "agreement": [1.0], "accuracy": [0.5]}
    other = scripts.subjects.measured(before, before.flip(-1), labels)
    p, q = before.softmax(-1), before.flip(-1).softmax(-1)
    assert other["kl"][0] == pytest.approx(float((p * (p / q).log()).sum(-1).mean()), rel=1e-5)
    assert (other["agreement"], other["accuracy"]) == ([0.0], [0.5])
