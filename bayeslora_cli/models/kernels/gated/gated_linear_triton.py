"""Triton kernels of `gated_linear`: the forward one, x to h, and that of p's gradient.

p = Qx(x) a', h = Qh(Qa(p) * e), each rounded to x's type where torch would round, for up to
`LAYERS` layers that see the same x. Neither Qx(x) nor its gradient is ever written to the GPU's
memory. No product uses TF32, and every repetition adds the same parts in the same order, here and
in `gated_input_triton`.
"""

from __future__ import annotations

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


LAYERS = 3
"""Most layers that a call computes."""
OF_ALL = ["e", *(f"{what}_{operand}" for what in ("learned", "constants") for operand in "xah")]
"""Arguments that are rows of larger tensors: their alignment must not specialise the kernel."""


@triton.jit  # type: ignore[untyped-decorator]
def _through(p, e, learned_a, constants_a, constants_h, kind: tl.constexpr, L: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Return p clipped to Qa's range, Qa(p), h before its quantizer, and h clipped to its range."""
    p_in = clipped(p, constants_a)
    a = mixed(p_in, learned_a, constants_a, L).to(kind).to(tl.float32)
    h = (a * e).to(kind).to(tl.float32)
    return p_in, a, h, clipped(h, constants_h)


@triton.jit(do_not_specialize=["rows"], do_not_specialize_on_alignment=OF_ALL)  # type: ignore[untyped-decorator]
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


@triton.jit
def _both(a, b, more_a, more_b):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Add two sums at a time."""
    return a + more_a, b + more_b


@triton.jit
def _sums(a, b):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Return the sums of two tiles, which the threads exchange together."""
    size: tl.constexpr = a.shape[0] * a.shape[1]
    return tl.reduce((tl.reshape(a, (size,)), tl.reshape(b, (size,))), 0, _both)


@triton.jit(do_not_specialize=["rows"], do_not_specialize_on_alignment=OF_ALL)  # type: ignore[untyped-decorator]
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
    # nothing is stored before all is computed: no load has to wait for a store
    of_a, of_h = _sums(to_p * p_in, to_h * h_in)
    all_a, all_h = (of_a,), (of_h,)
    for n in tl.static_range(L):
        of_a, of_h = _sums(code(p_in, constants_a, n) * to_a, code(h_in, constants_h, n) * slope)
        all_a += (of_a,)  # type: ignore[assignment]
        all_h += (of_h,)  # type: ignore[assignment]
    of_e = tl.sum(to_h * a, 0)
    tl.store(of_p + places, to_p.to(kind), inside)
    sums += (layer * tl.num_programs(0) + tl.program_id(0)) * (2 * (1 + L) + R)
    for n in tl.static_range(1 + L):
        tl.store(sums + n, all_a[n])
        tl.store(sums + 1 + L + n, all_h[n])
    tl.store(sums + 2 * (1 + L) + column, of_e, column < R)


def columns_of(rank: int) -> int:
    """Return the columns of a tile that holds all ranks, at least 16 for the matrix units."""
    columns: int = max(16, triton.next_power_of_2(rank))
    return columns


def _cut(strips: Strips, rank: int, itemsize: int) -> dict[str, int]:
    """Return what a kernel is told of how it reads rows of a type."""
    columns = columns_of(rank)
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
        x, a.contiguous(), e.contiguous(), *plain(of_x), *plain(of_a), *plain(of_h), p, h,
        p if kept is None else kept, rows, width, R=rank, L=of_a.learned.shape[-1] - 1,
        KEEP=kept is not None, enable_fp_fusion=False, **_cut(FORWARD, rank, x.itemsize),
    )  # fmt: skip
    return p, h


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
        grad, b.contiguous(), p, e.contiguous(), *plain(of_a), constants_h.contiguous(), to_p,
        sums, rows, *heights, *(LAYERS - layers) * [0], R=rank, L=widths,
        enable_fp_fusion=False, **_cut(TO_P, rank, p.itemsize),
    )  # fmt: skip
    return to_p, sums


def plain(by: Quantizers) -> tuple[Tensor, Tensor]:
    """Return a quantizer per layer as rows without gaps, which the kernels count on."""
    return by.learned.contiguous(), by.constants.contiguous()
