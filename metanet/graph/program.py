"""What does an architecture compute, and how is it run for many networks at once on inputs of one's own choice?

The operations are read from the module by ``torch.export``, as :func:`symmetry.trace` reads them, and run with stacked
parameters: one pass gives the answers of all networks of a bucket. A program is a runtime object: it is made from a
module that is there, never from a file, and runs nothing but torch's own operators.
"""

from __future__ import annotations

import copy
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from metanet.errors import GraphError
from metanet.graph.plan import Mix, Plan, compile_plan
from symmetry.trace.export import exported

__all__ = ["InputForm", "Program", "program_of"]

_CACHE_SIZE = 1024


class Buildable(Protocol):
    """What is needed of an architecture."""

    @property
    def fingerprint(self) -> str: ...

    def build(self) -> nn.Module: ...

    def example_inputs(self) -> tuple[Tensor, ...]: ...


@dataclass(frozen=True, slots=True)
class InputForm:
    """What one input of a network looks like.

    Args:
        shape: its shape without the first axis.
        vocabulary: for token ids, how many there are: they are replaced by weights over the vocabulary, and ``shape``
            ends with it. Otherwise ``None``.
    """

    shape: tuple[int, ...]
    vocabulary: int | None = None

    def __str__(self) -> str:
        return "x".join(map(str, self.shape)) or "scalar"


class Program:
    """The operations of one architecture, run for stacks of its networks.

    Nothing is exported before it is needed. Inputs have their examples along the first axis; here these are the
    *probes*, shared by all networks. Token ids are replaced by real weights over the vocabulary, times the table.

    Args:
        make: gives the module and its example inputs.
        key: what tells this program from others, where that is known without exporting it.

    Example:
        >>> import torch
        >>> from metanet.graph import Program
        >>> module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
        >>> program = Program.of(module, (torch.randn(7, 3),))
        >>> stack = {name: torch.stack([value, 2 * value]) for name, value in module.state_dict().items()}
        >>> [tuple(answer.shape) for answer in program.run(stack, (torch.randn(5, 3),))]
        [(2, 5, 2)]
    """

    def __init__(self, make: Callable[[], tuple[nn.Module, tuple[Any, ...]]], key: str = "") -> None:
        self._make, self._key = make, key
        self._plans: dict[tuple[Any, ...], Plan] = {}
        self._lock = threading.RLock()

    @classmethod
    def of(cls, module: nn.Module, example_inputs: Sequence[Any]) -> Program:
        """The program of a module.

        Args:
            module: it is kept and exported when the program is first run.
            example_inputs: with the examples along the first axis of every tensor.
        """
        inputs = tuple(example_inputs)
        return cls(lambda: (module, inputs))

    @cached_property
    def _module(self) -> tuple[nn.Module, tuple[Any, ...]]:
        module, inputs = self._make()
        sizes = {len(value) for value in inputs if isinstance(value, Tensor) and value.ndim}
        if len(sizes) != 1 or any(isinstance(value, Tensor) and not value.ndim for value in inputs):
            raise GraphError(
                f"example inputs of {type(module).__name__} have first axes of {sorted(sizes)}, expected one size",
                hint="give every input its examples along the first axis",
            )
        return module, inputs

    @cached_property
    def fingerprint(self) -> str:
        """Tells programs apart: the architecture's own fingerprint, or a hash of operations, arguments and shapes."""
        if self._key:
            return self._key
        size = next(len(value) for value in self._module[1] if isinstance(value, Tensor))
        return self.plan(max(size, 2)).fingerprint

    @property
    def inputs(self) -> tuple[InputForm, ...]:
        """The inputs of the network, in order."""
        plan = next(iter(self._plans.values()), None) or self.plan(2)
        return tuple(InputForm(shape, words) for shape, words in plan.inputs)

    def plan(self, probes: int, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Plan:
        """The operations for this number of probes; exported on first use.

        Raises:
            GraphError: for fewer than two probes (one could not be told from an axis of size 1).
            symmetry.TraceError: where torch cannot export the module for such inputs.
        """
        if probes < 2:
            raise GraphError(f"probes={probes}, expected at least 2")
        key = (probes, dtype, str(torch.device(device)))
        with self._lock:
            if key not in self._plans:
                module, inputs = self._module
                # Another dtype: constants inside the operations follow the module's own.
                copied = copy.deepcopy(module).to(device="cpu", dtype=dtype)
                shaped = tuple(_repeated(value, probes, dtype) for value in inputs)
                self._plans[key] = compile_plan(exported(copied, shaped), probes, torch.device(device))
            return self._plans[key]

    def run(self, state: Mapping[str, Tensor], inputs: Sequence[Tensor], mix: Mix | None = None) -> tuple[Tensor, ...]:
        """The outputs of all networks of a stack for all probes.

        Args:
            state: name -> stacked tensors; names that the operations do not use may lack.
            inputs: one tensor per input of the network.
            mix: called after every pointwise activation with its rank and its value, probes last; gives the value
                that goes on. What is linear over probes, and the same for all units, commutes with every symmetry.

        Shapes:
            state: ``(B, ...)``. inputs: ``(probes, ...)``. Returns ``(B, probes, ...)`` per output of the network.

        Raises:
            GraphError: for inputs of another number or shape than the network's, or a tensor that lacks.
        """
        if not inputs:
            raise GraphError("no input given", hint="the network takes " + ", ".join(map(str, self.inputs)))
        like = inputs[0]
        plan = self.plan(len(like), like.dtype, like.device)
        wanted = [(len(like), *shape) for shape, _ in plan.inputs]
        if [tuple(value.shape) for value in inputs] != wanted:
            raise GraphError(f"inputs of shapes {[tuple(value.shape) for value in inputs]}, expected {wanted}")
        missing = [name for name in plan.tensors.values() if name not in state]
        if missing:
            raise GraphError("is used by the network and not given", where=missing[0])
        return plan.run(state, tuple(inputs), mix)

    def __repr__(self) -> str:
        return f"Program({self._key or 'module'}, {len(self._plans)} plans)"


def _repeated(value: Any, probes: int, dtype: torch.dtype) -> Any:
    """An example input with as many examples as there are probes."""
    if not isinstance(value, Tensor):
        return value
    rows = torch.arange(probes) % len(value)
    chosen = value.detach().cpu()[rows]
    return chosen.to(dtype) if chosen.is_floating_point() else chosen


_cache: OrderedDict[str, Program] = OrderedDict()
_guard = threading.Lock()


def program_of(architecture: Buildable) -> Program:
    """The program of an architecture: the same object for equal ones, and nothing is built before it is used."""
    key = architecture.fingerprint
    with _guard:
        found = _cache.get(key)
        if found is None:
            found = _cache[key] = Program(lambda: (architecture.build(), architecture.example_inputs()), key)
            if len(_cache) > _CACHE_SIZE:
                _cache.popitem(last=False)
        else:
            _cache.move_to_end(key)
    return found
