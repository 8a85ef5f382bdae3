"""Triton kernels of norm(dropout(x) + residual) and of its gradients.

A program holds a few whole rows, in groups of `TOGETHER` columns, which a thread reads at once: a
call of Philox gives 4 times 32 bits, 16 for each column of a group.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

TOGETHER = 8
HELD, WARPS = 2048, 4
"""Elements that a program holds, and its warps."""
WHOLE = 2**16


@triton.jit  # type: ignore[untyped-decorator]
def _kept(seed, row, group, dropped, GROUPS: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Return whether elements are kept: (rows, GROUPS, 8).

    Args:
        row: (rows, 1, 1).
        group: (1, GROUPS, 1).
    """
    a, b, c, d = tl.randint4x(tl.load(seed), row * GROUPS + group)
    own = tl.arange(0, 8)[None, None, :]
    word = tl.where(own < 4, tl.where(own < 2, a, b), tl.where(own < 6, c, d))
    word = word.to(tl.uint32, bitcast=True)
    return ((word >> (16 * (own % 2)).to(tl.uint32)) & 0xFFFF) >= dropped


@triton.jit
def _statistics(total, inside, width, eps):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Return rows less their mean, and 1 / the standard deviation: (rows, 1, 1)."""
    mean = tl.sum(tl.sum(total, 2, keep_dims=True), 1, keep_dims=True) / width
    apart = tl.where(inside, total - mean, 0.0)
    square = tl.sum(tl.sum(apart * apart, 2, keep_dims=True), 1, keep_dims=True)
    return apart, tl.rsqrt(square / width + eps)


@triton.jit(do_not_specialize=["rows"])  # type: ignore[untyped-decorator]
def _forward(  # type: ignore[no-untyped-def]
    x, residual, weight, bias, seed, out, sum, rows, width, dropped, gain, eps,  # noqa: ANN001
    DROPS: tl.constexpr, ROWS: tl.constexpr, GROUPS: tl.constexpr,
) -> None:  # fmt: skip
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS))[:, None, None]
    group = tl.arange(0, GROUPS)[None, :, None]
    place = 8 * group + tl.arange(0, 8)[None, None, :]
    inside = (row < rows) & (place < width)
    at = row.to(tl.int64) * width + place
    value = tl.load(x + at, inside, 0.0).to(tl.float32)
    if DROPS:
        value = tl.where(_kept(seed, row, group, dropped, GROUPS), value * gain, 0.0)
    total = value + tl.load(residual + at, inside, 0.0).to(tl.float32)
    rounded = total.to(sum.dtype.element_ty)
    tl.store(sum + at, rounded, inside)
    apart, scale = _statistics(rounded.to(tl.float32), inside, width, eps)
    factor = tl.load(weight + place, place < width, 0.0).to(tl.float32)
    shift = tl.load(bias + place, place < width, 0.0).to(tl.float32)
    tl.store(out + at, (apart * scale * factor + shift).to(out.dtype.element_ty), inside)


@triton.jit(do_not_specialize=["rows"])  # type: ignore[untyped-decorator]
def _backward(  # type: ignore[no-untyped-def]
    grad, sum, weight, seed, to_residual, to_x, rows, width, dropped, gain, eps,  # noqa: ANN001
    DROPS: tl.constexpr, ROWS: tl.constexpr, GROUPS: tl.constexpr,
) -> None:  # fmt: skip
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS))[:, None, None]
    group = tl.arange(0, GROUPS)[None, :, None]
    place = 8 * group + tl.arange(0, 8)[None, None, :]
    inside = (row < rows) & (place < width)
    at = row.to(tl.int64) * width + place
    apart, scale = _statistics(tl.load(sum + at, inside, 0.0).to(tl.float32), inside, width, eps)
    unit = apart * scale
    slope = tl.load(grad + at, inside, 0.0).to(tl.float32)
    slope *= tl.load(weight + place, place < width, 0.0).to(tl.float32)
    mean = tl.sum(tl.sum(slope, 2, keep_dims=True), 1, keep_dims=True) / width
    along = tl.sum(tl.sum(slope * unit, 2, keep_dims=True), 1, keep_dims=True) / width
    found = scale * (slope - mean - unit * along)
    tl.store(to_residual + at, found.to(to_residual.dtype.element_ty), inside)
    if DROPS:
        found = tl.where(_kept(seed, row, group, dropped, GROUPS), found * gain, 0.0)
        tl.store(to_x + at, found.to(to_x.dtype.element_ty), inside)


def forward(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, seed: Tensor | None, dropout: float,
    eps: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Compute the result and dropout(x) + residual; all tensors are contiguous."""
    out, total = torch.empty_like(x), torch.empty_like(x)
    _forward[_grid(x)](
        x, residual, weight, bias, x if seed is None else seed, out, total, *_sizes(x),
        *_shares(dropout), eps, DROPS=seed is not None, **_cut(x),
    )  # fmt: skip
    return out, total


def backward(
    grad: Tensor, total: Tensor, weight: Tensor, seed: Tensor | None, dropout: float, eps: float
) -> tuple[Tensor, Tensor]:
    """Compute the gradients of the residual and of x (empty without dropout)."""
    to_residual = torch.empty_like(total)
    to_x = total.new_empty(0) if seed is None else torch.empty_like(total)
    _backward[_grid(total)](
        grad, total, weight, total if seed is None else seed, to_residual, to_x, *_sizes(total),
        *_shares(dropout), eps, DROPS=seed is not None, **_cut(total),
    )  # fmt: skip
    return to_residual, to_x


def _sizes(x: Tensor) -> tuple[int, int]:
    return x.numel() // x.shape[-1], x.shape[-1]


def _cut(x: Tensor) -> dict[str, object]:
    """Return how many rows a program holds, of how many groups, and its warps."""
    groups = triton.next_power_of_2(triton.cdiv(x.shape[-1], TOGETHER))
    rows = max(1, HELD // (TOGETHER * groups))
    return {"ROWS": rows, "GROUPS": groups, "num_warps": WARPS}


def _grid(x: Tensor) -> tuple[int]:
    rows = _cut(x)["ROWS"]
    assert isinstance(rows, int)
    return (triton.cdiv(_sizes(x)[0], rows),)


def _shares(dropout: float) -> tuple[int, float]:
    """Return how many of 2^16 numbers drop an element, and the factor of those that stay."""
    dropped = round(dropout * WHOLE)
    return dropped, WHOLE / max(1, WHOLE - dropped)
