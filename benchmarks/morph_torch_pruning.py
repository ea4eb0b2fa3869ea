"""What does Torch-Pruning 1.6 make of the same networks? Run by the Python that has it installed.

    python3.11 -m venv ENV
    ENV/bin/pip install -c constraints.txt -e .
    ENV/bin/pip install --no-deps torch-pruning==1.6.1

Torch-Pruning (Fang et al., DepGraph: Towards Any Structural Pruning, 2023; MIT licence) lives in an environment of its
own. `morph.py` calls :func:`pruned`, which writes weights and images, runs this file there, and reads what the pruned
networks answer:

    ENV/bin/python benchmarks/morph_torch_pruning.py NETWORKS.npz ANSWERS.npz --shares 0.5 0.25

Each layer that writes units of a space loses the same share (local pruning), by group L2 importance; layers whose
outputs are not to be narrowed are ignored layers.
"""

from __future__ import annotations

import argparse
import copy
import json
import subprocess
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from morph_subjects import Images, Subject


def pruned(python: Path, subjects: Sequence[Subject], images: Images, shares: Sequence[float]) -> Any:
    """What `morph.py` measures of other ways, of the networks that Torch-Pruning makes.

    Args:
        python: the interpreter of the environment that has it.
        subjects: the networks.
        images: those that measure.
        shares: of the units that stay.

    Raises:
        RuntimeError: the other interpreter failed; with the last line that it said.
    """
    import torch
    from morph_subjects import measured

    from symmetry.action import leaf_name

    found: dict[str, dict[str, list[float]]] = {str(share): defaultdict(list) for share in shares}
    for subject in subjects:
        writers = [
            name.rpartition(".")[0]
            for name, info in subject.spec.tensors.items()
            if info.roles[:1] == ("out",) and len(info.shape) > 1
            and any(leaf_name(leaf) in subject.masked.spaces for leaf in subject.spec.axes[name][0].leaves())
        ]  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:
            data, answers = Path(folder) / "networks.npz", Path(folder) / "answers.npz"
            arrays = {f"state/{name}": value.numpy() for name, value in subject.states.items()}
            told = {"architecture": subject.architecture.to_json(), "narrowed": writers}
            np.savez(data, images=subject.shaped(images.score).numpy(), told=json.dumps(told), **arrays)
            words = [str(python), str(Path(__file__).resolve()), str(data), str(answers)]
            words += ["--shares", *map(str, shares)]
            done = subprocess.run(words, capture_output=True, text=True, check=False)
            if done.returncode:
                lines = done.stderr.strip().splitlines() or ["it said nothing"]
                raise RuntimeError(f"Torch-Pruning under {python} failed: {lines[-1]}")
            with np.load(answers, allow_pickle=False) as arrays_found:
                after = {share: torch.from_numpy(arrays_found[str(share)]) for share in shares}
        before = subject.answers(subject.states, images.score)
        for share in shares:
            for metric, values in measured(before, after[share], images.score_labels).items():
                found[str(share)][metric] += values
    return found


def prune(model: Any, inputs: Any, narrowed: Sequence[str], share: float) -> Any:
    """A copy that keeps a share of the units."""
    import torch
    import torch_pruning

    made = copy.deepcopy(model)
    layers = {n: m for n, m in made.named_modules() if isinstance(m, torch.nn.Linear | torch.nn.Conv2d)}
    pruner = torch_pruning.pruner.BasePruner(
        made,
        inputs,
        importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=1.0 - share,
        ignored_layers=[layer for name, layer in layers.items() if name not in narrowed],
    )
    pruner.step()
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", type=Path)
    parser.add_argument("answers", type=Path)
    parser.add_argument("--shares", nargs="+", type=float, required=True)
    arguments = parser.parse_args()
    import torch

    from metanet.checkpoint import Architecture

    with np.load(arguments.networks, allow_pickle=False) as stored:
        arrays = {key: torch.from_numpy(stored[key]) for key in stored.files if key != "told"}
        told = json.loads(str(stored["told"]))
    model = Architecture.from_json(told["architecture"]).build().eval()
    states = {key.removeprefix("state/"): value for key, value in arrays.items() if key.startswith("state/")}
    images = arrays["images"]
    found: dict[str, list[Any]] = defaultdict(list)
    for number in range(len(next(iter(states.values())))):
        model.load_state_dict({name: value[number] for name, value in states.items()})
        for share in arguments.shares:
            made = prune(model, images[:2], told["narrowed"], share)
            with torch.no_grad():
                found[str(share)].append(made(images).numpy())
    np.savez(arguments.answers, **{share: np.stack(values) for share, values in found.items()})


if __name__ == "__main__":
    main()
