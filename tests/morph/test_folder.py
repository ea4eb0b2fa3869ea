"""Does a folder give the edited network back, and the old one, and does it refuse what was changed in it?"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import metanet
from metanet import morph
from metanet.errors import MetanetError, PlanError
from metanet.morph import Deepen, Keep, Morph, Plan, Widen
from metanet.morph.choose import importance, narrow, resizable, to_sizes, widen
from metanet.morph.cost import cost
from metanet.morph.folder import open_folder, resized_architecture, restore, save, undo_folder
from tests.morph.subjects import network, same

MLP = metanet.Architecture("mlp", {"inputs": 5, "widths": [8, 6], "outputs": 3, "activation": "relu"})


@pytest.fixture(scope="module")
def narrowed() -> Morph:
    model, inputs = MLP.build(seed=1).eval(), MLP.example_inputs()
    return morph.apply([Keep("layers.0", [5, 0, 2]), Widen("layers.1", [0, 1, 2, 3, 4, 5, 5])], model, inputs)


@pytest.fixture(scope="module")
def deepened() -> Morph:
    return morph.apply([Deepen("layers.1"), Keep("layers.0", [0, 1])], MLP.build(seed=1).eval(), MLP.example_inputs())


def test_round_trip_of_another_width(narrowed: Morph, tmp_path: Path) -> None:
    folder = save(tmp_path / "out", narrowed, MLP)
    opened = open_folder(folder)
    assert opened.plan == narrowed.plan
    assert opened.architecture is not None
    assert list(opened.architecture.options["widths"]) == [3, 7]
    assert same(opened.model(), narrowed.model)
    # A family knows the new network, so every other command reads the folder too.
    inputs = MLP.example_inputs()
    assert torch.equal(metanet.load(folder / "weights.safetensors").model()(*inputs), narrowed.model(*inputs))
    assert same(undo_folder(MLP.build(seed=9).eval(), folder, MLP.example_inputs()), narrowed.source)


def test_round_trip_of_another_depth(deepened: Morph, tmp_path: Path) -> None:
    folder = save(tmp_path / "out", deepened, MLP)
    opened = open_folder(folder)
    assert opened.architecture is None
    assert same(opened.model(), deepened.model)
    assert torch.equal(opened.model()(*MLP.example_inputs()), deepened.model(*MLP.example_inputs()))
    assert same(undo_folder(MLP.build(seed=9).eval(), folder, MLP.example_inputs()), deepened.source)


def test_a_class_of_the_users_own(tmp_path: Path) -> None:
    model, inputs, spec = network("encoder layer")
    heads = "layer.self_attn.in_proj_weight.0"
    result = morph.apply([Keep(heads, [1]), Keep("layer.linear1", [3, 0])], model, inputs, spec=spec)
    folder = save(tmp_path / "out", result)
    with pytest.raises(PlanError, match=r"no known family; open it with metanet\.morph\.restore"):
        open_folder(folder).model()
    fresh, _, _ = network("encoder layer", seed=4)
    made = restore(fresh, folder, inputs)
    assert torch.equal(made(*inputs), result.model(*inputs))
    assert same(undo_folder(fresh, folder, inputs), model)
    other, given, _ = network("mixer")
    with pytest.raises(PlanError, match="for another architecture"):
        restore(other, folder, given)


@pytest.mark.parametrize("name", ["weights.safetensors", "plan.json", "undo.safetensors", "source.json"])
def test_a_changed_file_is_refused(narrowed: Morph, tmp_path: Path, name: str) -> None:
    folder = save(tmp_path / "out", narrowed, MLP)
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(data)
    with pytest.raises(PlanError, match=f"'{name}' is missing or has changed"):
        open_folder(folder)


def test_half_a_folder_is_refused(narrowed: Morph, tmp_path: Path) -> None:
    folder = save(tmp_path / "out", narrowed, MLP)
    with pytest.raises(PlanError, match="exists already"):
        save(folder, narrowed, MLP)
    (folder / "manifest.json").unlink()
    with pytest.raises(PlanError, match=r"manifest\.json cannot be read"):
        open_folder(folder)
    with pytest.raises(PlanError, match="cannot be made"):
        save(tmp_path / "nowhere" / "out", narrowed)


@pytest.mark.parametrize(
    "change",
    [
        lambda told: told.update(format="metanet.morph/9"),
        lambda told: told.update(files=[]),
        lambda told: told["files"].update({"../outside": {"bytes": 1, "sha256": ""}}),
        lambda told: told["files"].pop("plan.json"),
    ],
)
def test_a_forged_manifest_is_refused(narrowed: Morph, tmp_path: Path, change: object) -> None:
    folder = save(tmp_path / "out", narrowed, MLP)
    told = json.loads((folder / "manifest.json").read_text())
    change(told)  # type: ignore[operator]
    (folder / "manifest.json").write_text(json.dumps(told))
    with pytest.raises(MetanetError):
        open_folder(folder)


def test_plans_go_to_json_and_back() -> None:
    plan = Plan(
        [
            Widen("a", torch.tensor([0, 1, 0]), (0.25, 1.0, 0.75)),
            Keep("b", [[0, 1], [1, 0]]),
            morph.Merge("c", [[0, 2], [1]], gains=[[1.0, 0.5], [1.0]]),
            morph.Permute("d", [1, 0]),
            morph.Rescale("e", [1.5, 2.0]),
            Deepen("f", residual=True, hidden=3),
            morph.Insert("g"),
            morph.Drop("h"),
            morph.Swap("i", "gelu"),
            morph.Fold("j"),
            morph.ConvToLinear("k"),
            morph.Factorise("l", energy=0.5),
            morph.Join("m"),
        ],
        "abc",
    )
    told = json.loads(json.dumps(plan.to_json()))
    assert Plan.from_json(told) == plan
    assert hash(Plan.from_json(told)) == hash(plan)
    assert len(str(plan).splitlines()) == len(plan) == 13
    assert plan + Plan([morph.Drop("n")]) == Plan([*plan, morph.Drop("n")], "abc")


@pytest.mark.parametrize(
    "value",
    [
        None,
        {"format": "metanet.plan/2", "edits": []},
        {"format": "metanet.plan/1", "edits": {}},
        {"format": "metanet.plan/1", "edits": [{"kind": "explode"}]},
        {"format": "metanet.plan/1", "edits": [{"kind": "keep", "space": "a"}]},
        {"format": "metanet.plan/1", "edits": [{"kind": "keep", "space": "a", "units": [1], "more": 1}]},
        {"format": "metanet.plan/1", "edits": [], "fingerprint": 3},
        {"format": "metanet.plan/1", "edits": ["keep"]},
    ],
)
def test_what_is_no_plan_is_refused(value: object) -> None:
    with pytest.raises(PlanError):
        Plan.from_json(value)


def test_plans_for_widths() -> None:
    model, inputs, spec = network("encoder layer")
    state = model.state_dict()
    assert "layer.self_attn.in_proj_weight.0#2" not in resizable(spec)
    sizes = to_sizes(spec, 0.5)
    assert sizes == {"stem": 2, "layer.self_attn.in_proj_weight.0": 1, "layer.linear1": 3}
    result = morph.apply(narrow(spec, state, sizes), model, inputs, spec=spec)
    assert result.spec.sizes["layer.linear1"] == 3
    assert cost(result.model, inputs).parameters < cost(model, inputs).parameters
    wide = morph.apply(widen(spec, to_sizes(spec, 1.5)), model, inputs, spec=spec)
    assert wide.exact
    assert wide.spec.sizes["stem"] == 8  # under a layer norm: whole multiples
    assert wide.spec.sizes["layer.linear1"] == 9
    with pytest.raises(PlanError, match="copied equally often"):
        widen(spec, {"stem": 5})
    with pytest.raises(PlanError, match="expected 1 to 6"):
        narrow(spec, state, {"layer.linear1": 7})
    for ratio in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(PlanError, match="expected a positive number"):
            to_sizes(spec, ratio)


def test_importance_is_the_norm_of_what_writes_a_unit() -> None:
    model, _, spec = network("mlp relu")
    state = model.state_dict()
    rows = torch.cat([state["0.weight"], state["0.bias"][:, None]], 1)
    assert torch.allclose(importance(spec, state, "0", "l2"), rows.norm(dim=1))
    assert torch.allclose(importance(spec, state, "0", "l1"), rows.abs().sum(1))
    group = torch.cat([rows, state["2.weight"].T], 1).norm(dim=1)
    assert torch.allclose(importance(spec, state, "0", "group_l2"), group)
    g = spec.sample(torch.Generator().manual_seed(0), kinds=("permutation",))
    moved = importance(spec, spec.act(g, state), "0", "l2")
    assert torch.allclose(moved, importance(spec, state, "0", "l2")[g.permutations["0"]])
    with pytest.raises(PlanError, match="unknown criterion"):
        importance(spec, state, "0", "luck")


def test_costs_are_counted_by_hand() -> None:
    model, inputs = MLP.build(seed=0).eval(), MLP.example_inputs()
    found = cost(model, inputs, timed=True)
    assert found.parameters == found.stored == 5 * 8 + 8 + 8 * 6 + 6 + 6 * 3 + 3
    assert found.flops == 2 * (5 * 8 + 8 * 6 + 6 * 3)
    assert found.latency_ms is not None
    assert found.latency_ms > 0


def test_an_architecture_is_found_by_its_shapes() -> None:
    wide = metanet.Architecture("mlp", {"inputs": 5, "widths": [6, 8], "outputs": 3, "activation": "relu"})
    assert resized_architecture(MLP, wide.build().state_dict()) == wide
    deep = metanet.Architecture("mlp", {"inputs": 5, "widths": [6, 8, 8], "outputs": 3, "activation": "relu"})
    assert resized_architecture(MLP, deep.build().state_dict()) is None
