"""Which networks, layers and inputs can be compared, when is the answer exact, and what is refused?"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import metanet
from metanet.errors import ScoreError
from metanet.score import compare
from tests.symmetry import models


def test_layers_are_matched(pair: tuple[nn.Module, nn.Module, Tensor, Tensor]) -> None:
    a, _, inputs, _ = pair
    # The same network with a layer that does nothing in between: its names are shifted by one.
    layers = [m for m in a.modules() if isinstance(m, nn.Linear)]
    still = nn.Linear(12, 12)
    with torch.no_grad():
        still.weight.copy_(torch.eye(12))
        still.bias.zero_()
    one = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])
    two = nn.Sequential(layers[0], nn.ReLU(), still, nn.ReLU(), layers[1], nn.ReLU(), layers[2])
    found = compare(one, two, inputs)
    assert found.verdict == "exact"
    assert [(layer.a, layer.b) for layer in found.layers] == [("0", "0"), ("2", "4"), ("4", "6")]
    assert all(layer.cka.value == pytest.approx(1.0) for layer in found.layers)
    named = compare(one, two, inputs, layers={"0": "2"})
    assert [(layer.a, layer.b) for layer in named.layers] == [("0", "2")]
    assert named.layers[0].cka.value < 0.99
    by_name = compare(one, two, inputs, layers="name")
    assert [layer.a for layer in by_name.layers] == ["0", "2", "4"]
    with pytest.raises(ScoreError, match="no layer '9'"):
        compare(one, two, inputs, layers={"9": "0"})


def test_a_pruned_module_can_be_compared(pair: tuple[nn.Module, nn.Module, Tensor, Tensor]) -> None:
    from torch.nn.utils import prune

    _, _, inputs, _ = pair
    model = models.seeded(lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)))
    dense = models.seeded(lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)))
    prune.l1_unstructured(model[0], "weight", amount=0.5)
    model(inputs)
    found = compare(dense, model, inputs)
    assert 0 < found.kl < 1  # type: ignore[operator]
    assert model[0].weight.requires_grad


def test_networks_with_chance_are_never_exact(pair: tuple[nn.Module, nn.Module, Tensor, Tensor]) -> None:
    a, _, inputs, _ = pair

    class Chance(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.rand(())

    model = nn.Sequential(a, Chance())
    found = compare(model, model, inputs, layers=None)
    assert found.verdict == "approximate"
    assert any("chance" in note for note in found.notes)


def test_exact_needs_float64_enough_inputs_and_outputs_that_vary(
    pair: tuple[nn.Module, nn.Module, Tensor, Tensor],
) -> None:
    a, _, inputs, _ = pair
    assert compare(a, a, inputs).exact
    assert not compare(a, a, inputs, dtype=torch.float32).exact
    assert not compare(a, a, inputs, dtype=None).exact
    assert not compare(a, a, inputs[:6]).exact
    still = compare(a, a, torch.ones(20, 6))
    assert not still.exact
    assert any("do not vary" in note for note in still.notes)


def test_loaders_arrays_and_other_axes(pair: tuple[nn.Module, nn.Module, Tensor, Tensor]) -> None:
    a, b, inputs, labels = pair
    expected = compare(a, b, inputs, labels)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(inputs, labels), batch_size=64)
    assert compare(a, b, loader).main == expected.main
    assert compare(a, b, inputs.numpy(), labels.numpy()).main == expected.main
    assert compare(a, b, (inputs,), labels).main == expected.main
    # A recurrent network with time first: its inputs, outputs and states have the inputs along axis 1.
    one, two = (models.seeded(lambda: nn.LSTM(3, 4), seed) for seed in (0, 1))
    series = torch.randn(5, 24, 3, generator=torch.Generator().manual_seed(0))
    found = compare(one, two, series, batch_axis=1, kind="values", layers=None)
    assert [output.shape for output in found.outputs] == [(5, 4), (1, 4), (1, 4)]
    with torch.no_grad():
        difference = (one(series)[0] - two(series)[0]).abs()
    assert found.main.max_error == pytest.approx(float(difference.max()), rel=1e-5)
    assert found.main.worst == int(difference.amax((0, 2)).argmax())


def test_a_network_that_takes_one_size_of_batch(pair: tuple[nn.Module, nn.Module, Tensor, Tensor]) -> None:
    a, b, inputs, _ = pair

    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = a

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x.reshape(50, 6))

    found = compare(Fixed(), b, inputs, batch=50)
    assert found.main == compare(a, b, inputs, batch=50).main
    assert found.layers[0].cka == compare(a, b, inputs, batch=50).layers[0].cka
    with pytest.raises(ScoreError, match="does not run"):
        compare(Fixed(), b, inputs)


BAD: list[tuple[dict[str, Any], str]] = [
    ({"b": models.mlp([6, 5, 3], torch.relu)}, r"output has shape \[4\] in network a and \[3\] in network b"),
    ({"b": models.mlp([7, 5, 4], torch.relu)}, r"network b does not run on inputs \[20, 6\]"),
    ({"b": 3}, "network b is a int"),
    ({"b": (models.mlp([6, 5, 4], torch.relu), {})}, "the state of network b has no"),
    ({"inputs": None}, "no inputs"),
    ({"inputs": []}, "no tensors among the inputs"),
    ({"inputs": torch.zeros(0, 6)}, "at least one"),
    ({"inputs": (torch.zeros(20, 6), torch.zeros(19, 6))}, "the same number of inputs"),
    ({"labels": torch.zeros(19, dtype=torch.long)}, r"labels \[19\] for 20 inputs"),
    ({"labels": torch.full((20,), 4)}, "labels from 4 to 4 for 4 classes"),
    ({"labels": torch.zeros(20, 2, dtype=torch.long)}, "no axis of classes"),
    ({"kind": "images"}, "expected one of auto"),
    ({"kind": {"logits": "classes"}}, "no output 'logits'"),
    ({"features": "pretty"}, "expected one of standard"),
    ({"layers": "depth"}, "expected auto, name"),
    ({"line": 4}, "odd number"),
    ({"resamples": -1}, "expected 0"),
    ({"confidence": 95}, "between 0 and 1"),
    ({"batch": 0}, "at least one"),
    ({"interval": "wald"}, "bca or percentile"),
]


@pytest.mark.parametrize(("changes", "words"), BAD, ids=[f"{next(iter(c))}-{i}" for i, (c, _) in enumerate(BAD)])
def test_bad_input_is_refused_in_one_line(changes: dict[str, Any], words: str) -> None:
    a = models.mlp([6, 5, 4], torch.relu)
    given: dict[str, Any] = {"a": a, "b": a, "inputs": torch.zeros(20, 6), **changes}
    with pytest.raises(ScoreError, match=words) as caught:
        compare(**given)
    assert "\n" not in str(caught.value)


def test_public_name() -> None:
    assert metanet.score.compare is compare
