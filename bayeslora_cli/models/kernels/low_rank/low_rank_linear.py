"""A linear layer plus a low-rank product: one operator forward and one backward.

Written in torch's own operators, autograd adds the two results in an extra kernel, and
torch.compile removes in-place operations and therefore copies first. Here both sums, out += h up'
and d(x) += d(h) down, are added in place into the large product, inside operators that the compiler
does not look into. On GPUs for which `tiles.pays`, one kernel computes a frozen product with its
low-rank product, and another the gradients of both factors.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from bayeslora_cli.models.kernels.low_rank import tiles
from bayeslora_cli.models.kernels.operators import register


def low_rank_linear(
    rows: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor
) -> Tensor:
    """Compute x W' + bias + (x down') up', differentiable in x, down and up; W, bias are frozen.

    Args:
        rows: (n, in).
        weight: (out, in).
        bias: (out,).
        down: (r, in).
        up: (out, r), fastest as a transposed view of contiguous (r, out).
    Returns:
        (n, out)
    """
    out: Tensor = torch.ops.bayeslora.low_rank_linear(rows, weight, bias, down, up)[0]
    return out


def forward(
    rows: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor
) -> tuple[Tensor, Tensor]:
    """Return y (n, out) and h (n, r)."""
    if is_fused(rows, weight, down, up):
        return fused(rows, weight.t(), down, up.t(), bias)
    return separate_forward(rows, weight, bias, down, up)


def separate_forward(
    rows: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor
) -> tuple[Tensor, Tensor]:
    h = F.linear(rows, down)
    return F.linear(rows, weight, bias).addmm_(h, up.t()), h


def backward(
    grad: Tensor, rows: Tensor, weight: Tensor, down: Tensor, up: Tensor, h: Tensor, needed: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of rows (empty unless `needed`), of down and of up."""
    if not is_fused(rows, weight, down, up):
        return separate_backward(grad, rows, weight, down, up, h, needed)
    from bayeslora_cli.models.kernels.low_rank import gradients_triton

    grad = in_order(grad)
    if needed:
        to_rows, to_h = fused(grad, weight, up.t(), down, None)
    else:
        to_rows, to_h = grad.new_empty(0), grad @ up
    return to_rows, *gradients_triton.gradients(to_h, rows, h, grad)


def separate_backward(
    grad: Tensor, rows: Tensor, weight: Tensor, down: Tensor, up: Tensor, h: Tensor, needed: bool
) -> tuple[Tensor, Tensor, Tensor]:
    to_h = grad @ up
    to_rows = (grad @ weight).addmm_(to_h, down) if needed else grad.new_empty(0)
    # a tall product with few columns is slow on a CPU, one with few rows is not
    return to_rows, to_h.t() @ rows, (h.t() @ grad).t()


def in_order(grad: Tensor) -> Tensor:
    """Return a gradient as the kernels read it: contiguous, from a multiple of 16 bytes on."""
    if tiles.is_aligned(grad):
        return grad.contiguous()
    return grad.clone(memory_format=torch.contiguous_format)


def fused(
    left: Tensor, matrix: Tensor, narrow: Tensor, factor: Tensor, bias: Tensor | None,
    *, gelu: Tensor | None = None, slope_of: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return L M + (L N) F + bias, and L N, of L, M, N' and F; see `fused_triton`."""
    from bayeslora_cli.models.kernels.low_rank import fused_triton

    rank, width = factor.shape
    cut = tiles.fused_tiles(len(left), width, rank, left.itemsize, tiles.gpu_of(left.device))
    return fused_triton.fused(left, matrix, narrow, factor, bias, cut, gelu=gelu, slope_of=slope_of)


def is_fused(rows: Tensor, weight: Tensor, down: Tensor, up: Tensor) -> bool:
    """Return whether the kernels compute a layer: they can, and they are faster."""
    (rank, inputs), outputs = down.shape, len(up)
    return (
        rows.is_cuda
        and rows.dtype.itemsize == 2
        and tiles.pays(len(rows), inputs, outputs, rank, tiles.gpu_of(rows.device))
        and all(x.is_contiguous() for x in (rows, down, up.t()))
        and (weight.is_contiguous() or weight.t().is_contiguous())
        and all(tiles.is_aligned(x) for x in (rows, weight, down, up))
        and not any(size % 8 for size in (rank, inputs, outputs))
    )


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    rows, weight, _, down, up = inputs
    ctx.save_for_backward(rows, weight, down, up, output[1])
    ctx.set_materialize_grads(False)  # h has no gradient of its own


def _differentiate(
    ctx: Any, grad: Tensor, _: None
) -> tuple[Tensor | None, None, None, Tensor, Tensor]:
    needed = ctx.needs_input_grad[0]
    kept = ctx.saved_tensors
    to_rows, *rest = torch.ops.bayeslora.low_rank_linear_backward(grad, *kept, needed)
    return to_rows if needed else None, None, None, *rest


# on fake tensors torch's own products give the shapes
register(
    "low_rank_linear",
    "(Tensor rows, Tensor weight, Tensor? bias, Tensor down, Tensor up) -> (Tensor, Tensor)",
    forward, separate_forward, keep=_keep, differentiate=_differentiate,
)  # fmt: skip
register(
    "low_rank_linear_backward",
    "(Tensor grad, Tensor rows, Tensor weight, Tensor down, Tensor up, Tensor h,"
    " bool needed) -> (Tensor, Tensor, Tensor)",
    backward, separate_backward,
)  # fmt: skip
