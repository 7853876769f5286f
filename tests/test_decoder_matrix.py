"""Laws of the decoder's matrices: however many rows and columns, both products are those of the whole matrix."""

from __future__ import annotations

import pytest
import torch

from positron_mini.decoder import BLOCK_COLUMNS, BLOCK_ROWS, Dense


@pytest.mark.parametrize("rows", [1, 2, 8, BLOCK_ROWS, BLOCK_ROWS + 1])
@pytest.mark.parametrize("outputs", [BLOCK_COLUMNS, 3 * BLOCK_COLUMNS, 3 * BLOCK_COLUMNS + 1])
@pytest.mark.parametrize("has_mkl", [True, False])
def test_products_are_those_of_the_whole_matrix(rows: int, outputs: int, has_mkl: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: has_mkl)
    x, weight, before = torch.randn(rows, 24), torch.randn(24, outputs), torch.randn(rows, outputs)
    matrix = Dense(weight)
    assert len(matrix.blocks) == (outputs // BLOCK_COLUMNS if has_mkl and outputs % BLOCK_COLUMNS == 0 else 1)
    out, added = torch.empty(rows, outputs), before.clone()
    with torch.inference_mode():
        matrix.into(out, x)
        matrix.add_to(added, x)
    torch.testing.assert_close(out, x @ weight, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(added, before + x @ weight, rtol=1e-5, atol=1e-5)
