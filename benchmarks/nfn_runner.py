"""What does `nfn` 0.1.2 from PyPI say of the same networks on the same split? Run by the Python that has it installed.

    python3.11 -m venv ENV
    ENV/bin/pip install -c constraints.txt torch==2.13.0 numpy
    ENV/bin/pip install --no-deps nfn==0.1.2 einops

`nfn` (Zhou et al. 2023, "Permutation equivariant neural functionals", MIT licence) would replace this project's torch,
so it lives in an environment of its own. The other benchmarks call :func:`nfn_scores`, which writes an npz of stacked
weights, labels and split, runs this file there, and reads the predictions:

    ENV/bin/python benchmarks/nfn_runner.py DATA.npz SCORES.npz --layer hnp --epochs 60

DATA.npz holds `weight_0`, `bias_0`, `weight_1`, ... (networks, out, in[, height, width]) along one chain of layers,
`labels` (numbers for regression, whole numbers for classes) and `split` ("train", "val", "test"). SCORES.npz holds
`scores` (networks, outputs) of the epoch that is best on the validation part, and `told`, JSON with seconds and speed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np


def nfn_scores(
    python: Path, weights: Sequence[Any], biases: Sequence[Any], labels: Any, split: Any, **options: Any
) -> tuple[Any, dict[str, Any]]:
    """The scores of all networks, and what was measured on the way.

    Args:
        python: The interpreter of the environment that has `nfn`.
        weights: One array per layer, all networks stacked.
        biases: One array per layer.
        labels: Standardised numbers, or class numbers.
        split: The part of each network.
        **options: As on the command line, `layer="hnp"`, `epochs=60`, `seed=1`.

    Raises:
        RuntimeError: The other interpreter failed; with the last line that it said.
    """
    with tempfile.TemporaryDirectory() as folder:
        data, scores = Path(folder) / "data.npz", Path(folder) / "scores.npz"
        arrays = {f"weight_{i}": np.asarray(value, np.float32) for i, value in enumerate(weights)}
        arrays |= {f"bias_{i}": np.asarray(value, np.float32) for i, value in enumerate(biases)}
        np.savez(data, labels=np.asarray(labels), split=np.asarray(split, dtype="<U5"), **arrays)
        words = [str(python), str(Path(__file__).resolve()), str(data), str(scores)]
        words += [word for key, value in options.items() for word in (f"--{key}", str(value))]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode:
            lines = done.stderr.strip().splitlines() or ["it said nothing"]
            raise RuntimeError(f"nfn under {python} failed: {lines[-1]}")
        with np.load(scores) as found:
            return np.array(found["scores"]), dict(json.loads(str(found["told"])))


def build(weights: Mapping[int, Any], biases: Mapping[int, Any], outputs: int, options: argparse.Namespace) -> Any:
    """Equivariant layers, invariant pooling and a small perceptron, as in nfn's own examples."""
    from nfn.common import WeightSpaceFeatures, network_spec_from_wsfeat
    from nfn.layers import HNPLinear, HNPPool, NPLinear, NPPool, TupleOp
    from torch import nn

    features = WeightSpaceFeatures([weights[i][:1, None] for i in weights], [biases[i][:1, None] for i in biases])
    spec = network_spec_from_wsfeat(features)
    pool = HNPPool if options.layer == "hnp" else NPPool
    sizes = [1, *[options.channels] * options.layers]
    parts: list[nn.Module] = []
    for number, (before, after) in enumerate(itertools.pairwise(sizes)):
        if options.layer == "hnp":
            parts.append(HNPLinear(spec, before, after))
        else:
            parts.append(NPLinear(spec, before, after, io_embed=number == 0))
        parts.append(TupleOp(nn.ReLU()))
    wide = options.channels * pool.get_num_outs(spec)
    head = [nn.Flatten(), nn.Linear(wide, options.hidden), nn.ReLU(), nn.Dropout(options.dropout)]
    return nn.Sequential(*parts, pool(spec), *head, nn.Linear(options.hidden, outputs))


def learn(arrays: Mapping[str, Any], options: argparse.Namespace) -> tuple[Any, dict[str, Any]]:
    """Train on the training part, keep the epoch that is best on the validation part, score all networks."""
    import torch
    from nfn.common import WeightSpaceFeatures

    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    split, labels = arrays["split"], torch.from_numpy(arrays["labels"])
    places = {part: torch.from_numpy(np.flatnonzero(split == part)) for part in ("train", "val")}
    count = sum(key.startswith("weight_") for key in arrays)
    weights = {i: torch.from_numpy(arrays[f"weight_{i}"]) for i in range(count)}
    biases = {i: torch.from_numpy(arrays[f"bias_{i}"]) for i in range(count)}
    for tensors in (weights, biases):
        for i, value in tensors.items():
            train = value[places["train"]]
            tensors[i] = ((value - train.mean()) / train.std().clamp(min=1e-8)).clamp(-10, 10)
    classes = not labels.is_floating_point()
    labels = labels.long() if classes else labels.float()
    model = build(weights, biases, int(labels.max()) + 1 if classes else 1, options)
    steps = -(-len(places["train"]) // options.batch) * options.epochs
    optimiser = torch.optim.AdamW(model.parameters(), lr=options.rate, weight_decay=options.decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, options.rate, total_steps=steps, pct_start=0.1)

    def answers(rows: Any) -> Any:
        return model(
            WeightSpaceFeatures([w[rows, None] for w in weights.values()], [b[rows, None] for b in biases.values()])
        )

    def loss(said: Any, wanted: Any) -> Any:
        if classes:
            return torch.nn.functional.cross_entropy(said, wanted)
        return torch.nn.functional.huber_loss(said[:, 0], wanted)

    def score(rows: Any) -> Any:
        model.eval()
        with torch.no_grad():
            found = torch.cat([answers(part) for part in rows.split(256)])
        model.train()
        return found

    best, kept, best_epoch, seen, training, epoch = float("inf"), None, 0, 0, 0.0, 0
    history: list[float] = []
    for epoch in range(1, options.epochs + 1):
        began = time.process_time()
        for rows in places["train"][torch.randperm(len(places["train"]))].split(options.batch):
            optimiser.zero_grad(set_to_none=True)
            loss(answers(rows), labels[rows]).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            seen += len(rows)
        training += time.process_time() - began
        value = float(loss(score(places["val"]), labels[places["val"]]))
        history.append(value)
        if value < best:
            best, best_epoch = value, epoch
            kept = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        if options.seconds and training > options.seconds:
            break
    if kept is not None:
        model.load_state_dict(kept)
    began = time.process_time()
    scores = score(torch.arange(len(labels))).numpy()
    told = {
        "train_s": training,
        "train_networks_per_s": seen / training,
        "score_networks_per_s": len(labels) / (time.process_time() - began),
        "epochs": epoch,
        "best_epoch": best_epoch,
        "val_loss": best,
        "history": history,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }
    return scores, told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("scores", type=Path)
    parser.add_argument("--layer", choices=("hnp", "np"), default="hnp", help="np: inputs and outputs by embeddings")
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--channels", type=int, default=16)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--seconds", type=float, default=0.0, help="stop after the epoch that exceeds them; 0: never")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--decay", type=float, default=1e-2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with np.load(options.data) as stored:
        arrays = {key: stored[key] for key in stored.files}
    scores, told = learn(arrays, options)
    np.savez(options.scores, scores=scores, told=json.dumps(told))
    print(json.dumps(told), file=sys.stderr)


if __name__ == "__main__":
    main()
