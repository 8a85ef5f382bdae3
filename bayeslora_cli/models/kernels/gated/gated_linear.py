"""B-LoRA's layers with quantized activations: one operator forward, one backward, on a GPU.

As in `low_rank_linear`, both sums are added into the large products; the kernels of
`gated_linear_triton` compute everything else. Layers that see the same input have one large product
together, and one reading of the input by all their quantizers.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from bayeslora_cli.models.kernels.low_rank import tiles
from bayeslora_cli.models.kernels.operators import register
from bayeslora_cli.models.kernels.quantize import Quantizers

WHOLE = 64
"""Of which the heights of several layers are multiples, where a kernel adds h b'."""


def gated_product(
    rows: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, e: Tensor, b: Tensor,
    of_input: Quantizers, of_a: Quantizers, of_h: Quantizers, heights: Sequence[int],
) -> Tensor:  # fmt: skip
    """Compute m layers rows W' + bias + Qh(Qa(Qx(rows) a') * e) b', their outputs side by side.

    Differentiable except in W and bias.

    Args:
        rows: (n, in).
        weight: the layers' W, stacked: (outputs, in), frozen.
        bias: (outputs,), frozen.
        a: (m, r, in).
        e: (m, r), fp32.
        b: the layers' b, stacked: (outputs, r).
        of_input, of_a, of_h: a quantizer for each layer, (m, 1 + L) and (m, 2 + L).
        heights: outputs of each layer; at most 3 layers.
    Returns:
        (n, outputs)
    """
    out: Tensor = torch.ops.bayeslora.gated_product(
        rows, weight, bias, a, e, b, *of_input, *of_a, *of_h, heights
    )[0]
    return out


def _forward(
    rows: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, e: Tensor, b: Tensor,
    learned_x: Tensor, constants_x: Tensor, learned_a: Tensor, constants_a: Tensor,
    learned_h: Tensor, constants_h: Tensor, heights: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the result (n, outputs), p = Qx(rows) a' (m, n, r), and h (m, n, r), which multiplies
    b'."""
    from bayeslora_cli.models.kernels.gated import gated_linear_triton

    rows = rows.contiguous()
    p, h = gated_linear_triton.forward(
        rows, a, e, Quantizers(learned_x, constants_x), Quantizers(learned_a, constants_a),
        Quantizers(learned_h, constants_h),
    )  # fmt: skip
    if is_added(rows, weight, b, heights):
        from bayeslora_cli.models.kernels.low_rank import added_triton

        cut = tiles.fused_tiles(
            len(rows), len(weight), e.shape[1], rows.itemsize, tiles.gpu_of(rows.device)
        )
        return added_triton.added(rows, weight, h, b, bias, heights, cut), p, h
    out = F.linear(rows, weight, bias)
    for own, h_of, b_of in zip(columns_of(heights), h, torch.split(b, [*heights]), strict=True):
        out[:, own].addmm_(h_of, b_of.t())
    return out, p, h


def _backward(
    grad: Tensor, needed: bool, rows: Tensor, weight: Tensor, a: Tensor, e: Tensor,
    b: Tensor, learned_x: Tensor, constants_x: Tensor, learned_a: Tensor, constants_a: Tensor,
    constants_h: Tensor, p: Tensor, h: Tensor, heights: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Return gradients of rows (empty unless `needed`), Qx, a, b, and one tensor for Qa, Qh, e."""
    from bayeslora_cli.models.kernels.gated import gated_input_triton

    grad = grad.contiguous()
    of_rows, of_x, of_a, rest = gated_input_triton.backward(
        grad, heights, rows.contiguous(), p, a, e, b,
        Quantizers(learned_x, constants_x), Quantizers(learned_a, constants_a), constants_h,
    )  # fmt: skip
    of_rows = of_rows.addmm_(grad, weight) if needed else grad.new_empty(0)
    return of_rows, of_x, of_a, up_gradient(h, grad, weight, b, heights), rest


def up_gradient(
    h: Tensor, grad: Tensor, weight: Tensor, b: Tensor, heights: Sequence[int]
) -> Tensor:
    """Return the gradient of b, (outputs, r), by one kernel where there is one."""
    if is_added(grad, weight, b, heights):
        from bayeslora_cli.models.kernels.low_rank import gradients_triton

        return gradients_triton.up_gradient(h, grad, heights)
    of_b = b.new_empty(b.shape[1], b.shape[0])
    for own, h_of in zip(columns_of(heights), h, strict=True):
        torch.mm(h_of.t(), grad[:, own], out=of_b[:, own])
    return of_b.t()


def is_added(rows: Tensor, weight: Tensor, b: Tensor, heights: Sequence[int]) -> bool:
    """Return whether one kernel adds all of h b' while it computes the frozen product."""
    (outputs, inputs), rank = weight.shape, b.shape[1]
    return (
        rows.is_cuda
        and rows.dtype.itemsize == 2
        and tiles.pays(len(rows), inputs, outputs, rank, tiles.gpu_of(rows.device))
        and all(x.is_contiguous() and tiles.is_aligned(x) for x in (rows, weight, b))
        and not any(size % 8 for size in (rank, inputs, outputs))
        and (len(heights) == 1 or not any(height % WHOLE for height in heights))
    )


def columns_of(heights: Sequence[int]) -> list[slice]:
    """Return the columns of each layer's outputs."""
    ends = [*accumulate(heights)]
    return [slice(end - height, end) for end, height in zip(ends, heights, strict=True)]


def _forward_shapes(
    rows: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, e: Tensor, b: Tensor,
    *_: Any,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    n = len(rows)
    p = rows.new_empty(len(a), n, a.shape[1])
    return rows.new_empty(n, len(weight)), p, torch.empty_like(p)


def _backward_shapes(
    grad: Tensor, needed: bool, rows: Tensor, weight: Tensor, a: Tensor, e: Tensor,
    b: Tensor, learned_x: Tensor, *_: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    return (
        rows.new_empty(rows.shape if needed else 0),
        learned_x.new_empty(learned_x.shape),
        a.new_empty(a.shape),
        b.new_empty(b.shape[1], b.shape[0]).t(),
        e.new_empty(len(e), 2 * learned_x.shape[-1] + e.shape[1]),
    )


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    # the backward pass does not need h's factors
    rows, weight, _, a, e, b, *by, _, constants_h, ctx.heights = inputs
    ctx.save_for_backward(rows, weight, a, e, b, *by, constants_h, *output[1:])
    ctx.set_materialize_grads(False)  # the other outputs have no gradients


def _differentiate(ctx: Any, grad: Tensor, *_: None) -> tuple[Tensor | None, ...]:
    needed = ctx.needs_input_grad[0]
    of_rows, of_x, of_a, of_b, sums = torch.ops.bayeslora.gated_product_backward(
        grad, needed, *ctx.saved_tensors, ctx.heights
    )
    width = of_x.shape[1]
    return (
        of_rows if needed else None, None, None, of_a, sums[:, 2 * width :], of_b,
        of_x, None, sums[:, :width], None, sums[:, width : 2 * width], None, None,
    )  # fmt: skip


_QUANTIZERS = ", ".join(f"Tensor learned_{n}, Tensor constants_{n}" for n in "xah")
register(
    "gated_product",
    "(Tensor rows, Tensor weight, Tensor? bias, Tensor a, Tensor e, Tensor b,"
    f" {_QUANTIZERS}, int[] heights) -> (Tensor, Tensor, Tensor)",
    _forward, _forward_shapes, keep=_keep, differentiate=_differentiate,
)  # fmt: skip
register(
    "gated_product_backward",
    "(Tensor grad, bool needed, Tensor rows, Tensor weight, Tensor a, Tensor e,"
    " Tensor b, Tensor learned_x, Tensor constants_x, Tensor learned_a, Tensor constants_a,"
    " Tensor constants_h, Tensor p, Tensor h, int[] heights)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _backward, _backward_shapes,
)  # fmt: skip
