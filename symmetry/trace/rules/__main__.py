"""Prints the table of rules as it stands in docs/symmetry.md: python -m symmetry.trace.rules"""

from __future__ import annotations

from symmetry.trace.rules import rules_as_markdown

if __name__ == "__main__":
    print(rules_as_markdown())
