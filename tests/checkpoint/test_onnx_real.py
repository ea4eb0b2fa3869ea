"""Do ONNX files that people ship run as in onnxruntime, and do ONNX's own cases come out as ONNX says?

The files come with the packages silero-vad, magika and basic-pitch; only the files are needed, so
``pip install --no-deps silero-vad magika basic-pitch`` will do.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import metanet
import symmetry
from metanet.checkpoint.onnx.module import OnnxModule
from metanet.checkpoint.onnx.plan import make_plan
from metanet.checkpoint.onnx.proto import parse
from metanet.checkpoint.onnx.tensors import Reader
from metanet.errors import CheckpointError

from .subjects import same

onnxruntime = pytest.importorskip("onnxruntime", reason="the oracle is the package onnxruntime (extra 'onnx')")

# Package, file in it, how many numbers it holds, and how near onnxruntime's outputs are: in half precision not very.
FILES = {
    "silero_vad.onnx": ("silero_vad", "data/silero_vad.onnx", 545_282, 1e-5),
    "silero_vad_op18_ifless.onnx": ("silero_vad", "data/silero_vad_op18_ifless.onnx", 545_670, 1e-5),
    "silero_vad_16k_op15.onnx": ("silero_vad", "data/silero_vad_16k_op15.onnx", 309_633, 1e-5),
    "silero_vad_16k_sequence.onnx": ("silero_vad", "data/silero_vad_16k_sequence.onnx", 309_633, 1e-5),
    "silero_vad_openvino_16k.onnx": ("silero_vad", "data/silero_vad_openvino_16k.onnx", 309_633, 1e-5),
    "silero_vad_half.onnx": ("silero_vad", "data/silero_vad_half.onnx", 309_633, 1e-3),
    "magika": ("magika", "models/standard_v3_3/model.onnx", 784_472, 1e-5),
    "basic_pitch": ("basic_pitch", "saved_models/icassp_2022/nmp.onnx", 35_735, 1e-5),
}


def find(name: str) -> Path:
    package, inside, _, _ = FILES[name]
    found = importlib.util.find_spec(package)
    places = [] if found is None else list(found.submodule_search_locations or [])
    for place in places:
        if (Path(place) / inside).is_file():
            return Path(place) / inside
    pytest.skip(f"the package {package.replace('_', '-')} with {inside} is not installed")


def run_theirs(path: Path, feed: dict[str, Any], outputs: tuple[str, ...]) -> list[np.ndarray[Any, Any]]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return list(session.run(list(outputs), feed))


@pytest.mark.parametrize("name", FILES)
def test_outputs_are_those_of_onnxruntime(name: str, tmp_path: Path) -> None:
    path = find(name)
    checkpoint = metanet.load(path)
    assert checkpoint.parameters == FILES[name][2]
    inputs = checkpoint.architecture.example_inputs()
    model = checkpoint.model()
    feed = dict(zip(model.input_names, (value.numpy() for value in inputs), strict=True))
    feed |= dict(checkpoint.architecture.fixed)
    # As it is, as a copy, and with other weights that are written into a copy.
    checkpoint.save(tmp_path / "copy.onnx")
    assert (tmp_path / "copy.onnx").read_bytes() == path.read_bytes()
    other = {key: value * 1.01 if value.is_floating_point() else value for key, value in checkpoint.state.items()}
    checkpoint.save(tmp_path / "other.onnx", other)
    found = []
    for file in (path, tmp_path / "other.onnx"):
        loaded = metanet.load(file)
        assert same(loaded.state, checkpoint.state if file == path else other)
        with torch.no_grad():
            ours = loaded.model()(*inputs)
        ours = ours if isinstance(ours, tuple) else (ours,)
        theirs = run_theirs(file, feed, model.output_names)
        errors = [np.abs(a.double().numpy() - b).max() for a, b in zip(ours, theirs, strict=True)]
        assert max(errors) < FILES[name][3], errors
        found.append(ours)
    # The control: other weights give other outputs, by more than the tolerance.
    assert max(float((a - b).abs().max()) for a, b in zip(*found, strict=True)) > 2 * FILES[name][3]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["silero_vad.onnx", "silero_vad_16k_sequence.onnx"])
def test_symmetry_of_real_files(name: str) -> None:
    checkpoint = metanet.load(find(name))
    spec = checkpoint.spec
    assert spec.permutation_order > 10**600
    assert spec.scale_dimension >= 384
    assert symmetry.verify(checkpoint.model(), checkpoint.architecture.example_inputs(), spec, trials=1).passed


# What ONNX's cases ask for beyond inference with numbers of usual kinds; each is refused in words, never wrong.
REFUSED = (
    "not implemented for 'UInt",
    "is in training mode",
    "also returns indices",
    "opset before 9",
    "non-zero size",
)


def outcome(content: bytes, data_sets: Any) -> str:
    """``right``, ``wrong ...``, ``refused ...`` or ``skipped ...`` for one of ONNX's own cases."""
    plan = make_plan(parse(content, len(content)), Reader(content, Path("case.onnx")))
    if plan.unknown is not None:
        return f"skipped: no rule for {plan.unknown}"
    model = OnnxModule(plan, {}).eval()
    reader = Reader(content, Path("case.onnx"))
    model.load_state_dict({c.name: reader.read(c.record, c.label) for c in plan.stored if c.record})
    for inputs, outputs in data_sets:
        try:
            given = [_tensor(value) for value in inputs]
            wanted = [_tensor(value) for value in outputs]
        except TypeError:
            return "skipped: numbers that torch does not have"
        try:
            with torch.no_grad():
                made = model(*given)
        except CheckpointError as error:
            return f"refused: {error}"
        found = made if isinstance(made, tuple) else (made,)
        for ours, theirs in zip(found, wanted, strict=False):
            if not _close(ours, theirs):
                return "wrong"
    return "right"


def _tensor(value: Any) -> Any:
    if isinstance(value, list):
        return [_tensor(item) for item in value]
    if not isinstance(value, np.ndarray | np.generic) or np.asarray(value).dtype.kind not in "fiubc":
        raise TypeError
    return torch.from_numpy(np.array(value))


def _close(ours: Any, theirs: Any) -> bool:
    if isinstance(theirs, list):
        return len(ours) == len(theirs) and all(_close(a, b) for a, b in zip(ours, theirs, strict=True))
    if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
        return False
    if not ours.is_floating_point():
        return torch.equal(ours, theirs)
    loose = 1e-2 if ours.dtype == torch.float16 else 1e-5
    return torch.allclose(ours.double(), theirs.double(), rtol=1e-3, atol=loose, equal_nan=True)


def check(outcomes: dict[str, str], least: int) -> None:
    wrong = [name for name, text in outcomes.items() if text == "wrong"]
    odd = [
        f"{name}: {text}"
        for name, text in outcomes.items()
        if text[0:7] == "refused" and not any(r in text for r in REFUSED)
    ]
    counts = Counter(text.split(":")[0] for text in outcomes.values())
    assert not wrong, f"{len(wrong)} of {len(outcomes)}: {wrong[:10]}"
    assert not odd, odd[:5]
    assert counts["right"] >= least, counts


def test_networks_that_torch_once_exported() -> None:
    """Files of the package onnx with the inputs and outputs that torch gave."""
    onnx = pytest.importorskip("onnx", reason="the cases are in the package onnx (extra 'onnx')")
    root = Path(onnx.__file__).parent / "backend" / "test" / "data"
    outcomes = {}
    for folder in sorted([*root.glob("pytorch-converted/*"), *root.glob("pytorch-operator/*")]):
        data_sets = []
        for data in sorted(folder.glob("test_data_set_*")):
            pair = []
            for kind in ("input", "output"):
                files = sorted(data.glob(f"{kind}_*.pb"), key=lambda path: (len(path.name), path.name))
                pair.append([onnx.numpy_helper.to_array(onnx.load_tensor(file)) for file in files])
            data_sets.append(pair)
        outcomes[folder.name] = outcome((folder / "model.onnx").read_bytes(), data_sets)
    if not outcomes:
        pytest.skip("this version of the package onnx ships no such files")
    check(outcomes, 100)


@pytest.mark.slow
def test_every_case_of_every_operator() -> None:
    """ONNX's definition by example: some 1,900 nodes with inputs and outputs."""
    pytest.importorskip("onnx", reason="the cases are in the package onnx (extra 'onnx')")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        node = pytest.importorskip("onnx.backend.test.case.node", reason="this version of onnx has no such cases")
        cases = node.collect_testcases()
    outcomes = {}
    for case in cases:
        # Blocks of 4-bit integers, which torch does not have, under the name of another type.
        if case.model is not None and case.name != "test_quantizelinear_blocked_symmetric":
            outcomes[case.name] = outcome(case.model.SerializeToString(), case.data_sets)
    check(outcomes, 1250)
