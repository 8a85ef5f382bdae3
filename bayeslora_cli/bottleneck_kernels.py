"""What happens to B-LoRA's ranks between its two products, as one Triton kernel each way.

h = Qh(Qa(p) * E) for p (n, r), rounded to p's type where torch would round.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from bayeslora_cli.quantizer import Quantizers
from bayeslora_cli.quantizer_kernels import WARPS, clipped, code, mixed

BLOCK = 2048
"""Elements of a program, those that fill up its columns included."""


@triton.jit  # type: ignore[untyped-decorator]
def _forward(  # type: ignore[no-untyped-def]
    p, e, learned_a, constants_a, learned_h, constants_h, out,  # noqa: ANN001
    rows, R: tl.constexpr, L: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,  # noqa: ANN001
) -> None:  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, COLUMNS)[None, :]
    places, inside = row * R + column, (row < rows) & (column < R)
    kind = out.dtype.element_ty
    value = tl.load(p + places, inside, 0.0).to(tl.float32)
    by = tl.load(e + column, column < R, 0.0).to(kind).to(tl.float32)
    a = mixed(clipped(value, constants_a), learned_a, constants_a, L).to(kind).to(tl.float32)
    h = (a * by).to(kind).to(tl.float32)
    found = mixed(clipped(h, constants_h), learned_h, constants_h, L)
    tl.store(out + places, found.to(kind), inside)


@triton.jit  # type: ignore[untyped-decorator]
def _backward(  # type: ignore[no-untyped-def]
    p, grad, e, learned_a, constants_a, constants_h, of_p, sums,  # noqa: ANN001
    rows, R: tl.constexpr, L: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,  # noqa: ANN001
) -> None:  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, COLUMNS)[None, :]
    places, inside = row * R + column, (row < rows) & (column < R)
    sums += tl.program_id(0) * (2 * (1 + L) + R)
    kind = of_p.dtype.element_ty
    value = tl.load(p + places, inside, 0.0).to(tl.float32)
    slope = tl.load(grad + places, inside, 0.0).to(tl.float32)
    by = tl.load(e + column, column < R, 0.0).to(kind).to(tl.float32)
    value_in = clipped(value, constants_a)
    a = mixed(value_in, learned_a, constants_a, L).to(kind).to(tl.float32)
    h = (a * by).to(kind).to(tl.float32)
    h_in = clipped(h, constants_h)
    to_h = slope * (h_in == h).to(tl.float32)
    to_a = (to_h * by).to(kind).to(tl.float32)
    to_p = to_a * (value_in == value).to(tl.float32)
    tl.store(of_p + places, to_p.to(kind), inside)
    tl.store(sums, tl.sum(to_p * value))
    tl.store(sums + 1 + L, tl.sum(to_h * h))
    for n in tl.static_range(L):
        tl.store(sums + 1 + n, tl.sum(code(value_in, constants_a, n) * to_a))
        tl.store(sums + 2 + L + n, tl.sum(code(h_in, constants_h, n) * slope))
    of_e = tl.sum(to_h * a, 0)
    column = tl.arange(0, COLUMNS)
    tl.store(sums + 2 * (1 + L) + column, of_e, column < R)


def _tiles(p: Tensor) -> tuple[int, int, int]:
    """Programs, and the rows and columns of each one's tile."""
    columns = triton.next_power_of_2(p.shape[1])
    rows = max(1, BLOCK // columns)
    return triton.cdiv(p.shape[0], rows), rows, columns


def forward(p: Tensor, e: Tensor, of_a: Quantizers, of_h: Quantizers) -> Tensor:
    """h (n, r), as p."""
    out = torch.empty_like(p)
    programs, rows, columns = _tiles(p)
    _forward[(programs,)](
        p, e, *of_a, *of_h, out, p.shape[0],
        R=p.shape[1], L=of_a.learned.shape[-1] - 1, ROWS=rows, COLUMNS=columns,
        num_warps=WARPS, enable_fp_fusion=False,
    )  # fmt: skip
    return out


def backward(
    p: Tensor, grad: Tensor, e: Tensor, of_a: Quantizers, constants_h: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of p, and in one row (2 (1 + L) + r,) of Qa's, of Qh's and of E.

    The sums are made block by block and then over blocks: the same bits at every repetition.
    """
    of_p, widths = torch.empty_like(p), of_a.learned.shape[-1] - 1
    programs, rows, columns = _tiles(p)
    sums = torch.empty(programs, 2 * (1 + widths) + p.shape[1], device=p.device)
    _backward[(programs,)](
        p, grad, e, *of_a, constants_h, of_p, sums, p.shape[0],
        R=p.shape[1], L=widths, ROWS=rows, COLUMNS=columns,
        num_warps=WARPS, enable_fp_fusion=False,
    )  # fmt: skip
    return of_p, sums.sum(0)
