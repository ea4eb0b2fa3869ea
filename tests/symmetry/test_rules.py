"""Is the table of rules whole, readable, and the same in the documentation?"""

from __future__ import annotations

from pathlib import Path

import pytest

import symmetry
from symmetry.trace.rules import register, rule_for, rules_as_markdown

DOCS = Path(__file__).parents[2] / "docs" / "symmetry.md"


def test_documentation_has_the_table_as_it_is() -> None:
    text = DOCS.read_text(encoding="utf-8")
    table = text.split("<!-- rules -->")[1].split("<!-- end of rules -->")[0].strip()
    assert table == rules_as_markdown(), "python -m symmetry.trace.rules prints what docs/symmetry.md should have"


def test_every_rule_says_what_it_does_and_is_found() -> None:
    for kind, operation, summary in symmetry.rule_table():
        assert kind
        assert len(summary) > 8, operation
        assert rule_for(operation) is not None
    assert rule_for("aten.median.default") is None


def test_an_operation_has_one_rule() -> None:
    rule = rule_for("aten.relu.default")
    assert rule is not None
    with pytest.raises(ValueError, match=r"aten\.relu\.default already has the rule Pointwise"):
        register(rule, "aten.relu.default")
