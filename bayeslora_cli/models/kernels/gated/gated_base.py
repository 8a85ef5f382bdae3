"""B-LoRA's layers with quantized frozen weights: one operator forward, one backward, on a GPU.

Both products use Qx(x), which is kept for the gradients of the weights' quantizers. Those need the
product grad' Qx(x), as large as the weight, of which only sums over all elements are used.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from bayeslora_cli.models.kernels.gated.gated_linear import columns_of, is_added, up_gradient
from bayeslora_cli.models.kernels.low_rank import tiles
from bayeslora_cli.models.kernels.operators import register
from bayeslora_cli.models.kernels.quantize import Quantizers

SUMS_OF_16_BITS = hasattr(torch.ops.aten.bmm, "dtype")
"""Whether a product of 16 bits can have a result of 32, since torch 2.8."""


def gated_base_product(
    rows: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, e: Tensor, b: Tensor,
    of_input: Quantizers, of_a: Quantizers, of_h: Quantizers, of_base: Quantizers,
    heights: Sequence[int],
) -> Tensor:  # fmt: skip
    """Compute m layers Qx(rows) Qw(W)' + bias + Qh(Qa(Qx(rows) a') * e) b', side by side.

    Differentiable except in W and bias.

    Args:
        rows: (n, in).
        weight: the layers' W, stacked: (outputs, in), frozen, contiguous.
        bias, a, e, b, of_input, of_a, of_h, heights: as in `gated_product`.
        of_base: Qw of each layer, (m, 1 + L) and (m, 2 + L).
    Returns:
        (n, outputs)
    """
    out: Tensor = torch.ops.bayeslora.gated_base_product(
        rows, weight, bias, a, e, b, *of_input, *of_a, *of_h, *of_base, heights
    )[0]
    return out


def _forward(
    rows: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, e: Tensor, b: Tensor,
    learned_x: Tensor, constants_x: Tensor, learned_a: Tensor, constants_a: Tensor,
    learned_h: Tensor, constants_h: Tensor, learned_w: Tensor, constants_w: Tensor,
    heights: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the result (n, outputs), p and h (m, n, r), Qx(rows) (m, n, in) and Qw(W)."""
    from bayeslora_cli.models.kernels.gated import gated_linear_triton

    rows = rows.contiguous()
    taken = rows.new_empty(len(a), *rows.shape)
    p, h = gated_linear_triton.forward(
        rows, a, e, Quantizers(learned_x, constants_x), Quantizers(learned_a, constants_a),
        Quantizers(learned_h, constants_h), taken,
    )  # fmt: skip
    base = _quantized(weight, Quantizers(learned_w, constants_w), heights)
    if is_whole(rows, weight, b, heights):
        from bayeslora_cli.models.kernels.low_rank import added_triton

        cut = tiles.fused_tiles(
            len(rows), len(weight), e.shape[1], rows.itemsize, tiles.gpu_of(rows.device)
        )
        return added_triton.added(taken, base, h, b, bias, heights, cut), p, h, taken, base
    out = rows.new_empty(len(rows), len(weight))
    offsets = len(heights) * [None] if bias is None else torch.split(bias, [*heights])
    for i, (own, of_base, of_b, offset) in enumerate(
        zip(columns_of(heights), *_parts(heights, base, b), offsets, strict=True)
    ):
        out[:, own] = F.linear(taken[i], of_base, offset)
        out[:, own].addmm_(h[i], of_b.t())
    return out, p, h, taken, base


def _quantized(weight: Tensor, by: Quantizers, heights: Sequence[int]) -> Tensor:
    """Quantize the weights of several layers, stacked."""
    from bayeslora_cli.models.kernels import quantize_triton

    if len({*heights}) == 1:
        found: Tensor = quantize_triton.forward(weight.view(len(heights), -1), *by)
        return found.view(weight.shape)
    return torch.cat([
        quantize_triton.forward(own.reshape(1, -1), *(part[i : i + 1] for part in by)).view_as(own)
        for i, own in enumerate(torch.split(weight, [*heights]))
    ])  # fmt: skip


def _backward(
    grad: Tensor, rows: Tensor, weight: Tensor, a: Tensor, e: Tensor, b: Tensor,
    learned_x: Tensor, constants_x: Tensor, learned_a: Tensor, constants_a: Tensor,
    constants_h: Tensor, constants_w: Tensor, p: Tensor, h: Tensor, taken: Tensor, base: Tensor,
    heights: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Return gradients of rows, Qx, a, b, one tensor for Qa, Qh, e, and that of Qw."""
    from bayeslora_cli.models.kernels.gated import gated_input_triton, gated_linear_triton

    grad = grad.contiguous()
    to_p, sums = gated_linear_triton.back_to_p(
        grad, heights, p, e, b, Quantizers(learned_a, constants_a), constants_h
    )
    slopes = _slopes(grad, a, b, to_p, base, heights)
    parts = _weight_sums(grad, weight, constants_w, taken, heights)
    together = parts[0] if len(parts) == 1 else None
    of_rows, of_x, of_a, rest, of_w = gated_input_triton.back_to_x(
        rows.contiguous(), to_p, sums, a, Quantizers(learned_x, constants_x), slopes, together
    )
    if together is None:
        of_w = torch.cat([part.sum(1) for part in parts])
    return of_rows, of_x, of_a, up_gradient(h, grad, weight, b, heights), rest, of_w


def _slopes(
    grad: Tensor, a: Tensor, b: Tensor, to_p: Tensor, base: Tensor, heights: Sequence[int]
) -> Tensor:
    """Return the gradients of Qx(x), (m, n, in): grad Qw(W) + to_p a."""
    if is_whole(grad, base, b, heights):
        from bayeslora_cli.models.kernels.gated import gated_base_triton

        gpu, (_, rank, width) = tiles.gpu_of(grad.device), a.shape
        cut = tiles.fused_tiles(len(grad), width, rank, grad.itemsize, gpu)
        return gated_base_triton.slopes(grad, base, to_p, a.contiguous(), heights, cut)
    found = grad.new_empty(len(a), len(grad), a.shape[2])
    for i, (own, of_base) in enumerate(
        zip(columns_of(heights), torch.split(base, [*heights]), strict=True)
    ):
        torch.mm(grad[:, own], of_base, out=found[i])
        found[i].addmm_(to_p[i], a[i])
    return found


def _weight_sums(
    grad: Tensor, weight: Tensor, constants_w: Tensor, taken: Tensor, heights: Sequence[int]
) -> list[Tensor]:
    """Return partial sums of Qw's gradients, (m, parts, 1 + L); (1, parts, 1 + L) of each layer
    where their heights differ."""
    from bayeslora_cli.models.kernels.gated import gated_base_triton

    if len({*heights}) == 1:
        stacked = grad.view(len(grad), len(heights), -1).permute(1, 2, 0)  # (m, out, n)
        product = _product(stacked, taken)
        of_layers = weight.view(product.shape)
        return [gated_base_triton.weight_sums(product, of_layers, constants_w)]
    found = []
    for i, (own, of_layer) in enumerate(
        zip(columns_of(heights), torch.split(weight, [*heights]), strict=True)
    ):
        product = _product(grad[:, own].t()[None], taken[i : i + 1])
        constants = constants_w[i : i + 1]
        found.append(gated_base_triton.weight_sums(product, of_layer[None], constants))
    return found


def _product(left: Tensor, right: Tensor) -> Tensor:
    """Multiply batches of matrices, with a result in fp32 where that is possible.

    The quantizers' sums over it cancel: rounded to 16 bits it would be coarse.
    """
    if left.is_cuda and left.itemsize == 2 and SUMS_OF_16_BITS:
        return torch.bmm(left, right, out_dtype=torch.float32)
    return torch.bmm(left, right)


def is_whole(rows: Tensor, weight: Tensor, b: Tensor, heights: Sequence[int]) -> bool:
    """Return whether kernels of our own compute the products of all layers at once."""
    alone = len(heights) == 1
    whole = alone or not any(height % tiles.LARGE.columns for height in heights)
    return whole and is_added(rows, weight, b, heights)


def _parts(heights: Sequence[int], *stacked: Tensor) -> list[tuple[Tensor, ...]]:
    """Cut stacked tensors into those of each layer."""
    return [torch.split(x, [*heights]) for x in stacked]


def _forward_shapes(
    rows: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, *_: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    (n, width), (layers, rank) = rows.shape, a.shape[:2]
    p, taken = rows.new_empty(layers, n, rank), rows.new_empty(layers, n, width)
    out = rows.new_empty(n, len(weight))
    return out, p, torch.empty_like(p), taken, weight.new_empty(weight.shape)


def _backward_shapes(
    grad: Tensor, rows: Tensor, weight: Tensor, a: Tensor, e: Tensor, b: Tensor,
    learned_x: Tensor, *_: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    return (
        rows.new_empty(rows.shape),
        learned_x.new_empty(learned_x.shape),
        a.new_empty(a.shape),
        b.new_empty(b.shape[1], b.shape[0]).t(),
        e.new_empty(len(e), 2 * learned_x.shape[-1] + e.shape[1]),
        learned_x.new_empty(learned_x.shape),
    )


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    # the backward pass needs the ranges of Qh and Qw, and not their factors
    rows, weight, _, a, e, b, *by, _, constants_h, _, constants_w, ctx.heights = inputs
    ctx.save_for_backward(rows, weight, a, e, b, *by, constants_h, constants_w, *output[1:])
    ctx.set_materialize_grads(False)  # the other outputs have no gradients


def _differentiate(ctx: Any, grad: Tensor, *_: None) -> tuple[Tensor | None, ...]:
    of_rows, of_x, of_a, of_b, sums, of_w = torch.ops.bayeslora.gated_base_product_backward(
        grad, *ctx.saved_tensors, ctx.heights
    )
    width = of_x.shape[1]
    return (
        of_rows, None, None, of_a, sums[:, 2 * width :], of_b,
        of_x, None, sums[:, :width], None, sums[:, width : 2 * width], None, of_w, None, None,
    )  # fmt: skip


_QUANTIZERS = ", ".join(f"Tensor learned_{n}, Tensor constants_{n}" for n in "xahw")
register(
    "gated_base_product",
    "(Tensor rows, Tensor weight, Tensor? bias, Tensor a, Tensor e, Tensor b,"
    f" {_QUANTIZERS}, int[] heights) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _forward, _forward_shapes, keep=_keep, differentiate=_differentiate,
)  # fmt: skip
register(
    "gated_base_product_backward",
    "(Tensor grad, Tensor rows, Tensor weight, Tensor a, Tensor e, Tensor b,"
    " Tensor learned_x, Tensor constants_x, Tensor learned_a, Tensor constants_a,"
    " Tensor constants_h, Tensor constants_w, Tensor p, Tensor h, Tensor taken, Tensor base,"
    " int[] heights) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _backward, _backward_shapes,
)  # fmt: skip
