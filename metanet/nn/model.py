"""The strict metanetwork: which numbers does it predict from a network's weights, whatever the order of its units?"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from metanet.errors import ModelError
from metanet.graph import Bucket, GraphBatch
from metanet.nn.dense import Dense, Table, make_generator
from metanet.nn.effects import Effects, effects_of
from metanet.nn.features import Embedding, check_bucket
from metanet.nn.frames import GAUGES, Motion, canonical
from metanet.nn.heads import EdgeHead, GraphHead, NodeHead
from metanet.nn.probes import Probes
from metanet.nn.quasi import Moved, check_mode
from metanet.nn.quasi_state import QuasiHead, moved_states
from metanet.nn.responses import Responses
from metanet.nn.rich import RICH, bucket_rich
from metanet.nn.rounds import MESSAGES, Rounds
from metanet.nn.standardise import Standardise
from metanet.nn.statistics import STATISTICS, bucket_statistics
from metanet.nn.structure import Structure, structure_of
from metanet.nn.sweep import Sweep
from metanet.nn.waves import Waves

__all__ = ["LEVELS", "Answer", "Metanet"]

LEVELS = ("graph", "node", "edge", "state")
_MOVING = (
    "hidden", "layers", "messages", "checkpointing", "positions", "partial", "symmetry", "gauge", "mode", "base",
    "change",
)  # fmt: skip
Answer: TypeAlias = Tensor | list[dict[str, Tensor]]


class Metanet(nn.Module):
    """A network that reads networks: equivariant to every permutation of units in the spec, by construction.

    Nodes, edges (one per weight or kernel) and layer nodes exchange messages for a few rounds; the readout adds layer
    statistics and, if asked for, the responses of the network itself to learned probes.

    Args:
        outputs: numbers per network, per unit or per weight.
        level: "graph" (one answer per network), "node" (per unit of every space), "edge" (per weight) or "state" (a
            change of every tensor of the state).
        hidden: width of node, edge and layer features.
        layers: rounds of messages; 0 leaves only what the readout adds (with level "graph", if it adds anything).
        messages: "edge" (features for every weight) or "sweep" (features of units travel through the weights
            themselves, see :class:`metanet.nn.SweepLayer`: faster, and nothing is kept per weight).
        checkpointing: keep less for the backward pass and make it anew there: less memory, more time.
        statistics: let the readout of level "graph" see :func:`metanet.nn.layer_statistics`, or with "rich" what no
            element of the group changes (:func:`metanet.nn.rich_statistics`), whatever ``symmetry`` says. Call
            :meth:`fit_statistics` on the training networks first.
        probes: number of learned probe inputs that are run through the networks' own weights; 0 for none.
        responses: number of learned inputs on which the networks' real operations are run, see
            :class:`metanet.nn.Responses`; 0 for none. The graphs must hold their program, and :meth:`fit_statistics`
            must see the training networks first.
        mixing: rank of the mix of these inputs behind every activation; 0 runs the networks as they are.
        waves: number of channels by which the weights of sine networks are read without running anything, see
            :class:`metanet.nn.Waves`; 0 for none. Call :meth:`fit_statistics` first here too.
        positions: kernel positions that are told apart exactly (see :class:`metanet.nn.features.Embedding`).
        readout: width of the readout of level "graph".
        partial: accept networks with used tensors that the graph only carries.
        symmetry: "permutation", or "full": also scalings, signs, shifts and matrices, through the frame of each network
            (:func:`metanet.nn.frames.frame_of`). Answers of level "graph" are invariant, those of "node" follow
            permutations and are invariant to the rest, those of "edge" and "state" transform like a change of the
            state.
        gauge: with symmetry "full" the frame and how its weights are brought to order 1: "rms" (incoming norms 1, then
            each tensor divided by its root mean square, whose logarithm is kept), "unit" (incoming norms 1, times
            constants of the architecture) or "balanced" (incoming norm = outgoing norm, then as "rms").
        mode: "strict"; with level "state" and symmetry "full" also "quasi" (answers are whole networks, moved by one
            element of their own group, see :class:`metanet.nn.MovedState`) and "soft" (an element per channel, which
            leaves the orbit; the answers tell how far). With level "graph" the strict readout reads the networks that
            such layers make: the answer stays invariant with "quasi" and is not quite with "soft".
        base: of these modes: "own" (moved from where they stand) or "frame" (from their canonical form).
        change: with these modes, add a strict change before moving; without it functions stay as they are.
        invariant: answers of level "edge" are numbers of order 1 that follow permutations only, and not changes of the
            weights; refused where symmetry "full" has matrices.
        effects: units and weights also see what every weight does to the network's answers to random smooth inputs
            (:mod:`metanet.nn.effects`); the graphs must hold their program.
        seed: seeds the first weights; torch's global generator is neither read nor moved.
        generator: source of the first weights instead of ``seed``.

    Shapes:
        a :class:`~metanet.graph.GraphBatch` of N networks -> level "graph": ``(N, outputs)`` in the order of the batch;
        "node": per network a dict space -> ``(units, outputs)``; "edge": per network a dict tensor name -> its shape
        (``(*shape, outputs)`` for more than one output), in units of the tensor's own root mean square times that size:
        a change that can be added to the state; "state": the same for every name of the state, zeros where the graph
        interprets nothing.

    Raises:
        ModelError: for an argument out of range, or one that asks for what is not available.

    Example:
        >>> from metanet.nn import Metanet
        >>> net = Metanet(outputs=1, hidden=16, layers=2, seed=1)
        >>> net.config["hidden"], Metanet(**net.config).config == net.config
        (16, True)
    """

    def __init__(
        self,
        outputs: int = 1,
        level: Literal["graph", "node", "edge", "state"] = "graph",
        *,
        hidden: int = 32,
        layers: int = 3,
        messages: Literal["edge", "sweep"] = "edge",
        checkpointing: bool = False,
        statistics: bool | Literal["rich"] = True,
        probes: int = 0,
        responses: int = 0,
        mixing: int = 0,
        waves: int = 0,
        positions: int = 16,
        readout: int = 64,
        partial: bool = False,
        symmetry: Literal["permutation", "full"] = "permutation",
        gauge: Literal["rms", "unit", "balanced"] = "rms",
        mode: Literal["strict", "quasi", "soft"] = "strict",
        base: Literal["own", "frame"] = "own",
        change: bool = True,
        invariant: bool = False,
        effects: bool = False,
        seed: int = 0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if level not in LEVELS:
            raise ModelError(f"level={level!r}, expected one of {', '.join(LEVELS)}")
        for name, value, least in (
            ("outputs", outputs, 1),
            ("hidden", hidden, 2),
            ("layers", layers, 0),
            ("probes", probes, 0),
            ("responses", responses, 0),
            ("mixing", mixing, 0),
            ("waves", waves, 0),
            ("positions", positions, 1),
            ("readout", readout, 1),
            ("seed", seed, 0),
        ):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ModelError(f"{name}={value!r}, expected an integer of at least {least}")
        if messages not in MESSAGES:
            raise ModelError(f"messages={messages!r}, expected one of {', '.join(MESSAGES)}")
        if not isinstance(statistics, bool) and statistics != "rich":
            raise ModelError(f"statistics={statistics!r}, expected True, False or 'rich'")
        flags = {"partial": partial, "checkpointing": checkpointing, "change": change, "invariant": invariant,
                 "effects": effects}  # fmt: skip
        for name, flag in flags.items():
            if not isinstance(flag, bool):
                raise ModelError(f"{name}={flag!r}, expected True or False")
        if symmetry not in ("permutation", "full"):
            raise ModelError(f"symmetry={symmetry!r} is unknown, expected 'permutation' or 'full'")
        if gauge not in GAUGES:
            raise ModelError(f"gauge={gauge!r} is unknown, expected one of {', '.join(GAUGES)}")
        if symmetry == "permutation" and gauge != "rms":
            raise ModelError(f"gauge={gauge!r} with symmetry='permutation'", hint="use symmetry='full'")
        whole = (level == "state" and outputs == 1) or level == "graph"
        check_mode(mode, base, change, whole and symmetry == "full")
        if invariant and level != "edge":
            raise ModelError(f"invariant=True with level={level!r}: only answers at weights can be changes or numbers")
        if level != "graph" and probes:
            raise ModelError(
                f"probes={probes} with level={level!r}: probes answer per network", hint="use level='graph'"
            )
        for name, value in (("responses", responses), ("waves", waves)):
            if level != "graph" and value:
                raise ModelError(
                    f"{name}={value} with level={level!r}: {name} tell of the network", hint="use level='graph'"
                )
        if responses == 1 or (mixing and not responses):
            raise ModelError(f"responses={responses}, mixing={mixing}: expected responses of at least 2, or both 0")
        self.config: dict[str, Any] = {
            "outputs": outputs, "level": level, "hidden": hidden, "layers": layers, "messages": messages,
            "checkpointing": checkpointing, "statistics": statistics,
            "probes": probes, "responses": responses, "mixing": mixing, "waves": waves, "positions": positions,
            "readout": readout, "partial": partial, "symmetry": symmetry, "gauge": gauge,
            "mode": mode, "base": base, "change": change, "invariant": invariant,
            "effects": effects, "seed": seed,
        }  # fmt: skip
        self.outputs, self.level, self.partial = outputs, level, partial
        self.symmetry, self.gauge = symmetry, gauge
        self.embedding = Embedding(hidden, positions, gauge)
        self.effects = Effects(hidden) if effects else None
        self.layers = Rounds(messages, hidden, layers, level in ("edge", "state"), checkpointing)
        self.rich = statistics == "rich"
        told = len(RICH) if self.rich else len(STATISTICS)
        self.statistics = Standardise(told) if statistics and level == "graph" else None
        self.sweep = Sweep(probes) if probes else None
        self.responses = Responses(responses, readout, mixing) if responses else None
        extra = (told if self.statistics is not None else 0) + (self.sweep.features if self.sweep else 0)
        self.waves = Waves(waves, readout) if waves else None
        extra += sum(part.features for part in (self.responses, self.waves) if part is not None)
        self.head: GraphHead | NodeHead | EdgeHead | QuasiHead
        if level == "graph":
            self.head = GraphHead(0 if extra and not layers else hidden, extra, outputs, readout)
        elif level == "node":
            self.head = NodeHead(hidden, outputs)
        elif mode == "strict":
            self.head = EdgeHead(hidden, outputs, positions, gauge, level == "state", invariant, effects)
        else:
            self.head = QuasiHead(hidden, positions, gauge, mode == "soft", base, change)
        generator = generator if generator is not None else make_generator(seed)
        self.mover: Metanet | None = None
        if level == "graph" and mode != "strict":
            moving: dict[str, Any] = {key: self.config[key] for key in _MOVING}
            self.mover = Metanet(1, "state", **{**moving, "layers": max(layers, 1)}, generator=generator)
        self.reset_parameters(generator)

    def reset_parameters(self, generator: torch.Generator) -> None:
        """Draw all weights anew."""
        for module in self.modules():
            if isinstance(module, Dense | Table):
                module.reset_parameters(generator)
        for module in self.modules():
            if isinstance(module, Probes):
                module.start_constant()
        for part in (self.sweep, self.responses, self.waves):
            if part is not None:
                part.reset_parameters(generator)

    def fit_statistics(self, batch: GraphBatch) -> None:
        """Standardise layer statistics and responses by these networks; they should be the training networks.

        Makes the learned inputs of responses for these networks' inputs. Does nothing without either.
        """
        buckets = self._read(batch)
        for part in (self.responses, self.waves):
            if part is not None:
                part.prepare(GraphBatch(tuple(buckets), batch.size))
        if self.statistics is not None:
            self.statistics.fit(batch.gather(self._told(bucket) for bucket in buckets))

    def forward(self, batch: GraphBatch) -> Answer:
        """The answers, in the order in which the graphs were given to ``collate``.

        Raises:
            ModelError: for weights that are not finite, or used tensors that would not be seen.
        """
        if isinstance(self.head, QuasiHead):
            return list[dict[str, Tensor]](moved_states(batch, [self.move(bucket) for bucket in self._checked(batch)]))
        answers = [self._bucket(bucket) for bucket in self._read(batch)]
        if self.level == "graph":
            return batch.gather(answer for answer in answers if isinstance(answer, Tensor))
        return self._rows(batch, answers)

    def move(self, bucket: Bucket) -> Moved:
        """What mode "quasi" or "soft" makes of a bucket, as block values with the elements; for training.

        Raises:
            ModelError: in mode "strict".
        """
        if self.mover is not None:
            return self.mover.move(bucket)
        if not isinstance(self.head, QuasiHead):
            raise ModelError("mode='strict' moves nothing", hint="use mode='quasi' and level='state'")
        framed, frame = self._framed(bucket)
        structure = structure_of(bucket.topology)
        nodes, edges, layers = self.embedding(framed, edges=self.layers.needs_edges or self.head.change is not None)
        if self.effects is not None:
            nodes, edges = self.effects(structure, bucket, nodes, edges)
        features = self.layers.run(structure, framed, nodes, edges, layers)
        return self.head(structure, bucket, framed, frame or Motion.identity(bucket), features)

    def _read(self, batch: GraphBatch) -> list[Bucket]:
        """The networks that are read: those of the batch, or what the mode's layers make of them."""
        mover, checked = self.mover, self._checked(batch)
        if mover is None:
            return list(checked)
        return [replace(bucket, values=mover.move(bucket).values, origin=None, cache={}) for bucket in checked]

    def _checked(self, batch: GraphBatch) -> GraphBatch:
        like = self.embedding.part.weight
        for bucket in batch:
            values = [value for value in bucket.values if value is not None]
            if values and (values[0].dtype != like.dtype or values[0].device != like.device):
                raise ModelError(
                    f"the batch holds {values[0].dtype} on {values[0].device}, "
                    f"the metanetwork {like.dtype} on {like.device}",
                    hint="use batch.to(device, dtype)",
                )
            check_bucket(bucket, self.partial)
        return batch

    def _bucket(self, bucket: Bucket) -> Tensor | dict[str, Tensor]:
        structure = structure_of(bucket.topology)
        if isinstance(self.head, GraphHead) and self.head.pooled is None:
            return self.head(structure, None, None, self._extra(structure, bucket))
        given, (bucket, frame) = bucket, self._framed(bucket)
        needed = self.layers.needs_edges or isinstance(self.head, EdgeHead)
        nodes, edges, layers = self.embedding(bucket, edges=needed)
        if self.effects is not None:
            nodes, edges = self.effects(structure, given, nodes, edges)
        nodes, edges, layers = self.layers.run(structure, bucket, nodes, edges, layers)
        if isinstance(self.head, NodeHead):
            return self.head(structure, nodes)
        if isinstance(self.head, EdgeHead):
            back, effects = None if frame is None else ~frame, None if self.effects is None else effects_of(given)
            return self.head(structure, bucket, nodes, edges, layers, back, effects)
        if isinstance(self.head, QuasiHead):
            raise ModelError(f"mode={self.config['mode']!r} answers with networks", hint="use move")
        return self.head(structure, nodes, layers, self._extra(structure, given))

    def _framed(self, bucket: Bucket) -> tuple[Bucket, Motion | None]:
        """The networks as the permutation-equivariant core sees them, and what brought them there."""
        if self.symmetry == "permutation":
            return bucket, None
        frame, found = canonical(bucket, self.gauge)
        return found, frame

    def _told(self, bucket: Bucket) -> Tensor:
        """Statistics of the networks; the rich ones settle the gauge themselves."""
        return bucket_rich(bucket) if self.rich else bucket_statistics(self._framed(bucket)[0])

    def _extra(self, structure: Structure, bucket: Bucket) -> Tensor | None:
        found = []
        if self.statistics is not None:
            found.append(self.statistics(self._told(bucket)))
        if self.sweep is not None:
            found.append(self.sweep(structure, self._framed(bucket)[0]))
        # Neither needs a frame: one runs the function itself, the other keeps to the group.
        found += [part(bucket) for part in (self.responses, self.waves) if part is not None]
        return torch.cat(found, dim=-1) if found else None

    def _rows(self, batch: GraphBatch, answers: list[Tensor | dict[str, Tensor]]) -> list[dict[str, Tensor]]:
        rows: list[dict[str, Tensor]] = [{} for _ in range(len(batch))]
        for bucket, answer in zip(batch, answers, strict=True):
            if isinstance(answer, Tensor):
                continue
            for name, values in answer.items():
                if self.level != "node":
                    values = values.movedim(1, -1) if self.outputs > 1 else values.squeeze(1)
                for place, value in zip(bucket.index.tolist(), values.unbind(0), strict=True):
                    rows[place][name] = value
        return rows

    def __repr__(self) -> str:
        told = ", ".join(f"{name}={value!r}" for name, value in self.config.items())
        return f"Metanet({told}; {sum(p.numel() for p in self.parameters()):,} parameters)"
