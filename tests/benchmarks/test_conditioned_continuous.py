"""Do the continuous designs of `benchmarks/conditioned_continuous.py` read a set of units, and refit as they say?"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

SCRIPTS = Path(__file__).resolve().parents[2] / "benchmarks"
VARIANTS = ["slots", "knots", "merge", "knots_merge"]
SIZES, COUNT = (6, 9, 8, 4), 3


@pytest.fixture(scope="module")
def scripts() -> Iterator[SimpleNamespace]:
    """The benchmark's modules, which are no package."""
    sys.path.insert(0, str(SCRIPTS))
    try:
        import conditioned_designs
        import conditioned_reader

        yield SimpleNamespace(designs=conditioned_designs, reader=conditioned_reader)
    finally:
        sys.path.remove(str(SCRIPTS))


def stack(scripts: SimpleNamespace, orders: tuple[Tensor, Tensor] | None = None, half: bool = False) -> SimpleNamespace:
    """Some perceptrons; with orders of their hidden units, of which `half` gives only the first to its rows."""
    generator = torch.Generator().manual_seed(0)
    pairs = [(a, b) for a, b in zip(SIZES[1:], SIZES[:-1], strict=True)]
    weights = [torch.randn(COUNT, a, b, generator=generator, dtype=torch.float64) / b**0.5 for a, b in pairs]
    biases = [0.3 * torch.randn(COUNT, a, generator=generator, dtype=torch.float64) for a, _ in pairs]
    if orders is not None:
        for number, order in enumerate(orders):
            weights[number] = weights[number][:, order]
            if not half:
                biases[number] = biases[number][:, order]
                weights[number + 1] = weights[number + 1][:, :, order]
    made: SimpleNamespace = scripts.reader.Perceptrons(tuple(weights), tuple(biases))
    return made


def design(scripts: SimpleNamespace, variant: str) -> torch.nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        inputs = torch.randn(scripts.reader.PROBES + 100, SIZES[0])
        made: torch.nn.Module = scripts.designs.Conditioned(variant, 3, SIZES[-1], inputs, 1e-3).double().eval()
        for name, parameter in made.named_parameters():
            if name.rpartition(".")[0].endswith(("end", "dense.2", "weight.2")):
                # Those that start at zero: as if trained a little.
                parameter.data.normal_(0.0, 0.3)
    return made


def answers(scripts: SimpleNamespace, made: torch.nn.Module, nets: SimpleNamespace, counts: list[int]) -> Tensor:
    inputs = torch.randn(50, SIZES[0], generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    with torch.no_grad():
        found: Tensor = scripts.reader.run(made(nets, counts) if counts else nets, inputs)[0][-1]
    return found


@pytest.mark.parametrize("variant", VARIANTS)
def test_units_are_a_set(scripts: SimpleNamespace, variant: str) -> None:
    made = design(scripts, variant)
    generator = torch.Generator().manual_seed(3)
    orders = torch.randperm(SIZES[1], generator=generator), torch.randperm(SIZES[2], generator=generator)
    for counts in ([4, 5], [12, 8]):
        before = answers(scripts, made, stack(scripts), counts)
        spread = before.std(0).mean()
        assert (answers(scripts, made, stack(scripts, orders), counts) - before).abs().max() < 1e-10 * spread
        assert (answers(scripts, made, stack(scripts, orders, half=True), counts) - before).abs().max() > 0.1 * spread


@pytest.mark.parametrize(("variant", "exact"), [("slots", False), ("knots", True), ("merge", True)])
def test_full_width_is_the_network_itself(scripts: SimpleNamespace, variant: str, exact: bool) -> None:
    nets = stack(scripts)
    before = answers(scripts, design(scripts, variant), nets, [])
    after = answers(scripts, design(scripts, variant), nets, [SIZES[1], SIZES[2]])
    error = float((after - before).abs().max() / before.std(0).mean())
    assert (error < 1e-9) == exact


def test_rows_and_columns_of_a_plan(scripts: SimpleNamespace) -> None:
    fit = 3 * torch.randn(2, 9, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    plan = scripts.designs._plan(fit, 5, rounds=200)
    assert torch.allclose(plan.sum(1), torch.ones(2, 5, dtype=torch.float64))
    assert float(plan.sum(2).max()) < 1 + 1e-6 < float(fit.softmax(1).sum(2).max())


def test_what_reads_is_refitted_to_the_least_of_squares(scripts: SimpleNamespace) -> None:
    made = design(scripts, "merge")
    generator = torch.Generator().manual_seed(5)
    new, old = (torch.randn(1, 200, n, generator=generator, dtype=torch.float64) for n in (3, 6))
    start = torch.randn(1, 3, 6, generator=generator, dtype=torch.float64)
    found = {}
    for ridge in (-40.0, 40.0):
        made.log_ridge.data.fill_(ridge)
        with torch.no_grad():
            found[ridge] = made._refit(new, old, start)
    wide = torch.cat([new[0], torch.ones(200, 1, dtype=torch.float64)], 1)
    wanted = torch.linalg.lstsq(wide, old[0]).solution
    assert torch.allclose(found[-40.0][0][0], wanted[:-1])
    assert torch.allclose(found[-40.0][1][0], wanted[-1])
    # All ridge: what the units stood for at the start.
    assert torch.allclose(found[40.0][0], start)
