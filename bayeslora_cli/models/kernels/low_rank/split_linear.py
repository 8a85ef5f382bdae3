"""`low_rank_linear` in fp32 by the matrix units, whose weight is kept in two halves of fp16.

On GPUs of sm_90 and later; `split_triton` says how exact it is.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from bayeslora_cli.models.kernels.low_rank import low_rank_linear as layer
from bayeslora_cli.models.kernels.low_rank import tiles
from bayeslora_cli.models.kernels.operators import register


class Halves(NamedTuple):
    """A frozen weight W (out, in) as unit (upper + lower)."""

    values: Tensor
    """(2, out, in) fp16: upper, then lower halves."""
    unit: Tensor
    """A power of two, ()."""

    def take(self, other: Halves) -> None:
        """Copy others into these: captured steps read them where they lie."""
        for own, found in zip(self, other, strict=True):
            own.copy_(found)


def halves_of(weight: Tensor) -> Halves:
    """Split a weight (out, in) of finite numbers in fp32."""
    exponent = weight.abs().max().frexp().exponent - 1 - tiles.LARGEST_HALF
    # a GPU may take smaller powers, which are not normal numbers of fp32, as 0
    unit = torch.ones_like(weight[0, 0]).ldexp(exponent.clamp(min=-126))
    scaled = weight.contiguous() / unit
    upper = scaled.half()
    return Halves(torch.stack((upper, (scaled - upper.float()).half())), unit)


def is_able(weight: Tensor, device: torch.device | None = None) -> bool:
    """Return whether the kernels compute products with a weight (out, in), and pay.

    Args:
        device: where they would; None: where the weight is.
    """
    gpu = device or weight.device
    narrow, wide = sorted(weight.shape)
    return (
        gpu.type == "cuda"
        and torch.cuda.is_available()
        and weight.dtype == torch.float32
        and tiles.gpu_of(gpu).copies_tiles
        and narrow <= tiles.NARROW
        and wide <= tiles.WIDE
        and not any(size % 8 for size in weight.shape)
    )


def split_linear(
    rows: Tensor, weight: Tensor, halves: Halves, bias: Tensor | None, down: Tensor, up: Tensor
) -> Tensor:
    """Compute x W' + bias + (x down') up', differentiable in x, down and up; W, bias are frozen.

    Args:
        rows: (n, in).
        weight: (out, in), for ranks and memory that the kernels do not take.
        halves: the weight's.
        bias: (out,).
        down: (r, in).
        up: (out, r), a transposed view of contiguous (r, out).
    Returns:
        (n, out)
    """
    out: Tensor = torch.ops.bayeslora.split_linear(rows, weight, *halves, bias, down, up)[0]
    return out


def _is_split(rows: Tensor, down: Tensor, up: Tensor) -> bool:
    """Return whether the kernels compute a layer of these operands."""
    operands = rows, down, up.t()
    return (
        len(rows) > 0
        and len(down) <= tiles.MOST_RANKS
        and all(x.dtype == torch.float32 and x.is_contiguous() for x in operands)
    )


def _forward(
    rows: Tensor, weight: Tensor, halves: Tensor, unit: Tensor, bias: Tensor | None, down: Tensor,
    up: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return y (n, out) and h (n, r)."""
    if not _is_split(rows, down, up):
        return layer.separate_forward(rows, weight, bias, down, up)
    from bayeslora_cli.models.kernels.low_rank import split_triton

    cut = tiles.split_tiles(len(rows), len(weight), len(down), tiles.gpu_of(rows.device))
    return split_triton.product(rows, halves, unit, down, up.t(), bias, cut, transposed=True)


def _backward(
    grad: Tensor, rows: Tensor, weight: Tensor, halves: Tensor, unit: Tensor, down: Tensor,
    up: Tensor, h: Tensor, needed: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the gradients of rows (empty unless `needed`), of down and of up."""
    if not _is_split(rows, down, up):
        return layer.separate_backward(grad, rows, weight, down, up, h, needed)
    from bayeslora_cli.models.kernels.low_rank import gradients_triton, split_triton

    grad = layer.in_order(grad)
    if needed:
        cut = tiles.split_tiles(len(grad), rows.shape[1], len(down), tiles.gpu_of(rows.device))
        to_rows, to_h = split_triton.product(
            grad, halves, unit, up.t(), down, None, cut, transposed=False
        )
    else:
        to_rows, to_h = grad.new_empty(0), grad @ up
    return to_rows, *gradients_triton.gradients(to_h, rows, h, grad)


def _fake_forward(
    rows: Tensor, weight: Tensor, halves: Tensor, unit: Tensor, bias: Tensor | None, down: Tensor,
    up: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return layer.separate_forward(rows, weight, bias, down, up)


def _fake_backward(
    grad: Tensor, rows: Tensor, weight: Tensor, halves: Tensor, unit: Tensor, down: Tensor,
    up: Tensor, h: Tensor, needed: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return layer.separate_backward(grad, rows, weight, down, up, h, needed)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    rows, weight, halves, unit, _, down, up = inputs
    ctx.save_for_backward(rows, weight, halves, unit, down, up, output[1])
    ctx.set_materialize_grads(False)  # h has no gradient of its own


def _differentiate(ctx: Any, grad: Tensor, _: None) -> tuple[Tensor | None, ...]:
    needed = ctx.needs_input_grad[0]
    to_rows, to_down, to_up = torch.ops.bayeslora.split_linear_backward(
        grad, *ctx.saved_tensors, needed
    )
    return to_rows if needed else None, None, None, None, None, to_down, to_up


register(
    "split_linear",
    "(Tensor rows, Tensor weight, Tensor halves, Tensor unit, Tensor? bias, Tensor down, Tensor up)"
    " -> (Tensor, Tensor)",
    _forward,
    _fake_forward,
    keep=_keep,
    differentiate=_differentiate,
)
register(
    "split_linear_backward",
    "(Tensor grad, Tensor rows, Tensor weight, Tensor halves, Tensor unit, Tensor down, Tensor up,"
    " Tensor h, bool needed) -> (Tensor, Tensor, Tensor)",
    _backward,
    _fake_backward,
)
