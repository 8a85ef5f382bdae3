"""Two adapted layers with gelu between them: one operator forward and one backward.

y = V(gelu(W(x))), where both layers are frozen and have low-rank products (`low_rank_linear`). On
GPUs where `tiles.pays` for both, the kernel of the first product also writes gelu of its result,
and in the backward pass that of the second multiplies by gelu's derivative: no kernel of gelu is
left, and the gradient of its result is not written.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from bayeslora_cli.models.kernels.low_rank import low_rank_linear as layer
from bayeslora_cli.models.kernels.operators import register


class Adapted(NamedTuple):
    """Operands of an adapted layer x W' + bias + (x down') up'; W and bias are frozen."""

    weight: Tensor
    """(out, in)."""
    bias: Tensor | None
    """(out,)."""
    down: Tensor
    """(r, in)."""
    up: Tensor
    """(out, r), fastest as a transposed view of contiguous (r, out)."""


def feed_forward(rows: Tensor, first: Adapted, second: Adapted) -> Tensor:
    """Compute second(gelu(first(rows))), differentiable in rows and factors.

    Args:
        rows: (n, in).
        first: (f, in).
        second: (out, f).
    Returns:
        (n, out)
    """
    out: Tensor = torch.ops.bayeslora.feed_forward(rows, *first, *second)[0]
    return out


def _forward(
    rows: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor,
    weight_2: Tensor, bias_2: Tensor | None, down_2: Tensor, up_2: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Return y (n, out), u = first(rows) and gelu(u) (n, f), h (n, r) and h_2 (n, r_2)."""
    if layer.is_fused(rows, weight, down, up):
        inner = rows.new_empty(len(rows), len(weight))
        u, h = layer.fused(rows, weight.t(), down, up.t(), bias, gelu=inner)
    else:
        u, h = layer.separate_forward(rows, weight, bias, down, up)
        inner = F.gelu(u)
    out, h_2 = layer.forward(inner, weight_2, bias_2, down_2, up_2)
    return out, u, inner, h, h_2


def _backward(
    grad: Tensor, rows: Tensor, weight: Tensor, down: Tensor, up: Tensor,
    weight_2: Tensor, down_2: Tensor, up_2: Tensor, u: Tensor, inner: Tensor, h: Tensor,
    h_2: Tensor, needed: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the gradients of rows (empty unless `needed`), down, up, down_2 and up_2."""
    if layer.is_fused(inner, weight_2, down_2, up_2):
        from bayeslora_cli.models.kernels.low_rank import gradients_triton

        grad = layer.in_order(grad)
        to_u, to_h_2 = layer.fused(grad, weight_2, up_2.t(), down_2, None, slope_of=u)
        to_down_2, to_up_2 = gradients_triton.gradients(to_h_2, inner, h_2, grad)
    else:
        to_inner, to_down_2, to_up_2 = layer.separate_backward(
            grad, inner, weight_2, down_2, up_2, h_2, True
        )
        to_u = torch.ops.aten.gelu_backward(to_inner, u)
    to_rows, to_down, to_up = layer.backward(to_u, rows, weight, down, up, h, needed)
    return to_rows, to_down, to_up, to_down_2, to_up_2


def _fake_forward(
    rows: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor,
    weight_2: Tensor, bias_2: Tensor | None, down_2: Tensor, up_2: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    u, inner = (rows.new_empty(len(rows), len(weight)) for _ in range(2))
    out, h, h_2 = (rows.new_empty(len(rows), len(x)) for x in (weight_2, down, down_2))
    return out, u, inner, h, h_2


def _fake_backward(
    grad: Tensor, rows: Tensor, weight: Tensor, down: Tensor, up: Tensor,
    weight_2: Tensor, down_2: Tensor, up_2: Tensor, u: Tensor, inner: Tensor, h: Tensor,
    h_2: Tensor, needed: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    to_rows = rows.new_empty(rows.shape if needed else 0)
    to_up, to_up_2 = (x.new_empty(x.shape[1], x.shape[0]).t() for x in (up, up_2))
    return to_rows, down.new_empty(down.shape), to_up, down_2.new_empty(down_2.shape), to_up_2


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    rows, weight, _, down, up, weight_2, _, down_2, up_2 = inputs
    ctx.save_for_backward(rows, weight, down, up, weight_2, down_2, up_2, *output[1:])
    ctx.set_materialize_grads(False)  # only y has a gradient


def _differentiate(ctx: Any, grad: Tensor, *_: None) -> tuple[Tensor | None, ...]:
    needed = ctx.needs_input_grad[0]
    to_rows, to_down, to_up, to_down_2, to_up_2 = torch.ops.bayeslora.feed_forward_backward(
        grad, *ctx.saved_tensors, needed
    )
    found = to_rows if needed else None
    return found, None, None, to_down, to_up, None, None, to_down_2, to_up_2


register(
    "feed_forward",
    "(Tensor rows, Tensor weight, Tensor? bias, Tensor down, Tensor up,"
    " Tensor weight_2, Tensor? bias_2, Tensor down_2, Tensor up_2)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _forward, _fake_forward, keep=_keep, differentiate=_differentiate,
)  # fmt: skip
register(
    "feed_forward_backward",
    "(Tensor grad, Tensor rows, Tensor weight, Tensor down, Tensor up,"
    " Tensor weight_2, Tensor down_2, Tensor up_2, Tensor u, Tensor inner, Tensor h, Tensor h_2,"
    " bool needed) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _backward, _fake_backward,
)  # fmt: skip
