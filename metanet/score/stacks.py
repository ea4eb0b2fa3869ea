"""How are many networks of one architecture run at once?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from metanet.checkpoint import Checkpoint
from metanet.errors import ScoreError, clean
from metanet.score.subjects import Comparable, Subject, tensor_leaves

# A network that needs more bytes than this for one batch, on a processor, is run by itself: its products take the time,
# and many of them together no longer fit the cache. Measured on MLPs and CNNs of 2 to 120 thousand numbers.
LARGE = 2_500_000

__all__ = ["Stack", "key_of", "state_of"]


def key_of(given: Comparable) -> tuple[Any, ...]:
    """Equal for networks that can be stacked: the same architecture, or states for one and the same module."""
    if isinstance(given, Checkpoint):
        return "checkpoint", given.architecture
    if isinstance(given, tuple) and len(given) == 2 and isinstance(given[0], nn.Module):
        return "module and state", id(given[0])
    return "module", id(given)


def state_of(given: Comparable) -> Mapping[str, Tensor] | None:
    """The state that comes with a network; ``None`` for a bare module, which has its own."""
    if isinstance(given, Checkpoint):
        return given.state
    return given[1] if isinstance(given, tuple) else None


class Stack:
    """A module of one architecture that is run with the stacked states of many networks.

    Args:
        subject: one of the networks, ready to run.

    Attributes:
        alone: why these networks are run one by one; empty as long as they are not.
    """

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.own = subject.model.state_dict(keep_vars=True)
        seen: set[int] = set()
        # Tied tensors are given once: under another name they are the same tensor again.
        self.names = []
        for name, value in self.own.items():
            if isinstance(value, Tensor) and id(value) not in seen:
                seen.add(id(value))
                self.names.append(name)
        self.alone = ""
        self.shapes = {name: value.shape for name, value in self.own.items() if isinstance(value, Tensor)}

    def settle(self, positional: Sequence[Any], keywords: Mapping[str, Any]) -> int:
        """Decide whether to run these networks at once, from what one of them needs on a batch.

        Returns:
            How many numbers that is: its tensors and what its modules give out.
        """
        count = sum(value.numel() for value in self.own.values() if isinstance(value, Tensor))
        made: list[int] = []

        def hear(module: nn.Module, arguments: Any, output: Any) -> None:
            made.append(sum(leaf.numel() for _, leaf in tensor_leaves(output)))

        modules = [module for module in self.subject.model.modules() if not any(True for _ in module.children())]
        handles = [module.register_forward_hook(hear) for module in modules]
        try:
            self.subject.run(positional, keywords)
        finally:
            for handle in handles:
                handle.remove()
        count += sum(made)
        real = [value for value in self.own.values() if isinstance(value, Tensor) and value.is_floating_point()]
        sizes = [value.element_size() for value in real]
        if self.subject.device.type == "cpu" and count * max(sizes, default=8) > LARGE:
            self.alone = f"{count:,} numbers for one batch, which is as fast"
        return count

    def stacked(self, states: Sequence[Mapping[str, Tensor] | None], named: Sequence[str]) -> dict[str, Tensor]:
        """The states of many networks, one tensor for each name, on the device and in the dtype of the module.

        Args:
            states: one for each network; ``None`` stands for the module's own.
            named: what messages call each network.

        Raises:
            ScoreError: for a state that does not fit, with the first difference.
        """
        given = [self.own if state is None else state for state in states]
        result = {}
        try:
            with torch.no_grad():
                for name in self.names:
                    own = self.own[name]
                    parts = [state[name] for state in given]
                    if len({(part.dtype, part.device) for part in parts}) > 1:
                        parts = [part.to(own.device, own.dtype) for part in parts]
                    result[name] = torch.stack(parts).to(own.device, own.dtype)
                    if result[name].shape[1:] != own.shape:
                        raise ValueError(name)
        except (KeyError, RuntimeError, ValueError):
            # Looked at one by one only now: thousands of good states need no look.
            for state, name in zip(given, named, strict=True):
                self._check(state, name)
            raise
        return result

    def _check(self, state: Mapping[str, Tensor], name: str) -> None:
        for key, shape in self.shapes.items():
            if key not in state or state[key].shape != shape:
                found = f"shape {list(state[key].shape)}" if key in state else "no such tensor"
                raise ScoreError(
                    f"{name}: {clean(repr(key), 80)} has {found} in the state, {list(shape)} in the module",
                    hint="give every state with the module that it belongs to",
                )

    def run(
        self, states: Mapping[str, Tensor], count: int, positional: Sequence[Any], keywords: Mapping[str, Any]
    ) -> list[Tensor]:
        """The tensors that ``count`` networks answer with, in order, with the networks along a new first axis."""
        if count > 1 and states and not self.alone:
            try:
                return self._at_once(states, positional, keywords)
            except RuntimeError as error:
                # Operations that vmap has no rule for, and code that looks at values.
                self.alone = clean(error, 120)
        if not states:
            once = tensor_leaves(self.subject.run(positional, keywords))
            return [leaf.expand(count, *leaf.shape) for _, leaf in once]
        made = [
            [leaf for _, leaf in tensor_leaves(self.subject.run(positional, keywords, single))]
            for single in ({name: value[number] for name, value in states.items()} for number in range(count))
        ]
        return [torch.stack(leaves) for leaves in zip(*made, strict=True)]

    def _at_once(self, states: Mapping[str, Tensor], positional: Sequence[Any], keywords: Mapping[str, Any]) -> Any:
        subject = self.subject
        arguments, named = subject.placed(tuple(positional)), subject.placed(dict(keywords))

        def answer(state: dict[str, Tensor]) -> list[Tensor]:
            made = torch.func.functional_call(subject.model, state, arguments, named)
            return [leaf for _, leaf in tensor_leaves(made)]

        # Fused attention knows no stacks.
        plain = sdpa_kernel(SDPBackend.MATH)
        with torch.no_grad(), torch.autocast(subject.device.type, enabled=False), plain:
            return torch.func.vmap(answer)(dict(states))

    def __repr__(self) -> str:
        numbers = sum(math.prod(self.shapes[name]) for name in self.names)
        return f"Stack({type(self.subject.model).__name__}: {numbers} numbers each)"
