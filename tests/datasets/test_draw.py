"""Is what is drawn within the declared ranges, split by run, and independent of what else is drawn?"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from metanet.datasets import ZooConfig, load_digits_dataset, load_images, load_zoo_config
from metanet.datasets.draw import Draw, draw_zoo
from metanet.datasets.trainer import data_of_run
from metanet.errors import ConfigError

CONFIG = load_zoo_config("digits_mixed")


@pytest.fixture(scope="module")
def draw() -> Draw:
    return draw_zoo(CONFIG, load_images(CONFIG.data))


def test_settings_lie_in_their_ranges(draw: Draw) -> None:
    for run in draw.runs:
        for name in ("steps", "data_share", "initial_scale", "label_noise"):
            assert getattr(run, name) in CONFIG.training[name]
        declared = CONFIG.optimisers[run.optimiser].ranges
        for name in ("learning_rate", "momentum", "weight_decay"):
            assert getattr(run, name) in declared[name]
    # They vary: a constant would lie in its range as well.
    assert len({run.learning_rate for run in draw.runs}) == len(draw.runs)


def test_architectures_lie_in_their_ranges_and_cover_them(draw: Draw) -> None:
    assert len({a.fingerprint for a in draw.architectures}) == CONFIG.architectures
    for name, family in CONFIG.families.items():
        own = [a.options for a in draw.architectures if a.family == name]
        assert len(own) == CONFIG.architectures // 2
        for key in ("activation", "norm", "residual"):
            assert {options[key] for options in own} == set(family.ranges[key].values)
        for options in own:
            assert len(options["widths"]) in family.ranges["depth"]
            assert all(width in family.ranges["width"] for width in options["widths"])


def test_every_run_is_in_exactly_one_group_with_its_parent(draw: Draw) -> None:
    members = [run for group in draw.groups for run in (*group.runs, *group.children)]
    assert sorted(members) == list(range(CONFIG.runs))
    assert all(len(group.runs) <= CONFIG.group for group in draw.groups)
    for group in draw.groups:
        for run in (*group.runs, *group.children):
            assert draw.runs[run].architecture == group.architecture
        for child in group.children:
            assert draw.runs[child].parent in group.runs


def test_splits_are_as_declared_and_children_stay_with_their_parent(draw: Draw) -> None:
    roots = [run for run in draw.runs if run.parent is None]
    children = [run for run in draw.runs if run.parent is not None]
    assert len(children) == round(CONFIG.children * CONFIG.runs) > 0
    for name, share in CONFIG.split.items():
        assert sum(run.split == name for run in roots) / len(roots) == pytest.approx(share, abs=0.005)
        for architecture in range(CONFIG.architectures):
            own = [run for run in roots if run.architecture == architecture]
            assert sum(run.split == name for run in own) == pytest.approx(share * len(own), abs=1.01)
    for child in children:
        assert child.parent is not None
        assert child.split == draw.runs[child.parent].split


def test_a_run_depends_on_its_number_and_the_seed_only(draw: Draw) -> None:
    data = load_images(CONFIG.data)
    regrouped = draw_zoo(replace(CONFIG, group=5), data)
    assert regrouped.runs == draw.runs
    assert len(regrouped.groups) > len(draw.groups)
    other = draw_zoo(replace(CONFIG, seed=1), data)
    assert all(a.seed != b.seed for a, b in zip(other.runs, draw.runs, strict=True))


def test_snapshots_are_geometric_and_end_with_the_last_step(draw: Draw) -> None:
    for run in draw.runs:
        assert run.snapshot_steps[-1] == run.steps
        ratios = np.divide(run.snapshot_steps[1:], run.snapshot_steps[:-1])
        np.testing.assert_allclose(ratios, CONFIG.snapshot_ratio, rtol=0.1)


def test_minibatches_come_from_the_runs_own_share(draw: Draw) -> None:
    data = load_digits_dataset()
    run = replace(draw.runs[0], data_share=0.1, label_noise=0.25, steps=40)
    own = data_of_run(run, data, 32)
    assert len(own.rows) == 100 == len(set(own.rows.tolist()))
    assert own.batches.shape == (40, 32)
    # Whole epochs: every image is seen equally often, up to one.
    seen = np.bincount(own.batches.ravel(), minlength=1000)
    assert set(np.flatnonzero(seen)) == set(own.rows)
    assert seen[own.rows].max() - seen[own.rows].min() <= 1
    changed = np.flatnonzero(own.labels != data.pool_labels.numpy())
    assert set(changed) <= set(own.rows)
    assert 15 <= len(changed) <= 25
    again, other = data_of_run(run, data, 32), data_of_run(replace(run, seed=run.seed + 1), data, 32)
    np.testing.assert_array_equal(own.batches, again.batches)
    assert (own.batches != other.batches).any()


def test_ranges_that_make_no_network_are_refused() -> None:
    raw = load_zoo_config("digits_tiny").to_json()
    raw["families"]["cnn"]["kernel"] = 4
    config = ZooConfig.from_mapping(raw)
    with pytest.raises(ConfigError, match=r"families\.cnn: .*kernel is 4, expected an odd number"):
        draw_zoo(config, load_images(config.data))


def test_heads_have_to_divide_every_width() -> None:
    raw = load_zoo_config("mixed").to_json()
    raw["families"]["transformer"]["heads"] = 5
    config = ZooConfig.from_mapping(raw)
    with pytest.raises(ConfigError, match=r"families\.transformer: .*heads is 5, expected a divisor of width"):
        draw_zoo(config, load_images(config.data))


def test_the_mixed_zoo_has_narrow_and_wide_networks_of_every_kind() -> None:
    config = load_zoo_config("mixed")
    drawn = draw_zoo(config, load_images(config.data)).architectures
    assert len({a.fingerprint for a in drawn}) == config.architectures
    sizes: dict[str, list[int]] = {}
    for architecture in drawn:
        options = architecture.options
        kind = architecture.family + (" residual" if options.get("residual") and architecture.family == "cnn" else "")
        widths = (*options.get("widths", ()), *options.get("hidden", ()), options.get("width", 1))
        assert max(widths) <= 64
        assert min((*options.get("widths", ()), *options.get("hidden", ()), options.get("width", 64))) >= 8
        sizes.setdefault(kind, []).append(max(widths))
        if architecture.family == "transformer":
            assert len(options["hidden"]) in config.families["transformer"].ranges["depth"]
            assert options["patch"] in config.families["transformer"].ranges["patch"]
    assert set(sizes) == {"mlp", "cnn", "cnn residual", "transformer", "gru"}
    for widest in sizes.values():
        assert min(widest) <= 32
        assert max(widest) >= 48
