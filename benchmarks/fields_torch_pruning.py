"""What does Torch-Pruning make of a network that `fields.py` has trained, without and with fine-tuning?

Run by the Python that has it installed; see `morph_torch_pruning.py` for how to make that environment.

    ENV/bin/python benchmarks/fields_torch_pruning.py NETWORK.pt PRUNED.pt --share 0.5

Only names, shapes and values go to and fro (`weights_only`), and the architecture as JSON.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from fields_subjects import Case, Split


def pruned(
    python: Path | None, case: Case, teacher: Any, share: float, images: Split, epochs: int, seed: int
) -> tuple[Any, float]:
    """The pruned network, after so many epochs of training with a tenth of the rate, and the seconds of those."""
    from fields_subjects import trained

    if python is None:
        raise RuntimeError("no interpreter that has torch_pruning")
    with tempfile.TemporaryDirectory() as folder:
        data, answer = Path(folder) / "network.pt", Path(folder) / "pruned.pt"
        told = json.dumps(case.architecture().to_json())
        torch.save({"state": teacher.state_dict(), "architecture": told}, data)
        words = [str(python), str(Path(__file__).resolve()), str(data), str(answer), "--share", str(share)]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode:
            lines = done.stderr.strip().splitlines() or ["it said nothing"]
            raise RuntimeError(f"Torch-Pruning under {python} failed: {lines[-1]}")
        state = torch.load(answer, weights_only=True, map_location="cpu")
    model = case.architecture(share).build(seed)
    model.load_state_dict(state)
    seconds = 0.0
    if epochs:
        seconds = trained(model, images, epochs * len(images.inputs) // 128, seed, case.rate / 10, case.decay)
    return model.eval(), seconds


def main() -> None:
    from morph_torch_pruning import prune

    from metanet.checkpoint import Architecture

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", type=Path)
    parser.add_argument("pruned", type=Path)
    parser.add_argument("--share", type=float, required=True)
    arguments = parser.parse_args()
    given = torch.load(arguments.network, weights_only=True, map_location="cpu")
    architecture = Architecture.from_json(json.loads(given["architecture"]))
    model = architecture.build()
    model.load_state_dict(given["state"])
    layers = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear | torch.nn.Conv2d)]
    made = prune(model.eval(), architecture.example_inputs(), layers[:-1], arguments.share)
    torch.save(made.state_dict(), arguments.pruned)


if __name__ == "__main__":
    main()
