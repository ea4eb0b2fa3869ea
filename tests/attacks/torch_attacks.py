"""Torch files that would run code, or take more memory than they hold."""

from __future__ import annotations

import pickle

import torch

from .attack import Attack, agent, pt
from .pickles import (
    Payload,
    agent_zip,
    call,
    dictionary,
    legacy_file,
    state,
    tensor_ops,
    torch_bytes,
    torch_zip,
)


def _shared_tuples() -> bytes:
    # Each tuple holds the one before twice: hashing or printing the last one would take 2^60 steps.
    return (
        b"\x80\x02}(" + b")" + b"".join(b"q" + bytes([i]) + b"h" + bytes([i]) + b"\x86" for i in range(60)) + b"K\x01u."
    )


def _walked_again() -> bytes:
    # A list of 50,000 pairs, made into a dictionary 100 times for six bytes each.
    pairs = b"](" + b"".join(b"X\x05\x00\x00\x00%05dK\x01\x86" % i for i in range(50_000)) + b"e"
    again = b"h\x01h\x00\x85R" * 100
    return b"\x80\x02" + pairs + b"q\x00ccollections\nOrderedDict\nq\x01" + again + b"."


_WHOLE = torch.nn.Sequential(torch.nn.Linear(3, 4))
_CODE = "which is code and not data: nothing was run"

RUNS_CODE = (
    Attack("torch_zip_system", pt(lambda: torch_bytes({"w": Payload()})), f"asks for 'posix.system', {_CODE}"),
    Attack("torch_legacy_system", pt(lambda: torch_bytes({"w": Payload()}, legacy=True)), "'posix.system'"),
    Attack("agent_policy_system", agent(lambda: agent_zip(torch_bytes({"w": Payload()}))), "'posix.system'"),
    Attack("agent_policy_legacy", agent(lambda: agent_zip(torch_bytes([Payload()], True))), "'posix.system'"),
    Attack("beside_good_tensors", pt(lambda: torch_bytes({**state(), "x": Payload()})), "'posix.system'"),
    Attack("in_skipped_entry", pt(lambda: torch_bytes({"state_dict": state(), "x": Payload()})), "posix.system"),
    Attack("plain_pickle", pt(lambda: pickle.dumps({"w": Payload()})), "pickles can run code"),
    Attack("protocol_4", pt(lambda: torch_zip(pickle.dumps({"w": Payload()}, 4))), "'posix.system'"),
    Attack("protocol_0", pt(lambda: torch_zip(pickle.dumps({"w": Payload()}, 0))), "the instruction 'DICT'"),
    Attack(
        "legacy_header_payload",
        pt(lambda: pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(Payload(), 2)),
        "'posix.system'",
    ),
    Attack("builtin_eval", pt(lambda: torch_zip(dictionary(("w", call("builtins", "eval"))))), "'builtins.eval'"),
    Attack(
        "disguised_module",
        pt(lambda: torch_zip(dictionary(("w", call("torch.serialization", "os.system"))))),
        "'torch.serialization.os.system'",
    ),
    Attack("whole_module", pt(lambda: torch_bytes(_WHOLE)), "torch.nn.modules"),
    Attack(
        "build_attributes",
        pt(lambda: torch_zip(b"\x80\x02ccollections\nOrderedDict\n)R}X\x05\x00\x00\x00itemsK\x01sb.")),
        "'BUILD'",
    ),
    Attack("inst_opcode", pt(lambda: torch_zip(b"\x80\x02(iposix\nsystem\n.")), "'INST'"),
)

TAKES_MEMORY = (
    Attack(
        "bytearray_call",
        pt(
            lambda: torch_zip(
                dictionary(("w", call("builtins", "bytearray", b"\x8a\x06" + (1 << 40).to_bytes(6, "little"))))
            )
        ),
        "'builtins.bytearray'",
    ),
    Attack(
        "size_beyond_storage",
        pt(lambda: torch_zip(dictionary(("w", tensor_ops((1 << 40,), 4))), {"0": bytes(16)})),
        "does not fit its storage of 4 elements",
    ),
    Attack(
        "offset_beyond_storage",
        pt(lambda: torch_zip(dictionary(("w", tensor_ops((4,), 4, offset=1))), {"0": bytes(16)})),
        "does not fit its storage",
    ),
    Attack(
        "stride_beyond_storage",
        pt(lambda: torch_zip(dictionary(("w", tensor_ops((2, 2), 4, stride=(1 << 40, 1)))), {"0": bytes(16)})),
        "does not fit its storage",
    ),
    Attack(
        "expanded_by_stride_0",
        pt(lambda: torch_zip(dictionary(("w", tensor_ops((1 << 40,), 4, stride=(0,)))), {"0": bytes(16)})),
        "does not fit its storage",
    ),
    Attack(
        "storage_beyond_record",
        pt(lambda: torch_zip(dictionary(("w", tensor_ops((1 << 30,), 1 << 30))), {"0": bytes(16)})),
        "should have 4294967296 bytes and is 16 bytes long",
    ),
    Attack("storage_missing", pt(lambda: torch_zip(dictionary(("w", tensor_ops((4,), 4))))), "and is missing"),
    Attack(
        "storage_path",
        pt(lambda: torch_zip(dictionary(("w", tensor_ops((4,), 4, key="../../0"))), {"0": bytes(16)})),
        "and is missing",
    ),
    Attack(
        "legacy_storage_lie",
        pt(
            lambda: legacy_file(
                dictionary(("w", tensor_ops((1 << 36,), 1 << 36, legacy=True))), ["0"], [(4, bytes(16))]
            )
        ),
        "should have 68719476736 elements and is 4",
    ),
    Attack(
        "legacy_storage_cut",
        pt(
            lambda: legacy_file(
                dictionary(("w", tensor_ops((1 << 36,), 1 << 36, legacy=True))), ["0"], [(1 << 36, bytes(16))]
            )
        ),
        "is cut short",
    ),
    Attack(
        "legacy_keys_differ",
        pt(lambda: legacy_file(dictionary(("w", tensor_ops((4,), 4, legacy=True))), ["1"], [(4, bytes(16))])),
        "list of storages does not match",
    ),
    Attack("string_length_lie", pt(lambda: torch_zip(b"\x80\x02}X\xff\xff\xff\xffab")), "malformed or cut short"),
    Attack(
        "huge_string_lie",
        pt(lambda: torch_zip(b"\x80\x04\x8d" + (1 << 62).to_bytes(8, "little") + b"a.")),
        "malformed or cut short",
    ),
    Attack("shared_tuple_key", pt(lambda: torch_zip(_shared_tuples())), "a dictionary key is a tuple"),
    Attack(
        "negative_size",
        pt(lambda: torch_zip(dictionary(("w", tensor_ops((-1,), 4, stride=(1,)))), {"0": bytes(16)})),
        "a tensor's size is -1",
    ),
    Attack("agent_zip_bomb", agent(lambda: agent_zip(bytes(1 << 25), compress=True)), "a zip bomb"),
    Attack(
        "torch_zip_bomb",
        pt(lambda: torch_zip(dictionary(("w", tensor_ops((1 << 23,), 1 << 23))), {"0": bytes(1 << 25)}, compress=True)),
        "a zip bomb",
    ),
    Attack(
        "torch_compressed",
        pt(lambda: torch_zip(dictionary(("w", tensor_ops((4,), 4))), {"0": bytes(16)}, compress=True)),
        "is compressed, which torch never does",
    ),
    Attack("walked_again_and_again", pt(lambda: torch_zip(_walked_again())), "takes more than 3000000 steps"),
    Attack("odd_escape", pt(lambda: torch_zip(b"S'\\c'\n.")), "'STRING'"),
)
