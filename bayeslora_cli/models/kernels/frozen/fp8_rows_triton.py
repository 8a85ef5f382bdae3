"""Quantizing rows to fp8, and transposing codes, in one pass over a GPU's memory each."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

LARGEST = tl.constexpr(448.0)
LEAST_SCALE = tl.constexpr(1e-12)
BLOCK, LONG_WARPS = 2048, 8
"""Columns that a program reads at once of rows that it reads twice, and its warps."""
MOST = 32768
"""Columns of a row that a program keeps in its registers, at most: it reads them once."""
EACH = 32
"""Columns of such a row that a thread keeps, at most."""
TILE, WARPS = 128, 4
"""Rows and columns of a tile of codes, and warps that transpose it."""


@triton.jit  # type: ignore[untyped-decorator]
def _quantize(x, columns, codes, scale, width, stride, SCALED: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Quantize one row of at most BLOCK columns."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < width
    value = tl.load(x + row * stride + at, mask=inside, other=0.0).to(tl.float32)
    if SCALED:
        value *= tl.load(columns + at, mask=inside, other=0.0)
    step = tl.maximum(tl.max(tl.abs(value), 0) / LARGEST, LEAST_SCALE)
    tl.store(scale + row, step)
    value *= 1.0 / step  # a division for each number would take longer than the memory
    tl.store(codes + row * width + at, value.to(codes.dtype.element_ty), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _quantize_long(  # type: ignore[no-untyped-def]  # noqa: ANN202
    x, columns, codes, scale, width, stride, SCALED: tl.constexpr, BLOCK: tl.constexpr  # noqa: ANN001
):  # fmt: skip
    """Quantize one row; the second time its numbers come from the cache."""
    row = tl.program_id(0).to(tl.int64)
    places = tl.arange(0, BLOCK)
    largest = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, width, BLOCK):
        at = start + places
        value = tl.load(
            x + row * stride + at, mask=at < width, other=0.0, eviction_policy="evict_last"
        ).to(tl.float32)
        if SCALED:
            value *= tl.load(columns + at, mask=at < width, other=0.0)
        largest = tl.maximum(largest, tl.abs(value))
    step = tl.maximum(tl.max(largest, 0) / LARGEST, LEAST_SCALE)
    tl.store(scale + row, step)
    inverse = 1.0 / step
    for start in range(0, width, BLOCK):
        at = start + places
        value = tl.load(
            x + row * stride + at, mask=at < width, other=0.0, eviction_policy="evict_first"
        ).to(tl.float32)
        if SCALED:
            value *= tl.load(columns + at, mask=at < width, other=0.0)
        value *= inverse
        tl.store(codes + row * width + at, value.to(codes.dtype.element_ty), mask=at < width)


@triton.jit  # type: ignore[untyped-decorator]
def _transpose(codes, out, ones, height, width, TILE: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Transpose one tile of bytes; the programs of the first rows write the scales of 1 too."""
    rows = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    columns = tl.program_id(1).to(tl.int64) * TILE + tl.arange(0, TILE)
    inside = (rows < height)[:, None] & (columns < width)[None, :]
    tile = tl.load(codes + rows[:, None] * width + columns[None, :], mask=inside, other=0)
    inside = (columns < width)[:, None] & (rows < height)[None, :]
    tl.store(out + columns[:, None] * height + rows[None, :], tl.trans(tile), mask=inside)
    if tl.program_id(0) == 0:
        tl.store(ones + columns, tl.full((TILE,), 1.0, tl.float32), mask=columns < width)


def quantize_rows(x: Tensor, columns: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Quantize each row; see `fp8_rows.quantize_rows`.

    Args:
        x: (n, k), whose columns lie one after the other.
        columns: (k,), fp32.
    """
    count, width = x.shape
    codes = torch.empty(count, width, dtype=dtype, device=x.device)
    scale = torch.empty(count, 1, dtype=torch.float32, device=x.device)
    given = x, x if columns is None else columns, codes, scale, width, x.stride(0)
    block = triton.next_power_of_2(width)
    if count and block <= MOST:
        warps = min(32, max(4, block // (32 * EACH)))
        _quantize[(count,)](*given, columns is not None, block, num_warps=warps)
    elif count:
        _quantize_long[(count,)](*given, columns is not None, BLOCK, num_warps=LONG_WARPS)
    return codes, scale


def transposed(codes: Tensor) -> tuple[Tensor, Tensor]:
    """Transpose codes of one byte; see `fp8_rows.transposed`."""
    height, width = codes.shape
    out = torch.empty(width, height, dtype=codes.dtype, device=codes.device)
    ones = torch.empty(width, dtype=torch.float32, device=codes.device)
    grid = (triton.cdiv(height, TILE), triton.cdiv(width, TILE))
    _transpose[grid](
        codes.view(torch.uint8), out.view(torch.uint8), ones, height, width, TILE, num_warps=WARPS
    )
    return out, ones
