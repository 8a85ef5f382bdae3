"""Triton kernels of products in fp32 by products of fp16: numbers are split into two halves.

A number times a power of two is the sum of two numbers of fp16, up to 2^-22 of it. A product of two
numbers then is the sum of three products of halves, which the matrix units compute an order of
magnitude faster than products of fp32; that of the lower halves is left out, 2^-22 of the product
(Ootomo and Yokota, Recovering single precision accuracy from Tensor Cores, IJHPCA 2022).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from bayeslora_cli.models.kernels.low_rank.tile_order_triton import GROUP, corner
from bayeslora_cli.models.kernels.low_rank.tiles import LARGEST_HALF, Tiles, extent

WARPS = 4


@triton.jit  # type: ignore[untyped-decorator]
def _split(x, halves, scale, width, LARGEST: tl.constexpr, EXTENT: tl.constexpr) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
    """Split a row, multiplied by a power of two; `scale` gets that power's inverse."""
    row, rows = tl.program_id(0).to(tl.int64), tl.num_programs(0)
    column = tl.arange(0, EXTENT)
    value = tl.load(x + row * width + column, column < width, 0.0)
    # as IEEE 754 stores them: sign, 8 bits of the exponent plus 127, 23 bits of the fraction
    exponent = tl.max(tl.abs(value), 0).to(tl.int32, bitcast=True) >> 23
    exponent = tl.maximum(exponent, LARGEST + 1)
    value *= ((254 + LARGEST - exponent) << 23).to(tl.float32, bitcast=True)
    upper = value.to(tl.float16)
    lower = (value - upper.to(tl.float32)).to(tl.float16)
    tl.store(halves + row * width + column, upper, column < width)
    tl.store(halves + (rows + row) * width + column, lower, column < width)
    tl.store(scale + row, ((exponent - LARGEST) << 23).to(tl.float32, bitcast=True))


def split(x: Tensor) -> tuple[Tensor, Tensor]:
    """Split the rows of x (n, k), contiguous: upper and lower halves (2, n, k), scales (n,).

    A row is the sum of its halves times its scale.
    """
    rows, width = x.shape
    halves = torch.empty(2, rows, width, device=x.device, dtype=torch.float16)
    scale = torch.empty(rows, device=x.device, dtype=torch.float32)
    if rows:
        _split[(rows,)](
            x, halves, scale, width, LARGEST_HALF, triton.next_power_of_2(width), num_warps=WARPS
        )
    return halves, scale


@triton.jit(do_not_specialize=["rows"])  # type: ignore[untyped-decorator]
def _product(  # type: ignore[no-untyped-def]
    left, matrix, narrow, left_scale, narrow_scale, factor, bias, out, tail, rows, width, depth,  # noqa: ANN001
    unit, R: tl.constexpr, RANK: tl.constexpr, BIAS: tl.constexpr, TRANSPOSED: tl.constexpr,  # noqa: ANN001
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, GROUP: tl.constexpr,
) -> None:  # fmt: skip
    """Left, matrix and narrow are descriptors of both halves, the lower ones behind the upper."""
    top, start = corner(rows, width, ROWS, COLUMNS, GROUP)
    found = tl.zeros((ROWS, COLUMNS), tl.float32)
    h = tl.zeros((ROWS, RANK), tl.float32)
    for k in range(0, depth, DEPTH):
        upper, lower = left.load([top, k]), left.load([rows + top, k])
        few, fewer = tl.trans(narrow.load([0, k])), tl.trans(narrow.load([R, k]))
        if TRANSPOSED:
            by, less = tl.trans(matrix.load([start, k])), tl.trans(matrix.load([width + start, k]))
        else:
            by, less = matrix.load([k, start]), matrix.load([depth + k, start])
        # each step's sum begins at zero: the matrix units round sums towards zero
        part = tl.dot(lower, by)
        part = tl.dot(upper, less, part)
        found += tl.dot(upper, by, part)
        part = tl.dot(lower, few)
        part = tl.dot(upper, fewer, part)
        h += tl.dot(upper, few, part)
    row, column = top + tl.arange(0, ROWS), start + tl.arange(0, COLUMNS)
    rank = tl.arange(0, RANK)
    there, known, few_ranks = row[:, None] < rows, column[None, :] < width, rank < R
    own = tl.load(left_scale + row, row < rows, 0.0)[:, None]
    h *= own * tl.load(narrow_scale + rank, few_ranks, 0.0)[None, :]
    factors = tl.load(
        factor + rank[:, None] * width + column[None, :], few_ranks[:, None] & known, 0.0
    )
    found = tl.dot(h, factors, found * (own * tl.load(unit)), input_precision="tf32x3")
    if BIAS:
        found += tl.load(bias + column, column < width, 0.0)[None, :]
    far = row[:, None].to(tl.int64)
    tl.store(out + far * width + column[None, :], found, there & known)
    if start == 0:
        tl.store(tail + far * R + rank[None, :], h, there & few_ranks[None, :])


def product(
    left: Tensor, halves: Tensor, unit: Tensor, narrow: Tensor, factor: Tensor,
    bias: Tensor | None, tiles: Tiles, *, transposed: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Compute a frozen product and its low-rank product; sizes are multiples of 8.

    Args:
        left: L, (n, k), contiguous.
        halves: those of M (k, m), (2, k, m), or of M' (2, m, k), contiguous.
        unit: M is the sum of its halves times it, ().
        narrow: N', (r, k), contiguous.
        factor: F, (r, m), contiguous.
        bias: (m,).
        tiles: how the product is cut.
        transposed: whether the halves are those of M'.
    Returns:
        L M + (L N) F + bias, (n, m), and L N, (n, r).
    """
    (rows, depth), (rank, width) = left.shape, factor.shape
    out, tail = left.new_empty(rows, width), left.new_empty(rows, rank)
    (by, own), (few, of_few) = split(left), split(narrow)
    block = [tiles.columns, tiles.depth] if transposed else [tiles.depth, tiles.columns]
    _product[(triton.cdiv(rows, tiles.rows) * triton.cdiv(width, tiles.columns),)](
        TensorDescriptor.from_tensor(by.view(-1, depth), [tiles.rows, tiles.depth]),
        TensorDescriptor.from_tensor(halves.view(-1, halves.shape[2]), block),
        TensorDescriptor.from_tensor(few.view(-1, depth), [extent(rank), tiles.depth]),
        own, of_few, factor, out if bias is None else bias, out, tail, rows, width, depth, unit,
        rank, extent(rank), bias is not None, transposed, tiles.rows, tiles.columns, tiles.depth,
        GROUP, num_warps=tiles.warps, num_stages=tiles.stages,
    )  # fmt: skip
    return out, tail
