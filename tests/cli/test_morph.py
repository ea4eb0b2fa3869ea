"""Does `metanet morph` make what was asked for, keep to its limit and prove what it wrote?"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import metanet
from metanet.morph import open_folder, restore, timing, undo_folder
from metanet.morph.cost import flops
from metanet.morph.timing import Spread, Timing
from metanet.score import compare
from tests.cli.command import metanet as command
from tests.cli.command import within


class Block(nn.Module):
    """A residual block of two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 6), nn.Linear(6, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.b(torch.nn.functional.gelu(self.a(x)))


def residual() -> tuple[nn.Module, torch.Tensor]:
    return nn.Sequential(nn.Linear(64, 8), Block(), Block(), Block(), nn.Linear(8, 10)), torch.zeros(7, 64)


def another() -> tuple[nn.Module, torch.Tensor]:
    return nn.Sequential(nn.Linear(64, 9), nn.ReLU(), nn.Linear(9, 10)), torch.zeros(7, 64)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("morph")
    options = {"inputs": 64, "widths": [12, 10], "outputs": 10, "activation": "relu"}
    architecture = metanet.Architecture("mlp", options)
    metanet.save_checkpoint(folder / "mlp.safetensors", architecture.build(0).state_dict(), architecture)
    metanet.save_checkpoint(folder / "mlp2.safetensors", architecture.build(1).state_dict(), architecture)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        torch.save(residual()[0].state_dict(), folder / "residual.pt")
    edits = {"empty": [], "range": [{"kind": "keep", "space": "layers.0", "units": [0, 12]}]}
    edits["other"] = [{"kind": "keep", "space": "layers.0", "units": [0]}]
    for name, listed in edits.items():
        fingerprint = "0" * 64 if name == "other" else ""
        plan = {"format": "metanet.plan/1", "fingerprint": fingerprint, "edits": listed}
        (folder / f"{name}.json").write_text(json.dumps(plan))
    return folder


def test_half_the_width(folder: Path) -> None:
    done = command(
        *("morph", "mlp.safetensors", "--width", "0.5", "--data", "digits", "--out", "half", "--report", "half.html"),
        cwd=folder,
    ).works()
    assert "keep 6 units of layers.0" in done.out
    assert "every second of 797 test images of digits" in done.out
    assert "Written to half, read again in a fresh process and scored alike." in done.out
    opened = open_folder(folder / "half")
    assert opened.architecture is not None
    assert list(opened.architecture.options["widths"]) == [6, 5]
    assert opened.certificate is not None
    assert opened.certificate.verdict == "approximate"
    assert opened.certificate.after["parameters"] == 64 * 6 + 6 + 6 * 5 + 5 + 5 * 10 + 10
    source = metanet.load(folder / "mlp.safetensors")
    back = undo_folder(source.architecture.build(5).eval(), folder / "half", source.architecture.example_inputs())
    assert all(torch.equal(tensor, source.state[name]) for name, tensor in back.state_dict().items())
    # The page, and the same again from what the folder holds.
    page = (folder / "half.html").read_bytes()
    told = within("report", "half", "--output", "again.html", "--json", cwd=folder).works().json
    assert told["title"] == "mlp.safetensors, 2.1 times smaller"
    assert (folder / "again.html").read_bytes() == page
    stored = json.loads((folder / "half" / "report.json").read_text())
    assert [(row["before"], row["after"]) for row in stored["spaces"]] == [(12, 6), (10, 5)]
    assert [(len(row["rebuilt"]), row["readers"]) for row in stored["units"]] == [(6, 1), (5, 1)]
    assert stored["command"].startswith("metanet morph mlp.safetensors --width 0.5 --out half --criterion obs")
    # What a plan did to one network it does to another of the same architecture.
    told = within("morph", "mlp2.safetensors", "--plan", "half/plan.json", "--json", cwd=folder).works().json
    assert told["certificate"]["plan"]["edits"] == json.loads((folder / "half" / "plan.json").read_text())["edits"]


def test_twice_the_width_is_exact_and_an_ordinary_checkpoint(folder: Path) -> None:
    told = within("morph", "mlp.safetensors", "--width", "2", "--out", "twice", "--json", cwd=folder).works().json
    assert told["edit_error"] <= 1e-10
    assert told["certificate"]["verdict"] == "exact"  # halves are numbers of float32
    again = within("score", "mlp.safetensors", "twice", "--exact", "--json", cwd=folder).works().json
    assert again["verdict"] == "exact"
    assert again["made_up"]


def test_a_limit_is_kept_and_the_frontier_told(folder: Path) -> None:
    arguments = ("morph", "mlp.safetensors", "--width", "0.1", "--data", "digits", "--json")
    free = within(*arguments, cwd=folder).works().json
    kl = free["certificate"]["preservation"]["outputs"][0]["kl"]["value"]
    assert len(free["frontier"]) == 1
    bound = within(*arguments, "--max-kl", str(kl / 3), "--out", "bound", cwd=folder).works().json
    assert bound["certificate"]["preservation"]["outputs"][0]["kl"]["value"] <= kl / 3
    assert 1 < len(bound["frontier"]) < 12
    counts = [point["parameters"] for point in bound["frontier"]]
    assert counts == sorted(counts, reverse=True)
    assert free["certificate"]["after"]["parameters"] < bound["certificate"]["after"]["parameters"]
    # Nothing keeps it: the check fails and nothing is written.
    done = within(*arguments[:-1], "--max-kl", "0", "--out", "none", cwd=folder)
    assert done.code == 1
    assert "Nothing was written: nothing that was tried keeps KL at most 0." in done.out
    assert not (folder / "none").exists()


@pytest.mark.parametrize(("option", "name"), [("--parameters", "parameters"), ("--flops", "flops")])
def test_budgets(folder: Path, option: str, name: str) -> None:
    told = within("morph", "mlp.safetensors", option, "700", "--data", "digits", "--json", cwd=folder).works().json
    after = told["certificate"]["after"][name]
    assert after <= 700
    # Nothing that was tried lies between it and the budget.
    assert after == max(point[name] for point in told["frontier"] if point[name] <= 700)
    assert after > 450


def flops_as_time(models: list[nn.Module], inputs: tuple[torch.Tensor, ...], batch: int, seconds: float) -> Timing:
    """In place of a clock: a microsecond for each operation."""
    times = [flops(model, inputs) * batch / 1000 for model in models]
    spreads = [Spread(one, one, one) for one in times]
    ratios = [Spread(one / times[0], one / times[0], one / times[0]) for one in times]
    return Timing(tuple(spreads), tuple(ratios), 9, batch, 1)


def test_a_latency(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "time_together", flops_as_time)
    arguments = ("morph", "mlp.safetensors", "--data", "digits", "--batch", "3", "--json")
    told = within(*arguments, "--latency", "2.8", "--out", "fast", cwd=folder).works().json
    after, before = (told["certificate"][name] for name in ("after", "before"))
    assert after["latency_ms"] == max(p["latency_ms"] for p in told["frontier"] if p["latency_ms"] <= 2.8)
    assert after["latency_ms"] == after["flops"] * 3 / 1000 > 1.9
    assert before["latency_ms"] == before["flops"] * 3 / 1000
    assert told["timing"]["batch"] == 3
    assert [p["taken"] for p in told["frontier"]].count(True) == 1
    assert within(*arguments, "--latency", "7", cwd=folder).refuses("7 ms a call asked for, and the network has 5.9")
    assert within(*arguments, "--latency", "0.1", cwd=folder).refuses("0.1 ms a call cannot be reached")
    # A limit that stops before the budget is told.
    kl = told["certificate"]["preservation"]["outputs"][0]["kl"]["value"]
    told = within(*arguments, "--latency", "2.8", "--max-kl", str(kl / 3), cwd=folder).works().json
    assert told["missed"].startswith("2.8 ms a call asked for; the limit stops at ")


def test_compensation_pays(folder: Path) -> None:
    arguments = ("morph", "mlp.safetensors", "--width", "0.5", "--data", "digits", "--criterion", "l2", "--json")
    found = [
        within(*arguments, *more, cwd=folder).works().json["frontier"][0]["kl"] for more in ((), ("--no-compensation",))
    ]
    assert found[0] < 0.7 * found[1]


def test_what_is_behind_a_dropped_block_makes_up_for_it(folder: Path) -> None:
    given = ("morph", "residual.pt", "--factory", f"{__name__}:residual", "--depth", "-1", "--data", "digits", "--json")
    errors = [
        within(*given, *more, cwd=folder).works().json["frontier"][0]["error"] for more in ((), ("--no-compensation",))
    ]
    assert errors[0] < 0.9 * errors[1]


def test_depth_of_the_users_own_network(folder: Path) -> None:
    factory = ("--factory", f"{__name__}:residual")
    done = command("morph", "residual.pt", *factory, "--depth", "-2", "--out", "shallow", cwd=folder).works()
    assert done.out.count("drop ") == 2
    model = residual()[0].eval()
    made = restore(model, folder / "shallow", residual()[1:])
    assert sum(type(module) is Block for module in made.modules()) == 1
    # Other commands read the folder when they are told what the old network was.
    again = within("score", "residual.pt", "shallow", *factory, "--json", cwd=folder).works().json
    certificate = json.loads((folder / "shallow" / "certificate.json").read_text())
    assert again["outputs"][0]["kl"]["value"] == pytest.approx(certificate["preservation"]["outputs"][0]["kl"]["value"])
    assert within("inspect", "shallow", cwd=folder).refuses(
        "of a class of the user's own; name the old one's --factory"
    )
    other = ("--factory", f"{__name__}:another")
    assert within("inspect", "shallow", *other, cwd=folder).refuses("shallow: the plan is for another architecture")
    told = within("morph", "residual.pt", *factory, "--depth", "2", "--json", cwd=folder).works().json
    assert told["edit_error"] <= 1e-10
    assert told["certificate"]["after"]["parameters"] > told["certificate"]["before"]["parameters"]


def test_a_deeper_chain_is_exact(folder: Path) -> None:
    told = within("morph", "mlp.safetensors", "--depth", "2", "--out", "deep", "--json", cwd=folder).works().json
    assert [edit["kind"] for edit in told["certificate"]["plan"]["edits"]] == ["deepen", "deepen"]
    assert told["certificate"]["verdict"] == "exact"
    opened = open_folder(folder / "deep")
    found = compare(metanet.load(folder / "mlp.safetensors"), opened.model(), layers=None, line=0, resamples=0)
    assert found.exact


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--width", "1"), "changes nothing at this size"),
        (("--width", "0"), "expected a positive number"),
        (("--width", "nan"), "expected a positive number"),
        (("--depth", "-1"), "1 blocks to drop, and 0 that keep the shape"),
        (("--depth", "0"), "--depth 0"),
        (("--depth", "9"), "places for layers"),
        (("--parameters", "10"), "10 parameters cannot be reached; the narrowest network has"),
        (("--flops", "99999999"), "99,999,999 floating point operations asked for, and the network has 1,976"),
        (("--latency", "0"), "0 given, expected a number above 0"),
        (("--latency", "1e9"), "1e+09 ms a call asked for, and the network has"),
        (("--latency", "1", "--width", "0.5"), "not allowed with"),
        (("--plan", "none.json"), "cannot be read"),
        (("--plan", "empty.json"), "empty.json: the plan has no edits"),
        (("--plan", "range.json"), "range.json: unit 12 of 'layers.0' is out of range; it has 12 units, 0 to 11"),
        (("--plan", "other.json"), "other.json: the plan is for another architecture"),
        (("--width", "1e9"), "numbers, expected at most 1,000,000,000"),
        (("--width", "half"), "half given, expected a positive number: 0.5 halves, 2 doubles"),
        (("--parameters", "1e3"), "1e3 given, expected a whole number, 1 or more"),
        (("--parameters", "9" * 400), "given, expected a whole number"),
        (("--width", "0.5", "--max-kl", "-1"), "-1 given, expected a number of at least 0"),
        (("--width", "0.5", "--spaces", ","), "--spaces names none"),
        (("--width", "0.5", "--rows", "1"), "give at least two"),
        (("--width", "0.5", "--report", "."), "is a folder; name the page in it"),
        (("--plan", "mlp.safetensors"), "is not JSON"),
        (("--plan", "mlp.safetensors", "--max-kl", "1"), "a limit cannot"),
        (("--width", "0.5", "--spaces", "layers.7"), "no space 'layers.7'"),
        (("--width", "0.5", "--out", "mlp.safetensors"), "exists already"),
        (("--width", "0.5", "--out", "nowhere/out"), "cannot be made"),
        (("--width", "0.5", "--data", "none.npz"), "no file and no set"),
        (("--width", "0.5", "--labels", "y.npy"), "made-up inputs have no labels"),
        ((), "is required"),
    ],
)
def test_bad_input(folder: Path, arguments: tuple[str, ...], message: str) -> None:
    before = sorted(path.name for path in folder.iterdir())
    assert within("morph", "mlp.safetensors", *arguments, cwd=folder).refuses(message)
    assert sorted(path.name for path in folder.iterdir()) == before
