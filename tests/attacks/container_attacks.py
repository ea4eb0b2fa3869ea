"""Damaged or forged containers, and things that are no checkpoint at all."""

from __future__ import annotations

import io
import os
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

from .attack import Attack, agent, file, pt
from .pickles import Payload, agent_state, agent_zip, state, torch_bytes, torch_zip, write


def _zip(*members: tuple[str, bytes], comment: bytes = b"") -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members:
            archive.writestr(name, content)
        archive.comment = comment
    return buffer.getvalue()


def _duplicate_member() -> bytes:
    # zipfile warns when a name is written twice, so the second one is renamed in the bytes.
    data = _zip(("policy.pth", torch_bytes(agent_state())), ("policy.ptx", torch_bytes({"w": Payload()})))
    return data.replace(b"policy.ptx", b"policy.pth")


def _encrypted() -> bytes:
    data = bytearray(agent_zip(torch_bytes(agent_state())))
    at = data.find(b"PK\x01\x02", data.rfind(b"PK\x01\x02") - 120)
    for position in [i for i in range(len(data) - 4) if data[i : i + 4] == b"PK\x01\x02"]:
        data[position + 8] |= 1
    assert at > 0
    return bytes(data)


def _overlapping() -> bytes:
    data = bytearray(_zip(("data", b"x" * 64), ("policy.pth", torch_bytes(agent_state()))))
    central = [i for i in range(len(data) - 4) if data[i : i + 4] == b"PK\x01\x02"]
    data[central[1] + 42 : central[1] + 46] = struct.pack("<I", 8)
    return bytes(data)


def _damaged_weight() -> bytes:
    content = state()
    data = bytearray(torch_bytes(content))
    at = data.find(content["0.weight"].numpy().tobytes())
    data[at + 5] ^= 0x40
    return bytes(data)


def _pipe(folder: Path) -> Path:
    os.mkfifo(folder / "weights.pt")
    return folder / "weights.pt"


def _folder(*files: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        inner = folder / "run"
        inner.mkdir()
        for name in files:
            write(inner, name, torch_bytes(state()))
        return inner

    return make


ZIPS = (
    Attack("member_parent", agent(lambda: _zip(("../../evil", b"x"), ("policy.pth", b"x"))), "points outside"),
    Attack("member_absolute", agent(lambda: _zip(("/etc/evil", b"x"), ("policy.pth", b"x"))), "points outside"),
    Attack("member_backslash", agent(lambda: _zip(("a\\..\\evil", b"x"), ("policy.pth", b"x"))), "points outside"),
    Attack("member_newline", agent(lambda: _zip(("a\nb", b"x"), ("policy.pth", b"x"))), "not printable"),
    Attack("member_twice", agent(_duplicate_member), "'policy.pth' comes twice"),
    Attack("encrypted", agent(_encrypted), "is encrypted"),
    Attack("overlapping_members", agent(_overlapping), "overlap"),
    Attack("comment", agent(lambda: _zip(("policy.pth", b"x"), comment=b"hello")), "zip comment"),
    Attack(
        "second_contents", agent(lambda: _zip(("policy.pth", b"x"), comment=b"PK\x05\x06")), "a damaged zip archive"
    ),
    Attack("other_zip", agent(lambda: _zip(("readme.txt", b"x"))), "a zip without a torch state dict"),
    Attack("flipped_bit", pt(_damaged_weight), "is damaged"),
    Attack("truncated_zip", pt(lambda: torch_bytes(state())[:-40]), "a damaged zip archive"),
)

DAMAGED = (
    Attack("empty_file", pt(lambda: b""), "is empty"),
    Attack("text_file", pt(lambda: b"hello, I am no checkpoint\n"), "no checkpoint of a known format"),
    Attack("json_file", file("a.json", lambda: b'{"a": 1, "b": [1, 2, 3]}'), "no checkpoint of a known format"),
    Attack("numpy", file("a.npy", lambda: b"\x93NUMPY" + bytes(64)), "a NumPy array"),
    Attack("truncated_legacy", pt(lambda: torch_bytes(state(), legacy=True)[:-9]), "is cut short"),
    Attack("legacy_cut_in_pickle", pt(lambda: torch_bytes(state(), legacy=True)[:200]), "cut short"),
    Attack("pickle_without_stop", pt(lambda: torch_zip(b"\x80\x02}")), "cut short"),
    Attack("pickle_empty_stack", pt(lambda: torch_zip(b"\x80\x02s.")), "malformed"),
    Attack("missing_file", lambda folder: folder / "nowhere.pt", "cannot be opened (No such file or directory)"),
    Attack("pipe", _pipe, "is not a regular file"),
    Attack("null_in_path", lambda folder: folder / "a\0b.pt", "cannot be opened"),
    Attack("empty_folder", _folder(), "the folder holds no checkpoint file"),
    Attack("folder_of_many", _folder("a.pt", "b.pt"), "2 checkpoint files, such as 'a.pt'"),
    Attack("folder_without_architecture", _folder("a.pt"), "does not say which function", early=False),
)
