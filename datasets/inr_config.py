"""What does the configuration of a zoo of implicit neural representations say, and is it possible?"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from metanet.checkpoint import Architecture
from metanet.errors import ConfigError, MetanetError

from .images import check_data_options
from .table import Table, plain

__all__ = ["KIND", "InrConfig"]

KIND = "inr"
_SPLITS = ("train", "val", "test")
_MAX_IMAGES = 1_000_000
_MAX_NETWORKS = 10_000_000


@dataclass(frozen=True)
class InrConfig:
    """Everything that decides what a zoo of SIRENs holds: one network for each image and initialisation.

    Args:
        name: of the zoo.
        seed: the root of all randomness.
        data: name and options of the image set.
        images: how many different images are in "train", "val" and "test"; the last come from the set's test images,
            the others from its pool.
        copies: networks per image, each from first weights of its own; all are in the image's split.
        group: networks in a shard.
        widths: of the hidden layers.
        w0: frequency of the hidden layers' sines.
        first_w0: frequency of the first layer's sines.
        steps: of Adam, on all pixels at once.
        learning_rate: of the first step; it falls to zero as a half cosine.
    """

    name: str
    seed: int
    data: Mapping[str, Any]
    images: Mapping[str, int]
    copies: int
    group: int
    widths: tuple[int, ...]
    w0: float
    first_w0: float
    steps: int
    learning_rate: float

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    @classmethod
    def from_mapping(cls, raw: object) -> InrConfig:
        """The configuration written as ``raw``: a plain mapping or an OmegaConf one.

        Raises:
            ConfigError: naming the first setting that is unknown, missing or impossible.
        """
        table = Table("", plain(raw))
        if table.text("kind") != KIND:
            raise ConfigError(f"expected '{KIND}'", where="kind")
        images, network, training = table.table("images"), table.table("network"), table.table("training")
        w0 = network.number("w0", 1e-4, 1e4)
        result = cls(
            name=table.text("name"),
            seed=table.integer("seed", 0, 2**63 - 1, 0),
            data=check_data_options(table.take("data")),
            images={name: images.integer(name, 1, _MAX_IMAGES) for name in _SPLITS},
            copies=table.integer("copies", 1, 1000, 1),
            group=table.integer("group", 1, 65536, 512),
            widths=_widths(network),
            w0=w0,
            first_w0=network.number("first_w0", 1e-4, 1e4, w0),
            steps=training.integer("steps", 1, 10_000_000),
            learning_rate=training.number("learning_rate", 1e-12, 1e6),
        )
        for part in (images, network, training, table):
            part.finish()
        result._check()
        return result

    def _check(self) -> None:
        from_pool = self.images["train"] + self.images["val"]
        for what, count, part in (("train and val", from_pool, "pool"), ("test", self.images["test"], "test")):
            if count > self.data[part]:
                raise ConfigError(
                    f"{count} images for {what}, data.{part} has {self.data[part]}", where="images", hint="lower them"
                )
        if self.networks > _MAX_NETWORKS:
            raise ConfigError(f"{self.networks} networks, at most {_MAX_NETWORKS}", where="copies")

    @property
    def networks(self) -> int:
        """How many there will be."""
        return sum(self.images.values()) * self.copies

    def architecture(self, outputs: int) -> Architecture:
        """Of all networks: coordinates in, the value of each channel there out."""
        options = {"inputs": 2, "widths": self.widths, "outputs": outputs, "w0": self.w0, "first_w0": self.first_w0}
        return Architecture("siren", options, provenance="of a zoo of images")

    def to_json(self) -> dict[str, Any]:
        """The complete configuration, defaults filled in, in the form that :meth:`from_mapping` reads."""
        return {
            "name": self.name,
            "kind": KIND,
            "seed": self.seed,
            "data": dict(self.data),
            "images": dict(self.images),
            "copies": self.copies,
            "group": self.group,
            "network": {"widths": list(self.widths), "w0": self.w0, "first_w0": self.first_w0},
            "training": {"steps": self.steps, "learning_rate": self.learning_rate},
        }

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the complete configuration."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()


def _widths(network: Table) -> tuple[int, ...]:
    widths = network.take("widths")
    try:
        options = {"inputs": 2, "widths": widths, "outputs": 1}
        return tuple(Architecture("siren", options).options["widths"])
    except MetanetError as error:
        raise ConfigError(error.reason, where="network.widths") from error
