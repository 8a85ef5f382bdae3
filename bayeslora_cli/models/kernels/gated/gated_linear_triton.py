"""Triton kernels of `gated_linear`: one forward kernel (x to h), three backward kernels.

p = Qx(x) a', h = Qh(Qa(p) * e), each rounded to x's type where torch would round, for up to
`LAYERS` layers that see the same x. Neither Qx(x) nor its gradient is ever written to the GPU's
memory. No product uses TF32, and every repetition adds the same parts in the same order.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from bayeslora_cli.models.kernels.quantize import Quantizers
from bayeslora_cli.models.kernels.quantize_triton import clipped, code, mixed, rounded, steps_of

ROWS = 16
"""Rows of x and h in a tile of the narrow products."""
AREA = 8192
"""Most elements in the tile of a or b."""


class Strips(NamedTuple):
    """How `_forward` and `_back_to_p` read rows."""

    depth: int
    """Most elements of a row read at once, of 2 bytes; half as many of 4."""
    warps: int
    stages: int


# few programs run at a time, so that each must have much to read and many threads
FORWARD, TO_P = Strips(256, 8, 3), Strips(256, 4, 4)


class Tiles(NamedTuple):
    """How `_back_to_x` cuts x, where no tile is loaded ahead."""

    rows: int
    columns: int
    warps: int
    programs: int
    """Programs that fill a GPU, where there are rows enough; more leave more parts to add up."""


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
LAYERS = 3
"""Most layers that a call computes."""
_OF_ALL = ["e", *(f"{what}_{operand}" for what in ("learned", "constants") for operand in "xah")]
"""Arguments that are rows of larger tensors: their alignment must not specialise the kernel."""
_COUNTS = ["rows", "chunk", "chunks", "count_x", "count_p"]
"""Sizes that change with the batch or from layer to layer, which must not specialise it either."""


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


@triton.jit  # type: ignore[untyped-decorator]
def _through(p, e, learned_a, constants_a, constants_h, kind: tl.constexpr, L: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Return p clipped to Qa's range, Qa(p), h before its quantizer, and h clipped to its range."""
    p_in = clipped(p, constants_a)
    a = mixed(p_in, learned_a, constants_a, L).to(kind).to(tl.float32)
    h = (a * e).to(kind).to(tl.float32)
    return p_in, a, h, clipped(h, constants_h)


@triton.jit(do_not_specialize=_COUNTS, do_not_specialize_on_alignment=_OF_ALL)  # type: ignore[untyped-decorator]
def _forward(  # type: ignore[no-untyped-def]
    x, a, e, learned_x, constants_x, learned_a, constants_a, learned_h, constants_h, p, h,  # noqa: ANN001
    kept, rows, width, R: tl.constexpr, L: tl.constexpr,  # noqa: ANN001
    ROWS: tl.constexpr, DEPTH: tl.constexpr, COLUMNS: tl.constexpr, KEEP: tl.constexpr,
) -> None:  # fmt: skip
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    column = tl.arange(0, COLUMNS)
    kind = p.dtype.element_ty
    layer = tl.program_id(1).to(tl.int64)
    a += layer * R * width
    e += layer * R
    learned_x += layer * (1 + L)
    learned_a += layer * (1 + L)
    learned_h += layer * (1 + L)
    constants_x += layer * (2 + L)
    constants_a += layer * (2 + L)
    constants_h += layer * (2 + L)
    p += layer * rows * R
    h += layer * rows * R
    kept += layer * rows * width
    found = tl.zeros((ROWS, COLUMNS), tl.float32)
    low, high = tl.load(constants_x), tl.load(constants_x + 1)
    steps, inverses, factors = steps_of(learned_x, constants_x, L)
    for start in range(0, width, DEPTH):
        k = start + tl.arange(0, DEPTH)
        inside = (row[:, None] < rows) & (k[None, :] < width)
        place = row[:, None] * width + k[None, :]
        value = tl.load(x + place, inside, 0.0).to(tl.float32)
        value_in = tl.clamp(value, low, high, propagate_nan=tl.PropagateNan.ALL)
        mix = tl.zeros((ROWS, DEPTH), tl.float32)
        for n in tl.static_range(L):
            mix += rounded(value_in, steps[n], inverses[n]) * factors[n]
        taken = mix.to(kind)
        if KEEP:
            tl.store(kept + place, taken, inside)
        inside = (column[None, :] < R) & (k[:, None] < width)
        down = tl.load(a + column[None, :] * width + k[:, None], inside, 0.0)
        found = tl.dot(taken, down, found, input_precision="ieee")
    inside = (row[:, None] < rows) & (column[None, :] < R)
    places = row[:, None] * R + column[None, :]
    found = found.to(kind)
    tl.store(p + places, found, inside)
    by = tl.load(e + column, column < R, 0.0).to(kind).to(tl.float32)[None, :]
    _, _, _, h_in = _through(found.to(tl.float32), by, learned_a, constants_a, constants_h, kind, L)
    tl.store(h + places, mixed(h_in, learned_h, constants_h, L).to(kind), inside)


@triton.jit(do_not_specialize=_COUNTS, do_not_specialize_on_alignment=_OF_ALL)  # type: ignore[untyped-decorator]
def _back_to_p(  # type: ignore[no-untyped-def]
    grad, b, p, e, learned_a, constants_a, constants_h, of_p, sums,  # noqa: ANN001
    rows, height_0, height_1, height_2, R: tl.constexpr, L: tl.constexpr,  # noqa: ANN001
    ROWS: tl.constexpr, DEPTH: tl.constexpr, COLUMNS: tl.constexpr,
) -> None:  # fmt: skip
    """Compute the gradient of p; sums: those of Qa's range and factors, of Qh's, of each e."""
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    column = tl.arange(0, COLUMNS)
    kind = of_p.dtype.element_ty
    layer = tl.program_id(1).to(tl.int64)
    stride = height_0 + height_1 + height_2
    height, first = height_0, height_0 * 0
    if layer == 1:
        height, first = height_1, height_0
    if layer == 2:
        height, first = height_2, height_0 + height_1
    grad += first
    b += first * R
    e += layer * R
    learned_a += layer * (1 + L)
    constants_a += layer * (2 + L)
    constants_h += layer * (2 + L)
    p += layer * rows * R
    of_p += layer * rows * R
    slope = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, height, DEPTH):
        k = start + tl.arange(0, DEPTH)
        inside = (row[:, None] < rows) & (k[None, :] < height)
        value = tl.load(grad + row[:, None] * stride + k[None, :], inside, 0.0)
        inside = (column[None, :] < R) & (k[:, None] < height)
        up = tl.load(b + k[:, None] * R + column[None, :], inside, 0.0)
        slope = tl.dot(value, up, slope, input_precision="ieee")
    slope = slope.to(kind).to(tl.float32)
    inside = (row[:, None] < rows) & (column[None, :] < R)
    places = row[:, None] * R + column[None, :]
    by = tl.load(e + column, column < R, 0.0).to(kind).to(tl.float32)[None, :]
    value = tl.load(p + places, inside, 0.0).to(tl.float32)
    p_in, a, h, h_in = _through(value, by, learned_a, constants_a, constants_h, kind, L)
    to_h = slope * (h_in == h).to(tl.float32)
    to_a = (to_h * by).to(kind).to(tl.float32)
    to_p = to_a * (p_in == value).to(tl.float32)
    tl.store(of_p + places, to_p.to(kind), inside)
    sums += (layer * tl.num_programs(0) + tl.program_id(0)) * (2 * (1 + L) + R)
    tl.store(sums, tl.sum(to_p * p_in))
    tl.store(sums + 1 + L, tl.sum(to_h * h_in))
    for n in tl.static_range(L):
        tl.store(sums + 1 + n, tl.sum(code(p_in, constants_a, n) * to_a))
        tl.store(sums + 2 + L + n, tl.sum(code(h_in, constants_h, n) * slope))
    tl.store(sums + 2 * (1 + L) + column, tl.sum(to_h * a, 0), column < R)


@triton.jit(do_not_specialize=_COUNTS, do_not_specialize_on_alignment=_OF_ALL)  # type: ignore[untyped-decorator]
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
    parts_a, sums_x, sums_p, of_a, of_x, of_rest,  # noqa: ANN001
    chunks, size_a, count_x, size_x, count_p, size_p,  # noqa: ANN001
    CHUNKS: tl.constexpr, PIECE: tl.constexpr, PARTS: tl.constexpr, COLUMNS: tl.constexpr,
    PARTS_X: tl.constexpr, COLUMNS_X: tl.constexpr,
) -> None:  # fmt: skip
    """Add all partial sums of a layer: the first programs those of a's gradient, the last two the
    others."""
    last = tl.num_programs(0) - 1
    layer = tl.program_id(1).to(tl.int64)
    parts_a += layer * chunks * size_a
    of_a += layer * size_a
    sums_x += layer * count_x * size_x
    of_x += layer * size_x
    sums_p += layer * count_p * size_p
    of_rest += layer * size_p
    if tl.program_id(0) < last - 1:
        piece = tl.program_id(0) * PIECE + tl.arange(0, PIECE)
        found = _add(parts_a, chunks, size_a, piece, CHUNKS)
        tl.store(of_a + piece, found.to(of_a.dtype.element_ty), piece < size_a)
    else:
        if tl.program_id(0) < last:
            own = tl.arange(0, COLUMNS_X)
            tl.store(of_x + own, _add(sums_x, count_x, size_x, own, PARTS_X), own < size_x)
        else:
            place = tl.arange(0, COLUMNS)
            tl.store(of_rest + place, _add(sums_p, count_p, size_p, place, PARTS), place < size_p)


def _columns(rank: int) -> int:
    """Return the columns of a tile that holds all ranks, at least 16 for the matrix units."""
    columns: int = max(16, triton.next_power_of_2(rank))
    return columns


def _cut(strips: Strips, rank: int, itemsize: int) -> dict[str, int]:
    """Return what a kernel is told of how it reads rows of a type."""
    columns = _columns(rank)
    depth = max(16, min(strips.depth * 2 // itemsize, AREA // columns))
    found = {"ROWS": ROWS, "DEPTH": depth, "COLUMNS": columns}
    return found | {"num_warps": strips.warps, "num_stages": strips.stages}


def forward(
    x: Tensor, a: Tensor, e: Tensor, of_x: Quantizers, of_a: Quantizers, of_h: Quantizers,
    kept: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Compute p and h (m, n, r) of m layers from x (n, in), a (m, r, in) and e (m, r).

    Args:
        kept: gets Qx(x) of each layer, (m, n, in), contiguous.
    """
    (rows, width), (layers, rank) = x.shape, e.shape
    p, h = (torch.empty(layers, rows, rank, dtype=x.dtype, device=x.device) for _ in range(2))
    _forward[(triton.cdiv(rows, ROWS), layers)](
        x, a.contiguous(), e.contiguous(), *_plain(of_x), *_plain(of_a), *_plain(of_h), p, h,
        p if kept is None else kept, rows, width, R=rank, L=of_a.learned.shape[-1] - 1,
        KEEP=kept is not None, enable_fp_fusion=False, **_cut(FORWARD, rank, x.itemsize),
    )  # fmt: skip
    return p, h


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
    return back_to_x(x, to_p, sums_p, a, of_x, tiles=tiles)


def back_to_p(
    grad: Tensor, heights: Sequence[int], p: Tensor, e: Tensor, b: Tensor, of_a: Quantizers,
    constants_h: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Compute p's gradient (m, n, r), and partial sums of those of Qa, Qh and e."""
    layers, rows, rank = p.shape
    widths, programs = of_a.learned.shape[-1] - 1, triton.cdiv(rows, ROWS)
    to_p = torch.empty_like(p)
    sums = torch.empty(layers, programs, 2 * (1 + widths) + rank, device=p.device)
    _back_to_p[(programs, layers)](
        grad, b.contiguous(), p, e.contiguous(), *_plain(of_a), constants_h.contiguous(), to_p,
        sums, rows, *heights, *(LAYERS - layers) * [0], R=rank, L=widths,
        enable_fp_fusion=False, **_cut(TO_P, rank, p.itemsize),
    )  # fmt: skip
    return to_p, sums


def back_to_x(
    x: Tensor, to_p: Tensor, sums_p: Tensor, a: Tensor, of_x: Quantizers,
    slopes: Tensor | None = None, tiles: Tiles = BACK,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Compute what `backward` returns, from what `back_to_p` returns.

    Args:
        slopes: gradients of Qx(x) of each layer, (m, n, in); None: p's gradient times a.
    """
    (rows, width), (layers, rank) = x.shape, a.shape[:2]
    widths, columns = of_x.learned.shape[-1] - 1, _columns(rank)
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
        x, to_p, to_p if slopes is None else slopes, a, *_plain(of_x), to_x, parts_a, sums_x,
        rows, width, chunk, R=rank, L=widths, LAYERS=layers, TALL=tiles.rows, WIDE=wide,
        COLUMNS=columns, FAST=FAST, GIVEN=slopes is not None, num_stages=1, num_warps=tiles.warps,
        enable_fp_fusion=False,
    )  # fmt: skip
    programs, rest = sums_p.shape[1:]
    found_a, found_x, found = torch.empty_like(a), empty(layers, 1 + widths), empty(layers, rest)
    together, of_sums = (triton.next_power_of_2(size) for size in (rest, 1 + widths))
    _finish[(triton.cdiv(rank * width, PIECE) + 2, layers)](
        parts_a, sums_x, sums_p, found_a, found_x, found,
        grid[1], rank * width, sums_x.shape[1], 1 + widths, programs, rest,
        CHUNKS=CHUNKS, PIECE=PIECE, PARTS=max(8, READ // together), COLUMNS=together,
        PARTS_X=READ // of_sums, COLUMNS_X=of_sums,
    )  # fmt: skip
    return to_x, found_x, found_a, found


def _plain(by: Quantizers) -> tuple[Tensor, Tensor]:
    """Return a quantizer per layer as rows without gaps, which the kernels count on."""
    return by.learned.contiguous(), by.constants.contiguous()
