"""What can a pickled state dict consist of, and which few functions may it call?

These are descriptions, not the things: a :class:`TensorRef` says what a tensor would be, and nothing is built.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from metanet.checkpoint.limits import MAX_AXES
from metanet.errors import CheckpointError

__all__ = [
    "Global",
    "Opaque",
    "StorageRef",
    "Table",
    "TensorRef",
    "call",
    "find_global",
    "find_storage",
    "forbidden",
    "refuse",
]

MAX_ELEMENTS = 1 << 48

# Element types of torch's storage classes.
STORAGE_DTYPES = {
    "DoubleStorage": "float64", "FloatStorage": "float32", "HalfStorage": "float16", "BFloat16Storage": "bfloat16",
    "LongStorage": "int64", "IntStorage": "int32", "ShortStorage": "int16", "CharStorage": "int8",
    "ByteStorage": "uint8", "BoolStorage": "bool", "ComplexDoubleStorage": "complex128",
    "ComplexFloatStorage": "complex64", "UntypedStorage": "uint8",
}  # fmt: skip
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
    dtype: str = "uint8"

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.numel * self.item_size


@dataclass(frozen=True)
class TensorRef:
    """A tensor as a view of a storage."""

    storage: StorageRef
    size: tuple[int, ...]
    stride: tuple[int, ...] = ()
    offset: int = 0


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
            raise refuse(f"a dictionary key is a {describe(key)}, expected text or a number")
        if key in self.items:
            raise refuse(f"the name {key!r} comes twice")
        self.items[key] = value


def refuse(reason: str, hint: str = "") -> CheckpointError:
    return CheckpointError(reason, hint=hint or "save the file again with torch.save(model.state_dict(), path)")


def forbidden(what: object) -> CheckpointError:
    return CheckpointError(
        f"the pickle asks for '{what}', which is code and not data: nothing was run",
        hint="do not trust the file; to keep only the weights, save model.state_dict()",
    )


def describe(value: Any) -> str:
    names = {Table: "dictionary", TensorRef: "tensor", Global: "class or function", Opaque: "special value"}
    return names.get(type(value), type(value).__name__)


def _integer(value: Any, what: str) -> int:
    if type(value) is not int or not 0 <= value <= MAX_ELEMENTS:
        # No repr of an unknown value: nested shared tuples would print exponentially long.
        shown = value if type(value) is int and value.bit_length() < 128 else f"a {describe(value)}"
        raise refuse(f"{what} is {shown}, expected a count")
    return value


def _integers(value: Any, what: str) -> tuple[int, ...]:
    if isinstance(value, Opaque) or not isinstance(value, tuple | list) or len(value) > MAX_AXES:
        raise refuse(f"{what} is no list of at most {MAX_AXES} counts")
    return tuple(_integer(item, what) for item in value)


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, item_size: int | None = None) -> TensorRef:
    if not isinstance(storage, StorageRef):
        raise refuse("a tensor has no storage")
    sizes, strides = _integers(size, "a tensor's size"), _integers(stride, "a tensor's stride")
    start = _integer(offset, "a tensor's offset")
    if len(sizes) != len(strides):
        raise refuse(f"a tensor has {len(sizes)} sizes and {len(strides)} strides")
    elements, last = 1, start
    for length, step in zip(sizes, strides, strict=True):
        elements *= length
        last += max(length - 1, 0) * step
    available = storage.nbytes // (item_size or storage.item_size)
    if elements and (last >= available or elements > available):
        raise refuse(f"a tensor of size {list(sizes)} does not fit its storage of {available} elements")
    return TensorRef(storage, sizes, strides, start)


def call(function: Any, args: Any) -> Any:
    """The value of ``function(*args)`` for the few functions that a state dict needs."""
    if not isinstance(function, Global) or not isinstance(args, tuple):
        raise refuse("the pickle calls something that is no function")
    match str(function), args:
        case "collections.OrderedDict", ():
            return Table()
        case "collections.OrderedDict", (list() as pairs,):
            table = Table()
            for pair in pairs:
                if not isinstance(pair, list | tuple) or len(pair) != 2:
                    raise refuse("an ordered dictionary is not made of pairs")
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
    raise forbidden(function)


ALLOWED = {
    "collections.OrderedDict", "collections.Counter", "_codecs.encode", "torch.Size", "torch.device",
    "torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor_v3",
    "torch._utils._rebuild_parameter",
}  # fmt: skip


def find_global(module: str, name: str) -> Any:
    found = Global(module, name)
    if str(found) in ALLOWED:
        return found
    if module in ("torch", "torch.cuda", "torch.storage") and name in ITEM_SIZES:
        return found
    if module == "torch" and name in DTYPE_SIZES:
        return Opaque(name)
    raise forbidden(found)


def find_storage(identity: Any) -> StorageRef:
    if not isinstance(identity, tuple) or len(identity) not in (5, 6) or identity[0] != "storage":
        raise refuse("the pickle refers to something outside it that is no storage")
    _, kind, key, location, numel, *view = identity
    if not isinstance(kind, Global) or kind.name not in ITEM_SIZES:
        raise refuse("a storage has no element type")
    if not isinstance(key, str) or not isinstance(location, str):
        raise refuse("a storage has no key or no location")
    if view and view[0] is not None:
        raise refuse("storages that are views of others (written before torch 0.4) are not read")
    length = _integer(numel, "the length of a storage")
    return StorageRef(key, ITEM_SIZES[kind.name], length, location, STORAGE_DTYPES[kind.name])
