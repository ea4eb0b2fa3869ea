"""How is a network on disk brought to another width or depth, and what did that do to its function?"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metanet.commands._morph_again import write_checked
from metanet.commands._reading import add_reading_arguments, load_named
from metanet.commands._score_data import SETS, read_data
from metanet.commands._terminal import count, positive, print_json, share, table

if TYPE_CHECKING:
    from torch import Tensor, nn

    from metanet.checkpoint import Checkpoint
    from metanet.morph import Deepen, Morph, Plan
    from metanet.morph.search import Limit, Point
    from metanet.score import Preservation
    from metanet.score.certificate import Certificate
    from symmetry import SymmetrySpec

DESCRIPTION = f"""\
Bring a network to another width or depth, or do the edits of a plan, and certify how well its function is kept: both
networks are run, the new one after it was read again from its folder in a fresh process.

Dropped units are made up for by the units that are left, from the inputs of --data (a file of arrays, FILE:ARRAY, or
a set: {", ".join(SETS)}) or, without it, from made-up inputs; the answer says which. Half of the inputs serve to edit,
the other half to score. Wider networks, and blocks that are put in, are exact.

With --max-kl or --min-agreement the change goes only as far as they allow. The exit code is 1, and nothing is
written, if they allow none of it.
"""

EXAMPLES = """\
examples:
  metanet morph weights.safetensors --width 0.5 --data digits --out narrow
  metanet morph weights.safetensors --width 0.25 --data digits --max-kl 0.05 --out narrow
  metanet morph weights.safetensors --parameters 2000 --data images.npz:x --out small
  metanet morph weights.safetensors --width 2 --out wide
  metanet morph weights.pt --factory models:resnet --depth -2 --data images.npz --out shallow
  metanet morph other.safetensors --plan narrow/plan.json --out narrow-too
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="CHECKPOINT", type=Path, help="the network")
    add_reading_arguments(parser)
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--width", metavar="RATIO", type=ratio, help="of units in every space: 0.5 halves, 2 doubles")
    target.add_argument("--parameters", metavar="N", type=positive, help="at most so many, by width")
    target.add_argument("--flops", metavar="N", type=positive, help="at most so many for one input, by width")
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
    parser.add_argument("--max-kl", metavar="NATS", type=float, help="go no further than this divergence")
    parser.add_argument("--min-agreement", metavar="SHARE", type=share, help="go no further than this agreement")
    parser.add_argument("--data", metavar="FILE|NAME", help="inputs: a file of arrays, or a set by its name")
    parser.add_argument("--labels", metavar="FILE", help="classes, if the data do not bring them")
    parser.add_argument("--rows", metavar="N", type=positive, help="only the first N inputs")
    parser.add_argument("--seed", metavar="N", type=count, default=0, help="of everything that is drawn (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")


def ratio(text: str) -> float:
    """An argument that is a positive number."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} given, expected a positive number: 0.5 halves, 2 doubles")
    return value


def run(arguments: argparse.Namespace) -> int:
    from metanet.errors import ConfigError, PlanError
    from metanet.morph.search import Limit

    if arguments.out is not None and arguments.out.exists():
        raise PlanError("exists already", where=arguments.out, hint="give a new name")
    limit = Limit(arguments.max_kl, arguments.min_agreement)
    if arguments.plan is not None and limit != Limit():
        raise ConfigError("--plan says how far to go; a limit cannot", hint="give --width, --parameters or --depth")
    work = _Work(arguments, load_named(arguments.file, arguments))
    point, frontier = work.find(limit)
    told: dict[str, Any] = {
        "file": str(arguments.file),
        "inputs": work.origin,
        "limit": str(limit),
        "frontier": [_facts(each) for each in frontier],
        "uncompensated": [] if point is None else list(point.morph.uncompensated),
    }
    if point is None:
        return _refuse(arguments, told, limit)
    certificate = work.certificate(point.morph)
    if arguments.out is not None:
        architecture = work.checkpoint.architecture
        write_checked(arguments.out, point.morph, architecture, certificate, work.scored, arguments)
    told |= {
        "out": None if arguments.out is None else str(arguments.out),
        "edit_error": point.morph.error,
        "certificate": certificate.to_json(),
    }
    if arguments.json:
        print_json(told)
    else:
        print(as_text(told, point, frontier, certificate))
    return 0


class _Work:
    """One network, the inputs for it, and what can be made of it."""

    def __init__(self, arguments: argparse.Namespace, checkpoint: Checkpoint) -> None:
        from metanet.morph import resizable

        self.arguments, self.checkpoint = arguments, checkpoint
        self.model: nn.Module = checkpoint.model()
        self.spec: SymmetrySpec = checkpoint.spec
        self.example = checkpoint.architecture.example_inputs()
        self.labels: Tensor | None = None
        self._read_inputs()
        self.spaces = resizable(self.spec)
        if arguments.spaces is not None:
            self.spaces = tuple(name.strip() for name in arguments.spaces.split(",") if name.strip())

    def _read_inputs(self) -> None:
        """Inputs to edit with, and others to score on."""
        from metanet.errors import ConfigError
        from metanet.score import ProbeInputs

        given = self.arguments
        if given.data is None:
            if given.labels is not None:
                raise ConfigError("--labels without --data", hint="made-up inputs have no labels")
            rows = max((given.rows or 8192) // 2, 1)
            self.scored: Any = ProbeInputs.of(self.checkpoint, rows, given.seed)
            self.origin: str | None = None
            self.batches = [ProbeInputs.of(self.checkpoint, rows, given.seed + 1).tensors()]
            return
        inputs, labels, origin = read_data(self.checkpoint.architecture, given.data, given.labels, given.rows)
        if len(inputs) < 2:
            raise ConfigError(f"{len(inputs)} inputs", where=given.data, hint="give at least two")
        # Every second input: files are often sorted by class.
        self.batches = [(inputs[1::2],)]
        self.scored, self.labels = inputs[::2], None if labels is None else labels[::2]
        self.origin = f"every second of {origin}"

    def compare(self, model: nn.Module, full: bool) -> Preservation:
        """The score of an edited network."""
        from metanet.score import compare

        options: dict[str, Any] = {} if full else {"layers": None, "line": 0, "resamples": 0}
        return compare(
            self.checkpoint, model, self.scored, self.labels, origin=self.origin, seed=self.arguments.seed, **options
        )

    def score(self, model: nn.Module) -> tuple[float | None, float | None, float]:
        """Divergence, agreement, error."""
        found = self.compare(model, full=False)
        return found.kl, found.agreement, found.error

    def find(self, limit: Limit) -> tuple[Point | None, list[Point]]:
        """The network that was asked for, and all that were tried."""
        from metanet.morph.search import Search, shallower

        given = self.arguments
        if given.depth is not None and given.depth < 0:
            points = list(shallower(self.model, self.example, -given.depth, self.score, spec=self.spec))
            allowed = [point for point in points if limit.allows(point)]
            return (allowed[-1] if allowed else None), points
        plan: Callable[[float], Plan] = self.narrowing
        if given.plan is not None:
            plan = self.stored_plan
        elif given.depth is not None or (given.width is not None and given.width > 1):
            plan = self.growing
        search = Search(self.model, self.example, plan, self.score, spec=self.spec, **self._options())
        if given.parameters is not None or given.flops is not None:
            what = "parameters" if given.parameters is not None else "flops"
            point: Point | None = search.within(what, given.parameters or given.flops, least=1e-6)
            if point is not None and not limit.allows(point):
                point = search.smallest(point.amount, limit)
        elif given.width is not None and given.width <= 1:
            point = search.smallest(given.width, limit)
        else:
            point = search.at(1.0)
            point = point if point is None or limit.allows(point) else None
        if point is None and not search.points:
            from metanet.errors import PlanError

            raise PlanError("changes nothing at this size", where=given.file, hint="ask for another width")
        return point, search.frontier

    def _options(self) -> dict[str, Any]:
        from metanet.morph import Compensation

        if self.arguments.no_compensation:
            return {}
        return {"compensation": Compensation(self.batches)}

    def narrowing(self, ratio: float) -> Plan:
        """The plan for a share of the width."""
        import torch

        from metanet.morph import narrow, narrow_by_obs, to_sizes

        sizes = to_sizes(self.spec, ratio, self.spaces)
        if self.arguments.criterion == "obs":
            return narrow_by_obs(self.model, self.spec, sizes, self.batches)
        generator = torch.Generator().manual_seed(self.arguments.seed)
        return narrow(self.spec, self.checkpoint.state, sizes, self.arguments.criterion, generator)

    def growing(self, _: float) -> Plan:
        """The plan for more units or more blocks."""
        from metanet.errors import PlanError
        from metanet.morph import Insert, Plan, to_sizes, widen
        from metanet.morph.search import droppable

        given = self.arguments
        if given.width is not None:
            return widen(self.spec, to_sizes(self.spec, given.width, self.spaces))
        if given.depth < 1:
            raise PlanError("--depth 0", where=given.file, hint="-2 drops two blocks, 2 puts two in")
        blocks = droppable(self.model, self.example)
        if blocks:
            return Plan(tuple(Insert(blocks[-1 - number % len(blocks)], seed=number) for number in range(given.depth)))
        return Plan(tuple(self._layers(given.depth)))

    def _layers(self, number: int) -> list[Deepen]:
        """Identity layers in front of the last layers of a network without blocks, or residual ones behind others."""
        from metanet.errors import PlanError
        from metanet.morph import Deepen, apply

        maps = [name for name, module in self.model.named_modules() if _is_map(module)][1:]
        if len(maps) < number:
            raise PlanError(
                f"--depth {number}: {len(maps)} places for layers", where=self.arguments.file, hint="use --plan"
            )
        found = []
        for name in maps[-number:]:
            try:
                apply(Deepen(name), self.model, self.example, spec=self.spec)
                found.append(Deepen(name))
            except PlanError:
                # Not behind relu: there an identity layer is not exact, and a residual branch is.
                found.append(Deepen(name, residual=True))
        return found

    def stored_plan(self, _: float) -> Plan:
        """The plan in a file."""
        from metanet.errors import PlanError, clean
        from metanet.io import read_json
        from metanet.morph import Plan

        path = self.arguments.plan
        try:
            return Plan.from_json(read_json(path))
        except OSError as error:
            raise PlanError(f"cannot be read ({error.strerror})", where=path, hint="check the path") from None
        except ValueError as error:
            raise PlanError(f"is not JSON ({clean(error, 80)})", where=path, hint="give a plan.json") from None
        except PlanError as error:
            raise PlanError(error.reason, where=path, hint=error.hint) from None

    def certificate(self, morph: Morph) -> Certificate:
        """What was done, what it did, what it costs now."""
        import importlib.metadata

        from metanet.morph import cost
        from metanet.score.certificate import Certificate

        return Certificate(
            morph.plan.to_json(),
            self.compare(morph.model, full=True),
            cost(self.model, self.example, timed=True).to_json(),
            cost(morph.model, self.example, timed=True).to_json(),
            {name: importlib.metadata.version(name) for name in ("metanet", "torch")},
        )


def _is_map(module: nn.Module) -> bool:
    from torch import nn

    return isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)


def _facts(point: Point) -> dict[str, Any]:
    return {
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
    columns = ["amount", "parameters", "flops", "KL", "agreement", "error / spread"]
    rows = [[p["amount"], p["parameters"], p["flops"], p["kl"], p["agreement"], p["error"]] for p in points]
    return table(columns, rows, "  ")


def as_text(told: dict[str, Any], point: Point, frontier: list[Point], certificate: Certificate) -> str:
    """For people."""
    edits = str(point.morph.plan).splitlines()
    lines = [f"{len(edits)} edits", *(f"  {line}" for line in edits[:20])]
    if len(edits) > 20:
        lines.append(f"  ... and {len(edits) - 20} more")
    if len(frontier) > 1:
        lines += ["", f"tried, with {told['limit']}", _frontier(told["frontier"])]
    lines += ["", str(certificate)]
    if point.morph.exact:
        lines.append(f"The edits are exact ({point.morph.error:.1e} of the spread in float64).")
    if told["uncompensated"]:
        lines.append(f"not compensated: {', '.join(told['uncompensated'][:6])}")
    if told["out"]:
        lines.append(f"Written to {told['out']}, read again in a fresh process and scored alike.")
    return "\n".join(lines)
