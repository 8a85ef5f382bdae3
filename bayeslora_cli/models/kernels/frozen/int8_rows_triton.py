"""Dense weights from integer codes and a scale per row, in one pass over a GPU's memory."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

BLOCK = 2048
"""Columns of a row that a program takes."""


@triton.jit  # type: ignore[untyped-decorator]
def _dequantize(codes, scale, out, width, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Multiply a part of a row by its scale, in fp32, and round once."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < width
    value = tl.load(codes + row * width + at, mask=inside, other=0).to(tl.float32)
    value *= tl.load(scale + row)
    tl.store(out + row * width + at, value.to(out.dtype.element_ty), mask=inside)


def dequantize(codes: Tensor, scale: Tensor, out: Tensor) -> None:
    """Write scale * codes into `out`.

    Args:
        codes: (m, k), int8, contiguous.
        scale: (m,), fp32.
        out: (m, k), contiguous.
    """
    height, width = codes.shape
    grid = (height, triton.cdiv(width, BLOCK))
    _dequantize[grid](codes, scale, out, width, BLOCK, num_warps=4)
