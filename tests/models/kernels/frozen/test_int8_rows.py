"""The Triton kernel of int8 rows against torch's own operations, in Triton's interpreter."""

from __future__ import annotations

import os

import pytest
import torch

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="needs Triton and TRITON_INTERPRET=1"
)


@pytest.mark.parametrize("shape", [(3, 16), (5, 4112)])
def test_integer_codes(shape):
    from bayeslora_cli.models.kernels.frozen import int8_rows_triton

    codes, scale = torch.randint(-127, 128, shape, dtype=torch.int8), torch.rand(shape[0])
    out = torch.empty(shape)
    int8_rows_triton.dequantize(codes, scale, out)
    assert torch.equal(out, codes * scale[:, None])
