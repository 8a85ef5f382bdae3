"""B-LoRA's layer with quantized activations: one operator forward, one backward, on a GPU.

As in `low_rank_linear`, both sums are added into the large products; the kernels of
`gated_linear_triton` compute everything else.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.library import Library, register_autograd, register_fake
from torch.nn import functional as F

from bayeslora_cli.models.kernels.quantize import Quantizers


def gated_product(
    rows: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, e: Tensor, b: Tensor,
    of_input: Quantizers, of_a: Quantizers, of_h: Quantizers,
) -> Tensor:  # fmt: skip
    """Compute rows W' + bias + Qh(Qa(Qx(rows) a') * e) b', differentiable except in W and bias.

    Args:
        rows: (n, in).
        weight: (out, in), frozen.
        bias: (out,), frozen.
        a: (r, in).
        e: (r,), fp32.
        b: (out, r).
        of_input, of_a, of_h: one quantizer each, (1, 1 + L) and (1, 2 + L).
    Returns:
        (n, out)
    """
    out: Tensor = torch.ops.bayeslora.gated_product(
        rows, weight, bias, a, e, b, *of_input, *of_a, *of_h
    )[0]
    return out


_LIBRARY: Any = Library("bayeslora", "FRAGMENT")  # type: ignore[no-untyped-call]
_FORWARD, _BACKWARD = "gated_product", "gated_product_backward"
_QUANTIZERS = ", ".join(f"Tensor learned_{n}, Tensor constants_{n}" for n in "xah")
_LIBRARY.define(
    f"{_FORWARD}(Tensor rows, Tensor weight, Tensor? bias, Tensor a, Tensor e, Tensor b, "
    f"{_QUANTIZERS}) -> (Tensor, Tensor, Tensor)"
)
_LIBRARY.define(
    f"{_BACKWARD}(Tensor grad, bool needed, Tensor rows, Tensor weight, Tensor a, Tensor e, "
    "Tensor b, Tensor learned_x, Tensor constants_x, Tensor learned_a, Tensor constants_a, "
    "Tensor constants_h, Tensor p, Tensor h) -> (Tensor, Tensor, Tensor, Tensor, Tensor)"
)


def _forward(
    rows: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, e: Tensor, b: Tensor,
    *by: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the result (n, out), p = Qx(rows) a' (n, r), and h (n, r), which multiplies b'."""
    from bayeslora_cli.models.kernels import gated_linear_triton

    rows = rows.contiguous()
    p, h = gated_linear_triton.forward(rows, a, e, *map(Quantizers, by[::2], by[1::2]))
    return F.linear(rows, weight, bias).addmm_(h, b.t()), p, h


def _backward(
    grad: Tensor, needed: bool, rows: Tensor, weight: Tensor, a: Tensor, e: Tensor,
    b: Tensor, learned_x: Tensor, constants_x: Tensor, learned_a: Tensor, constants_a: Tensor,
    constants_h: Tensor, p: Tensor, h: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Return gradients of rows (empty unless `needed`), Qx, a, b, and one tensor for Qa, Qh, e."""
    from bayeslora_cli.models.kernels import gated_linear_triton

    grad = grad.contiguous()
    of_rows, of_x, of_a, rest = gated_linear_triton.backward(
        grad, rows.contiguous(), p, a, e, b,
        Quantizers(learned_x, constants_x), Quantizers(learned_a, constants_a), constants_h,
    )  # fmt: skip
    of_rows = of_rows.addmm_(grad, weight) if needed else grad.new_empty(0)
    return of_rows, of_x, of_a, (h.t() @ grad).t(), rest


def _forward_shapes(
    rows: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, e: Tensor, b: Tensor,
    *_: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    n = len(rows)
    p = rows.new_empty(n, len(a))
    return rows.new_empty(n, len(weight)), p, torch.empty_like(p)


def _backward_shapes(
    grad: Tensor, needed: bool, rows: Tensor, weight: Tensor, a: Tensor, e: Tensor,
    b: Tensor, learned_x: Tensor, *_: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    return (
        rows.new_empty(rows.shape if needed else 0),
        learned_x.new_empty(learned_x.shape),
        a.new_empty(a.shape),
        b.new_empty(b.shape[1], b.shape[0]).t(),
        e.new_empty(2 * learned_x.shape[-1] + len(e)),
    )


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    # the backward pass does not need h's factors
    rows, weight, _, a, e, b, *by, _, constants_h = inputs
    ctx.save_for_backward(rows, weight, a, e, b, *by, constants_h, *output[1:])
    ctx.set_materialize_grads(False)  # the other outputs have no gradients


def _differentiate(ctx: Any, grad: Tensor, *_: None) -> tuple[Tensor | None, ...]:
    needed = ctx.needs_input_grad[0]
    of_rows, of_x, of_a, of_b, sums = torch.ops.bayeslora.gated_product_backward(
        grad, needed, *ctx.saved_tensors
    )
    width = of_x.shape[1]
    return (
        of_rows if needed else None, None, None, of_a, sums[2 * width :], of_b,
        of_x, None, sums[None, :width], None, sums[None, width : 2 * width], None,
    )  # fmt: skip


for name, kernel, shapes in (
    (_FORWARD, _forward, _forward_shapes),
    (_BACKWARD, _backward, _backward_shapes),
):
    _LIBRARY.impl(name, kernel, "CompositeExplicitAutograd")
    register_fake(f"bayeslora::{name}", shapes, lib=_LIBRARY)
register_autograd(f"bayeslora::{_FORWARD}", _differentiate, setup_context=_keep, lib=_LIBRARY)
