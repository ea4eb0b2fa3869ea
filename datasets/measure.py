"""How good is a network on a zoo's images: cross-entropy and accuracy, for many networks at once or for one."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from metanet.checkpoint import Architecture
from metanet.errors import ZooError

from .images import ImageData
from .stacked import Networks

__all__ = ["measure_many", "measure_one"]

_BATCH = 256


def measure_many(
    networks: Networks, images: Tensor, labels: Tensor, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Mean loss and accuracy of each network, in evaluation mode.

    Args:
        networks: n of them.
        images: the same for all.
        labels: the same for all, or each its own.
        mask: which images count, for each network; all by default.

    Shapes:
        images (count, channels, height, width), labels (count,) or (n, count), mask (n, count); results (n,) float64.
    """
    tensors = networks.tensors()
    n, count = len(networks), len(images)
    labels = labels.expand(n, count)
    weights = torch.ones(n, count, dtype=torch.float64) if mask is None else mask.double()
    loss, hits = torch.zeros(n, dtype=torch.float64), torch.zeros(n, dtype=torch.float64)
    with torch.no_grad():
        for start in range(0, count, _BATCH):
            part = slice(start, start + _BATCH)
            inputs = networks.shape_inputs(images[part]).to(networks.parameters.dtype)
            logits = networks.forward(tensors, inputs, training=False)
            each = cross_entropy(logits.flatten(0, 1), labels[:, part].reshape(-1), reduction="none").view(n, -1)
            # Summed in float64: a mean over thousands of images should not depend on how they are cut into batches.
            # Where the mask is 0 an infinite loss must not count, and 0 * inf would be NaN.
            loss += torch.where(weights[:, part] > 0, each.double(), 0.0).sum(1)
            hits += ((logits.argmax(2) == labels[:, part]) * weights[:, part]).sum(1)
    total = weights.sum(1)
    return loss / total, hits / total


def measure_one(
    state: Mapping[str, Tensor], architecture: Architecture, images: Tensor, labels: Tensor
) -> tuple[float, float]:
    """Mean loss and accuracy of one network, through its plain module: no ``vmap``, so it checks :func:`measure_many`.

    Raises:
        ZooError: if the network does not read such images, or has fewer outputs than there are classes.
    """
    module = architecture.build()
    module.load_state_dict(dict(state), strict=True)
    module.eval()
    dtype = next(module.parameters()).dtype
    inputs = images.flatten(1) if architecture.family == "mlp" else images
    expected = tuple(architecture.example_inputs(1)[0].shape[1:])
    if tuple(inputs.shape[1:]) != expected:
        raise ZooError(
            f"the network reads inputs of shape {expected}, the zoo's images have {tuple(inputs.shape[1:])}",
            hint="measure it on the data it was trained for",
        )
    loss, hits = 0.0, 0
    with torch.no_grad():
        for start in range(0, len(images), _BATCH):
            logits = module(inputs[start : start + _BATCH].to(dtype))
            target = labels[start : start + _BATCH]
            if logits.shape[1] <= int(target.max()):
                classes = int(labels.max()) + 1
                raise ZooError(f"the network has {logits.shape[1]} outputs, the zoo's images {classes} classes")
            loss += float(cross_entropy(logits, target, reduction="none").double().sum())
            hits += int((logits.argmax(1) == target).sum())
    return loss / len(images), hits / len(images)


def evaluate_on(data: ImageData, state: Mapping[str, Tensor], architecture: Architecture) -> dict[str, float]:
    """Loss and accuracy on the test images, which no run was trained on."""
    loss, accuracy = measure_one(state, architecture, data.test_images, data.test_labels)
    return {"test_loss": loss, "test_accuracy": accuracy}
