"""Do the values of a morph's page say how wide every space became, and what stands in for what was dropped?"""

from __future__ import annotations

import pytest

import symmetry
from metanet import morph
from metanet.commands._space_values import ranges, space_values, unit_values
from metanet.morph import Compensation, Keep, Merge, Plan, Widen
from tests.cli.test_morph import residual
from tests.morph.subjects import network
from tests.morph.test_compensate import batches


def test_one_head_is_no_space_and_still_told() -> None:
    """The new network has no heads to permute, so its spec names none; the page names the old one's."""
    name = "encoder layer"
    model, inputs, spec = network(name)
    heads = next(iter(next(iter(spec.within.values()))))
    sizes = {space.name: space.size for space in spec.spaces}
    made = morph.apply(Keep(heads, [1]), model, inputs, spec=spec, compensation=Compensation(batches(name)))
    assert len(made.spec.spaces) == len(sizes) - 1
    rows = {row["name"]: row for row in space_values(spec, made)}
    assert {name: row["before"] for name, row in rows.items()} == sizes
    assert {name: row["after"] for name, row in rows.items()} == sizes | {heads: 1}
    assert rows[heads]["kind"] == "heads"
    assert {row["kind"] for row in rows.values() if row["within"] == heads} == {"matrix"}
    (told,) = unit_values(spec, made)
    assert told["gone"] == ranges([unit for unit in range(sizes[heads]) if unit != 1])
    # Each unit of a dropped head is rebuilt from units of the one that is left.
    assert {row["unit"].split(".")[0] for row in told["rebuilt"]} == set(map(str, range(sizes[heads]))) - {"1"}
    assert {source["unit"].split(".")[0] for row in told["rebuilt"] for source in row["sources"]} == {"1"}


def test_a_stream_is_one_space_along_its_blocks() -> None:
    model, inputs, spec = network("residual stream")
    stream = "i"
    made = morph.apply(Widen(stream, list(range(spec.sizes[stream])) * 2), model, inputs, spec=spec)
    rows = space_values(spec, made)
    told = next(row for row in rows if row["name"] == stream)
    assert told["kind"] == "stream"
    assert told["after"] == 2 * told["before"]
    assert told["until"] == rows[-1]["name"]
    assert [row["kind"] for row in rows].count("stream") == 1
    assert unit_values(spec, made) == []


def test_edits_one_after_the_other() -> None:
    """What a second edit of a space drops is counted from what the first has left."""
    model, inputs, spec = network("mlp relu")
    made = morph.apply(Plan((Keep("0", [0, 2, 3]), Merge("0", [[0, 1], [2]]))), model, inputs, spec=spec)
    first, second = unit_values(spec, made)
    assert (first["before"], first["kept"], first["gone"], first["rebuilt"]) == (4, 3, "1", [])
    assert (second["before"], second["kept"], second["merged"]) == (3, 2, ["0 and 1"])
    assert [row["after"] for row in space_values(spec, made) if row["name"] == "0"] == [2]


def test_blocks_of_their_own() -> None:
    """A space that only the new network has stands behind the one before it, without an old width."""
    made, x = residual()
    model, inputs, block = made.eval(), (x,), "1"
    spec = symmetry.trace(model, inputs)
    made = morph.apply(morph.Insert(block), model, inputs, spec=spec)
    rows = space_values(spec, made)
    new = [row for row in rows if row["before"] is None]
    assert new
    assert {row["name"] for row in rows if row["after"] is not None} == {space.name for space in made.spec.spaces}
    gone = space_values(spec, morph.apply(morph.Drop(block), model, inputs, spec=spec))
    assert [row["name"] for row in gone if row["after"] is None]


@pytest.mark.parametrize(
    ("numbers", "told"), [([], ""), ([4], "4"), ([1, 2], "1, 2"), ([1, 2, 3, 7, 9, 10], "1 to 3, 7, 9, 10")]
)
def test_ranges(numbers: list[int], told: str) -> None:
    assert ranges(numbers) == told
