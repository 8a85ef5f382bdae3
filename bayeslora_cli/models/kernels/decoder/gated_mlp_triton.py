"""Triton kernels of `gated_mlp`: what lies between its large products, in one pass each.

All sums are fp32 and in a fixed order: a repetition gives the same bits. The ranks of the adapters
are padded to what the matrix units take.
"""

from __future__ import annotations

import os
from functools import cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor


class Tiles(NamedTuple):
    """How a kernel cuts the (n, f) elements of g and u.

    A warp wants 16 rows of its own: with fewer, warps compute the same products several times.
    """

    rows: int
    columns: int
    warps: int
    stages: int
    """Tiles that are loaded ahead, and the present one."""
    registers: int | None = None
    """Most registers of a thread; None: as many as the compiler likes."""


# the fastest of those in tests/benchmarks/decoder_block.py on an H200
AHEAD, BACK = Tiles(64, 64, 4, 2), Tiles(32, 32, 2, 1, 128)
PROGRAMS = 1024
"""Programs of the forward kernel that fill a GPU; more leave more parts to add up."""
TOGETHER = 8
"""Programs of the backward kernel that a multiprocessor runs at the same time, by its registers."""
A_PART = 0.25
"""Time of adding up one more part of its sums, relative to that of a block of rows."""
PIECE = 512
"""Elements of a sum that one program adds up."""
NARROWEST = 16  # the matrix units' least extent
FAST = torch.version.cuda is not None and os.environ.get("TRITON_INTERPRET") != "1"
"""Whether kernels may use NVIDIA's instructions by name."""


@triton.jit  # type: ignore[untyped-decorator]
def _sigmoid(x, FAST: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Return 1 / (1 + exp(-x)); `FAST`: in four instructions in place of twelve."""
    if FAST:
        return tl.inline_asm_elementwise(
            """{
            mul.f32 $0, $1, 0fBFB8AA3B;
            ex2.approx.ftz.f32 $0, $0;
            add.f32 $0, $0, 0f3F800000;
            rcp.approx.ftz.f32 $0, $0;
            }""",
            "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1,
        )  # fmt: skip
    return tl.sigmoid(x)


@triton.jit  # type: ignore[untyped-decorator]
def _factors_of(  # type: ignore[no-untyped-def]  # noqa: ANN202
    up, column, inner, stride_r, stride_o, SHIFT: tl.constexpr, R: tl.constexpr,  # noqa: ANN001
    RANK: tl.constexpr,
):  # fmt: skip
    """Return the tiles of up that belong to some columns of g and of u: (RANK, columns) each."""
    rank = tl.arange(0, RANK)
    inside = (rank[:, None] < R) & (column[None, :] < inner)
    places = up + rank[:, None] * stride_r + column[None, :] * stride_o
    other = places + SHIFT * stride_r + inner * stride_o
    return tl.load(places, inside, 0.0), tl.load(other, inside, 0.0)


@triton.jit  # type: ignore[untyped-decorator]
def _narrow(  # type: ignore[no-untyped-def]  # noqa: ANN202
    h, row, rows, H: tl.constexpr, SHIFT: tl.constexpr, R: tl.constexpr,  # noqa: ANN001
    RANK: tl.constexpr,
):  # fmt: skip
    """Return the tiles of h that belong to g and to u: (rows, RANK) each."""
    rank = tl.arange(0, RANK)
    inside = (row[:, None] < rows) & (rank[None, :] < R)
    places = h + row[:, None] * H + rank[None, :]
    of_gate = tl.load(places, inside, 0.0)
    of_other = of_gate
    if SHIFT > 0:
        of_other = tl.load(places + SHIFT, inside, 0.0)
    return of_gate, of_other


@triton.jit(do_not_specialize=["rows"])  # type: ignore[untyped-decorator]
def _forward(  # type: ignore[no-untyped-def]
    kept, h, up, down, product, parts,  # noqa: ANN001
    rows, inner, stride_r, stride_o, tiles,  # noqa: ANN001
    H: tl.constexpr, SHIFT: tl.constexpr, R: tl.constexpr, RANK: tl.constexpr, R2: tl.constexpr,
    RANK2: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, FAST: tl.constexpr,
) -> None:  # fmt: skip
    """Compute silu(g) * u of some rows and `tiles` tiles of columns, and their part of h_2."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    rank_2 = tl.arange(0, RANK2)
    kind = product.dtype.element_ty
    h_gate, h_other = _narrow(h, row, rows, H, SHIFT, R, RANK)
    far = row[:, None].to(tl.int64)
    sums = tl.zeros((ROWS, RANK2), tl.float32)
    for tile in range(tiles):
        column = (tl.program_id(1) * tiles + tile) * COLUMNS + tl.arange(0, COLUMNS)
        inside = (row[:, None] < rows) & (column[None, :] < inner)
        of_gate, of_other = _factors_of(up, column, inner, stride_r, stride_o, SHIFT, R, RANK)
        places = kept + far * (2 * inner) + column[None, :]
        gate = tl.load(places, inside, 0.0).to(tl.float32)
        other = tl.load(places + inner, inside, 0.0).to(tl.float32)
        gate = tl.dot(h_gate, of_gate, gate, input_precision="ieee")
        other = tl.dot(h_other, of_other, other, input_precision="ieee")
        found = (gate * _sigmoid(gate, FAST) * other).to(kind)
        tl.store(product + far * inner + column[None, :], found, inside)
        known = (rank_2[None, :] < R2) & (column[:, None] < inner)
        factors = tl.load(down + rank_2[None, :] * inner + column[:, None], known, 0.0)
        sums = tl.dot(found, factors, sums, input_precision="ieee")
    place = (tl.program_id(1) * rows + row[:, None]) * R2 + rank_2[None, :]
    tl.store(parts + place, sums, (row[:, None] < rows) & (rank_2[None, :] < R2))


@triton.jit(do_not_specialize=["rows", "blocks"])  # type: ignore[untyped-decorator]
def _backward(  # type: ignore[no-untyped-def]
    to_product, to_h_2, kept, h, up, down, to_kept, to_up, to_down,  # noqa: ANN001
    rows, inner, stride_r, stride_o, blocks,  # noqa: ANN001
    H: tl.constexpr, SHIFT: tl.constexpr, R: tl.constexpr, RANK: tl.constexpr, R2: tl.constexpr,
    RANK2: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, FAST: tl.constexpr,
) -> None:  # fmt: skip
    """Compute the gradient of [g, u] for `blocks` blocks of rows and some columns.

    Sums over those rows, the parts of the gradients of up and of down, stay in registers.
    """
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    rank, rank_2 = tl.arange(0, RANK), tl.arange(0, RANK2)
    kind = to_kept.dtype.element_ty
    known = column[None, :] < inner
    within, within_2 = (rank[:, None] < R) & known, (rank_2[:, None] < R2) & known
    factors = tl.load(down + rank_2[:, None] * inner + column[None, :], within_2, 0.0)
    of_gate, of_other = _factors_of(up, column, inner, stride_r, stride_o, SHIFT, R, RANK)
    sum_gate = tl.zeros((RANK, COLUMNS), tl.float32)
    sum_other = tl.zeros((RANK, COLUMNS), tl.float32)
    sum_down = tl.zeros((RANK2, COLUMNS), tl.float32)
    for block in range(blocks):
        row = (tl.program_id(1) * blocks + block) * ROWS + tl.arange(0, ROWS)
        there = row[:, None] < rows
        inside = there & known
        h_gate, h_other = _narrow(h, row, rows, H, SHIFT, R, RANK)
        slope = tl.load(
            to_h_2 + row[:, None] * R2 + rank_2[None, :], there & (rank_2[None, :] < R2), 0.0
        )
        far = row[:, None].to(tl.int64)
        grad = tl.load(to_product + far * inner + column[None, :], inside, 0.0).to(tl.float32)
        places = far * (2 * inner) + column[None, :]
        gate = tl.load(kept + places, inside, 0.0).to(tl.float32)
        other = tl.load(kept + places + inner, inside, 0.0).to(tl.float32)
        grad = tl.dot(slope, factors, grad, input_precision="ieee")
        gate = tl.dot(h_gate, of_gate, gate, input_precision="ieee")
        other = tl.dot(h_other, of_other, other, input_precision="ieee")
        share = _sigmoid(gate, FAST)
        silu = gate * share
        product = (silu * other).to(kind)
        to_other = (grad * silu).to(kind)
        # silu' = s + g s (1 - s)
        to_gate = (grad * other * (share + silu * (1 - share))).to(kind)
        tl.store(to_kept + places, to_gate, inside)
        tl.store(to_kept + places + inner, to_other, inside)
        sum_down = tl.dot(tl.trans(slope), product, sum_down, input_precision="ieee")
        sum_gate = tl.dot(tl.trans(h_gate), to_gate, sum_gate, input_precision="ieee")
        sum_other = tl.dot(tl.trans(h_other), to_other, sum_other, input_precision="ieee")
    place = (tl.program_id(1) * 2 * R + rank[:, None]) * inner + column[None, :]
    tl.store(to_up + place, sum_gate, within)
    tl.store(to_up + place + R * inner, sum_other, within)
    place = (tl.program_id(1) * R2 + rank_2[:, None]) * inner + column[None, :]
    tl.store(to_down + place, sum_down, within_2)


@triton.jit(do_not_specialize=["size", "chunks"])  # type: ignore[untyped-decorator]
def _total(parts, out, size, chunks, PIECE: tl.constexpr) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
    """Add up the parts (chunks, size) of a tensor."""
    place = tl.program_id(0).to(tl.int64) * PIECE + tl.arange(0, PIECE)
    found = tl.zeros((PIECE,), tl.float32)
    for chunk in range(chunks):
        found += tl.load(parts + chunk * size + place, place < size, 0.0)
    tl.store(out + place, found.to(out.dtype.element_ty), place < size)


@triton.jit(do_not_specialize=["chunks"])  # type: ignore[untyped-decorator]
def _total_up(  # type: ignore[no-untyped-def]
    parts, out, inner, chunks, SHIFT: tl.constexpr, R: tl.constexpr, PIECE: tl.constexpr,  # noqa: ANN001
) -> None:  # fmt: skip
    """Add up the parts (chunks, 2, R, f) of up's gradient into out (r, 2 f); 0 where none are."""
    rank, half = tl.program_id(0), tl.program_id(1)
    column = tl.program_id(2) * PIECE + tl.arange(0, PIECE)
    own = rank - half * SHIFT + 0 * column  # a vector, as the mask is
    inside = (column < inner) & (own >= 0) & (own < R)
    place = (half * R + own) * inner + column
    found = tl.zeros((PIECE,), tl.float32)
    for chunk in range(chunks):
        found += tl.load(parts + chunk * (2 * R * inner) + place, inside, 0.0)
    out += rank * (2 * inner) + half * inner
    tl.store(out + column, found.to(out.dtype.element_ty), column < inner)


def forward(
    kept: Tensor, h: Tensor, up: Tensor, down: Tensor, separate: int
) -> tuple[Tensor, Tensor]:
    """Compute silu(g) * u and its product with down'.

    Args:
        kept: (n, 2 f), contiguous: [g, u] without the adapter's part.
        h: (n, r), contiguous.
        up: (2 f, r), of any strides.
        down: (r_2, f), contiguous.
        separate: s: only ranks 0 to s belong to g, and s to 2 s to u; 0: all belong to both.
    Returns:
        (n, f) and (n, r_2)
    """
    (rows, both), (rank_2, inner) = kept.shape, down.shape
    product = kept.new_empty(rows, both // 2)
    blocks, columns = triton.cdiv(rows, AHEAD.rows), triton.cdiv(inner, AHEAD.columns)
    tiles = max(1, min(columns, blocks * columns // PROGRAMS))
    shares = triton.cdiv(columns, tiles)
    parts = torch.empty(shares, rows, rank_2, device=kept.device, dtype=torch.float32)
    rank = separate or h.shape[1]
    _forward[(blocks, shares)](
        kept, h, up, down, product, parts, rows, inner, up.stride(1), up.stride(0), tiles,
        h.shape[1], separate, rank, _extent(rank), rank_2, _extent(rank_2),
        AHEAD.rows, AHEAD.columns, FAST, num_warps=AHEAD.warps, num_stages=AHEAD.stages,
        maxnreg=AHEAD.registers,
    )  # fmt: skip
    return product, _sum(parts, kept.dtype)


def backward(
    to_product: Tensor, to_h_2: Tensor, kept: Tensor, h: Tensor, up: Tensor, down: Tensor,
    separate: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Compute the gradients of [g, u], of up and of down.

    Args:
        to_product: (n, f), contiguous: gradient of silu(g) * u without the adapter's part.
        to_h_2: (n, r_2), contiguous.
        kept: and the others, as in `forward`.
    Returns:
        (n, 2 f), (2 f, r) as a transposed view of contiguous (r, 2 f), and (r_2, f)
    """
    (rows, both), (rank_2, inner), rank = kept.shape, down.shape, separate or h.shape[1]
    to_kept = torch.empty_like(kept)
    blocks, columns = triton.cdiv(rows, BACK.rows), triton.cdiv(inner, BACK.columns)
    each = _each(blocks, columns, TOGETHER * _multiprocessors(kept.device))
    chunks = triton.cdiv(blocks, each)
    parts = torch.empty(chunks, 2, rank, inner, device=kept.device, dtype=torch.float32)
    parts_2 = torch.empty(chunks, rank_2, inner, device=kept.device, dtype=torch.float32)
    _backward[(columns, chunks)](
        to_product, to_h_2, kept, h, up, down, to_kept, parts, parts_2,
        rows, inner, up.stride(1), up.stride(0), each,
        h.shape[1], separate, rank, _extent(rank), rank_2, _extent(rank_2),
        BACK.rows, BACK.columns, FAST, num_warps=BACK.warps, num_stages=BACK.stages,
        maxnreg=BACK.registers,
    )  # fmt: skip
    to_up = kept.new_empty(h.shape[1], both)
    _total_up[(h.shape[1], 2, triton.cdiv(inner, PIECE))](
        parts, to_up, inner, chunks, separate, rank, PIECE
    )
    return to_kept, to_up.t(), _sum(parts_2, kept.dtype)


@cache
def _each(blocks: int, columns: int, slots: int) -> int:
    """Return how many blocks of rows a program of the backward kernel takes.

    A GPU runs `slots` programs at the same time: a few more than that take as long as twice as
    many.
    """

    def time(each: int) -> float:
        chunks = triton.cdiv(blocks, each)
        waves = triton.cdiv(columns * chunks, slots)
        return float(waves * each + A_PART * chunks)

    return min(range(1, blocks + 1), key=time)


@cache
def _multiprocessors(device: torch.device) -> int:
    if device.type != "cuda":  # an interpreter
        return 1
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def _sum(parts: Tensor, dtype: torch.dtype) -> Tensor:
    """Add up parts (chunks, ...) in fp32; return the sum in `dtype`."""
    out = parts.new_empty(parts.shape[1:], dtype=dtype)
    _total[(triton.cdiv(out.numel(), PIECE),)](parts, out, out.numel(), len(parts), PIECE)
    return out


def _extent(rank: int) -> int:
    """Return the width of a tile that holds `rank` columns."""
    return max(NARROWEST, 1 << (rank - 1).bit_length())
