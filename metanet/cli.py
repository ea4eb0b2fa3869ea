"""What does `metanet <command>` run? A thin dispatcher: one module of `metanet.commands` for each.

Exit codes: 0, it worked; 1, the check that was asked for failed; 2, bad input, with one line on stderr that says what,
where and what to do; 70, an error in the program itself, with its traceback; 130, interrupted.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

OK, CHECK_FAILED, BAD_INPUT, PROGRAM_ERROR, INTERRUPTED = 0, 1, 2, 70, 130

# Command words -> (module in metanet.commands, one line for the overview): here, so that the overview imports nothing.
COMMANDS: dict[tuple[str, ...], tuple[str, str]] = {
    ("demo",): ("demo", "the whole way in three minutes: zoo, metanetwork, prediction, report.html"),
    ("inspect",): ("inspect_file", "what is in a checkpoint file, and which weight changes leave its function alone"),
    ("align",): (
        "align",
        "bring a network into the basis of another, so that their weights can be compared or averaged",
    ),
    ("morph",): ("morph", "bring a network to another width or depth, and certify how well its function is kept"),
    ("score",): ("score", "how far apart the functions of two networks are: both are run on the same inputs"),
    ("field", "fit"): ("field_fit", "distil a network into a weight field: one set of numbers, a network of any width"),
    ("field", "sample"): ("field_sample", "read a network of any width from a weight field"),
    ("zoo", "build"): ("zoo_build", "train a zoo: many networks of varied quality at once; resumes after a kill"),
    ("zoo", "import"): ("zoo_import", "make a published zoo (CNNs, INRs, transformers) one that can be trained on"),
    ("zoo", "verify"): ("zoo_verify", "load and measure a sample of a zoo's networks again"),
    ("train",): ("train", "train a metanetwork on a zoo; resumes after a kill"),
    ("predict",): ("predict", "ask a trained metanetwork about one checkpoint file, or thousands"),
    ("report",): ("report", "draw report.html again from a run's stored values"),
}

_EPILOG = """\
examples:
  metanet demo
  metanet inspect weights.safetensors --verify
  metanet align reference.safetensors other.safetensors --out aligned.safetensors
  metanet morph weights.safetensors --width 0.5 --data digits --out narrow
  metanet score before.safetensors after.safetensors --data digits
  metanet zoo build zoo=digits_cnn zoo.runs=300 --folder zoos/digits
  metanet train task=property --zoo zoos/digits --folder runs/accuracy
  metanet predict runs/accuracy weights.safetensors --json

`metanet COMMAND --help` has the arguments of a command and an example.
exit codes: 0 it worked, 1 the check failed, 2 bad input (one line on stderr)
"""


class UsageError(Exception):
    """The command line itself is wrong."""


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are one line that says where help is."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see `{self.prog} --help`")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: The words after `metanet`; those of this process if None.

    Returns:
        The exit code. `SystemExit` is raised for `--help` and `--version` only.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    prog = "metanet"
    try:
        path = _command(words)
        if path is None:
            overview = _overview()
            if not words:
                overview.print_help()
                return OK
            _unknown(words, overview)
        prog = " ".join(("metanet", *path))
        module = importlib.import_module(f"metanet.commands.{COMMANDS[path][0]}")
        parser = Parser(
            prog=prog,
            description=module.DESCRIPTION,
            epilog=module.EXAMPLES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        module.add_arguments(parser)
        return int(module.run(parser.parse_intermixed_args(words[len(path) :])))
    except KeyboardInterrupt:
        print(f"{prog}: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of our output has gone (`metanet ... | head`): nothing is left to say, at exit neither.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except Exception as error:
        if not _is_for_the_user(error):
            traceback.print_exc()
            print(f"{prog}: this is an error in metanet itself; please report it with the lines above", file=sys.stderr)
            return PROGRAM_ERROR
        print(f"{prog}: error: {_one_line(error)}", file=sys.stderr)
        return BAD_INPUT


def entry() -> NoReturn:
    """The console script."""
    sys.exit(main())


def _command(words: Sequence[str]) -> tuple[str, ...] | None:
    for length in (2, 1):
        path = tuple(words[:length])
        if path in COMMANDS:
            return path
    return None


def _overview(group: str = "") -> Parser:
    paths = [path for path in COMMANDS if not group or path[0] == group]
    width = max(len(" ".join(path)) for path in paths)
    lines = [f"  {' '.join(path):<{width}}  {COMMANDS[path][1]}" for path in paths]
    parser = Parser(
        prog=f"metanet {group}".strip(),
        usage=f"metanet {group or 'COMMAND'} ...",
        description="Networks that read networks: weight symmetries, parameter graphs, metanetworks for checkpoints.\n"
        "\ncommands:\n" + "\n".join(lines),
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    if not group:
        parser.add_argument("--version", action="version", version=f"metanet {_version()}")
    return parser


def _unknown(words: Sequence[str], overview: Parser) -> NoReturn:
    groups = {path[0] for path in COMMANDS if len(path) == 2}
    if words[0] in groups:
        if words[1:2] in (["-h"], ["--help"]):
            _overview(words[0]).parse_args(["--help"])
        known = ", ".join(" ".join(path) for path in COMMANDS if path[0] == words[0])
        raise UsageError(f"'{' '.join(words[:2])}' is no command; expected one of: {known}")
    if words[0].startswith("-"):
        overview.parse_args(words)
    known = ", ".join(" ".join(path) for path in COMMANDS)
    raise UsageError(f"'{words[0]}' is no command; expected one of: {known}")


def _version() -> str:
    from metanet import __version__

    return __version__


def _is_for_the_user(error: Exception) -> bool:
    """Whether the error is about what the user gave. symmetry's class is looked up late: its import takes a second."""
    if isinstance(error, UsageError | OSError):
        return True
    from metanet.errors import MetanetError

    if isinstance(error, MetanetError):
        return True
    symmetry_errors = sys.modules.get("symmetry.errors")
    return symmetry_errors is not None and isinstance(error, symmetry_errors.SymmetryError)


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror.lower()}; check the path, its permissions and the free space"
    return " ".join(str(error).split())


if __name__ == "__main__":
    entry()
