"""Tiny folders in the layouts of published zoos, as the tests make them."""

from __future__ import annotations

import csv
import gzip
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metanet.checkpoint import Architecture

CNN_SHAPES = [(4,), (3, 3, 2, 4), (5,), (3, 3, 4, 5), (3,), (5, 3)]
CNN_NAMES = ["conv/bias:0", "conv/kernel:0", "conv_1/bias:0", "conv_1/kernel:0", "dense/bias:0", "dense/kernel:0"]
SIREN_SIZES = (2, 6, 5, 1)
VISION: dict[str, Any] = {
    "width": 8, "heads": 2, "layers": 2, "hidden": 16, "outputs": 3, "channels": 1, "size": 6, "patch": 3,
}  # fmt: skip
TEXT: dict[str, Any] = {"width": 8, "heads": 2, "layers": 2, "hidden": 16, "outputs": 4, "tokens": 16}


def small_cnn_zoo(folder: Path, networks: int = 4) -> np.ndarray:
    """Networks at steps 10 and 86 each."""
    folder.mkdir(parents=True, exist_ok=True)
    lines, at = ["varname,start_idx,end_idx,size,shape"], 0
    for name, shape in zip(CNN_NAMES, CNN_SHAPES, strict=True):
        size = int(np.prod(shape))
        lines.append(f'{name},{at},{at + size},{size},"{shape}"')
        at += size
    (folder / "layout.csv").write_text("\n".join(lines) + "\n")
    weights = np.random.default_rng(0).standard_normal((2 * networks, at)).astype(np.float32)
    np.save(folder / "weights.npy", weights)
    rows = ["config.activation,config.learning_rate,modeldir,step,test_accuracy,train_accuracy"]
    for i in range(2 * networks):
        activation, step = ("relu", "tanh")[i % 4 // 2], (10, 86)[i % 2]
        rows.append(f"{activation},0.1,m{i // 2},{step},{(i + 1) / (2 * networks + 2):.3f},0.9")
    (folder / "metrics.csv.gz").write_bytes(gzip.compress(("\n".join(rows) + "\n").encode()))
    return weights


def siren(number: int) -> dict[str, Tensor]:
    """A state dict as the INR folders have it."""
    generator = torch.Generator().manual_seed(number)
    state: dict[str, Tensor] = {}
    for i, (a, b) in enumerate(itertools.pairwise(SIREN_SIZES)):
        state[f"seq.{i}.weight"] = torch.randn(b, a, generator=generator)
        state[f"seq.{i}.bias"] = torch.randn(b, generator=generator)
    return state


def mnist_inrs(folder: Path, train: int = 12, test: int = 4) -> list[str]:
    """Folders as MNIST-INR has them: (number % 10) is the class; and one of another image set beside them."""
    names = [f"mnist_png_training_{n % 10}_{n}" for n in range(train)]
    names += [f"mnist_png_testing_{n % 10}_{n}" for n in range(test)]
    for number, name in enumerate([*names, "cifar10_png_train_airplane_7"]):
        (folder / name / "checkpoints").mkdir(parents=True)
        torch.save(siren(number), folder / name / "checkpoints" / "model_final.pth")
    torch.save({"mean": torch.zeros(2)}, folder / "statistics.pth")
    return names


def fashion_inrs(folder: Path) -> dict[str, list[str]]:
    """Files as Fashion-MNIST-INR has them, the class beside the tensors, with the split file's foreign paths."""
    for part, count in (("train", 7), ("test", 3)):
        (folder / part).mkdir(parents=True)
        for n in range(count):
            torch.save({**siren(n + 100 * (part == "test")), "label": n % 10}, folder / part / f"model_{n}.pth")
    home = "/home/someone/data/fmnist_inrs"
    splits = {
        "train": [f"{home}/train/model_{n}.pth" for n in (3, 0, 6, 1)],
        "val": [f"{home}/train/model_{n}.pth" for n in (5, 2)],
        "test": [f"{home}/test/model_{n}.pth" for n in range(3)],
    }
    (folder / "splits.json").write_text(json.dumps(splits))
    return splits


def transformers(folder: Path, data: str = "mnist", runs: int = 20, options: dict[str, Any] = VISION) -> list[str]:
    """Checkpoints at epochs 50 and 75 and the best one, with the table of the settings."""
    (folder / "metadata").mkdir(parents=True)
    (folder / data).mkdir()
    column = "test_top1_accuracy" if data == "mnist" else "test_accuracy"
    rows: list[dict[str, Any]] = []
    architecture = Architecture("zoo_transformer", options)
    for number in range(runs):
        for place, epoch in enumerate(("50", "75", "best1")):
            accuracy = 4000 + 137 * number + 100 * place
            name = f"r{number}x_{epoch}_{accuracy}.pt"
            torch.save(architecture.build(seed=3 * number + place).state_dict(), folder / data / name)
            rows.append(
                {
                    "seed": 3, "lr": 0.001 * (number + 1), "optimizer": "adam", "dropout": 0.1, "embed_dim": 8,
                    "n_attention_heads": 2, "n_layers": 2, "model_path": "./model/mnist", "ckpt_epoch": epoch,
                    "ckpt_file": f"{data}/{name}", column: accuracy / 10000,
                }
            )  # fmt: skip
    with open(folder / "metadata" / f"{data}.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    torch.save({"embedding.word": torch.zeros(2, 2)}, folder / data / "embedding.pt")
    return [row["ckpt_file"] for row in rows]
