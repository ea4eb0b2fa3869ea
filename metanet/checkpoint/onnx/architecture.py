"""An ONNX graph as the architecture of a checkpoint: it came with the file, as data, and builds a module that runs."""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from metanet.checkpoint.architecture import FORMAT, Architecture
from metanet.checkpoint.onnx.module import OnnxModule, runtime_inputs, unknown_operator
from metanet.checkpoint.onnx.plan import Plan, bodies
from metanet.checkpoint.onnx.proto import Graph, Input, Node
from metanet.checkpoint.onnx.tensors import DTYPES
from metanet.errors import CheckpointError, clean

__all__ = ["ONNX", "OnnxArchitecture"]

ONNX = "onnx"
# Sizes to try where the file leaves them open, small ones first: some networks need a certain length.
OPEN_SIZES = (16, 32, 64, 128, 224, 256, 512, 576, 640, 1024, 4096, 16000)
# Integers below these are tried as input: tokens, bytes, flags.
OPEN_VALUES = (100, 2)
MAX_INPUT = 1 << 26
MAX_NAMED = 12


class OnnxArchitecture(Architecture):
    """The graph of an ONNX file.

    Args:
        plan: the graph, with its constants sorted out.
        digest: hash of all in the file but the values of parameters and buffers.
        inputs: example inputs, one for each input of the file; integers without axes are fixed to what is given. Where
            they are not given, sizes are read off the file, and what it leaves open is found by running it.

    Raises:
        CheckpointError: for an operator without a rule, named with its node; for inputs of another number.
    """

    plan: Plan
    digest: str
    fixed: dict[str, np.ndarray[Any, Any]]
    given: tuple[Tensor, ...] | None

    def __init__(self, plan: Plan, digest: str, inputs: Sequence[Any] | None = None) -> None:
        if plan.unknown is not None:
            raise unknown_operator(plan.unknown)
        object.__setattr__(self, "plan", plan)
        object.__setattr__(self, "digest", digest)
        object.__setattr__(self, "family", ONNX)
        object.__setattr__(self, "provenance", "the graph in the ONNX file")
        object.__setattr__(self, "_shapes", MappingProxyType({c.name: c.shape for c in plan.stored}))
        object.__setattr__(self, "_examples", {})
        wanted = runtime_inputs(plan.model.graph)
        if inputs is None:
            fixed = {value.name: _choice(plan, value) for value in wanted if _is_choice(value)}
            given = None
        else:
            fixed, given = _split(wanted, inputs)
        object.__setattr__(self, "fixed", fixed)
        object.__setattr__(self, "given", given)
        object.__setattr__(self, "options", MappingProxyType(self._summary()))

    def _summary(self) -> dict[str, Any]:
        counts = Counter(node.operator for node in _nodes(self.plan.model.graph)).most_common()
        operators = ", ".join(f"{count} {clean(name, 40)}" for name, count in counts[:MAX_NAMED])
        described = [
            f"{clean(value.name, 60)}: {str(DTYPES.get(value.kind, value.kind)).removeprefix('torch.')} "
            f"[{clean(', '.join(str(size) or '?' for size in value.shape or ()), 60)}]"
            for value in runtime_inputs(self.plan.model.graph)
        ]
        return {
            "graph": self.digest,
            "opset": self.plan.model.opsets.get("", 1),
            "producer": clean(self.plan.model.producer, 60),
            "inputs": ", ".join(described),
            "fixed": {name: value.item() for name, value in self.fixed.items()},
            "operators": operators + (f" and {len(counts) - MAX_NAMED} kinds more" if len(counts) > MAX_NAMED else ""),
        }

    def build(self, seed: int = 0) -> nn.Module:
        """The graph as a module with fresh parameters, in eval mode, in the types of the file.

        Args:
            seed: of the parameters.
        """
        return OnnxModule(self.plan, self.fixed, seed).eval()

    def example_inputs(self, batch: int = 7) -> tuple[Tensor, ...]:
        """Standard normal inputs (small integers where the file wants integers), the same on every call.

        Args:
            batch: size of a first axis that the file leaves open.

        Raises:
            CheckpointError: where no sizes are found with which the graph runs.
        """
        if self.given is not None:
            return self.given
        if batch not in self._examples:
            self._examples[batch] = self._search(batch)
        found: tuple[Tensor, ...] = self._examples[batch]
        return found

    _examples: dict[int, tuple[Tensor, ...]]

    def _search(self, batch: int) -> tuple[Tensor, ...]:
        model = self.build()
        wanted = [value for value in runtime_inputs(self.plan.model.graph) if value.name not in self.fixed]
        first: CheckpointError | None = None
        for rows, size, high in itertools.product((batch, 1), OPEN_SIZES, OPEN_VALUES):
            inputs = tuple(_example(value, rows, size, high) for value in wanted)
            try:
                with torch.no_grad():
                    model(*inputs)
            except CheckpointError as error:
                first = first or error
                if (
                    not any(isinstance(n, str) for value in wanted for n in value.shape or ("",))
                    and high == OPEN_VALUES[-1]
                ):
                    break
                continue
            return inputs
        raise CheckpointError(
            f"no sizes were found with which the graph runs: {first.reason if first else 'it has no inputs'}",
            hint="give example inputs with example_inputs=, one for each input of the file",
        )

    @property
    def fingerprint(self) -> str:
        """Hexadecimal hash of the graph, its constants, and the inputs that it is traced with."""
        sizes = [] if self.given is None else [tuple(value.shape) for value in self.given]
        fixed = sorted((name, value.item()) for name, value in self.fixed.items())
        return hashlib.sha256(f"{self.digest}\n{sizes}\n{fixed}".encode()).hexdigest()[:32]

    def __reduce__(self) -> tuple[Any, ...]:
        given: list[Any] | None = None
        if self.given is not None:
            rest = iter(self.given)
            wanted = runtime_inputs(self.plan.model.graph)
            given = [self.fixed[value.name] if value.name in self.fixed else next(rest) for value in wanted]
        return OnnxArchitecture, (self.plan, self.digest, given)

    def __repr__(self) -> str:
        graph = self.plan.model.graph
        inputs = ", ".join(value.name for value in runtime_inputs(graph))
        return f"OnnxArchitecture({len(list(_nodes(graph)))} nodes, inputs {clean(inputs, 80)})"

    def to_json(self) -> dict[str, Any]:
        """A description; the graph itself stays in the ONNX file, and reading this back is refused."""
        return {"format": FORMAT, "family": ONNX, "options": dict(self.options), "provenance": self.provenance}


def _nodes(graph: Graph) -> Iterator[Node]:
    for node in graph.nodes:
        yield node
        for _, body in bodies(node):
            yield from _nodes(body)


def _is_choice(value: Input) -> bool:
    """Whether an input is one integer or flag, which chooses what the graph does rather than being transformed."""
    return value.shape == () and value.kind in DTYPES and not DTYPES[value.kind].is_floating_point


def _choice(plan: Plan, value: Input) -> np.ndarray[Any, Any]:
    """What to fix such an input to: the number that the graph compares it with, else one."""
    kind = torch.empty(0, dtype=DTYPES[value.kind]).numpy().dtype
    constants = plan.constants_of(plan.model.graph)
    same = {value.name}
    for node in plan.model.graph.nodes:
        if (
            node.operator in ("Reshape", "Gather", "Cast", "Identity", "Squeeze", "Unsqueeze")
            and node.inputs[0] in same
        ):
            same.update(node.outputs)
        if node.operator == "Equal" and same.intersection(node.inputs):
            for name in node.inputs:
                known = constants[name].value if name in constants else None
                if known is not None and known.size == 1:
                    return np.asarray(known.reshape(-1)[0], kind)
    return np.asarray(1, kind)


def _split(wanted: list[Input], inputs: Sequence[Any]) -> tuple[dict[str, np.ndarray[Any, Any]], tuple[Tensor, ...]]:
    if len(inputs) != len(wanted):
        names = clean(", ".join(value.name for value in wanted), 120)
        raise CheckpointError(
            f"{len(inputs)} example inputs, expected {len(wanted)}: {names}", hint="give one for each"
        )
    fixed, given = {}, []
    for value, example in zip(wanted, inputs, strict=True):
        tensor = example if isinstance(example, Tensor) else torch.as_tensor(example)
        kind = DTYPES.get(value.kind, tensor.dtype)
        if _is_choice(value) or (tensor.ndim == 0 and not tensor.is_floating_point()):
            fixed[value.name] = tensor.to(kind).numpy()
        else:
            given.append(tensor.to(kind))
    return fixed, tuple(given)


def _example(value: Input, batch: int, size: int, high: int) -> Tensor:
    kind = DTYPES.get(value.kind)
    if kind is None or value.shape is None:
        raise CheckpointError(
            f"input '{clean(value.name, 80)}' has no type or shape that can be made up",
            hint="give example inputs with example_inputs=, one for each input of the file",
        )
    # The first size that is left open is the number of examples, wherever it stands.
    rows = next((i for i, n in enumerate(value.shape) if isinstance(n, str)), -1)
    batched = {i for i, n in enumerate(value.shape) if i == rows or (isinstance(n, str) and "batch" in n.lower())}
    shape = [n if isinstance(n, int) else batch if i in batched else size for i, n in enumerate(value.shape)]
    if int(np.prod([float(n) for n in shape])) > MAX_INPUT:
        raise CheckpointError(f"input '{clean(value.name, 80)}' has the size {shape}", hint="give example inputs")
    generator = torch.Generator().manual_seed(0)
    if kind.is_floating_point:
        return torch.randn(shape, generator=generator).to(kind)
    if kind == torch.bool:
        return torch.ones(shape, dtype=kind)
    return torch.randint(0, high, shape, generator=generator).to(kind)
