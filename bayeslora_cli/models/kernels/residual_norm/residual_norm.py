"""Dropout, residual sum and layer norm in one kernel: norm(dropout(x) + residual).

An operator that torch's compiler does not look into. It keeps the sum; statistics and the bits of
dropout are computed again in the backward pass, which is one kernel too.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from bayeslora_cli.models.kernels.operators import register

WIDEST = 4096
"""Largest width that a program holds."""
HAVE_TRITON = find_spec("triton") is not None
TYPES = (torch.bfloat16, torch.float16, torch.float32)


def has_kernel(x: Tensor) -> bool:
    """Return whether the kernels compute tensors like x (..., width)."""
    known = x.dtype in TYPES and x.shape[-1] <= WIDEST
    return HAVE_TRITON and x.is_cuda and known and torch.version.cuda is not None


def residual_norm(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, *, eps: float,
    seed: Tensor | None = None, dropout: float = 0.0,
) -> Tensor:  # fmt: skip
    """Compute norm(dropout(x) + residual) weight + bias; weight and bias are frozen.

    Args:
        x, residual: (..., width).
        weight, bias: (width,).
        seed: (1,) int64, another one for each call; None: without dropout.
        dropout: share of x to drop; rounded to a multiple of 2^-16.
    Returns:
        (..., width)
    """
    out: Tensor = torch.ops.bayeslora.residual_norm(
        x, residual, weight, bias, seed if dropout else None, dropout, eps
    )[0]
    return out


def _forward(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, seed: Tensor | None, dropout: float,
    eps: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return the result and dropout(x) + residual."""
    from bayeslora_cli.models.kernels.residual_norm import residual_norm_triton

    return residual_norm_triton.forward(
        x.contiguous(), residual.contiguous(), weight, bias, seed, dropout, eps
    )


def _backward(
    grad: Tensor, sum: Tensor, weight: Tensor, seed: Tensor | None, dropout: float, eps: float
) -> tuple[Tensor, Tensor]:
    """Return the gradients of the residual and of x; the latter is empty without dropout."""
    from bayeslora_cli.models.kernels.residual_norm import residual_norm_triton

    return residual_norm_triton.backward(grad.contiguous(), sum, weight, seed, dropout, eps)


def _fake_forward(x: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape)


def _fake_backward(
    grad: Tensor, sum: Tensor, weight: Tensor, seed: Tensor | None, *_: float
) -> tuple[Tensor, Tensor]:
    return sum.new_empty(sum.shape), sum.new_empty(0 if seed is None else sum.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    _, _, weight, _, seed, ctx.dropout, ctx.eps = inputs
    ctx.save_for_backward(output[1], weight, seed)
    ctx.set_materialize_grads(False)  # the sum has no gradient of its own


def _differentiate(ctx: Any, grad: Tensor, _: None) -> tuple[Tensor | None, ...]:
    to_residual, to_x = torch.ops.bayeslora.residual_norm_backward(
        grad, *ctx.saved_tensors, ctx.dropout, ctx.eps
    )
    return to_x if ctx.dropout else to_residual, to_residual, *(None,) * 5


register(
    "residual_norm",
    "(Tensor x, Tensor residual, Tensor weight, Tensor bias, Tensor? seed,"
    " float dropout, float eps) -> (Tensor, Tensor)",
    _forward, _fake_forward, keep=_keep, differentiate=_differentiate,
)  # fmt: skip
register(
    "residual_norm_backward",
    "(Tensor grad, Tensor sum, Tensor weight, Tensor? seed, float dropout, float eps)"
    " -> (Tensor, Tensor)",
    _backward, _fake_backward,
)  # fmt: skip
