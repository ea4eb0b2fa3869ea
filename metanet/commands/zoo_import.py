"""How does a published zoo become one that can be trained on? Networks, parts and metrics in the format of ours."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from metanet.commands._terminal import bar, count, print_json, say, share
from metanet.errors import ConfigError, ZooError, clean

DESCRIPTION = """\
Turn a published zoo into one of the kind that `metanet zoo build` makes, to train on, predict from and verify.

layouts:
  small_cnn_zoo    weights.npy, layout.csv, metrics.csv.gz (Unterthiner et al. 2020)
                   options: step=86 strides=[2,2,2] size=32
  inr_folders      images as networks, MNIST or Fashion-MNIST, of DWSNets (Navon et al. 2023)
                   options: data=mnist splits=FILE validation=0.0833 w0=30.0 shift=0.5
  transformer_zoo  Small Transformer Zoo: metadata/NAME.csv, NAME/*.pt (Tran et al. 2025)
                   options: data=mnist epoch=75 least=0.0 heads=2

Nothing in the files is run. The published parts are kept; where there is no validation part, some of the training runs
become it, always the same ones. A zoo of which a part is missing is refused, and so is a count other than --expect.
"""

EXAMPLES = """\
examples:
  metanet zoo import small_cnn_zoo smallcnnzoo/cifar10 --folder zoos/cifar10
  metanet zoo import inr_folders mnist-inrs data=mnist --expect 70000 --folder zoos/mnist-inrs
  metanet zoo import transformer_zoo MNIST-Transformers --folder zoos/mnist-transformers
  metanet train --zoo zoos/cifar10 --folder runs/cifar10
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("layout", metavar="LAYOUT", help="small_cnn_zoo, inr_folders or transformer_zoo")
    parser.add_argument("source", metavar="SOURCE", type=Path, help="the folder of the unpacked zoo")
    parser.add_argument("options", metavar="OPTION", nargs="*", help="of the layout, such as step=86 or step=null")
    parser.add_argument("--folder", metavar="FOLDER", type=Path, required=True, help="where the new zoo goes")
    parser.add_argument("--name", metavar="NAME", help="of the new zoo (the folder's)")
    parser.add_argument("--expect", metavar="N", type=count, help="refuse the zoo unless it has this many networks")
    parser.add_argument(
        "--validation", metavar="SHARE", type=share, default=0.1,
        help="of the training runs, where no validation part was published (%(default)s)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print what was imported as JSON")


def run(arguments: argparse.Namespace) -> int:
    from metanet.commands.zoo_build import print_quality, summarize
    from metanet.datasets import import_zoo, read_layout

    started = time.monotonic()
    options = _options(arguments.options)
    networks = read_layout(arguments.layout, arguments.source, options)
    if arguments.expect is not None and len(networks) != arguments.expect:
        raise ZooError(
            f"holds {len(networks)} networks, expected {arguments.expect}",
            where=arguments.source,
            hint="unpack the whole archive, or correct --expect",
        )
    # Where a file lay on this machine says nothing about the zoo.
    stated = {key: Path(value).name if key == "splits" else value for key, value in options.items()}
    with bar("import") as progress:
        zoo = import_zoo(
            networks,
            arguments.folder,
            arguments.name or arguments.folder.name,
            arguments.layout,
            stated,
            arguments.validation,
            progress=progress,
        )
    summary = summarize(zoo) | {
        "folder": str(arguments.folder),
        "left_out": len(networks.left_out),
        "seconds": round(time.monotonic() - started, 2),
    }
    if arguments.json:
        print_json(summary)
        return 0
    print(f"{arguments.folder}: {len(zoo):,} networks of {summary['runs']:,} runs")
    parts = ", ".join(f"{name} {part['networks']:,}" for name, part in summary["split"].items())
    print(f"networks by part: {parts}")
    print_quality(zoo, summary)
    if zoo.failures:
        say(f"not finite: {len(zoo.failures)} networks, such as {clean(zoo.failures[0]['published'], 80)}")
    if networks.left_out:
        say(f"left out: {len(networks.left_out)} entries of the folder, such as {clean(networks.left_out[0], 80)}")
    say(f"took {summary['seconds']:.1f} s; train on it with: metanet train --zoo {arguments.folder}")
    return 0


def _options(words: Sequence[str]) -> dict[str, Any]:
    """`key=value` words, the values as in Hydra's overrides."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    for word in words:
        if "=" not in word or not word.split("=")[0].isidentifier():
            raise ConfigError(f"{clean(repr(word), 60)} is no option", hint="write it as in step=86")
    try:
        values = OmegaConf.to_container(OmegaConf.from_dotlist(list(words)), resolve=False)
    except (OmegaConfBaseException, YAMLError) as error:
        raise ConfigError(f"cannot be read: {clean(error, 120)}", where=clean(" ".join(words), 80)) from None
    return {str(key): value for key, value in values.items()} if isinstance(values, dict) else {}
