"""NumPy archives, TorchScript programs, Lightning checkpoints, Keras files and model folders that lie or reach out."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from .attack import Attack, file, pt
from .pickles import Payload, call, state, tensor_ops, torch_bytes, torch_zip, write
from .safetensors_attacks import entry, safetensors_bytes


def npy(header: str, data: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    text = header.encode("latin1") + b"\n"
    return b"\x93NUMPY" + version + len(text).to_bytes(2, "little") + text + data


def _npz(content: bytes, compress: bool = False) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED) as archive:
        archive.writestr("w.npy", content)
    return buffer.getvalue()


def _pickled_npz() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, w=np.array([Payload()], dtype=object))
    return buffer.getvalue()


def npz(name: str, says: str, content: Callable[[], bytes], tensor: str = "w") -> Attack:
    return Attack(f"npz_{name}", file("a.npz", lambda: _npz(content())), says, tensor)


def described(shape: str, dtype: str = "'<f4'") -> str:
    return f"{{'descr': {dtype}, 'fortran_order': False, 'shape': {shape}}}"


NPZ = (
    Attack("npz_pickle", file("a.npz", _pickled_npz), "holds pickled Python objects", "w"),
    npz("lying_shape", "but 16 bytes", lambda: npy(described("(4611686018427387904,)"), bytes(16))),
    npz("product_overflows", "but 16 bytes", lambda: npy(described("(1099511627776, 1099511627776)"), bytes(16))),
    npz("zero_times_huge", "but 0 bytes", lambda: npy(described("(0, 4611686018427387904)"))),
    npz("cut_short", "but 12 bytes", lambda: npy(described("(4,)"), bytes(12))),
    npz("negative_size", "a shape that is no list", lambda: npy(described("(-4,)"), bytes(16))),
    npz("many_axes", "a shape that is no list", lambda: npy(described(str((1,) * 40)), bytes(4))),
    npz("not_npy", "no valid .npy header", lambda: b"hello"),
    npz("code_in_header", "no valid .npy header", lambda: npy("__import__('os').system('touch payload-was-run')")),
    npz("deep_header", "no valid .npy header", lambda: npy("(" * 9000)),
    npz("long_header", "no valid .npy header", lambda: npy(described("(4,)") + " " * 20_000, bytes(16))),
    npz("version", "no valid .npy header", lambda: npy(described("(4,)"), bytes(16), b"\x09\x00")),
    npz("void", "which torch does not have", lambda: npy(described("(4,)", "'|V2'"), bytes(8))),
    npz("structured", "which torch does not have", lambda: npy(described("(1,)", "[('a', '<f4')]"), bytes(4))),
    npz("only_text", "holds no numeric arrays", lambda: npy(described("(1,)", "'<U1'"), bytes(4)), ""),
    Attack(
        "npz_bomb",
        file("a.npz", lambda: _npz(npy(described("(8388608,)"), bytes(1 << 25)), compress=True)),
        "a zip bomb",
    ),
)


def script_zip(data: bytes, records: dict[str, bytes] | None = None, **more: bytes) -> bytes:
    """A TorchScript archive around a pickle written by hand."""
    return torch_zip(data, records, constants_pkl=b"\x80\x02).", code____torch___py=b"raise SystemExit", **more)


def script_object(*items: tuple[str, bytes], kind: str = "Net") -> bytes:
    """Opcodes of an object of one of the program's classes."""
    text = b"".join(b"X" + len(name).to_bytes(4, "little") + name.encode() + value for name, value in items)
    return f"c__torch__\n{kind}\n".encode() + b")\x81}(" + text + b"ub"


def script(name: str, says: str, data: Callable[[], bytes], records: dict[str, bytes] | None = None) -> Attack:
    return Attack(f"script_{name}", pt(lambda: script_zip(b"\x80\x02" + data() + b".", records)), says)


def _recursive() -> bytes:
    # The object is put into the memo, then into its own attributes.
    return b"c__torch__\nNet\n)\x81q\x01}(X\x04\x00\x00\x00selfh\x01ub"


def _doubling() -> bytes:
    # Each object holds the one before twice: walking the last one would take 2^50 steps.
    data = b"c__torch__\nA\n)\x81}bq\x00"
    for i in range(50):
        data += b"c__torch__\nA\n)\x81}(X\x01\x00\x00\x00ah" + bytes([i]) + b"X\x01\x00\x00\x00bh" + bytes([i]) + b"ub"
        data += b"q" + bytes([i + 1])
    return data


SCRIPTS = (
    script("no_module", "describes no module", lambda: b"}"),
    script("no_tensors", "without tensors", lambda: script_object(("training", b"\x89"))),
    script("system", "asks for 'posix.system'", lambda: script_object(("w", call("posix", "system")))),
    script("builtin", "asks for 'builtins.eval'", lambda: script_object(("w", call("builtins", "eval")))),
    script("object_of_other_class", "asks for 'posix.system'", lambda: b"cposix\nsystem\n)\x81"),
    script("new_of_a_function", "asks for 'NEWOBJ'", lambda: b"ctorch._utils\n_rebuild_tensor_v2\n)\x81"),
    script("call_of_a_class", "asks for '__torch__.Net'", lambda: call("__torch__", "Net")),
    script("missing_storage", "16 bytes and is missing", lambda: script_object(("w", tensor_ops((4,), 4)))),
    script(
        "lying_storage",
        "should have 4398046511104 bytes and is 16 bytes long",
        lambda: script_object(("w", tensor_ops((4,), 1 << 40))),
        {"0": bytes(16)},
    ),
    script(
        "beyond_storage",
        "does not fit its storage",
        lambda: script_object(("w", tensor_ops((5,), 4))),
        {"0": bytes(16)},
    ),
    script("contains_itself", "contain each other", _recursive),
    script("doubling", "steps to list", _doubling),
    script("quantised", "quantised tensors", lambda: script_object(("w", call("torch._utils", "_rebuild_qtensor")))),
    script("newline_name", "not printable", lambda: script_object(("w\n", tensor_ops((4,), 4))), {"0": bytes(16)}),
    Attack(
        "script_big_endian",
        pt(
            lambda: script_zip(
                b"\x80\x02" + script_object(("w", tensor_ops((4,), 4))) + b".", {"0": bytes(16)}, byteorder=b"big"
            )
        ),
        "big-endian",
    ),
    Attack("script_without_data", pt(lambda: _without_data()), "without data.pkl"),
)


def _without_data() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a/code/a.py", "x")
    return buffer.getvalue()


def _lightning(**more: Any) -> bytes:
    return torch_bytes({"pytorch-lightning_version": "2.5.0", "state_dict": state(), **more})


LIGHTNING = (
    Attack(
        "lightning_payload",
        file("a.ckpt", lambda: _lightning(hyper_parameters={"x": Payload()})),
        "is a Lightning checkpoint with more than tensors and plain data",
    ),
    Attack(
        "lightning_class",
        file("a.ckpt", lambda: _lightning(hyper_parameters={"path": Path("x")})),
        "asks for 'pathlib.PosixPath'",
    ),
    Attack("lightning_plain_pickle", file("a.ckpt", lambda: pickle.dumps({"state_dict": Payload()})), "can run code"),
)


def _hf(files: dict[str, bytes | Any], link: tuple[str, str] | None = None) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        inner = folder / "model"
        inner.mkdir()
        write(folder, "outside.safetensors", _shard("w"))
        for name, content in {"config.json": {"model_type": "x"}, **files}.items():
            write(inner, name, content if isinstance(content, bytes) else json.dumps(content).encode())
        if link is not None:
            (inner / link[0]).symlink_to(link[1])
        return inner

    return make


def _shard(*names: str) -> bytes:
    return safetensors_bytes(
        {name: entry([1], 4 * i, 4 * i + 4) for i, name in enumerate(names)}, bytes(4 * len(names))
    )


def _index(**weight_map: Any) -> dict[str, Any]:
    return {"metadata": {"total_size": 8}, "weight_map": weight_map}


def hf(name: str, says: str, weight_map: Any, tensor: str = "", **more: Any) -> Attack:
    index = "model.safetensors.index.json"
    files = {"one.safetensors": _shard("a"), "two.safetensors": _shard("b"), index: {"weight_map": weight_map}}
    return Attack(f"hf_{name}", _hf(files, **more), says, tensor, file="model")


_GOOD = {"a": "one.safetensors", "b": "two.safetensors"}
FOLDERS = (
    hf("parent", "not a plain name in the folder", {**_GOOD, "w": "../outside.safetensors"}),
    hf("absolute", "not a plain name in the folder", {**_GOOD, "w": "/etc/passwd"}),
    hf("subfolder", "not a plain name in the folder", {**_GOOD, "w": "x/one.safetensors"}),
    hf("backslash", "not a plain name in the folder", {**_GOOD, "w": "..\\one.safetensors"}),
    hf("dots", "not a plain name in the folder", {**_GOOD, "w": ".."}),
    hf("empty_name", "not a plain name in the folder", {**_GOOD, "w": ""}),
    hf(
        "link",
        "a link that leaves the folder",
        {**_GOOD, "w": "l.safetensors"},
        link=("l.safetensors", "../outside.safetensors"),
    ),
    hf("missing", "'three.safetensors', which is not there", {**_GOOD, "c": "three.safetensors"}),
    hf("not_in_shard", "says that it is in 'one.safetensors', where it is not", {**_GOOD, "c": "one.safetensors"}, "c"),
    hf("not_listed", "does not list it", {"a": "one.safetensors", "c": "two.safetensors"}, "b"),
    hf("swapped", "says that it is in", {"a": "two.safetensors", "b": "one.safetensors"}),
    hf("no_map", "weight_map is no mapping", [1]),
    hf("map_of_numbers", "weight_map is no mapping", {"a": 3}),
    hf("empty_map", "weight_map is no mapping", {}),
    hf("control", "not printable", {"a\n": "one.safetensors"}),
    Attack("hf_index_not_json", _hf({"model.safetensors.index.json": b"{"}), "is not JSON", file="model"),
    Attack("hf_index_list", _hf({"model.safetensors.index.json": []}), "is a list, expected an object", file="model"),
    Attack(
        "hf_config", _hf({"model.safetensors": _shard("a"), "config.json": b"{"}), "is not JSON", file="config.json"
    ),
    Attack(
        "hf_bin_payload",
        _hf({"pytorch_model.bin": torch_bytes({"w": Payload()})}),
        "asks for 'posix.system'",
        file="pytorch_model.bin",
    ),
)


def _h5(fill: Callable[[Any, Path], None], outer: str = "a.h5") -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        import h5py

        path = folder / "a.h5"
        with h5py.File(path, "w") as made:
            fill(made, folder)
        if outer.endswith(".keras"):
            with zipfile.ZipFile(folder / outer, "w") as archive:
                archive.writestr("config.json", "{}")
                archive.write(path, "model.weights.h5")
        return folder / outer

    return make


def _external_link(made: Any, folder: Path) -> None:
    import h5py

    with h5py.File(folder / "other.h5", "w") as other:
        other["w"] = np.zeros(3)
    made["w"] = h5py.ExternalLink("other.h5", "/w")


def _external_data(made: Any, folder: Path) -> None:
    secret = write(folder, "secret", b"1234")
    made.create_dataset("w", (4,), dtype="u1", external=[(str(secret), 0, 4)])


def _virtual(made: Any, folder: Path) -> None:
    import h5py

    layout = h5py.VirtualLayout((3,), dtype="f4")
    layout[:] = h5py.VirtualSource(str(folder / "other.h5"), "w", (3,))
    made.create_virtual_dataset("w", layout)


def _soft(made: Any, folder: Path) -> None:
    import h5py

    made["w"] = np.zeros(3)
    made["x"] = h5py.SoftLink("/w")


def _loop(made: Any, folder: Path) -> None:
    made["w"] = np.zeros(3)
    made["x/y"] = np.zeros(3)
    made["x/up"] = made["/"]


def _bad_config(made: Any, folder: Path) -> None:
    made["w"] = np.zeros(3)
    made.attrs["model_config"] = "{"


def h5(name: str, says: str, fill: Callable[[Any, Path], Any], tensor: str = "", outer: str = "a.h5") -> Attack:
    return Attack(f"h5_{name}", _h5(fill, outer), says, tensor)


KERAS = (
    h5("external_link", "a link into another file ('other.h5'), not followed", _external_link, "w"),
    h5("external_data", "keeps its data in another file", _external_data, "w"),
    h5("virtual", "is a virtual data set", _virtual, "w"),
    h5("symbolic_link", "is a symbolic link", _soft, "x"),
    h5("loop", "its groups contain each other", _loop),
    h5("bomb", "is compressed", lambda f, _: f.create_dataset("w", (1 << 22,), dtype="f4", compression="gzip"), "w"),
    h5("unwritten", "but 0 bytes", lambda f, _: f.create_dataset("w", (1 << 40,), dtype="f4", chunks=(1024,)), "w"),
    h5("no_data", "without numeric data sets", lambda f, _: f.create_group("x")),
    h5("only_text", "without numeric data sets", lambda f, _: f.__setitem__("x", "text")),
    h5("config", "configuration is not JSON", _bad_config),
    h5("in_archive", "a link into another file", _external_link, "w", "a.keras"),
    Attack("h5_damaged", file("a.h5", lambda: b"\x89HDF\r\n\x1a\n" + bytes(64)), "is a damaged HDF5 file"),
)
