"""Triton kernel of a frozen product and a low-rank one whose narrow half is known: L M + H B'.

It writes the sum once, where separate products read and write it again. Several layers that see the
same L have one product; each has its own H.
"""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from bayeslora_cli.models.kernels.low_rank.tile_order_triton import GROUP, corner
from bayeslora_cli.models.kernels.low_rank.tiles import Tiles, extent

LAYERS = 3
"""Most layers that a call computes."""


@triton.jit(do_not_specialize=["rows", "height_0", "height_1", "height_2"])  # type: ignore[untyped-decorator]
def _added(  # type: ignore[no-untyped-def]
    left, matrix, h, b, bias, out, rows, width, depth, height_0, height_1, height_2,  # noqa: ANN001
    R: tl.constexpr, RANK: tl.constexpr, BIAS: tl.constexpr, OWN: tl.constexpr,
    LAYERS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
    GROUP: tl.constexpr,
) -> None:  # fmt: skip
    """Left and matrix are descriptors; beyond their tensors they read zeros.

    `OWN`: each layer, of whole tiles, multiplies rows of its own.
    """
    top, start = corner(rows, width, ROWS, COLUMNS, GROUP)
    found = tl.zeros((ROWS, COLUMNS), tl.float32)
    above = top
    if OWN:  # the rows below the layer's last are the next one's, and are not stored
        above += ((start >= height_0).to(tl.int32) + (start >= height_0 + height_1)) * rows
    for k in range(0, depth, DEPTH):
        by = tl.trans(matrix.load([start, k]))
        found = tl.dot(left.load([above, k]), by, found, input_precision="ieee")
    row, column = top + tl.arange(0, ROWS), start + tl.arange(0, COLUMNS)
    rank = tl.arange(0, RANK)
    there, known = row[:, None] < rows, column[None, :] < width
    far, few = row[:, None].to(tl.int64), rank < R
    factors = tl.load(b + column[None, :] * R + rank[:, None], few[:, None] & known, 0.0)
    h += far * R + rank[None, :]
    first = height_0 * 0
    for layer in tl.static_range(LAYERS):
        last = first + (height_0 if layer == 0 else height_1 if layer == 1 else height_2)
        if (first < start + COLUMNS) & (last > start):
            own = tl.load(h, there & few[None, :], 0.0)
            inside = (column >= first) & (column < last)
            of_layer = tl.where(inside[None, :], factors, 0.0)
            found = tl.dot(own, of_layer, found, input_precision="ieee")
        h += rows.to(tl.int64) * R
        first = last
    if BIAS:
        found += tl.load(bias + column, column < width, 0.0).to(tl.float32)[None, :]
    tl.store(out + far * width + column[None, :], found.to(out.dtype.element_ty), there & known)


def added(
    left: Tensor, matrix: Tensor, h: Tensor, b: Tensor, bias: Tensor | None,
    heights: Sequence[int], tiles: Tiles,
) -> Tensor:  # fmt: skip
    """Compute L M' + bias, plus H B' of each layer in the layer's columns.

    Args:
        left: L, (n, k), contiguous, as are the others; all rows are of whole 16 bytes. Or one of
            each layer, (layers, n, k), where layers are of whole tiles.
        matrix: M, (m, k).
        h: H of each of the layers, at most `LAYERS`: (layers, n, r).
        b: B of all layers, (m, r).
        bias: (m,).
        heights: columns of each layer.
        tiles: how the product is cut.
    Returns:
        (n, m)
    """
    (rows, depth), (width, rank) = left.shape[-2:], b.shape
    out = left.new_empty(rows, width)
    _added[(triton.cdiv(rows, tiles.rows) * triton.cdiv(width, tiles.columns),)](
        TensorDescriptor.from_tensor(left.view(-1, depth), [tiles.rows, tiles.depth]),
        TensorDescriptor.from_tensor(matrix, [tiles.columns, tiles.depth]),
        h, b, out if bias is None else bias, out, rows, width, depth,
        *heights, *(LAYERS - len(heights)) * [0],
        rank, extent(rank), bias is not None, left.dim() == 3, len(heights),
        tiles.rows, tiles.columns, tiles.depth, GROUP,
        num_warps=tiles.warps, num_stages=tiles.stages,
    )  # fmt: skip
    return out
