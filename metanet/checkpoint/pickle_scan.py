"""What would this pickle build, found out without running any of it?

A tiny symbolic machine walks the opcodes that a state dict needs and writes down what they describe: which tensors,
over which storages, under which names. Whatever else a pickle can do, such as import a function and call it, is
refused with the name of what it asked for. ``torch.load(weights_only=True)`` reads the file afterwards; this scan
goes first because that reader believes the sizes that a pickle states, and because a refusal should name the tensor
and the reason.
"""

from __future__ import annotations

import pickletools
import warnings
from typing import Any, BinaryIO

from metanet.checkpoint.pickle_values import (
    Opaque,
    StorageRef,
    Table,
    TensorRef,
    call,
    find_global,
    find_storage,
    forbidden,
    refuse,
)

__all__ = ["Machine", "Opaque", "StorageRef", "Table", "TensorRef", "scan"]

MAX_STEPS = 3_000_000
# Instructions that build objects of any class; the others that are missing here are merely never written by torch.
BUILDS_OBJECTS = ("INST", "OBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4", "PERSID")


class _Mark:
    pass


class Machine:
    """Stack, memo and storages while one pickle is walked."""

    def __init__(self, persistent: bool) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, StorageRef] = {}
        self.persistent = persistent
        self.steps = 0

    def spend(self, steps: int) -> None:
        self.steps += steps
        if self.steps > MAX_STEPS:
            raise refuse(f"the pickle takes more than {MAX_STEPS} steps")

    def pop(self) -> Any:
        if not self.stack or isinstance(self.stack[-1], _Mark):
            raise refuse("the pickle is malformed (empty stack)")
        return self.stack.pop()

    def top(self) -> Any:
        return self.stack[-1] if self.stack else None

    def pop_mark(self) -> list[Any]:
        items: list[Any] = []
        while self.stack:
            value = self.stack.pop()
            if isinstance(value, _Mark):
                return items[::-1]
            items.append(value)
        raise refuse("the pickle is malformed (no mark)")

    def put_items(self, flat: list[Any]) -> None:
        target = self.top()
        if not isinstance(target, Table) or len(flat) % 2:
            raise refuse("the pickle sets items on something that is no dictionary")
        for key, value in zip(flat[::2], flat[1::2], strict=True):
            target.put(key, value)

    def append(self, items: list[Any]) -> None:
        target = self.top()
        if not isinstance(target, list):
            raise refuse("the pickle appends to something that is no list")
        target.extend(items)

    def build(self) -> None:
        state, target = self.pop(), self.top()
        # torch.nn.Module.state_dict() hangs its versions on the dictionary under this one name.
        if not isinstance(target, Table) or not isinstance(state, Table) or set(state.items) != {"_metadata"}:
            raise forbidden("BUILD")

    def find(self, module: str, name: str) -> Any:
        """What stands for a name that the pickle imports."""
        return find_global(module, name)

    def call(self, function: Any, args: Any) -> Any:
        """What stands for the value of a call."""
        return call(function, args)

    def new_object(self) -> None:
        """An object of a class; no state dict has one."""
        raise forbidden("NEWOBJ")

    def persistent_id(self) -> None:
        if not self.persistent:
            raise refuse("the pickle refers to something outside it")
        storage = find_storage(self.pop())
        if self.storages.setdefault(storage.key, storage) != storage:
            raise refuse(f"storage {storage.key!r:.40} is described twice, differently")
        self.stack.append(storage)

    def step(self, name: str, arg: Any) -> None:
        match name:
            case "PROTO" | "FRAME":
                pass
            case "MARK":
                self.stack.append(_Mark())
            case "EMPTY_DICT":
                self.stack.append(Table())
            case "EMPTY_LIST":
                self.stack.append([])
            case "EMPTY_TUPLE":
                self.stack.append(())
            case "NONE":
                self.stack.append(None)
            case "NEWTRUE" | "NEWFALSE":
                self.stack.append(name == "NEWTRUE")
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT" | "BINUNICODE" | "SHORT_BINUNICODE":
                self.stack.append(arg)
            case "SHORT_BINSTRING" | "BINSTRING":
                self.stack.append(arg if isinstance(arg, str) else str(arg))
            case "BINPUT" | "LONG_BINPUT":
                self.memo[arg] = self.top()
            case "MEMOIZE":
                self.memo[len(self.memo)] = self.top()
            case "BINGET" | "LONG_BINGET":
                if arg not in self.memo or isinstance(self.memo[arg], _Mark):
                    raise refuse("the pickle is malformed (unknown memo)")
                self.stack.append(self.memo[arg])
            case "TUPLE":
                self.stack.append(tuple(self.pop_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                items = [self.pop() for _ in range(int(name[-1]))]
                self.stack.append(tuple(items[::-1]))
            case "SETITEM":
                value, key = self.pop(), self.pop()
                self.put_items([key, value])
            case "SETITEMS":
                self.put_items(self.pop_mark())
            case "APPEND":
                self.append([self.pop()])
            case "APPENDS":
                self.append(self.pop_mark())
            case "GLOBAL":
                module, _, attribute = arg.partition(" ")
                self.stack.append(self.find(module, attribute))
            case "STACK_GLOBAL":
                attribute, module = self.pop(), self.pop()
                self.stack.append(self.find(str(module), str(attribute)))
            case "REDUCE":
                args, function = self.pop(), self.pop()
                # One list may be an argument a million times over; each time it is walked.
                self.spend(sum(len(arg) for arg in args if isinstance(arg, list)) if isinstance(args, tuple) else 0)
                self.stack.append(self.call(function, args))
            case "BUILD":
                self.build()
            case "BINPERSID":
                self.persistent_id()
            case "NEWOBJ":
                self.new_object()
            case _ if name in BUILDS_OBJECTS:
                raise forbidden(name)
            case _:
                raise refuse(f"the pickle uses the instruction '{name}', which no state dict needs")


def scan(file: BinaryIO, persistent: bool = True, machine: Machine | None = None) -> tuple[Any, dict[str, StorageRef]]:
    """What the pickle at the file's position describes; the position afterwards is behind it.

    Args:
        file: clamps what it is asked for to what it has (``BytesIO``, ``mmap``), so a lie about a length costs nothing.
        persistent: whether references to storages are expected.
        machine: what walks the instructions, where it is not the machine for state dicts.

    Returns:
        the described value (:class:`Table`, :class:`TensorRef`, lists, tuples, scalars) and the storages by key.

    Raises:
        CheckpointError: for anything but plain data and tensors; the caller adds the file's name.
    """
    machine = machine or Machine(persistent)
    try:
        with warnings.catch_warnings():
            # Odd escapes in the text opcodes of old protocols make Python warn; they are refused anyway.
            warnings.simplefilter("ignore", DeprecationWarning)
            for opcode, arg, _ in pickletools.genops(file):
                if opcode.name == "STOP":
                    return machine.pop(), machine.storages
                machine.spend(1)
                machine.step(opcode.name, arg)
    except (ValueError, OverflowError, MemoryError, UnicodeError, RecursionError) as error:
        raise refuse(f"the pickle is malformed or cut short ({type(error).__name__}: {str(error)[:80]})") from None
    raise refuse("the pickle is cut short")
