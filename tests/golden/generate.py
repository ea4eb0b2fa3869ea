"""Writes the frozen files of this folder; run it only to add a file for a new version of a format, never to change one.

python tests/golden/generate.py
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections import OrderedDict
from pathlib import Path

import torch
from torch import Tensor

from metanet.checkpoint import Architecture, load, save_checkpoint
from metanet.io import write_json_atomic

HERE = Path(__file__).resolve().parent
ARCHITECTURES = {
    "mlp": {"inputs": 3, "widths": [4, 2], "outputs": 2, "activation": "sin"},
    "cnn": {
        "channels": 1, "size": 6, "widths": [2, 2], "outputs": 2, "activation": "gelu", "norm": "batch",
        "residual": True, "strides": [1, 2], "reduce": "max", "head": "flatten",
    },
    "chains": {
        "chains": [
            {"name": "trunk", "input": "x", "layers": ["t.0"], "widths": [3, 2], "activations": ["tanh"]},
            {"name": "head", "input": "trunk", "layers": ["h"], "widths": [2, 1], "activations": ["identity"],
             "bias": [False]},
        ],
        "noises": [{"parameter": "log_std", "input": "trunk", "shape": [2, 1]}],
        "extras": {"alpha": [1]},
    },
}  # fmt: skip


def digest(state: dict[str, Tensor]) -> dict[str, str]:
    """Name, in order, to dtype, shape and the hash of the bytes."""
    result = {}
    for name, tensor in state.items():
        data = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        shape = "x".join(map(str, tensor.shape))
        result[name] = f"{tensor.dtype} [{shape}] {hashlib.sha256(data).hexdigest()[:16]}"
    return result


def linear_state() -> OrderedDict[str, Tensor]:
    generator = torch.Generator().manual_seed(7)
    shapes = {"2.weight": (2, 4), "2.bias": (2,), "0.weight": (4, 3), "0.bias": (4,)}
    return OrderedDict((name, torch.randn(shape, generator=generator)) for name, shape in shapes.items())


def agent_state() -> OrderedDict[str, Tensor]:
    generator = torch.Generator().manual_seed(8)
    shapes = {"log_std": (2,), "action_net.weight": (2, 3), "action_net.bias": (2,), "value_net.weight": (1, 3)}
    return OrderedDict((name, torch.randn(shape, generator=generator)) for name, shape in shapes.items())


def main() -> None:
    expected = {}
    for name, options in ARCHITECTURES.items():
        architecture = Architecture(name, options)
        write_json_atomic(HERE / f"{name}.architecture.json", architecture.to_json())
        path = HERE / f"{name}.safetensors"
        save_checkpoint(path, architecture.build(seed=5).state_dict(), architecture, {"accuracy": 0.5})
    torch.save({"epoch": 3, "state_dict": linear_state()}, HERE / "nested.pt")
    torch.save(linear_state(), HERE / "legacy.pt", _use_new_zipfile_serialization=False)
    torch.save(agent_state(), HERE / "policy.tmp")
    with zipfile.ZipFile(HERE / "agent.zip", "w") as archive:
        archive.writestr("data", "{}")
        archive.writestr("policy.pth", (HERE / "policy.tmp").read_bytes())
    (HERE / "policy.tmp").unlink()
    for path in sorted([*HERE.glob("*.safetensors"), *HERE.glob("*.pt"), *HERE.glob("*.zip")]):
        checkpoint = load(path, activation="relu" if path.suffix == ".pt" else None)
        expected[path.name] = {
            "architecture": checkpoint.architecture.to_json(),
            "fingerprint": checkpoint.architecture.fingerprint,
            "tensors": digest(dict(checkpoint.state)),
        }
    (HERE / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


if __name__ == "__main__":
    main()
