"""What would this pickle build, found out without running any of it?

A tiny symbolic machine walks the opcodes that a state dict needs and writes down what they describe: which tensors,
over which storages, under which names. Whatever else a pickle can do, such as import a function and call it, is
refused with the name of what it asked for. ``torch.load(weights_only=True)`` reads the file afterwards; this scan
goes first because that reader believes the sizes that a pickle states, and because a refusal should name the tensor
and the reason.
"""

from __future__ import annotations

import pickletools
from dataclasses import dataclass
from typing import Any, BinaryIO

from metanet.checkpoint.limits import MAX_AXES
from metanet.errors import CheckpointError

__all__ = ["Opaque", "StorageRef", "Table", "TensorRef", "scan"]

MAX_OPCODES = 20_000_000
MAX_ELEMENTS = 1 << 48

# Element sizes of torch's storage classes and dtypes; a name that is missing here is refused.
ITEM_SIZES = {
    "DoubleStorage": 8, "FloatStorage": 4, "HalfStorage": 2, "BFloat16Storage": 2, "LongStorage": 8, "IntStorage": 4,
    "ShortStorage": 2, "CharStorage": 1, "ByteStorage": 1, "BoolStorage": 1, "ComplexDoubleStorage": 16,
    "ComplexFloatStorage": 8, "UntypedStorage": 1,
}  # fmt: skip
DTYPE_SIZES = {
    "float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "int64": 8, "int32": 4, "int16": 2, "int8": 1, "uint8": 1,
    "uint16": 2, "uint32": 4, "uint64": 8, "bool": 1, "complex64": 8, "complex128": 16, "float8_e4m3fn": 1,
    "float8_e5m2": 1, "float8_e4m3fnuz": 1, "float8_e5m2fnuz": 1,
}  # fmt: skip


@dataclass(frozen=True)
class Global:
    """A name that the pickle imports."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(frozen=True)
class StorageRef:
    """A run of ``numel`` elements stored outside the pickle."""

    key: str
    item_size: int
    numel: int
    location: str

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.numel * self.item_size


@dataclass(frozen=True)
class TensorRef:
    """A tensor as a view of a storage."""

    storage: StorageRef
    size: tuple[int, ...]


@dataclass(frozen=True)
class Opaque:
    """A harmless value that is no tensor."""

    what: str


class Table:
    """A dictionary under construction."""

    def __init__(self) -> None:
        self.items: dict[Any, Any] = {}

    def put(self, key: Any, value: Any) -> None:
        """Add one entry; keys are plain scalars and come once."""
        if not isinstance(key, str | int | float | bool | bytes | None):
            raise _refuse(f"a dictionary key is a {_describe(key)}, expected text or a number")
        if key in self.items:
            raise _refuse(f"the name {key!r} comes twice")
        self.items[key] = value


class _Mark:
    pass


def _refuse(reason: str, hint: str = "") -> CheckpointError:
    return CheckpointError(reason, hint=hint or "save the file again with torch.save(model.state_dict(), path)")


def _forbidden(what: object) -> CheckpointError:
    return CheckpointError(
        f"the pickle asks for '{what}', which is code and not data: nothing was run",
        hint="do not trust the file; to keep only the weights, save model.state_dict()",
    )


def _describe(value: Any) -> str:
    names = {Table: "dictionary", TensorRef: "tensor", Global: "class or function", Opaque: "special value"}
    return names.get(type(value), type(value).__name__)


def _integer(value: Any, what: str) -> int:
    if type(value) is not int or not 0 <= value <= MAX_ELEMENTS:
        # No repr of an unknown value: nested shared tuples would print exponentially long.
        shown = value if type(value) is int and value.bit_length() < 128 else f"a {_describe(value)}"
        raise _refuse(f"{what} is {shown}, expected a count")
    return value


def _integers(value: Any, what: str) -> tuple[int, ...]:
    if isinstance(value, Opaque) or not isinstance(value, tuple | list) or len(value) > MAX_AXES:
        raise _refuse(f"{what} is no list of at most {MAX_AXES} counts")
    return tuple(_integer(item, what) for item in value)


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, item_size: int | None = None) -> TensorRef:
    if not isinstance(storage, StorageRef):
        raise _refuse("a tensor has no storage")
    sizes, strides = _integers(size, "a tensor's size"), _integers(stride, "a tensor's stride")
    start = _integer(offset, "a tensor's offset")
    if len(sizes) != len(strides):
        raise _refuse(f"a tensor has {len(sizes)} sizes and {len(strides)} strides")
    elements, last = 1, start
    for length, step in zip(sizes, strides, strict=True):
        elements *= length
        last += max(length - 1, 0) * step
    available = storage.nbytes // (item_size or storage.item_size)
    if elements and (last >= available or elements > available):
        raise _refuse(f"a tensor of size {list(sizes)} does not fit its storage of {available} elements")
    return TensorRef(storage, sizes)


def _call(function: Any, args: Any) -> Any:
    """The value of ``function(*args)`` for the few functions that a state dict needs."""
    if not isinstance(function, Global) or not isinstance(args, tuple):
        raise _refuse("the pickle calls something that is no function")
    match str(function), args:
        case "collections.OrderedDict", ():
            return Table()
        case "collections.OrderedDict", (list() as pairs,):
            table = Table()
            for pair in pairs:
                if not isinstance(pair, list | tuple) or len(pair) != 2:
                    raise _refuse("an ordered dictionary is not made of pairs")
                table.put(*pair)
            return table
        case "torch._utils._rebuild_tensor", (storage, offset, size, stride):
            return _tensor(storage, offset, size, stride)
        case "torch._utils._rebuild_tensor_v2", (storage, offset, size, stride, _, Table(), *_):
            return _tensor(storage, offset, size, stride)
        case "torch._utils._rebuild_tensor_v3", (storage, offset, size, stride, _, Table(), Opaque(what), *_):
            return _tensor(storage, offset, size, stride, DTYPE_SIZES.get(what, 1))
        case "torch._utils._rebuild_parameter", (TensorRef() as tensor, _, Table()):
            return tensor
        case "torch.Size", ((tuple() | list()) as size,):
            return _integers(size, "a torch.Size")
        case ("collections.Counter", (Table(),)) | ("torch.device", (str(),) | (str(), int())):
            return Opaque(function.name)
        case "_codecs.encode", (str(), "latin1"):
            return Opaque("bytes")
    raise _forbidden(function)


ALLOWED = {
    "collections.OrderedDict", "collections.Counter", "_codecs.encode", "torch.Size", "torch.device",
    "torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor_v3",
    "torch._utils._rebuild_parameter",
}  # fmt: skip


def _import(module: str, name: str) -> Any:
    found = Global(module, name)
    if str(found) in ALLOWED:
        return found
    if module in ("torch", "torch.cuda", "torch.storage") and name in ITEM_SIZES:
        return found
    if module == "torch" and name in DTYPE_SIZES:
        return Opaque(name)
    raise _forbidden(found)


def _storage(identity: Any) -> StorageRef:
    if not isinstance(identity, tuple) or len(identity) not in (5, 6) or identity[0] != "storage":
        raise _refuse("the pickle refers to something outside it that is no storage")
    _, kind, key, location, numel, *view = identity
    if not isinstance(kind, Global) or kind.name not in ITEM_SIZES:
        raise _refuse("a storage has no element type")
    if not isinstance(key, str) or not isinstance(location, str):
        raise _refuse("a storage has no key or no location")
    if view and view[0] is not None:
        raise _refuse("storages that are views of others (written before torch 0.4) are not read")
    return StorageRef(key, ITEM_SIZES[kind.name], _integer(numel, "the length of a storage"), location)


class _Machine:
    """Stack, memo and storages while one pickle is walked."""

    def __init__(self, persistent: bool) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, StorageRef] = {}
        self.persistent = persistent

    def pop(self) -> Any:
        if not self.stack or isinstance(self.stack[-1], _Mark):
            raise _refuse("the pickle is malformed (empty stack)")
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
        raise _refuse("the pickle is malformed (no mark)")

    def put_items(self, flat: list[Any]) -> None:
        target = self.top()
        if not isinstance(target, Table) or len(flat) % 2:
            raise _refuse("the pickle sets items on something that is no dictionary")
        for key, value in zip(flat[::2], flat[1::2], strict=True):
            target.put(key, value)

    def append(self, items: list[Any]) -> None:
        target = self.top()
        if not isinstance(target, list):
            raise _refuse("the pickle appends to something that is no list")
        target.extend(items)

    def build(self) -> None:
        state, target = self.pop(), self.top()
        # torch.nn.Module.state_dict() hangs its versions on the dictionary under this one name.
        if not isinstance(target, Table) or not isinstance(state, Table) or set(state.items) != {"_metadata"}:
            raise _forbidden("BUILD")

    def persistent_id(self) -> None:
        if not self.persistent:
            raise _refuse("the pickle refers to something outside it")
        storage = _storage(self.pop())
        if self.storages.setdefault(storage.key, storage) != storage:
            raise _refuse(f"storage {storage.key!r:.40} is described twice, differently")
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
                    raise _refuse("the pickle is malformed (unknown memo)")
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
                self.stack.append(_import(module, attribute))
            case "STACK_GLOBAL":
                attribute, module = self.pop(), self.pop()
                self.stack.append(_import(str(module), str(attribute)))
            case "REDUCE":
                args, function = self.pop(), self.pop()
                self.stack.append(_call(function, args))
            case "BUILD":
                self.build()
            case "BINPERSID":
                self.persistent_id()
            case _:
                raise _forbidden(name)


def scan(file: BinaryIO, persistent: bool = True) -> tuple[Any, dict[str, StorageRef]]:
    """What the pickle at the file's position describes; the position afterwards is behind it.

    Args:
        file: clamps what it is asked for to what it has (``BytesIO``, ``mmap``), so a lie about a length costs nothing.
        persistent: whether references to storages are expected.

    Returns:
        the described value (:class:`Table`, :class:`TensorRef`, lists, tuples, scalars) and the storages by key.

    Raises:
        CheckpointError: for anything but plain data and tensors; the caller adds the file's name.
    """
    machine = _Machine(persistent)
    try:
        for count, (opcode, arg, _) in enumerate(pickletools.genops(file)):
            if opcode.name == "STOP":
                return machine.pop(), machine.storages
            if count > MAX_OPCODES:
                raise _refuse(f"the pickle has more than {MAX_OPCODES} steps")
            machine.step(opcode.name, arg)
    except (ValueError, OverflowError, MemoryError, UnicodeError, RecursionError) as error:
        raise _refuse(f"the pickle is malformed or cut short ({type(error).__name__}: {str(error)[:80]})") from None
    raise _refuse("the pickle is cut short")
