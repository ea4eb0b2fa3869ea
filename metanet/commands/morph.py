"""How is a network on disk brought to another width or depth, and what did that do to its function?"""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metanet.commands._morph_again import write_checked
from metanet.commands._morph_field import FieldWork, check_options, field_text
from metanet.commands._morph_work import Work
from metanet.commands._reading import add_reading_arguments, load_named
from metanet.commands._score_data import SETS
from metanet.commands._terminal import above_zero, count, not_negative, number, positive, print_json, share, table

if TYPE_CHECKING:
    from metanet.morph.search import Limit, Point
    from metanet.morph.timing import Timing
    from metanet.score.certificate import Certificate

DESCRIPTION = f"""\
Bring a network to another width or depth, or do the edits of a plan, and certify how well its function is kept: both
networks are run, the new one after it was read again from its folder in a fresh process.

Dropped units are made up for by the units that are left, from the inputs of --data (a file of arrays, FILE:ARRAY, or
a set: {", ".join(SETS)}) or, without it,
from made-up inputs; the answer says which. Half of the inputs serve to edit, the other half to score. Wider
networks, and blocks that are put in, are exact.

With --rounds the weights that are left move too, down the divergence from the old network on the inputs that edit: no
labels, and no inputs but those. With --predict a trained predictor makes these inputs from the weights alone, and all
of --data score.

Latency is measured with both networks in turns, --batch inputs in a call; what a search finds is measured once more.

With --field a weight field writes the network, and nothing is edited. A budget is divided among the spaces by a search
on one half of --data, uniformly without data; the other half scores. A limit then says yes or no.

With --max-kl or --min-agreement the change goes only as far as they allow. The exit code is 1, and nothing is
written, if they allow none of it.
"""

EXAMPLES = """\
examples:
  metanet morph weights.safetensors --width 0.5 --data digits --out narrow
  metanet morph weights.safetensors --width 0.25 --data digits --max-kl 0.05 --out narrow
  metanet morph weights.safetensors --parameters 2000 --data images.npz:x --out small
  metanet morph weights.safetensors --latency 0.2 --batch 64 --data digits --out fast --report fast.html
  metanet morph weights.safetensors --width 2 --out wide
  metanet morph weights.pt --factory models:resnet --depth -2 --data images.npz --out shallow
  metanet morph weights.safetensors --width 0.5 --predict runs/morph --out narrow
  metanet morph other.safetensors --plan narrow/plan.json --out narrow-too
  metanet morph weights.safetensors --field field --parameters 2000 --data digits --out small
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="CHECKPOINT", type=Path, help="the network")
    add_reading_arguments(parser)
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--width", metavar="RATIO", type=ratio, help="of units in every space: 0.5 halves, 2 doubles")
    target.add_argument("--parameters", metavar="N", type=positive, help="at most so many, by width")
    target.add_argument("--flops", metavar="N", type=positive, help="at most so many for one input, by width")
    target.add_argument(
        "--latency",
        "--latency-ms",
        metavar="MS",
        type=above_zero,
        help="at most so many milliseconds for a call, by width",
    )
    target.add_argument(
        "--sizes", metavar="S=N", help="units of single spaces by commas (layers.0=20,layers.1=12), with --field"
    )
    target.add_argument("--depth", metavar="N", type=int, help="blocks to drop (-2), or residual blocks to put in (2)")
    target.add_argument("--plan", metavar="FILE", type=Path, help="the edits of a plan.json")
    parser.add_argument("--out", metavar="FOLDER", type=Path, help="where the new network goes; must not exist")
    parser.add_argument("--spaces", metavar="NAMES", help="only these, by commas (metanet inspect names them)")
    parser.add_argument(
        "--criterion",
        choices=("obs", "l2", "l1", "group_l2", "random", "first"),
        default="obs",
        help="which units stay; obs: those without which least is lost after compensation (%(default)s)",
    )
    parser.add_argument("--no-compensation", action="store_true", help="drop units and leave the rest as it is")
    parser.add_argument(
        "--rounds",
        metavar="N",
        type=count,
        default=0,
        help="then move all weights that are left, by N rounds of Gauss-Newton on the same inputs (%(default)s)",
    )
    parser.add_argument("--max-kl", metavar="NATS", type=not_negative, help="go no further than this divergence")
    parser.add_argument("--min-agreement", metavar="SHARE", type=share, help="go no further than this agreement")
    parser.add_argument("--data", metavar="FILE|NAME", help="inputs: a file of arrays, or a set by its name")
    parser.add_argument(
        "--predict",
        metavar="MODEL",
        type=Path,
        help="edit with inputs that a trained predictor makes from the weights alone (metanet train task=morph)",
    )
    parser.add_argument(
        "--field",
        metavar="FIELD",
        type=Path,
        help="let a weight field write the network (metanet field fit); a budget is then divided among the spaces",
    )
    parser.add_argument(
        "--extrapolate", action="store_true", help="allow a field sizes outside those that it was trained for"
    )
    parser.add_argument("--tries", metavar="N", type=positive, help="networks of a field that are tried at most (100)")
    parser.add_argument("--labels", metavar="FILE", help="classes, if the data do not bring them")
    parser.add_argument("--rows", metavar="N", type=positive, help="only the first N inputs")
    parser.add_argument(
        "--batch",
        metavar="N",
        type=positive,
        default=1,
        help="inputs in a call, where latency is measured (%(default)s)",
    )
    parser.add_argument("--seed", metavar="N", type=count, default=0, help="of everything that is drawn (%(default)s)")
    parser.add_argument("--report", metavar="PAGE", type=Path, help="also write a page with both networks side by side")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")


def ratio(text: str) -> float:
    """An argument that is a share of a width."""
    return number(text, "a positive number: 0.5 halves, 2 doubles", lambda value: 0 < value < float("inf"))


def run(arguments: argparse.Namespace) -> int:
    from metanet.commands._comparison_values import morph_values
    from metanet.errors import ConfigError
    from metanet.morph.search import Limit

    _check_places(arguments)
    check_options(arguments)
    limit = Limit(arguments.max_kl, arguments.min_agreement)
    if arguments.plan is not None and limit != Limit():
        raise ConfigError("--plan says how far to go; a limit cannot", hint="give --width, --parameters or --depth")
    work = Work(arguments, load_named(arguments.file, arguments))
    field = None if arguments.field is None else FieldWork(work)
    point, frontier = work.find(limit) if field is None else field.find(limit)
    told: dict[str, Any] = {
        "file": str(arguments.file),
        "inputs": work.origin,
        "limit": str(limit),
        "frontier": [_facts(each, point) for each in frontier],
        "uncompensated": [] if point is None else list(point.morph.uncompensated),
    }
    if field is not None:
        told["field"] = field.told
    if point is None:
        return _refuse(arguments, told, limit)
    morph, timing = point.morph, work.timing(point.morph.model)
    certificate = work.certificate(morph)
    if field is not None:
        certificate = field.certificate(certificate)
    budget = "parameters" if work.budget is None else work.budget[0]
    title, command = f"{arguments.file.name}, {_change(certificate)}", _command(arguments)
    values = morph_values(title, command, work.spec, point, frontier, str(limit), budget, certificate, timing)
    if arguments.out is not None:
        write_checked(arguments.out, morph, work.checkpoint.architecture, certificate, values, work.scored, arguments)
    if arguments.report is not None:
        from metanet.report import render_report

        render_report(values, arguments.report)
    told |= {
        "out": None if arguments.out is None else str(arguments.out),
        "report": None if arguments.report is None else str(arguments.report),
        "edit_error": morph.error,
        "missed": _missed(work.budget, point),
        "timing": timing.to_json(),
        "certificate": certificate.to_json(),
    }
    if arguments.json:
        print_json(told)
    else:
        print(as_text(told, point, frontier, certificate, timing))
    return 0


def _check_places(arguments: argparse.Namespace) -> None:
    """Whether what will be written can be, before any work is done."""
    from metanet.errors import PlanError

    out, page = arguments.out, arguments.report
    if out is not None and out.exists():
        raise PlanError("exists already", where=out, hint="give a new name")
    if out is not None and not out.absolute().parent.is_dir():
        raise PlanError("cannot be made: the folder above it is not there", where=out, hint="make it, or name another")
    if page is not None and page.is_dir():
        raise PlanError("is a folder", where=page, hint="name the page in it, such as report.html")


def _missed(budget: tuple[str, float] | None, point: Point) -> str | None:
    """In words, a budget that a limit has kept the network from."""
    from metanet.morph.search import BUDGETS

    if budget is None or getattr(point.cost, budget[0]) is None or getattr(point.cost, budget[0]) <= budget[1]:
        return None
    words = BUDGETS[budget[0]]
    return f"{words.format(budget[1])} asked for; the limit stops at {words.format(getattr(point.cost, budget[0]))}"


def _change(certificate: Certificate) -> str:
    """What became of the size, in two words."""
    old, new = certificate.before["parameters"] or 1, certificate.after["parameters"] or 1
    if old == new:
        return "as large"
    return f"{old / new:.1f} times smaller" if new < old else f"{new / old:.1f} times larger"


def _command(arguments: argparse.Namespace) -> str:
    """The command with every option that is set, defaults included."""
    words = ["metanet", "morph", str(arguments.file)]
    for name, value in vars(arguments).items():
        if name in ("file", "json", "report") or value is None or value is False:
            continue
        words += [f"--{name.replace('_', '-')}"] + ([] if value is True else [str(value)])
    return shlex.join(words)


def _facts(point: Point, chosen: Point | None) -> dict[str, Any]:
    return {
        "taken": chosen is not None and chosen.morph is point.morph,
        "amount": point.amount,
        **point.cost.to_json(),
        "kl": point.kl,
        "agreement": point.agreement,
        "error": point.error,
        "sizes": {space.name: space.size for space in point.morph.spec.spaces},
    }


def _refuse(arguments: argparse.Namespace, told: dict[str, Any], limit: Limit) -> int:
    if arguments.json:
        print_json({**told, "out": None, "certificate": None})
    else:
        print(_frontier(told["frontier"]))
        print(f"\nNothing was written: nothing that was tried keeps {limit}.")
    return 1


def _frontier(points: list[dict[str, Any]]) -> str:
    timed = [("latency ms", "latency_ms")] if any(point["latency_ms"] is not None for point in points) else []
    columns = [("amount", "amount"), ("parameters", "parameters"), ("flops", "flops"), *timed]
    columns += [("KL", "kl"), ("agreement", "agreement"), ("error / spread", "error")]
    rows = [["->" if point["taken"] else "", *(point[key] for _, key in columns)] for point in points]
    return table(["", *(name for name, _ in columns)], rows)


def as_text(told: dict[str, Any], point: Point, frontier: list[Point], certificate: Certificate, timing: Timing) -> str:
    """For people."""
    edits = str(point.morph.plan).splitlines()
    lines = [f"{len(edits)} edits", *(f"  {line}" for line in edits[:20])]
    if len(edits) > 20:
        lines.append(f"  ... and {len(edits) - 20} more")
    if "field" in told:
        lines += ["", *field_text(told["field"])]
    elif len(frontier) > 1:
        lines += ["", f"tried, with {told['limit']}; -> is what was taken", _frontier(told["frontier"])]
    lines += [
        "",
        str(certificate),
        f"  latency: {timing.setting};",
        f"  within a round {timing.ratios[-1]} times as long",
    ]
    if point.morph.exact:
        lines.append(f"The edits are exact ({point.morph.error:.1e} of the spread in float64).")
    if told["uncompensated"]:
        lines.append(f"not compensated: {', '.join(told['uncompensated'][:6])}")
    if told["missed"]:
        lines.append(told["missed"])
    if told["out"]:
        lines.append(f"Written to {told['out']}, read again in a fresh process and scored alike.")
    if told["report"]:
        lines.append(f"page: {told['report']}")
    return "\n".join(lines)
