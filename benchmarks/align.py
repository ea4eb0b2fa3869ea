"""How high is the barrier between two aligned networks, and how long does aligning take, beside two public packages?

Networks 64-n-n-10 with ReLU learn scikit-learn's digits (grey values over 16, a quarter held out; Adam, learning rate
1e-3, batches of 64, 60 epochs), two for each seed. The second is aligned to the first. A barrier is taken at the
midpoint of the straight line between them: `loss` is the cross-entropy on the held-out images minus the mean of both
ends', `error` the same of the share of wrong answers, `train` of the cross-entropy on the training images.

`plain` is weight matching as published (Git Re-Basin, 2023, algorithm 1), written out below for these networks: from
the identity, layers in random order, until no layer changes. `rebasin` 0.0.47 and `sinkhorn-rebasin` 0.0.2 run in
folders of their own, because one overwrites the other; where they are not installed they are left out, and it says so.

    python benchmarks/align.py [--quick] [--json FILE] [--threads N] [--environments FOLDER] [--install]

`--install` puts both packages, without torch, into the folder (default: build/align). With --json a run that was
stopped goes on where it was.

Wanted: loss barrier at most .14 / .03 / .005 at widths 32 / 128 / 512; at width 1,024 at most the seconds of `plain`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from machine import machine
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

State = dict[str, Tensor]
Row = dict[str, Any]
SEEDS = (0, 1, 2)
WANTED = {32: 0.14, 128: 0.03, 512: 0.005}
WIDEST = 1024
PACKAGES = {
    "rebasin": ("rebasin==0.0.47", "torchview", "graphviz"),
    "sinkhorn-rebasin": ("sinkhorn-rebasin==0.0.2", "torchviz", "graphviz"),
}
SINKHORN_STEPS = (60, 15)  # in full, and in a quick run


def network(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10))


def digits() -> dict[str, Tensor]:
    """The 1,797 digits of scikit-learn, a quarter of them for testing."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    parts = train_test_split(bunch.data / 16, bunch.target, test_size=0.25, random_state=0)
    names = ("images", "test_images", "labels", "test_labels")
    return {
        name: torch.tensor(part, dtype=torch.int64 if "labels" in name else torch.float32)
        for name, part in zip(names, parts, strict=True)
    }


def train(width: int, seed: int, images: Tensor, labels: Tensor, epochs: int) -> State:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = network(width)
        optimiser = torch.optim.Adam(model.parameters(), 1e-3)
        for _ in range(epochs):
            for rows in torch.randperm(len(images)).split(64):
                optimiser.zero_grad()
                nn.functional.cross_entropy(model(images[rows]), labels[rows]).backward()
                optimiser.step()
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def plain_matching(a: State, b: State, seed: int) -> State:
    """Git Re-Basin's weight matching for 64-n-n-10, as one would write it by hand."""
    width = len(a["0.bias"])
    orders = [torch.arange(width), torch.arange(width)]
    generator = torch.Generator().manual_seed(seed)
    changed = True
    while changed:
        changed = False
        for layer in torch.randperm(2, generator=generator).tolist():
            if layer == 0:
                scores = a["0.weight"] @ b["0.weight"].T + torch.outer(a["0.bias"], b["0.bias"])
                scores += a["2.weight"].T @ b["2.weight"][orders[1]]
            else:
                scores = a["2.weight"] @ b["2.weight"][:, orders[0]].T + torch.outer(a["2.bias"], b["2.bias"])
                scores += a["4.weight"].T @ b["4.weight"]
            _, columns = linear_sum_assignment(scores.numpy(), maximize=True)
            found = torch.from_numpy(columns)
            rows = torch.arange(width)
            if scores[rows, found].sum() > scores[rows, orders[layer]].sum() + 1e-12:
                orders[layer], changed = found, True
    first, second = orders
    return {
        "0.weight": b["0.weight"][first],
        "0.bias": b["0.bias"][first],
        "2.weight": b["2.weight"][second][:, first],
        "2.bias": b["2.bias"][second],
        "4.weight": b["4.weight"][:, second],
        "4.bias": b["4.bias"],
    }


def our_variants(width: int, images: Tensor) -> dict[str, Callable[[State, State, int], State]]:
    import symmetry

    model = network(width)
    spec = symmetry.trace(model, (images[:7],))

    def aligned(method: str, starts: int) -> Callable[[State, State, int], State]:
        def run(a: State, b: State, seed: int) -> State:
            generator = torch.Generator().manual_seed(seed)
            element = symmetry.align(spec, a, b, method, starts, generator, model, (images,))
            return spec.act(element, b)

        return run

    return {
        "weights, 1 start": aligned("weights", 1),
        "weights": aligned("weights", 2),
        "frank_wolfe": aligned("frank_wolfe", 1),
        "activations": aligned("activations", 1),
    }


def barriers(width: int, a: State, b: State, data: dict[str, Tensor], repaired: bool = False) -> dict[str, float]:
    import symmetry

    model = network(width)
    path = None
    if repaired:
        spec = symmetry.trace(model, (data["images"][:7],))
        path = lambda weight: symmetry.repair(spec, model, a, b, (data["images"],), weight)  # noqa: E731

    def wrong(output: Tensor, labels: Tensor) -> Tensor:
        return (output.argmax(1) != labels).float().mean()

    test, training = [((data["test_images"],), data["test_labels"])], [((data["images"],), data["labels"])]
    return {
        "loss": symmetry.barrier(model, a, b, test, path=path).midpoint,
        "error": symmetry.barrier(model, a, b, test, wrong, path=path).midpoint,
        "train loss": symmetry.barrier(model, a, b, training, path=path).midpoint,
    }


def in_package(
    package: str, folder: Path, pairs: list[tuple[int, State, State]], threads: int, steps: int
) -> list[tuple[State, float]]:
    """Align every pair by a package, in a process that sees it; this very script is its worker."""
    with tempfile.TemporaryDirectory() as place:
        source, target = Path(place) / "pairs.pt", Path(place) / "found.pt"
        torch.save(pairs, source)
        environment = os.environ | {"PYTHONPATH": str(folder / package), "OMP_NUM_THREADS": str(threads)}
        command = [sys.executable, __file__, "--worker", package, str(source), str(target), str(steps)]
        subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
        found: list[tuple[State, float]] = torch.load(target, weights_only=True)
        return found


def work(package: str, source: Path, target: Path, steps: int) -> None:
    """The worker: reads pairs, writes (aligned state, seconds)."""
    found = []
    for width, a, b in torch.load(source, weights_only=True):
        models = network(width), network(width)
        for model, state in zip(models, (a, b), strict=True):
            model.load_state_dict(state)
        torch.manual_seed(0)
        start = time.perf_counter()
        moved = by_rebasin(*models) if package == "rebasin" else by_sinkhorn(*models, steps)
        found.append((moved, time.perf_counter() - start))
    torch.save(found, target)


def by_rebasin(reference: nn.Module, model: nn.Module) -> State:
    from rebasin import PermutationCoordinateDescent

    PermutationCoordinateDescent(reference, model, torch.randn(7, 64)).rebasin()
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def by_sinkhorn(reference: nn.Module, model: nn.Module, steps: int) -> State:
    """As in the package's examples: distance of the weights, AdamW with learning rate 0.1."""
    from rebasin import RebasinNet
    from rebasin.loss import DistL2Loss

    matching = RebasinNet(model, input_shape=(1, 64))
    matching.identity_init()
    matching.train()
    distance = DistL2Loss(reference)
    optimiser = torch.optim.AdamW(matching.p.parameters(), lr=0.1)
    for _ in range(steps):
        loss = distance(matching())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    matching.eval()
    with torch.no_grad():
        moved = matching()
    return {name: value.detach().clone() for name, value in moved.state_dict().items()}


def install(folder: Path) -> None:
    constraints = Path(__file__).resolve().parent.parent / "constraints.txt"
    for package, needs in PACKAGES.items():
        place = ["--target", str(folder / package), "--no-deps", "--upgrade", "-c", str(constraints)]
        subprocess.run([sys.executable, "-m", "pip", "install", "-q", *place, *needs], check=True)


def installed(folder: Path) -> list[str]:
    """The packages that are there; says which are not."""
    there = []
    for package in PACKAGES:
        if (folder / package / "rebasin" / "__init__.py").is_file():
            there.append(package)
        else:
            print(f"{package}: left out, {folder / package} does not hold it; run with --install", file=sys.stderr)
    return there


def measure(
    width: int,
    seed: int,
    data: dict[str, Tensor],
    packages: list[str],
    folder: Path,
    threads: int,
    epochs: int,
    steps: int,
) -> list[Row]:
    """All rows of one pair of networks."""
    a, b = (train(width, 2 * seed + k, data["images"], data["labels"], epochs) for k in range(2))
    results: dict[str, tuple[State, float | None]] = {"as trained": (b, None)}
    ours = our_variants(width, data["images"])
    if width == WIDEST:
        # Only the time is asked for here, so only what answers that.
        ours = {name: ours[name] for name in ("weights, 1 start", "weights")}
        packages = [package for package in packages if package == "rebasin"]
    variants = {"plain": plain_matching, **ours}
    for variant in variants.values():  # the first call of every kind also loads and tunes kernels
        if width < WIDEST:
            variant(a, b, seed)
    for name, variant in variants.items():
        start = time.perf_counter()
        moved = variant(a, b, seed)
        results[name] = moved, time.perf_counter() - start
    for package in packages:
        results[package] = in_package(package, folder, [(width, a, b)], threads, steps)[0]
    rows = []
    shared = {"benchmark": "align", "case": str(width), "seed": seed}
    for name, (state, seconds) in results.items():
        for metric, value in barriers(width, a, state, data).items():
            rows.append({**shared, "variant": name, "metric": f"{metric} barrier", "value": round(value, 5)})
        if seconds is not None:
            rows.append({**shared, "variant": name, "metric": "seconds", "value": round(seconds, 4)})
    for metric, value in barriers(width, a, results["weights"][0], data, repaired=True).items():
        rows.append({**shared, "variant": "weights, repaired", "metric": f"{metric} barrier", "value": round(value, 5)})
    return rows


def table(rows: list[Row]) -> str:
    lines = [f"{'width':<7}{'variant':<20}{'loss':>9}{'error':>9}{'train':>9}{'seconds':>10}   mean of the seeds"]
    for case in dict.fromkeys(row["case"] for row in rows):
        mine = [row for row in rows if row["case"] == case]
        for variant in dict.fromkeys(row["variant"] for row in mine):
            cells = []
            for metric in ("loss barrier", "error barrier", "train loss barrier", "seconds"):
                values = [r["value"] for r in mine if r["variant"] == variant and r["metric"] == metric]
                form = "10.3f" if metric == "seconds" else "9.4f"
                cells.append(format(statistics.mean(values), form) if values else "-".rjust(int(form.split(".")[0])))
            verdict = ""
            wanted = WANTED.get(int(case))
            if variant == "weights" and wanted is not None:
                verdict = f"   wanted {wanted}: {'as wanted' if float(cells[0]) <= wanted else 'above'}"
            if variant == "weights" and int(case) == WIDEST:
                times = {
                    v: statistics.mean(r["value"] for r in mine if r["variant"] == v and r["metric"] == "seconds")
                    for v in ("weights", "plain")
                }
                ratio = times["weights"] / times["plain"]
                verdict = f"   {ratio:.2f} of plain: {'as wanted' if ratio <= 1 else 'above'}"
            lines.append(f"{case:<7}{variant:<20}{''.join(cells)}{verdict}")
    return "\n".join(lines)


def main() -> None:
    if sys.argv[1:2] == ["--worker"]:
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
        work(sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]), int(sys.argv[5]))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick", action="store_true", help="one seed, widths 32 and 128, fewer sinkhorn steps: under a minute"
    )
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write tidy rows")
    parser.add_argument("--threads", metavar="N", type=int, default=1, help="of torch, for all variants (1)")
    parser.add_argument(
        "--environments",
        metavar="FOLDER",
        type=Path,
        default=Path("build/align"),
        help="where the public packages are, one folder for each (%(default)s)",
    )
    parser.add_argument("--install", action="store_true", help="install them there first, without torch")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    from tqdm import tqdm

    from metanet.io import write_json_atomic

    folder = arguments.environments.resolve()
    if arguments.install:
        install(folder)
    packages = installed(folder)
    data = digits()
    epochs, steps = 60, SINKHORN_STEPS[arguments.quick]
    jobs = (
        [(w, s) for w in (32, 128) for s in SEEDS[:1]]
        if arguments.quick
        else [*((w, s) for w in WANTED for s in SEEDS), *((WIDEST, s) for s in SEEDS)]
    )
    setting = f"{machine(arguments.threads)}, packages={packages}, epochs={epochs}"
    unfinished = arguments.json and arguments.json.with_name(arguments.json.name + ".unfinished")
    rows: list[Row] = []
    if unfinished and unfinished.exists():
        before = json.loads(unfinished.read_text())
        rows = before["rows"] if before["setting"] == setting else []
    known = {(row["case"], row["seed"]) for row in rows}
    jobs = [job for job in jobs if (str(job[0]), job[1]) not in known]
    for width, seed in tqdm(jobs, disable=not sys.stderr.isatty()):
        # At the largest width only the time matters: a few epochs give weights that are no longer random.
        short = 30 if width == WIDEST else epochs
        rows += measure(width, seed, data, packages, folder, arguments.threads, short, steps)
        if unfinished:
            write_json_atomic(unfinished, {"setting": setting, "rows": rows})
    print(machine(arguments.threads))
    print(table(rows))
    if arguments.json:
        write_json_atomic(arguments.json, rows)
        unfinished.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
