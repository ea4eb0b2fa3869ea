"""How does an edited network get its name on disk only after a fresh process has read it and scored it alike?

Run as a module, this file is that process: it takes a request as JSON on stdin and answers with one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from metanet.checkpoint import Architecture
    from metanet.morph import Morph
    from metanet.score.certificate import Certificate


def write_checked(
    out: Path,
    morph: Morph,
    architecture: Architecture,
    certificate: Certificate,
    report: Mapping[str, Any],
    scored: Any,
    arguments: argparse.Namespace,
) -> None:
    """Write the folder of an edited network.

    Args:
        out: which must not exist.
        morph: the network.
        architecture: of the old one.
        certificate: goes with it; the fresh process must come to the same.
        report: the values of its page.
        scored: the inputs that it was scored on.
        arguments: of the command line: how the old network is read.

    Raises:
        PlanError: if the folder cannot be written, or is not scored alike.
    """
    from metanet.errors import PlanError
    from metanet.morph import save

    out = out.absolute()
    try:
        room = tempfile.TemporaryDirectory(prefix=f".{out.name[:80]}.", dir=out.parent)
    except OSError as error:
        raise PlanError(f"cannot be made ({error.strerror})", where=out, hint="check the folder above it") from None
    with room as folder:
        made = save(Path(folder) / "morph", morph, architecture, certificate, report)
        again = _scored_again(made, scored, arguments)
        first = certificate.preservation
        pairs = ((first.error, again["error"]), (first.kl or 0.0, again["kl"] or 0.0))
        if any(abs(one - other) > 1e-6 * max(1.0, abs(one)) for one, other in pairs):
            told = f"error {again['error']:.3g} and KL {again['kl']}, not {first.error:.3g} and {first.kl}"
            raise PlanError(f"read again it scores {told}", where=out, hint="nothing was written; please report this")
        made.rename(out)


def _scored_again(folder: Path, scored: Any, arguments: argparse.Namespace) -> dict[str, Any]:
    """Error and divergence of the folder's network, as a fresh process sees it."""
    import torch

    from metanet.errors import PlanError, clean
    from metanet.score import ProbeInputs

    inputs = list(scored.tensors()) if isinstance(scored, ProbeInputs) else [scored]
    with tempfile.TemporaryDirectory() as room:
        stored = Path(room) / "inputs.pt"
        torch.save(inputs, stored)
        named = arguments.architecture
        request = {
            "folder": str(folder),
            "file": str(arguments.file.absolute()),
            "inputs": str(stored),
            "architecture": None if named is None else str(named.absolute()),
            "factory": arguments.factory,
            "activation": arguments.activation,
            "key": arguments.key,
            "seed": arguments.seed,
        }
        done = subprocess.run(
            [sys.executable, "-m", "metanet.commands._morph_again"],
            input=json.dumps(request),
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise PlanError(f"cannot be read again: {clean(last, 200)}", where=arguments.out, hint="nothing was written")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


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
