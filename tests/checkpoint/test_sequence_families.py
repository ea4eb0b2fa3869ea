"""Do transformers and recurrent networks compute what torch's own layers compute, and is their group the known one?"""

from __future__ import annotations

from math import factorial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import symmetry
from metanet.checkpoint import Architecture
from metanet.checkpoint.families_recurrent import Gru
from metanet.checkpoint.families_transformer import Transformer

TRANSFORMER = {"channels": 1, "size": 4, "patch": [2, 2], "width": 6, "heads": 3, "hidden": [5], "outputs": 2}
GRU = {"channels": 1, "size": 3, "widths": [4], "outputs": 2}


def spec_of(family: str, **options: object) -> symmetry.SymmetrySpec:
    architecture = Architecture(family, options)
    return symmetry.trace(architecture.build().eval(), architecture.example_inputs())


def group(spec: symmetry.SymmetrySpec) -> tuple[int, int, int, int]:
    return spec.permutation_order, spec.sign_bits, spec.scale_dimension, spec.linear_dimension


def test_a_block_is_that_of_torch() -> None:
    """torch's encoder layer with the same tensors, its query, key and value one below the other."""
    ours = Architecture("transformer", {**TRANSFORMER, "activation": "relu"}).build()
    assert isinstance(ours, Transformer)
    block = ours.blocks[0]
    theirs = nn.TransformerEncoderLayer(6, 3, 5, dropout=0.0, batch_first=True, norm_first=True).double().eval()
    block = block.double()
    mine = block.state_dict()
    theirs.load_state_dict(
        {
            **{
                f"self_attn.in_proj_{kind}": torch.cat(
                    [mine[f"attention.{n}.{kind}"] for n in ("query", "key", "value")]
                )
                for kind in ("weight", "bias")
            },
            **{f"self_attn.out_proj.{kind}": mine[f"attention.out.{kind}"] for kind in ("weight", "bias")},
            **{f"linear1.{kind}": mine[f"up.{kind}"] for kind in ("weight", "bias")},
            **{f"linear2.{kind}": mine[f"down.{kind}"] for kind in ("weight", "bias")},
            **{name: value for name, value in mine.items() if name.startswith("norm")},
        }
    )
    x = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(block(x), theirs(x), rtol=0, atol=1e-12)
        block.attention.heads = 2
        assert (block(x) - theirs(x)).abs().max() > 1e-4  # negative control: other heads


def test_patches_are_cut_row_by_row() -> None:
    ours = Transformer(2, 4, (2, 1), 3, 1, (4,), 2, "relu", "none", "mean")
    image = torch.arange(32.0).view(1, 2, 4, 4)
    patches = ours._patches(image)
    assert patches.shape == (1, 8, 4)
    # The patch in the second row of patches and third column: rows 2 and 3, column 2, of both channels.
    assert patches[0, 6].tolist() == [image[0, c, r, 2].item() for c in (0, 1) for r in (2, 3)]


def test_a_cell_is_that_of_torch() -> None:
    ours = Gru(1, 3, (4, 5), 2, "tanh", "none", "last").double()
    theirs = nn.GRU(3, 4, batch_first=True).double(), nn.GRU(4, 5, batch_first=True).double()
    for cell, layer in zip(ours.cells, theirs, strict=True):
        layer.load_state_dict(
            {
                f"{kind}_{short}_l0": cell.state_dict()[f"{long}.{kind}"]
                for kind in ("weight", "bias")
                for short, long in (("ih", "input"), ("hh", "hidden"))
            }
        )
    rows = torch.randn(6, 1, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def answers(last: int) -> Tensor:
        return ours.head(theirs[1](theirs[0](rows[:, 0])[0])[0][:, last])

    with torch.no_grad():
        torch.testing.assert_close(ours(rows), answers(-1), rtol=0, atol=1e-12)
        assert (ours(rows) - answers(0)).abs().max() > 1e-3  # negative control: the first row's units


@pytest.mark.parametrize("readout", ["mean", "token"])
def test_the_group_of_a_transformer(readout: str) -> None:
    """Stream and hidden units permute, heads too; inside each head two matrices, of queries with keys and of values
    with outputs (2 x 2). Every layer norm absorbs a sign and a scale per unit, the stream one sign, relu a scale."""
    found = spec_of("transformer", **TRANSFORMER, activation="relu", readout=readout)
    assert group(found) == (factorial(6) * factorial(3) * factorial(5), 1 + 3 * 6, 3 * 6 + 5, 3 * 2 * 4)


def test_the_group_of_a_transformer_without_norms() -> None:
    """Nothing but linear layers meets the stream: any matrix may act on it, and takes in its permutations."""
    found = spec_of("transformer", **TRANSFORMER, activation="tanh", norm="none")
    assert group(found) == (factorial(3) * factorial(5), 5, 0, 3 * 2 * 4 + 6 * 6)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, (24, 4, 0, 0)),  # tanh: a sign for every unit; the gates stay as they are
        ({"activation": "relu"}, (24, 0, 4, 0)),
        ({"activation": "relu", "readout": "mean"}, (24, 0, 4, 0)),
        ({"activation": "gelu"}, (24, 0, 0, 0)),
        # The norm keeps one sign of all its units together and absorbs a sign and a scale per unit behind itself.
        ({"widths": [4, 3], "norm": "layer"}, (24 * 6, 2 + 4 + 3, 4 + 3, 0)),
    ],
)
def test_the_group_of_a_recurrent_network(options: dict[str, object], expected: tuple[int, ...]) -> None:
    assert group(spec_of("gru", **{**GRU, **options})) == expected


@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_any_transformer(data: st.DataObject) -> None:
    patch = [data.draw(st.integers(1, 3)) for _ in range(2)]
    heads = data.draw(st.integers(1, 3))
    options = {
        "channels": data.draw(st.integers(1, 2)),
        "size": patch[0] * patch[1] * data.draw(st.integers(1, 2)),
        "patch": patch,
        "width": heads * data.draw(st.integers(1, 3)),
        "heads": heads,
        "hidden": data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=2)),
        "outputs": data.draw(st.integers(1, 4)),
        "activation": data.draw(st.sampled_from(["relu", "tanh", "gelu", "sin", "identity"])),
        "norm": data.draw(st.sampled_from(["layer", "none"])),
        "readout": data.draw(st.sampled_from(["mean", "token"])),
    }
    architecture = Architecture("transformer", options)
    assert Architecture.from_json(architecture.to_json()) == architecture
    assert architecture.build().eval()(*architecture.example_inputs(2)).shape == (2, options["outputs"])
