"""Do layers that are added, folded or rewritten keep the function, and are those refused that cannot?"""

from __future__ import annotations

import copy
import os

import pytest
import torch
from torch import Tensor, nn

from metanet import morph
from metanet.errors import PlanError
from metanet.morph import ConvToLinear, Deepen, Drop, Factorise, Fold, Insert, Join, Swap
from tests.morph.subjects import network, same

SEEDS = range(12 if os.environ.get("METANET_ALL") else 1)
EXACT = 1e-10


class Small(nn.Module):
    """Linear layers under norms of every foldable kind, and a convolution of each kind."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.up, self.wide = nn.ConvTranspose2d(4, 6, 2, stride=2, groups=2), nn.BatchNorm2d(6)
        self.inner, self.rms = nn.LayerNorm(6), nn.RMSNorm(5)
        self.a, self.b, self.act = nn.Linear(6, 5), nn.Linear(5, 3), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.wide(self.up(torch.relu(self.norm(self.conv(x))))))
        return self.b(self.rms(self.act(self.a(self.inner(x.mean((2, 3)))))))


def small(seed: int) -> tuple[nn.Module, tuple[Tensor, ...]]:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Small().double().eval()
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.rand_like(tensor) + 0.2 if tensor.ndim == 1 else torch.randn_like(tensor))
    return model, (torch.randn(7, 2, 4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64),)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    "edit",
    [
        Fold("norm"),
        Fold("wide"),
        Fold("inner"),
        Fold("rms"),
        ConvToLinear("conv"),
        ConvToLinear("up"),
        Deepen("b", residual=True, activation="gelu"),
        Deepen("up"),
        Deepen("up", residual=True, hidden=3),
        Insert("conv", hidden=7, activation="tanh"),
        Insert("act", activation="silu"),
    ],
    ids=str,
)
def test_exact(edit: morph.Edit, seed: int) -> None:
    model, inputs = small(seed)
    result = morph.apply(edit, model, inputs)
    assert result.error <= EXACT
    assert not same(result.model, model)
    assert same(morph.undo(result), model)


def test_all_at_once_and_in_a_row() -> None:
    model, inputs = small(3)
    plan = morph.Plan([Fold("norm"), Fold("wide"), ConvToLinear("conv"), Deepen("b", residual=True), Fold("inner")])
    result = morph.apply(plan, model, inputs)
    assert result.error <= EXACT
    assert [len(record.edits) for record in result.records] == [1] * 5
    assert same(morph.undo(result), model)


@pytest.mark.parametrize(("name", "layer"), [("mlp relu", "2"), ("mlp relu", "4"), ("conv, pooling", "3")])
def test_identity_layers_behind_relu(name: str, layer: str) -> None:
    model, inputs, spec = network(name)
    assert morph.apply(Deepen(layer), model, inputs, spec=spec).error <= EXACT


def test_identity_layers_behind_gelu_are_refused_and_residual_ones_are_not() -> None:
    model, inputs, spec = network("mlp gelu")
    with pytest.raises(PlanError, match=r"gelu changes what this layer reads.*use residual=True"):
        morph.apply(Deepen("2", activation="gelu"), model, inputs, spec=spec)
    assert morph.apply(Deepen("2", activation="gelu", residual=True), model, inputs, spec=spec).error <= EXACT


def test_a_new_branch_can_be_trained() -> None:
    """Its first map is not zero: otherwise no gradient would ever reach either of them."""
    model, inputs, spec = network("mlp relu")
    made = morph.apply(Deepen("2", residual=True), model, inputs, spec=spec).model
    made(*inputs).square().sum().backward()
    grown = {name: p.grad for name, p in made.named_parameters() if "branch" in name}
    assert float(grown["2.branch.second.weight"].abs().max()) > 0


def test_factorise_and_join() -> None:
    model, inputs, spec = network("conv, batch norm")
    whole = morph.apply([Factorise("7", rank=3), Join("7")], model, inputs, spec=spec)
    assert whole.error <= EXACT
    for edit in (Factorise("7", rank=2), Factorise("3", rank=3), Factorise("0", energy=0.6)):
        result = morph.apply(edit, model, inputs, spec=spec)
        assert 1e-6 < result.error < 10
        assert same(morph.undo(result), model)
        assert isinstance(result.plan.edits[0], Factorise)
        assert result.plan.edits[0].rank is not None  # an energy is decided where the weights are
    joined = morph.apply([Factorise("3", rank=3), Join("3")], model, inputs, spec=spec)
    assert joined.records[1].error <= EXACT
    assert type(joined.model[3]) is nn.Conv2d


def test_energy_is_the_smallest_rank_that_keeps_it() -> None:
    layer = nn.Linear(6, 6).double()
    with torch.no_grad():
        layer.weight.copy_(torch.diag(torch.tensor([3.0, 2.0, 1.0, 0.5, 0.1, 0.0], dtype=torch.float64)))
    model = nn.Sequential(layer, nn.ReLU())
    squares = [9, 4, 1, 0.25, 0.01, 0]
    for rank in range(1, 6):
        share = sum(squares[:rank]) / sum(squares)
        assert Factorise("0", energy=share).resolved(model).rank == rank
        assert Factorise("0", energy=share - 1e-6).resolved(model).rank == rank


def test_drop_and_swap() -> None:
    model, inputs, spec = network("resnet")
    result = morph.apply(Drop("5"), model, inputs, spec=spec)
    assert 1e-3 < result.error < 1e3
    assert torch.equal(result.model[5](torch.ones(2)), torch.ones(2))
    assert same(morph.undo(result), model)
    swapped = morph.apply(Swap("2", "silu"), model, inputs, spec=spec)
    assert type(swapped.model[2]) is nn.SiLU
    assert swapped.error > 1e-6


def test_batch_norm_statistics_come_from_the_batches_given() -> None:
    model, inputs, spec = network("conv, batch norm")
    batches = [(torch.randn(16, 2, 4, 4, generator=torch.Generator().manual_seed(n)).double(),) for n in range(3)]
    made = copy.deepcopy(model)
    assert morph.recalibrate(made, batches) == 2
    out = torch.cat([made[0](batch[0]) for batch in batches])
    assert torch.allclose(made[1].running_mean, out.mean((0, 2, 3)))
    assert torch.allclose(made[1].running_var, torch.stack([o.var((0, 2, 3)) for o in out.split(16)]).mean(0))
    assert not made.training
    assert made[1].momentum == 0.1
    result = morph.apply(morph.Keep("0", [0, 2]), model, inputs, spec=spec, batch_norm_data=batches)
    assert result.stored_error != result.error
    assert same(morph.undo(result), model)
    before = copy.deepcopy(model)
    with pytest.raises(PlanError, match="0 batches are not finite"):
        morph.recalibrate(model, [])
    with pytest.raises(PlanError, match="not finite"):
        morph.recalibrate(model, [(torch.full((4, 2, 4, 4), float("nan")).double(),)])
    assert same(before, model)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (Drop("nothing"), "no module 'nothing'; the model has conv, norm"),
        (Drop(""), "the model itself cannot be replaced"),
        (Drop("a"), "a: turns shape (7, 6) into (7, 5)"),
        (Fold("a"), "Linear cannot be folded"),
        (ConvToLinear("a"), "Linear is no convolution"),
        (Deepen("act"), "neither a linear layer nor a convolution"),
        (Deepen("b", activation="swoosh"), "unknown activation 'swoosh'"),
        (Factorise("a"), "takes a rank or an energy"),
        (Factorise("a", rank=9), "rank 9, expected 1 to 5"),
        (Factorise("a", energy=2.0), "energy 2.0, expected"),
        (Factorise("act", rank=1), "ReLU cannot be factorised"),
        (Join("a"), "no Sequential of two linear layers"),
        (Swap("a", "relu"), "Linear has tensors of its own"),
        (Insert("a", hidden=0), ""),
    ],
    ids=str,
)
def test_bad_edits(edit: morph.Edit, message: str) -> None:
    model, inputs = small(0)
    if not message:
        assert morph.apply(edit, model, inputs).exact  # nought stands for the default
        return
    with pytest.raises(PlanError) as caught:
        morph.apply(edit, model, inputs)
    assert message in str(caught.value)


def test_a_norm_that_reads_a_sum_cannot_be_folded() -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.norm = nn.Linear(3, 4), nn.Linear(3, 4), nn.BatchNorm1d(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.a(x) + self.b(x))

    with pytest.raises(PlanError, match="exactly one linear layer"):
        morph.apply(Fold("norm"), Sum().eval(), (torch.randn(7, 3, generator=torch.Generator().manual_seed(0)),))


def test_a_layer_with_a_second_reader_is_not_folded() -> None:
    """What the hooks cannot see, running both networks does."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.norm = nn.Linear(3, 4), nn.BatchNorm1d(4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            return self.norm(y) + torch.relu(y)

    model = Twice().eval()
    model.norm.running_mean.fill_(0.5)
    with pytest.raises(PlanError, match="of their spread"):
        morph.apply(Fold("norm"), model, (torch.randn(7, 3, generator=torch.Generator().manual_seed(0)),))
