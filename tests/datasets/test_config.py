"""Are the configurations that come with the package valid, and impossible ones refused in one clear line?"""

from __future__ import annotations

import copy
from typing import Any

import pytest
from omegaconf import OmegaConf

from metanet.datasets import ZooConfig, load_zoo_config, zoo_config_names
from metanet.errors import ConfigError

TINY = load_zoo_config("digits_tiny").to_json()


def changed(path: str, value: Any) -> dict[str, Any]:
    """The tiny configuration with one setting replaced, added, or (``...``) removed."""
    result = copy.deepcopy(TINY)
    *folders, last = path.split(".")
    place = result
    for name in folders:
        place = place[name]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return result


@pytest.mark.parametrize("name", zoo_config_names())
def test_what_comes_with_the_package_is_valid_and_complete(name: str) -> None:
    config = load_zoo_config(name)
    assert config.name == name
    assert type(config).from_mapping(config.to_json()).to_json() == config.to_json()
    assert type(config).from_mapping(OmegaConf.create(config.to_json())).fingerprint == config.fingerprint


def test_the_demo_has_what_it_promises() -> None:
    config = load_zoo_config("digits_mixed")
    assert config.runs >= 300
    assert set(config.families) == {"mlp", "cnn"}
    for family in config.families.values():
        assert set(family.ranges["activation"].values) == {"relu", "tanh", "gelu", "sin"}
        assert set(family.ranges["norm"].values) == {"none", "batch"}
        assert set(family.ranges["residual"].values) == {False, True}


def test_the_fingerprint_tells_settings_apart() -> None:
    assert ZooConfig.from_mapping(TINY).fingerprint == load_zoo_config("digits_tiny").fingerprint
    assert ZooConfig.from_mapping(changed("seed", 1)).fingerprint != load_zoo_config("digits_tiny").fingerprint


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("runs", ..., "runs: is missing"),
        ("runs", 0, "runs: 0, expected a whole number"),
        ("runs", True, "runs: True, expected a whole number"),
        ("runs", "12", "runs: '12', expected a whole number"),
        ("rnus", 12, "rnus: unknown setting"),
        ("seed", -1, "seed: -1"),
        ("architectures", 11, "architectures: 11 architectures for 9 runs"),
        ("children", 0.95, "children: 0.95"),
        ("name", "a\nb", "name: "),
        ("data", "cifar", "data.name: 'cifar' is no data set"),
        ("data", {"name": "digits", "pool": 1500}, "data: pool + test is 2297, but there are 1797 images"),
        ("data.size", 15, "data.size: 15, expected one of"),
        ("data.sides", 14, "data.sides: unknown option"),
        ("snapshots.count", 0, "snapshots.count: 0"),
        ("snapshots.ratio", 1.0, "snapshots.ratio: 1.0"),
        ("snapshots.first", True, "snapshots.first: unknown setting"),
        ("split.test", 0.5, "add up to 1.25"),
        ("split", {"train": 1.0}, "split.val: is missing"),
        ("families", {}, "families: is empty"),
        ("families.rnn", {}, "families: 'rnn' is unknown"),
        ("families.mlp", None, "families.mlp: None, expected a mapping"),
        ("families.mlp.width", ..., "families.mlp.width: is missing"),
        ("families.mlp.kernel", 3, "families.mlp.kernel: unknown setting"),
        ("families.mlp.width", {"integer": [0, 4]}, "families.mlp.width: 0 is outside"),
        ("training.steps", ..., "training.steps: is missing"),
        ("training.data_share", 2.0, "training.data_share: 2.0 is outside"),
        ("optimisers.sgd.momentum", 1.0, "optimisers.sgd.momentum: 1.0 is outside"),
        ("optimisers.lion", {}, "optimisers: 'lion' is unknown"),
    ],
)
def test_refusals_name_the_setting_in_one_line(path: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ZooConfig.from_mapping(changed(path, value))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_shares_may_not_all_be_zero() -> None:
    raw = changed("families.mlp.share", 0)
    raw["families"]["cnn"]["share"] = 0
    with pytest.raises(ConfigError, match="families: all shares are 0"):
        ZooConfig.from_mapping(raw)


@pytest.mark.parametrize("raw", [None, [], "digits_tiny", 3])
def test_something_else_is_refused(raw: object) -> None:
    with pytest.raises(ConfigError, match="expected a mapping"):
        ZooConfig.from_mapping(raw)


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"known: .*digits_mixed"):
        load_zoo_config("../secrets")
