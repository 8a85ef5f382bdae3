"""Triton kernel of a frozen product together with its low-rank product: L M + (L N) F.

A program computes a tile of L M and, from the same elements of L, the rows of L N that the tile
needs: a few columns more than the tile has. So L is read once, and the sum is written once.
Forward L is x, M is W', N is down' and F is up'. Backward L is the gradient of y, M is W, N is up
and F is down.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from bayeslora_cli.models.kernels.low_rank.tile_order_triton import GROUP, corner
from bayeslora_cli.models.kernels.low_rank.tiles import Tiles, extent

REGISTERS = 65_536
"""Of a multiprocessor."""


@triton.jit
def _normal(u):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Return the standard normal distribution up to u and its density; gelu(u) = u times the first.

    The distribution is accurate to 3e-7 in fp32 (Abramowitz and Stegun, 1964, formula 26.2.17). It
    needs half the registers of `tl.erf`, and they decide here how many programs run at a time.
    """
    density = 0.3989422804014327 * tl.exp2(u * u * -0.7213475204444817)
    t = 1.0 / (1.0 + 0.2316419 * tl.abs(u))
    series = t * (1.330274429 * t - 1.821255978) + 1.781477937
    series = t * (t * series - 0.356563782) + 0.319381530
    above = density * t * series
    return tl.where(u < 0, above, 1.0 - above), density


@triton.jit(do_not_specialize=["rows"])  # type: ignore[untyped-decorator]
def _fused(  # type: ignore[no-untyped-def]
    left, matrix, narrow, factor, bias, other, out, tail, rows, width, depth,  # noqa: ANN001
    GELU: tl.constexpr, SLOPE: tl.constexpr,
    R: tl.constexpr, RANK: tl.constexpr, BIAS: tl.constexpr, TRANSPOSED: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, GROUP: tl.constexpr,
) -> None:  # fmt: skip
    """Left, matrix and narrow are descriptors; beyond their tensors they read zeros."""
    top, start = corner(rows, width, ROWS, COLUMNS, GROUP)
    found = tl.zeros((ROWS, COLUMNS), tl.float32)
    h = tl.zeros((ROWS, RANK), tl.float32)
    for k in range(0, depth, DEPTH):
        value = left.load([top, k])
        few = narrow.load([0, k])
        if TRANSPOSED:  # noqa: SIM108
            by = tl.trans(matrix.load([start, k]))
        else:
            by = matrix.load([k, start])
        found = tl.dot(value, by, found, input_precision="ieee")
        h = tl.dot(value, tl.trans(few), h, input_precision="ieee")
    row, column = top + tl.arange(0, ROWS), start + tl.arange(0, COLUMNS)
    rank = tl.arange(0, RANK)
    there, known = row[:, None] < rows, column[None, :] < width
    kind = out.dtype.element_ty
    rounded = h.to(kind)
    factors = tl.load(
        factor + rank[:, None] * width + column[None, :], (rank[:, None] < R) & known, 0.0
    )
    found = tl.dot(rounded, factors, found, input_precision="ieee")
    if BIAS:
        found += tl.load(bias + column, column < width, 0.0).to(tl.float32)[None, :]
    far = row[:, None].to(tl.int64)
    place = far * width + column[None, :]
    if SLOPE:
        u = tl.load(other + place, there & known, 0.0).to(tl.float32)
        below, density = _normal(u)
        found *= below + u * density
    result = found.to(kind)
    tl.store(out + place, result, there & known)
    if GELU:
        u = result.to(tl.float32)
        below, _ = _normal(u)
        tl.store(other + place, (u * below).to(kind), there & known)
    if start == 0:
        tl.store(tail + far * R + rank[None, :], rounded, there & (rank[None, :] < R))


def fused(
    left: Tensor, matrix: Tensor, narrow: Tensor, factor: Tensor, bias: Tensor | None, tiles: Tiles,
    *, gelu: Tensor | None = None, slope_of: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Compute a frozen product and its low-rank product; all rows are of whole 16 bytes.

    Args:
        left: L, (n, k), contiguous.
        matrix: M, (k, m), contiguous or a transposed view of contiguous (m, k).
        narrow: N', (r, k), contiguous.
        factor: F, (r, m), contiguous.
        bias: (m,).
        tiles: how the product is cut.
        gelu: gets gelu of the result, (n, m), contiguous.
        slope_of: u: the result is multiplied by the derivative of gelu at u, (n, m), contiguous.
    Returns:
        L M + (L N) F + bias, (n, m), and L N, (n, r).
    """
    (rows, depth), (rank, width) = left.shape, factor.shape
    out, tail = left.new_empty(rows, width), left.new_empty(rows, rank)
    transposed = not matrix.is_contiguous()
    # with gelu's derivative as many programs at a time as without
    more = {} if slope_of is None else {"maxnreg": REGISTERS // (2 * 32 * tiles.warps)}
    block = [tiles.columns, tiles.depth] if transposed else [tiles.depth, tiles.columns]
    _fused[(triton.cdiv(rows, tiles.rows) * triton.cdiv(width, tiles.columns),)](
        TensorDescriptor.from_tensor(left, [tiles.rows, tiles.depth]),
        TensorDescriptor.from_tensor(matrix.t() if transposed else matrix, block),
        TensorDescriptor.from_tensor(narrow, [extent(rank), tiles.depth]),
        factor, out if bias is None else bias,
        next(x for x in (gelu, slope_of, out) if x is not None), out, tail, rows, width, depth,
        gelu is not None, slope_of is not None, rank, extent(rank),
        bias is not None, transposed, tiles.rows, tiles.columns, tiles.depth, GROUP,
        num_warps=tiles.warps, num_stages=tiles.stages, **more,
    )  # fmt: skip
    return out, tail
