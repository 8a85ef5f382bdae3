"""Triton kernels of `gated_linear`: the gradient of x, and those that are added up with it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from bayeslora_cli.models.kernels.gated.gated_linear_triton import (
    OF_ALL,
    back_to_p,
    columns_of,
    plain,
)
from bayeslora_cli.models.kernels.quantize import Quantizers
from bayeslora_cli.models.kernels.quantize_triton import rounded, steps_of


class Tiles(NamedTuple):
    """How `_back_to_x` cuts x."""

    rows: int
    columns: int
    warps: int
    programs: int
    """Programs that fill a GPU, where there are rows enough; more leave more parts to add up."""
    stages: int = 1
    """Tiles that are loaded ahead, and the present one."""


BACK = Tiles(16, 16, 1, 2112)
"""The fastest of those that tests/benchmarks/gated_layer.py times: one warp waits for no other."""
CHUNKS, CHUNK = 32, 128
"""Least number of parts into which the rows are split, and least rows of the further ones; the
parts' gradients of a are added last."""
READ = 2048
"""Partial sums that are read at once."""
PIECE = 256
"""Elements of a's gradient that one program adds up."""
FAST = torch.version.cuda is not None and os.environ.get("TRITON_INTERPRET") != "1"
"""Whether kernels may use NVIDIA's instructions by name."""
_COUNTS = ["rows", "chunk", "chunks", "count_x", "count_w", "count_p"]
"""Sizes that change with the batch or from layer to layer, which must not specialise a kernel."""


@triton.jit  # type: ignore[untyped-decorator]
def _once(x, FAST: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Return x; `FAST`: the compiler cannot look through it.

    Otherwise it computes all codes a second time, in the layout that a product takes, where moving
    x is a tenth of the work.
    """
    if FAST:
        return tl.inline_asm_elementwise(
            "mov.b32 $0, $1;", "=r,r", [x], dtype=tl.float32, is_pure=False, pack=1
        )
    return x


@triton.jit(do_not_specialize=_COUNTS, do_not_specialize_on_alignment=OF_ALL)  # type: ignore[untyped-decorator]
def _back_to_x(  # type: ignore[no-untyped-def]
    x, of_p, slopes, a, learned_x, constants_x, of_x, parts_a, sums,  # noqa: ANN001
    rows, width, chunk, R: tl.constexpr, L: tl.constexpr, LAYERS: tl.constexpr,  # noqa: ANN001
    TALL: tl.constexpr, WIDE: tl.constexpr, COLUMNS: tl.constexpr, FAST: tl.constexpr,
    GIVEN: tl.constexpr,
) -> None:  # fmt: skip
    """Compute x's gradient for a chunk of rows and some columns, added up over the layers, and
    their part of each a's gradient and of each Qx's sums.

    `GIVEN`: the gradients of Qx(x) are read from `slopes`; else they are those of p times a.
    """
    k = tl.program_id(0) * WIDE + tl.arange(0, WIDE)
    column = tl.arange(0, COLUMNS)
    kind = of_x.dtype.element_ty
    within = (column[:, None] < R) & (k[None, :] < width)
    first = tl.program_id(1) * chunk
    sums += (tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)) * (1 + L)
    parts_a += tl.program_id(1).to(tl.int64) * R * width
    for layer in range(LAYERS):
        tl.debug_barrier()  # other threads may have written what this one reads of of_x
        low, high = tl.load(constants_x), tl.load(constants_x + 1)
        steps, inverses, factors = steps_of(learned_x, constants_x, L)
        down = tl.load(a + column[:, None] * width + k[None, :], within, 0.0)
        of_a = tl.zeros((COLUMNS, WIDE), tl.float32)
        of_learned = (tl.zeros((TALL, WIDE), tl.float32),) * (1 + L)
        for start in range(first, first + chunk, TALL):
            row = (start + tl.arange(0, TALL)).to(tl.int64)
            own = (row[:, None] < rows) & (column[None, :] < R)
            to_p = tl.load(of_p + row[:, None] * R + column[None, :], own, 0.0)
            inside = (row[:, None] < rows) & (k[None, :] < width)
            place = row[:, None] * width + k[None, :]
            if GIVEN:
                slope = tl.load(slopes + place, inside, 0.0).to(tl.float32)
            else:
                slope = tl.dot(to_p, down, input_precision="ieee").to(kind).to(tl.float32)
            value = tl.load(x + place, inside, 0.0).to(tl.float32)
            value_in = tl.clamp(value, low, high, propagate_nan=tl.PropagateNan.ALL)
            passed = slope * (value_in == value).to(tl.float32)
            before = tl.load(of_x + place, inside & (layer > 0), 0.0).to(tl.float32)
            tl.store(of_x + place, (passed + before).to(kind), inside)
            more = (of_learned[0] + passed * value_in,)
            taken = tl.zeros((TALL, WIDE), tl.float32)
            for n in tl.static_range(L):
                own_code = _once(rounded(value_in, steps[n], inverses[n]), FAST)
                taken += own_code * factors[n]
                more += (of_learned[1 + n] + own_code * slope,)  # type: ignore[assignment]
            of_learned = more
            of_a = tl.dot(tl.trans(to_p), taken.to(kind), of_a, input_precision="ieee")
        tl.store(parts_a + column[:, None] * width + k[None, :], of_a, within)
        for n in tl.static_range(1 + L):
            tl.store(sums + n, tl.sum(of_learned[n]))
        of_p += rows.to(tl.int64) * R
        slopes += rows.to(tl.int64) * width
        a += R * width
        learned_x += 1 + L
        constants_x += 2 + L
        parts_a += tl.num_programs(1).to(tl.int64) * R * width
        sums += tl.num_programs(0) * tl.num_programs(1) * (1 + L)


@triton.jit  # type: ignore[untyped-decorator]
def _add(parts, count, size, place, PARTS: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Add `count` rows of `size` numbers, at the columns `place`."""
    found = tl.zeros((PARTS, place.shape[0]), tl.float32)
    for start in range(0, count, PARTS):
        row = start + tl.arange(0, PARTS)
        inside = (row[:, None] < count) & (place[None, :] < size)
        found += tl.load(parts + row[:, None] * size + place[None, :], inside, 0.0)
    return tl.sum(found, 0)


@triton.jit(do_not_specialize=_COUNTS)  # type: ignore[untyped-decorator]
def _finish(  # type: ignore[no-untyped-def]
    parts_a, sums_x, sums_w, sums_p, of_a, of_x, of_w, of_rest,  # noqa: ANN001
    chunks, size_a, count_x, count_w, size_x, count_p, size_p,  # noqa: ANN001
    CHUNKS: tl.constexpr, PIECE: tl.constexpr, PARTS: tl.constexpr, COLUMNS: tl.constexpr,
    PARTS_X: tl.constexpr, COLUMNS_X: tl.constexpr, WEIGHTS: tl.constexpr,
) -> None:  # fmt: skip
    """Add all partial sums of a layer: the first programs those of a's gradient, the last two, or
    three with `WEIGHTS`, the others."""
    last = tl.num_programs(0) - 1
    layer = tl.program_id(1).to(tl.int64)
    parts_a += layer * chunks * size_a
    of_a += layer * size_a
    sums_x += layer * count_x * size_x
    of_x += layer * size_x
    sums_w += layer * count_w * size_x
    of_w += layer * size_x
    sums_p += layer * count_p * size_p
    of_rest += layer * size_p
    if tl.program_id(0) < last - 1 - WEIGHTS:
        piece = tl.program_id(0) * PIECE + tl.arange(0, PIECE)
        found = _add(parts_a, chunks, size_a, piece, CHUNKS)
        tl.store(of_a + piece, found.to(of_a.dtype.element_ty), piece < size_a)
    else:
        own = tl.arange(0, COLUMNS_X)
        if tl.program_id(0) == last:
            place = tl.arange(0, COLUMNS)
            tl.store(of_rest + place, _add(sums_p, count_p, size_p, place, PARTS), place < size_p)
        else:
            if tl.program_id(0) == last - 1:
                tl.store(of_x + own, _add(sums_x, count_x, size_x, own, PARTS_X), own < size_x)
            else:
                tl.store(of_w + own, _add(sums_w, count_w, size_x, own, PARTS_X), own < size_x)


def backward(
    grad: Tensor, heights: Sequence[int], x: Tensor, p: Tensor, a: Tensor, e: Tensor, b: Tensor,
    of_x: Quantizers, of_a: Quantizers, constants_h: Tensor, tiles: Tiles = BACK,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Compute the gradients through h b' of m layers: of x, of Qx (m, 1 + L), of a, and of Qa, Qh
    and e in one tensor (m, 2 (1 + L) + r).

    Args:
        grad: gradient of the layers' h b', side by side: (n, outputs).
        heights: outputs of each layer.
        b: the layers' b, stacked: (outputs, r).
    """
    to_p, sums_p = back_to_p(grad, heights, p, e, b, of_a, constants_h)
    return back_to_x(x, to_p, sums_p, a, of_x, tiles=tiles)[:4]


def back_to_x(
    x: Tensor, to_p: Tensor, sums_p: Tensor, a: Tensor, of_x: Quantizers,
    slopes: Tensor | None = None, sums_w: Tensor | None = None, tiles: Tiles = BACK,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Compute what `backward` returns, from what `back_to_p` returns.

    Args:
        slopes: gradients of Qx(x) of each layer, (m, n, in); None: p's gradient times a.
        sums_w: partial sums of the gradients of Qw of each layer, (m, parts, 1 + L).
    Returns:
        Last the gradients of Qw, (m, 1 + L); without `sums_w` nothing is in them.
    """
    (rows, width), (layers, rank) = x.shape, a.shape[:2]
    widths, columns = of_x.learned.shape[-1] - 1, columns_of(rank)
    a = a.contiguous()

    def empty(*shape: int) -> Tensor:
        return torch.empty(shape, device=x.device)

    wide = max(16, min(tiles.columns, tiles.columns * 64 // columns))  # narrower above 64 ranks
    across = triton.cdiv(width, wide)
    parts = max(CHUNKS, min(triton.cdiv(tiles.programs, across), rows // CHUNK))
    chunk = tiles.rows * max(1, triton.cdiv(rows, tiles.rows * parts))
    grid = across, triton.cdiv(rows, chunk)
    to_x, parts_a = torch.empty_like(x), empty(layers, grid[1], rank * width)
    sums_x = empty(layers, grid[0] * grid[1], 1 + widths)
    _back_to_x[grid](
        x, to_p, to_p if slopes is None else slopes, a, *plain(of_x), to_x, parts_a, sums_x,
        rows, width, chunk, R=rank, L=widths, LAYERS=layers, TALL=tiles.rows, WIDE=wide,
        COLUMNS=columns, FAST=FAST, GIVEN=slopes is not None, num_stages=tiles.stages,
        num_warps=tiles.warps, enable_fp_fusion=False,
    )  # fmt: skip
    programs, rest = sums_p.shape[1:]
    found_a, found = torch.empty_like(a), empty(layers, rest)
    found_x, found_w = empty(layers, 1 + widths), empty(layers, 1 + widths)
    weights = sums_w is not None
    together, of_sums = (triton.next_power_of_2(size) for size in (rest, 1 + widths))
    _finish[(triton.cdiv(rank * width, PIECE) + 2 + weights, layers)](
        parts_a, sums_x, sums_x if sums_w is None else sums_w, sums_p,
        found_a, found_x, found_w, found, grid[1], rank * width, sums_x.shape[1],
        0 if sums_w is None else sums_w.shape[1], 1 + widths, programs, rest,
        CHUNKS=CHUNKS, PIECE=PIECE, PARTS=max(8, READ // together), COLUMNS=together,
        PARTS_X=READ // of_sums, COLUMNS_X=of_sums, WEIGHTS=weights,
    )  # fmt: skip
    return to_x, found_x, found_a, found, found_w
