"""Does an edited network, read from its folder in a fresh process, compute what its certificate says?

Run by `metanet morph` with a request as JSON on stdin; answers with one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path


def main() -> None:
    """Answer one request."""
    import torch

    from metanet.commands._reading import load_named
    from metanet.morph import open_folder, restore
    from metanet.score import compare

    request = json.load(sys.stdin)
    told = argparse.Namespace(
        architecture=None if request["architecture"] is None else Path(request["architecture"]),
        factory=request["factory"],
        activation=request["activation"],
        key=request["key"],
    )
    checkpoint = load_named(Path(request["file"]), told)
    opened = open_folder(request["folder"])
    if opened.architecture is None and opened.source is None:
        architecture = checkpoint.architecture
        model = restore(architecture.build().eval(), request["folder"], architecture.example_inputs())
    else:
        model = opened.model()
    inputs = torch.load(request["inputs"], weights_only=True, map_location="cpu")
    found = compare(checkpoint, model, tuple(inputs), layers=None, line=0, resamples=0, seed=request["seed"])
    print(json.dumps({"error": found.error, "kl": found.kl, "agreement": found.agreement}))


if __name__ == "__main__":
    main()
