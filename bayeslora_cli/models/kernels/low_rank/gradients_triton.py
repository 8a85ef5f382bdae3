"""Triton kernel of the gradients of an adapter's factors: both of a layer in one launch.

d(down) = to_h' x and d(up)' = h' grad are products of few rows and many terms. The terms are split
over programs, whose partial sums lie in the GPU's memory. The last program of a tile to finish adds
them, always in the same order, so that a repetition gives the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from bayeslora_cli.models.kernels.low_rank.tiles import extent

# the fastest of those measured on an H200 for layers of 768 to 3,072 columns
ROWS, COLUMNS, WARPS, STAGES = 128, 64, 4, 3
"""Rows that a program adds at a time (half in fp32), columns, warps, and steps loaded ahead."""
PROGRAMS = 264
"""Programs that fill a GPU: two per multiprocessor of an H200."""
MOST_TILES = 1024
UNROLLED = 8
"""Partial sums that are read at once."""


@triton.jit  # type: ignore[untyped-decorator]
def _share(  # type: ignore[no-untyped-def]  # noqa: ANN202
    left, right, width, first, last, tile, R: tl.constexpr, RANK: tl.constexpr,  # noqa: ANN001
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Return left' right of some rows and one tile of columns: (RANK, COLUMNS)."""
    column = tile * COLUMNS + tl.arange(0, COLUMNS)
    rank = tl.arange(0, RANK)
    found = tl.zeros((RANK, COLUMNS), tl.float32)
    for start in range(first, last, ROWS):
        row = start + tl.arange(0, ROWS)
        there, far = row[:, None] < last, row[:, None].to(tl.int64)
        value = tl.load(right + far * width + column[None, :], there & (column[None, :] < width), 0)
        by = tl.load(left + far * R + rank[None, :], there & (rank[None, :] < R), 0)
        found = tl.dot(tl.trans(by), value, found, input_precision=PRECISION)
    return found


@triton.jit  # type: ignore[untyped-decorator]
def _total(  # type: ignore[no-untyped-def]  # noqa: ANN202
    parts, place, shares, RANK: tl.constexpr, COLUMNS: tl.constexpr, UNROLLED: tl.constexpr,  # noqa: ANN001
):  # fmt: skip
    """Add a tile's partial sums, (RANK, COLUMNS) each."""
    total = tl.zeros((RANK, COLUMNS), tl.float32)
    for part in tl.range(0, shares, loop_unroll_factor=UNROLLED):
        # other programs wrote them: not from this multiprocessor's own cache
        total += tl.load(parts + part * (RANK * COLUMNS) + place, cache_modifier=".cg")
    return total


@triton.jit(do_not_specialize=["rows", "each", "shares"])  # type: ignore[untyped-decorator]
def _gradients(  # type: ignore[no-untyped-def]
    to_h, x, h, grad, to_down, to_up, parts, done, rows, width, height, tiles, each, shares,  # noqa: ANN001
    R: tl.constexpr, RANK: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    UNROLLED: tl.constexpr, PRECISION: tl.constexpr,
) -> None:  # fmt: skip
    """Add one share of the rows of one tile: the first `tiles` are x's, the others grad's."""
    tile, share = tl.program_id(0), tl.program_id(1)
    first = share * each
    last = tl.minimum(rows, first + each)
    if tile < tiles:
        found = _share(to_h, x, width, first, last, tile, R, RANK, ROWS, COLUMNS, PRECISION)
    else:
        own_tile = tile - tiles
        found = _share(h, grad, height, first, last, own_tile, R, RANK, ROWS, COLUMNS, PRECISION)
    rank, own = tl.arange(0, RANK), tl.arange(0, COLUMNS)
    place = rank[:, None] * COLUMNS + own[None, :]
    parts += tile * shares * (RANK * COLUMNS)
    tl.store(parts + share * (RANK * COLUMNS) + place, found)
    tl.debug_barrier()  # all threads have written before one of them says so
    if tl.atomic_add(done + tile, 1, sem="acq_rel") == shares - 1:
        total = _total(parts, place, shares, RANK, COLUMNS, UNROLLED)
        tl.store(done + tile, 0)
        value = total.to(to_down.dtype.element_ty)
        if tile < tiles:
            column = tile * COLUMNS + own
            inside = (rank[:, None] < R) & (column[None, :] < width)
            tl.store(to_down + rank[:, None] * width + column[None, :], value, inside)
        else:
            column = (tile - tiles) * COLUMNS + own
            inside = (rank[:, None] < R) & (column[None, :] < height)
            tl.store(to_up + rank[:, None] * height + column[None, :], value, inside)


def gradients(to_h: Tensor, x: Tensor, h: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the gradients of both factors; all operands are contiguous.

    Args:
        to_h: gradient of h, (n, r).
        x: (n, in).
        h: x down', (n, r).
        grad: gradient of y, (n, out).
    Returns:
        to_h' x, (r, in), and grad' h, (out, r), as a transposed view of contiguous (r, out).
    """
    (rows, width), (height, rank) = x.shape, (grad.shape[1], h.shape[1])
    to_down, to_up = x.new_empty(rank, width), x.new_empty(rank, height)
    tiles, others = triton.cdiv(width, COLUMNS), triton.cdiv(height, COLUMNS)
    each, shares = shares_of(rows, tiles + others)
    size = (tiles + others) * shares * extent(rank) * COLUMNS
    parts = torch.empty(size, device=x.device, dtype=torch.float32)
    _gradients[(tiles + others, shares)](
        to_h, x, h, grad, to_down, to_up, parts, _done(x.device), rows, width, height, tiles, each,
        shares, rank, extent(rank), ROWS * 2 // x.itemsize, COLUMNS, UNROLLED,
        "tf32x3" if x.itemsize == 4 else "ieee", num_warps=WARPS, num_stages=STAGES,
    )  # fmt: skip
    return to_down, to_up.t()


@triton.jit(  # type: ignore[untyped-decorator]
    do_not_specialize=["rows", "end_0", "end_1", "each", "shares"]
)
def _up_gradient(  # type: ignore[no-untyped-def]
    h, grad, to_up, parts, done, rows, width, end_0, end_1, each, shares,  # noqa: ANN001
    R: tl.constexpr, RANK: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    UNROLLED: tl.constexpr,
) -> None:  # fmt: skip
    """Add one share of the rows of one tile of columns, which lies in one layer."""
    tile, share = tl.program_id(0), tl.program_id(1)
    first = share * each
    last = tl.minimum(rows, first + each)
    layer = (tile * COLUMNS >= end_0).to(tl.int64) + (tile * COLUMNS >= end_1).to(tl.int64)
    h += layer * rows * R
    found = _share(h, grad, width, first, last, tile, R, RANK, ROWS, COLUMNS, "ieee")
    rank, own = tl.arange(0, RANK), tl.arange(0, COLUMNS)
    place = rank[:, None] * COLUMNS + own[None, :]
    parts += tile * shares * (RANK * COLUMNS)
    tl.store(parts + share * (RANK * COLUMNS) + place, found)
    tl.debug_barrier()  # all threads have written before one of them says so
    if tl.atomic_add(done + tile, 1, sem="acq_rel") == shares - 1:
        total = _total(parts, place, shares, RANK, COLUMNS, UNROLLED)
        tl.store(done + tile, 0)
        column = tile * COLUMNS + own
        inside = (rank[:, None] < R) & (column[None, :] < width)
        value = total.to(to_up.dtype.element_ty)
        tl.store(to_up + rank[:, None] * width + column[None, :], value, inside)


def up_gradient(h: Tensor, grad: Tensor, heights: Sequence[int]) -> Tensor:
    """Compute the gradient of each layer's up factor; all operands are contiguous.

    Args:
        h: of each of the layers, at most three: (layers, n, r).
        grad: gradient of the layers' outputs, side by side: (n, outputs).
        heights: outputs of each layer; of several, whole tiles of `COLUMNS`.
    Returns:
        grad' h of each layer, stacked: (outputs, r), as a transposed view of contiguous
        (r, outputs).
    """
    (_, rows, rank), width = h.shape, grad.shape[1]
    to_up, tiles = h.new_empty(rank, width), triton.cdiv(width, COLUMNS)
    each, shares = shares_of(rows, tiles)
    ends = heights[0], sum(heights[:2])
    size = tiles * shares * extent(rank) * COLUMNS
    parts = torch.empty(size, device=h.device, dtype=torch.float32)
    _up_gradient[(tiles, shares)](
        h, grad, to_up, parts, _done(h.device), rows, width, *ends, each, shares,
        rank, extent(rank), ROWS, COLUMNS, UNROLLED, num_warps=WARPS, num_stages=STAGES,
    )  # fmt: skip
    return to_up.t()


def shares_of(rows: int, tiles: int) -> tuple[int, int]:
    """Return how many rows a program adds, and how many programs a tile of columns has."""
    assert tiles <= MOST_TILES
    wanted = triton.cdiv(PROGRAMS, tiles)
    each = triton.cdiv(triton.cdiv(rows, wanted), ROWS) * ROWS
    return each, triton.cdiv(rows, each)


@cache
def _done(device: torch.device) -> Tensor:
    """Return how many programs of each tile have finished: 0 before and after every launch."""
    return torch.zeros(MOST_TILES, device=device, dtype=torch.int32)
