"""Writes the frozen files of this folder; run it only to add a file for a new format, never to change one.

python -m tests.checkpoint.golden.generate
"""

from __future__ import annotations

import json
from pathlib import Path

import metanet
from tests.checkpoint import test_onnx_format
from tests.checkpoint import test_other_formats as formats
from tests.golden.generate import digest

HERE = Path(__file__).resolve().parent
CASES = {
    "arrays.npz": formats.TestNpz,
    "program.pt": formats.TestTorchScript,
    "lightning.ckpt": formats.TestLightning,
    "weights.h5": formats.TestKerasH5,
    "model.h5": formats.TestKerasWholeModel,
    "model.keras": formats.TestKerasArchive,
    "folder": formats.TestShards,
    "network.onnx": test_onnx_format.TestOnnx,
}


def main() -> None:
    expected = {}
    for name, case in CASES.items():
        if not (HERE / name).exists():
            case().write(HERE / name, case().state())
        checkpoint = metanet.load(HERE / name, activation="tanh")
        source = checkpoint.source
        expected[name] = {
            "tensors": digest(dict(checkpoint.state)),
            "source": [source.kind, source.key, list(source.skipped), list(source.files), len(source.config)],
        }
    (HERE / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


if __name__ == "__main__":
    main()
