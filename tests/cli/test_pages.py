"""Are the command lines in the README, the pages and the help texts such that the program takes them?"""

from __future__ import annotations

import re
import shlex
from importlib import import_module
from pathlib import Path

import pytest

from metanet import cli

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def shell_lines(text: str) -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


def commands() -> list[tuple[str, str]]:
    found = [(page.name, line) for page in PAGES for line in shell_lines(page.read_text())]
    for path, (module, _) in cli.COMMANDS.items():
        examples = import_module(f"metanet.commands.{module}").EXAMPLES
        found += [(" ".join(path), line) for line in examples.splitlines()[1:]]
    found += [("overview", line) for line in cli._EPILOG.splitlines()]
    return [(where, line.strip().split(" | ")[-1]) for where, line in found if re.search(r"(^|\| |^ +)metanet ", line)]


@pytest.mark.parametrize(("where", "line"), commands())
def test_the_program_takes_the_line(where: str, line: str) -> None:
    words = shlex.split(line, comments=True)[1:]
    path = cli._command(words)
    assert path is not None, line
    module = import_module(f"metanet.commands.{cli.COMMANDS[path][0]}")
    parser = cli.Parser()
    module.add_arguments(parser)
    parsed = parser.parse_intermixed_args(words[len(path) :])
    for override in getattr(parsed, "overrides", []):
        group, _, name = override.partition("=")
        if group in ("zoo", "task", "model", "trainer", "dataset") and not parsed.config_dir:
            assert (ROOT / "configs" / group / f"{name}.yaml").is_file(), f"{override} names no configuration"


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {target for page in PAGES for target in re.findall(r"^make ([a-z]+)", page.read_text(), re.MULTILINE)}
    assert named
    assert named <= targets


def test_links_lead_somewhere() -> None:
    missing = [
        f"{page.name}: {target}"
        for page in [*PAGES, ROOT / "CHANGELOG.md", ROOT / "benchmarks" / "README.md"]
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text())
        if not (page.parent / target).exists()
    ]
    assert missing == []
