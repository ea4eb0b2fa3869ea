"""Values of a made-up report, for tests that need one."""

from __future__ import annotations

from typing import Any

import numpy


def example_values(points: int = 90) -> dict[str, Any]:
    generator = numpy.random.default_rng(0)
    true = generator.beta(5, 1.6, points)
    predicted = numpy.clip(true + 0.04 * generator.standard_normal(points), 0, 1)
    epochs = list(range(1, 41))
    loss = [0.9 * 0.93**e + 0.04 for e in epochs]
    return {
        "format": "metanet.report/1",
        "title": "Accuracy from weights: digits",
        "subtitle": "A metanetwork reads trained networks and tells their test accuracy without running them.",
        "created": "2026-01-31 12:00 UTC",
        "seconds": 143.2,
        "command": "metanet demo --seed 0",
        "verdict": "The metanetwork, averaged with gradient boosting on layer statistics, is below no baseline.",
        "headline": [
            {"label": "Kendall's tau on held-out runs", "value": "0.861", "note": "0.812 to 0.897"},
            {"label": "layer statistics + gradient boosting", "value": "0.848", "note": "baseline"},
            {"label": "flat MLP on raw weights", "value": "0.412", "note": "baseline"},
            {"label": "networks in the zoo", "value": "900", "note": "300 training runs"},
        ],
        "target": {"column": "test_accuracy", "label": "test accuracy", "share": True},
        "zoo": {
            "name": "digits_cnn",
            "data": "scikit-learn's handwritten digits, 1,797 images of 8x8",
            "runs": 300,
            "failed_runs": 0,
            "networks": 900,
            "parameters": [394, 5130],
            "families": {"cnn": 900},
            "seconds": 31.5,
            "steps_per_s": 5210.0,
            "split": {
                "train": {"runs": 210, "networks": 630},
                "val": {"runs": 45, "networks": 135},
                "test": {"runs": 45, "networks": 135},
            },
            "values": [float(v) for v in generator.beta(5, 1.6, 900)],
        },
        "models": [
            {
                "name": "metanetwork + gradient boosting",
                "kind": "average",
                "description": "mean of the two predictions",
                "score": 0.861,
                "interval": [0.812, 0.897],
                "r2": 0.93,
                "mae": 0.018,
                "seconds": 62.1,
                "best": True,
                "chosen": True,
            },
            {
                "name": "metanetwork",
                "kind": "metanetwork",
                "score": 0.842,
                "interval": [0.79, 0.88],
                "r2": 0.91,
                "seconds": 58.0,
            },
            {
                "name": "layer statistics",
                "kind": "baseline",
                "description": "gradient boosting on layer statistics",
                "score": 0.848,
                "interval": [0.8, 0.887],
                "r2": 0.92,
                "seconds": 4.1,
            },
            {
                "name": "flat MLP",
                "kind": "baseline",
                "description": "a plain MLP on the raw weights",
                "score": 0.412,
                "interval": [0.31, 0.5],
                "r2": 0.35,
                "seconds": 6.0,
            },
        ],
        "predictions": {
            "model": "metanetwork + gradient boosting",
            "true": true.tolist(),
            "predicted": predicted.tolist(),
            "group": [["relu", "tanh", "gelu", "sin"][i % 4] for i in range(points)],
        },
        "training": {
            "epochs": epochs,
            "best_epoch": 34,
            "curves": {
                "loss": {"train": loss, "validation": [v * 1.15 for v in loss]},
                "Kendall's tau": {"validation": [0.86 * (1 - 0.9**e) for e in epochs]},
            },
        },
        "unseen": {
            "file": "unseen.safetensors",
            "bytes": 21344,
            "architecture": "cnn: 1 channel, widths 12, 16, relu, batch norm",
            "parameters": 2170,
            "how": "architecture.json written beside the weights",
            "predicted": 0.912,
            "measured": 0.925,
            "measured_on": "359 test images",
            "seen": "trained after the zoo, with another seed; no model saw it",
            "symmetry": {
                "summary": [["permutations", "12! x 16! = 1.0e22"], ["positive scalings", "28 dimensions"]],
                "table": {
                    "columns": ["space", "units", "permutations", "scalings", "signs", "dead", "twins"],
                    "rows": [["h1", 12, "12!", "12", "–", 0, 0], ["h2", 16, "16!", "16", "–", 1, 0]],
                },
                "notes": [],
                "verification": {"passed": True, "trials": 8, "max_error": 4.1e-16, "control_error": 0.41},
            },
        },
        "configuration": {"zoo": {"name": "digits_cnn", "runs": 300}, "model": {"hidden": 32}},
        "seeds": {"root": 0},
        "versions": {"metanet": "0.1.0", "torch": "2.13.0"},
        "machine": {"cores": 2},
    }
