"""Do the codes of positions tell them apart, at any size?"""

from __future__ import annotations

import pytest
import torch

from metanet.graph.encoding import cosine_basis, position_code


@pytest.mark.parametrize("positions", [(), (1,), (3, 3), (16,), (2, 3, 2)])
def test_a_complete_cosine_basis_is_orthonormal(positions):
    basis = cosine_basis(positions, 16)
    torch.testing.assert_close(basis.T @ basis, torch.eye(basis.shape[1], dtype=torch.float64))
    torch.testing.assert_close(basis @ basis.T, torch.eye(len(basis), dtype=torch.float64))


def test_a_cut_cosine_basis_keeps_the_smooth_parts():
    basis = cosine_basis((5, 5), 16)
    assert basis.shape == (25, 16)
    torch.testing.assert_close(basis[:, 0], torch.full((25,), 0.2, dtype=torch.float64))
    torch.testing.assert_close(basis.T @ basis, torch.eye(16, dtype=torch.float64))


@pytest.mark.parametrize("size", [1, 2, 10, 64, 784])
def test_position_codes_differ_and_are_bounded(size):
    code = position_code(size, 32)
    assert code.shape == (size, 32)
    assert code.abs().max() <= 2
    if size > 1:
        assert torch.pdist(code).min() > 1e-2


def test_the_same_index_has_nearly_the_same_code_at_every_size():
    torch.testing.assert_close(position_code(10, 16)[:, 2:], position_code(20, 16)[:10, 2:])
