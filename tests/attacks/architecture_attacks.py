"""Architecture files that are wrong, absurd or would name code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .attack import Attack, file
from .pickles import write
from .safetensors_attacks import entry, safetensors_bytes


def beside(name: str, value: Any, says: str, tensor: str = "") -> Attack:
    """A good file beside an ``architecture.json`` with this text or value."""

    def make(folder: Path) -> Path:
        text = value if isinstance(value, str) else json.dumps(value)
        (folder / "architecture.json").write_text(text)
        return write(folder, "weights.safetensors", safetensors_bytes({"w": entry([1], 0, 4)}, bytes(4)))

    return Attack(f"architecture_{name}", make, says, tensor, file="" if tensor else "architecture.json")


def _mlp(**options: Any) -> dict[str, Any]:
    complete = {"inputs": 3, "widths": [4], "outputs": 2, "activation": "relu"} | options
    return {"format": "metanet.architecture/1", "family": "mlp", "options": complete}


def _cnn(**options: Any) -> dict[str, Any]:
    complete = {"channels": 1, "size": 8, "widths": [4, 4], "outputs": 2, "activation": "relu"} | options
    return {"format": "metanet.architecture/1", "family": "cnn", "options": complete}


def _transformer(**options: Any) -> dict[str, Any]:
    complete = {"channels": 1, "size": 8, "patch": [2, 4], "width": 4, "heads": 2, "hidden": [4], "outputs": 2}
    complete |= {"activation": "relu"} | options
    return {"format": "metanet.architecture/1", "family": "transformer", "options": complete}


def _gru(**options: Any) -> dict[str, Any]:
    complete = {"channels": 1, "size": 8, "widths": [4], "outputs": 2} | options
    return {"format": "metanet.architecture/1", "family": "gru", "options": complete}


def _chains(*chains: tuple[str, str, list[int]], **more: Any) -> dict[str, Any]:
    listed = [
        {"name": name, "input": source, "layers": [name], "widths": widths, "activations": ["relu"]}
        for name, source, widths in chains
    ]
    return {"format": "metanet.architecture/1", "family": "chains", "options": {"chains": listed} | more}


def _metadata(text: str) -> bytes:
    header = {"__metadata__": {"metanet.architecture": text}, "w": entry([1], 0, 4)}
    return safetensors_bytes(header, bytes(4))


ARCHITECTURES = (
    beside("not_json", "{", "is not JSON"),
    beside("duplicate", '{"format": "a", "format": "b"}', "duplicate key 'format'"),
    beside("deep", "[" * 10**5, "is not JSON (nested too deeply)"),
    beside("list", [1], "an architecture is a JSON object, found list"),
    beside("format", {**_mlp(), "format": "other/9"}, "format 'other/9'"),
    beside("entry", {**_mlp(), "run": "x"}, "unknown entry 'run'"),
    beside("provenance", {**_mlp(), "provenance": 3}, "provenance is 3"),
    beside("family", {**_mlp(), "family": "resnet9000"}, "unknown architecture family 'resnet9000'"),
    beside("family_list", {**_mlp(), "family": ["mlp"]}, "unknown architecture family"),
    beside(
        "factory", {**_mlp(), "family": "factory", "options": {"factory": "os:system"}}, "must not come from a file"
    ),
    beside("options", {**_mlp(), "options": [1]}, "options is list, expected a mapping"),
    beside("huge_width", _mlp(widths=[10**12]), "widths[0] is 1000000000000, expected an integer"),
    beside("many_numbers", _mlp(widths=[1 << 19, 1 << 19]), "needs more than"),
    beside("many_layers", _mlp(widths=[1] * 10**5), "length of widths is 100000"),
    beside("zero", _mlp(inputs=0), "inputs is 0"),
    beside("negative", _mlp(widths=[-3]), "widths[0] is -3"),
    beside("boolean", _mlp(outputs=True), "outputs is True"),
    beside("float", _mlp(widths=[4.0]), "widths[0] is 4.0"),
    beside("text", _mlp(widths="44"), "widths is '44', expected a list"),
    beside("activation", _mlp(activation="__import__('os')"), "expected one of relu, tanh"),
    beside("missing", {**_mlp(), "options": {"inputs": 3}}, "option 'widths' is missing"),
    beside("unknown", _mlp(depth=3), "unknown option 'depth'"),
    beside("residual", _mlp(widths=[3, 4], residual=True), "expected equal widths"),
    beside("strides", _cnn(strides=[2]), "length of strides is 1, expected 2"),
    beside("even_kernel", _cnn(kernel=4), "kernel is 4, expected an odd number"),
    beside("too_small", _cnn(size=3, strides=[2, 2], reduce="max"), "size is 3"),
    beside("patch", _transformer(patch=[3, 4]), "patch is [3, 4], expected sides that divide size 8"),
    beside("patch_sides", _transformer(patch=[2]), "patch is [2], expected [height, width]"),
    beside("patch_text", _transformer(patch="24"), "patch is '24', expected a list"),
    beside("heads", _transformer(heads=3), "heads is 3, expected a divisor of width 4"),
    beside("many_tokens", _transformer(size=4096, patch=[1, 1], width=256, heads=1), "needs more than"),
    beside("no_block", _transformer(hidden=[]), "length of hidden is 0, expected at least 1"),
    beside("many_rows", _gru(size=100_000), "size is 100000, expected an integer from 1 to 256"),
    beside("no_cell", _gru(widths=[]), "length of widths is 0, expected at least 1"),
    beside("chain_input", _chains(("a", "b", [2, 3]), ("b", "x", [3, 3])), "a chain that stands earlier"),
    beside("chain_sizes", _chains(("a", "x", [2, 3]), ("b", "a", [4, 3])), "expected 3, the size of 'a'"),
    beside("chain_twice", _chains(("a", "x", [2, 3]), ("a", "x", [2, 3])), "expected a name of its own"),
    beside("chain_loop", _chains(("a", "a", [2, 2])), "expected a name of its own"),
    beside("no_chain", _chains(), "expected at least one chain"),
    beside("layer_name", _chains(("a..b", "x", [2, 3])), "expected a dotted name"),
    beside("extra_shape", _chains(("a", "x", [2, 3]), extras={"e": [1 << 60]}), "extras 'e' is"),
    beside("other_names", _mlp(), "is not in the architecture", "w"),
    Attack("metadata_not_json", file("a.safetensors", lambda: _metadata("{")), "'metanet.architecture' is not JSON"),
    Attack(
        "metadata_family",
        file("a.safetensors", lambda: _metadata(json.dumps({**_mlp(), "family": "x"}))),
        "unknown architecture family 'x'",
    ),
)
