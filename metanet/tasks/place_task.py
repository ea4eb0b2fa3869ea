"""Predict something of every unit or every weight of a network: what is learned, measured and kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from metanet.errors import TaskError
from metanet.graph import GraphBatch, ParameterGraph
from metanet.nn import Metanet
from metanet.tasks import metrics
from metanet.tasks.batches import by_architecture, random_batches
from metanet.tasks.build import build_model, prepare_model
from metanet.tasks.coverage import Coverage
from metanet.tasks.options import check_ranges, task_options
from metanet.tasks.places import PlaceData, joined
from metanet.tasks.targets import TargetTransform
from metanet.train import Extras, Monitor

PLACES_NAME, FORMAT = "places.json", "metanet.places/1"
INPUTS = ("data", "smooth")
_CHUNK = 64


@dataclass(frozen=True)
class PlaceTask:
    """Predict one number for every place of a network; `UnitTask` and `EdgeTask` say what a place is.

    Attributes:
        target: What is predicted, one of `TARGETS`.
        inputs: What the networks were run on to measure it: "data" (images of the zoo's own test set) or "smooth"
            (random smooth inputs).
        examples: Number of these inputs.
        batch: Networks per step, about.
        chunk: Networks of one architecture that go together, about.
        within: Weight of an additional loss on what differs within each space or tensor, on a scale of its own: most of
            what differs lies between layers and between networks, and would rule alone.
    """

    name: ClassVar[str] = ""
    level: ClassVar[str] = "node"
    targets: ClassVar[tuple[str, ...]] = ()

    target: str
    inputs: str = "data"
    examples: int = 64
    batch: int = 16
    chunk: int = 8
    within: float = 2.0

    def __post_init__(self) -> None:
        check_ranges(
            self,
            (
                ("target", self.target in self.targets, f"one of {', '.join(self.targets)}"),
                ("inputs", self.inputs in INPUTS, f"one of {', '.join(INPUTS)}"),
                ("examples", self.examples >= 2, "2 or more"),
                ("batch", self.batch >= 1, "1 or more"),
                ("chunk", self.chunk >= 1, "1 or more"),
                ("within", self.within >= 0, "0 or more"),
            ),
        )

    @classmethod
    def from_mapping(cls, options: Mapping[str, Any]) -> PlaceTask:
        """The task of a configuration.

        Raises:
            ConfigError: Unknown keys, or values of the wrong type or out of range.
        """
        return cls(**task_options(cls, options))

    @property
    def column(self) -> str:
        """What the answers are called."""
        return f"{self.target} by {self.name}"

    @property
    def invariant(self) -> bool:
        """Whether the target at a weight is a number that scalings and signs leave alone, and not a change."""
        return self.target == "saliency"

    @property
    def monitor(self) -> Monitor:
        return Monitor("val_loss", False)

    def describe(self) -> dict[str, Any]:
        return {"task": self.name, **asdict(self)}

    def transform(self, data: PlaceData) -> TargetTransform:
        """The scale on which the targets are learned; decided by the training part alone."""

        def fit() -> TargetTransform:
            train = data.part("train")
            if not len(train):
                raise TaskError("the training part is empty", hint="give it a share of the groups")
            return TargetTransform.fit("standard", torch.cat([data.flat(i) for i in train]).numpy())

        found: TargetTransform = data.remember("transform", fit)
        return found

    def model(self, data: PlaceData, options: Mapping[str, Any], generator: torch.Generator) -> nn.Module:
        model = build_model(options, 1, generator, self.level, self.invariant)
        prepare_model(model, data.batch.select(data.part("train").tolist()))
        return model

    def batches(self, data: PlaceData, generator: torch.Generator) -> Sequence[Tensor]:
        groups = data.remember("by architecture", lambda: by_architecture(data.graphs, data.part("train").tolist()))
        return random_batches(groups, self.batch, self.chunk, generator)

    def loss(self, model: nn.Module, data: PlaceData, batch: Tensor, generator: torch.Generator) -> Tensor:
        device = next(model.parameters()).device
        transform = self.transform(data)
        answers = place_answers(model, data.batch.select(batch).to(device), [data.graphs[i] for i in batch.tolist()])
        losses = []
        for number, answer in zip(batch.tolist(), answers, strict=True):
            wanted = (data.flat(number) - transform.mean) / transform.deviation
            said = joined(answer, data.targets[number])
            losses.append(nn.functional.huber_loss(said, wanted.to(said)))
            if self.within:
                target = data.targets[number]
                one = torch.cat([_centred(answer[name]) for name in target])
                two = torch.cat([_centred(value) for value in target.values()]).to(said) / transform.deviation
                spread = self.spread(data) / transform.deviation
                losses.append(self.within * nn.functional.huber_loss(one / spread, two / spread))
        return torch.stack(losses).sum() / len(batch)

    def spread(self, data: PlaceData) -> float:
        """The deviation of the targets within spaces or tensors, over the training part."""

        def measure() -> float:
            parts = [_centred(value) for i in data.part("train") for value in data.targets[i].values()]
            return max(float(torch.cat(parts).double().square().mean().sqrt()), 1e-6)

        found: float = data.remember("spread", measure)
        return found

    def metrics(self, model: nn.Module, data: PlaceData) -> dict[str, float]:
        places = data.part("val")
        if not len(places):
            raise TaskError("the validation part is empty", hint="give it a share of the groups")
        return self.measure(data, places, self.answers(model, data, places), "val_")

    def answers(self, model: nn.Module, data: PlaceData, places: NDArray[np.intp]) -> list[dict[str, Tensor]]:
        """What a model says of some networks, on the scale of learning."""
        found: list[dict[str, Tensor]] = []
        device = next(model.parameters()).device
        with torch.no_grad():
            for start in range(0, len(places), _CHUNK):
                some = places[start : start + _CHUNK].tolist()
                batch = data.batch.select(some).to(device)
                rows = place_answers(model, batch, [data.graphs[i] for i in some])
                found += [{name: value.cpu() for name, value in row.items()} for row in rows]
        return found

    def measure(
        self, data: PlaceData, places: NDArray[np.intp], answers: Sequence[Mapping[str, Tensor]], prefix: str = ""
    ) -> dict[str, float]:
        """Loss and metrics of answers on the scale of learning.

        `tau` is Kendall's, within each space or tensor (at most 2,000 of its places), averaged over those of a network
        and then over networks: between layers and between networks is too easy. `r2` is over all places together.
        """
        transform = self.transform(data)
        pairs = [(joined(row, data.targets[i]), data.flat(i)) for i, row in zip(places, answers, strict=True)]
        said, true = torch.cat([a for a, _ in pairs]).double(), torch.cat([b for _, b in pairs]).double()
        wanted = (true - transform.mean) / transform.deviation
        losses = [
            nn.functional.huber_loss(a.double(), (b.double() - transform.mean) / transform.deviation) for a, b in pairs
        ]
        found = {
            "loss": float(torch.stack(losses).mean()),
            "tau": mean_tau([data.targets[i] for i in places], answers),
            "r2": metrics.r_squared(said.numpy(), wanted.numpy()),
        }
        return {prefix + name: value for name, value in found.items()}

    def complete(self, model: nn.Module, data: PlaceData, generator: torch.Generator) -> Extras:
        val = data.part("val")
        slope, offset = self.baseline(data)
        record = {
            "format": FORMAT,
            "level": self.level,
            "invariant": self.invariant,
            "column": self.column,
            "transform": self.transform(data).to_json(),
            "coverage": Coverage.of(data.graphs[i].spec for i in data.part("train")).to_json(),
            "baseline": {"slope": slope, "offset": offset},
            "validation": {"metanet": _finite(self.measure(data, val, self.answers(model, data, val)))},
        }
        return Extras({}, {PLACES_NAME: record})

    def baseline(self, data: PlaceData) -> tuple[float, float]:
        """Slope and offset of the line from the simple score of a place to its target, on the scale of learning."""

        def fit() -> tuple[float, float]:
            train, transform = data.part("train"), self.transform(data)
            x = torch.cat([joined(data.simple[i], data.targets[i]) for i in train]).double()
            y = (torch.cat([data.flat(i) for i in train]).double() - transform.mean) / transform.deviation
            spread = float(x.var(correction=0))
            slope = float(((x - x.mean()) * (y - y.mean())).mean()) / spread if spread > 0 else 0.0
            return slope, float(y.mean()) - slope * float(x.mean())

        found: tuple[float, float] = data.remember("baseline", fit)
        return found

    def baseline_answers(self, data: PlaceData, places: NDArray[np.intp]) -> list[dict[str, Tensor]]:
        """What the simple baseline says of some networks, on the scale of learning."""
        slope, offset = self.baseline(data)
        return [{name: value * slope + offset for name, value in data.simple[i].items()} for i in places]


class UnitTask(PlaceTask):
    """Predict how much each unit matters.

    Targets: "removal" (how far the answers move when the unit is silenced, a decimal logarithm) and "loss" (by how much
    the cross-entropy rises then). The baseline is incoming norm times outgoing norm.
    """

    name, level, targets = "unit", "node", ("removal", "loss")


class EdgeTask(PlaceTask):
    """Predict how much each weight matters or will move.

    Targets: "saliency" (log10 of ``|w dL/dw|`` over the network's mean) and "change" (until the end of the training,
    from an earlier snapshot, in units of the tensor's root mean square). The baseline is the size of the weight, or the
    weight itself.
    """

    name, level, targets = "edge", "edge", ("saliency", "change")


def place_answers(model: nn.Module, batch: GraphBatch, graphs: Sequence[ParameterGraph]) -> list[Mapping[str, Tensor]]:
    """A model's answers at every place, of order 1.

    A metanetwork answers changes of weights in units of the tensor, so that they can be added to a state; what is
    learned here has a scale of its own, so these units are taken out again.
    """
    rows: list[Mapping[str, Tensor]] = model(batch)
    if not isinstance(model, Metanet) or model.level != "edge" or model.config["invariant"]:
        return rows
    answers: list[Mapping[str, Tensor]] = []
    for graph, row in zip(graphs, rows, strict=True):
        units = weight_units(graph)
        answers.append({name: value / units[name].to(value) for name, value in row.items()})
    return answers


def weight_units(graph: ParameterGraph) -> dict[str, Tensor]:
    """The unit in which a metanetwork answers at each weight, see `metanet.nn.heads.EdgeHead`.

    Shapes:
        return: the shape of each tensor that the graph interprets
    """
    topology = graph.topology
    found: dict[str, Tensor] = {}
    for number in (*topology.edges, *topology.nodes, *topology.scalars):
        block, value = topology.blocks[number], graph.values[number].float()
        unit = (value.square().mean() + 1e-4).sqrt()
        whole = found.setdefault(block.tensor, torch.ones(topology.spec.tensors[block.tensor].shape))
        block.region.write(unit.expand(value.shape).contiguous(), whole)
    return {name: found[owner] for name, owner in topology.owners.items() if owner in found}


def mean_tau(targets: Sequence[Mapping[str, Tensor]], answers: Sequence[Mapping[str, Tensor]]) -> float:
    """Kendall's tau within spaces or tensors, averaged over those of a network, then over networks.

    What holds fewer than three places or a constant target is left out.
    """
    taus = []
    for true, said in zip(targets, answers, strict=True):
        own = []
        for name, wanted in true.items():
            step = -(-wanted.numel() // 2000)
            a, b = wanted.reshape(-1)[::step], said[name].reshape(-1)[::step]
            if len(a) > 2 and float(a.max()) > float(a.min()):
                tau = metrics.kendall_tau(b.numpy(), a.numpy())
                own.append(tau if np.isfinite(tau) else 0.0)
        if own:
            taus.append(float(np.mean(own)))
    return float(np.mean(taus)) if taus else float("nan")


def _centred(value: Tensor) -> Tensor:
    flat = value.reshape(-1)
    return flat - flat.mean()


def _finite(values: Mapping[str, float]) -> dict[str, float | None]:
    return {name: value if np.isfinite(value) else None for name, value in values.items()}
