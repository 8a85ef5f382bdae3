"""The Triton kernels of fp8 rows against torch's own operations, in Triton's interpreter."""

from __future__ import annotations

import os

import pytest
import torch

from bayeslora_cli.models.kernels.frozen.fp8_rows import FP8, quantize_rows
from tests.support.quantized import as_near

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="needs Triton and TRITON_INTERPRET=1"
)


@pytest.mark.parametrize("shape", [(3, 16), (5, 4112), (1, 2048)])
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("most", [32768, 8])
def test_rows(shape, scaled, dtype, most, monkeypatch):
    """Rows that fit into a program's registers, and longer ones."""
    from bayeslora_cli.models.kernels.frozen import fp8_rows_triton

    monkeypatch.setattr(fp8_rows_triton, "MOST", most)
    torch.manual_seed(0)
    whole = torch.randn(shape[0], shape[1] + 16).to(dtype)
    x = whole[:, : shape[1]]  # a part of a wider tensor, as the gradients of joint layers are
    x[0] = 0
    columns = torch.rand(shape[1]) + 0.5 if scaled else None
    # not rounded by the kernel: the interpreter (3.9) loses a carry, 127 becomes 64 in place of 128
    values, scale = fp8_rows_triton.quantize_rows(x, columns, torch.float32)
    right, of_right = quantize_rows(x, columns)
    torch.testing.assert_close(scale, of_right)
    assert as_near(values.to(FP8), right, x if columns is None else x.float() * columns, of_right)


@pytest.mark.parametrize("shape", [(16, 48), (80, 200)])
def test_transposed(shape):
    from bayeslora_cli.models.kernels.frozen import fp8_rows_triton

    codes = torch.randn(shape).to(FP8)
    found, ones = fp8_rows_triton.transposed(codes)
    assert torch.equal(found.float(), codes.float().t())
    assert torch.equal(ones, torch.ones(shape[1]))
