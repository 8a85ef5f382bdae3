"""Log-likelihoods of tokens from hidden states: the output layer and log softmax, in chunks.

The logits of all tokens would be the largest tensor of a step. Here they exist for a chunk of
tokens at a time. A token's log-likelihood depends on its own hidden state only, so that the forward
pass can store its derivative, which the backward pass multiplies by the incoming gradient: the
logits are computed once.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import functional as F

PADDING = -100
"""The target of tokens that do not count: their log-likelihood is 0 and has no gradient."""
CHUNK = 2**25
"""Logits of a chunk, at most: 128 MiB in fp32."""
HALF_CHUNK = 2**27
"""The same of bf16 and fp16 on a GPU: products of few rows would read the weight too often."""
TILE, MOST_TILES = 256, 4
"""Rows that products on a GPU are cut into: chunks are of whole tiles, and not of too many."""
HAS_TRITON = find_spec("triton") is not None


def token_log_likelihood(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    *,
    scale: float = 1.0,
    softcap: float | None = None,
) -> Tensor:
    """Compute log softmax(z)[target] of each token, with z = cap tanh(scale (h W' + bias) / cap).

    Differentiable in `hidden`, and in `weight` and `bias` if they are trained; those gradients
    compute the logits a second time. Products are computed in the type of `hidden`, everything
    else in fp32.

    Args:
        hidden: h, (n, d).
        weight: W, (vocabulary, d), of the type of `hidden`.
        bias: (vocabulary,).
        targets: (n,) int64; `PADDING` for tokens that do not count.
        scale: factor of the logits.
        softcap: the cap; None: z are the scaled logits.
    Returns:
        (n,) fp32
    """
    apply: Any = _TokenLogLikelihood.apply
    found: Tensor = apply(hidden, weight, bias, targets, scale, softcap)
    return found


class _TokenLogLikelihood(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        scale: float,
        softcap: float | None,
    ) -> Tensor:
        needed, *trained = ctx.needs_input_grad[:3]
        found = hidden.new_empty(len(hidden), dtype=torch.float32)
        slope = torch.empty_like(hidden) if needed else None
        for rows in _chunks(hidden, weight):
            logits = F.linear(hidden[rows], weight, bias)
            found[rows], to_logits = _at(logits, targets[rows], scale, softcap, needed)
            if slope is not None:
                torch.mm(to_logits, weight, out=slope[rows])
        kept = (hidden, weight, bias, targets) if any(trained) else (None, None, None, None)
        ctx.save_for_backward(slope, *kept)
        ctx.scale, ctx.softcap = scale, softcap
        return found

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        slope, hidden, weight, bias, targets = ctx.saved_tensors
        to_hidden = to_weight = to_bias = None
        if ctx.needs_input_grad[0]:
            to_hidden = slope * grad[:, None].to(slope.dtype)
        if weight is not None:
            to_weight, to_bias = _to_layer(grad, hidden, weight, bias, targets, ctx)
        return to_hidden, to_weight, to_bias, None, None, None


def _to_layer(
    grad: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, ctx: Any
) -> tuple[Tensor, Tensor | None]:
    """Return the gradients of a trained output layer's weight and bias."""
    to_weight = torch.zeros_like(weight)
    to_bias = None if bias is None else torch.zeros_like(bias)
    for rows in _chunks(hidden, weight):
        logits = F.linear(hidden[rows], weight, bias)
        _, to_logits = _at(logits, targets[rows], ctx.scale, ctx.softcap, True)
        to_logits.mul_(grad[rows, None])
        to_weight.addmm_(to_logits.t(), hidden[rows])
        if to_bias is not None:
            to_bias += to_logits.sum(0)
    return to_weight, to_bias


def _chunks(hidden: Tensor, weight: Tensor) -> list[slice]:
    """Cut the tokens into chunks of few enough logits, all of one size but the last."""
    if _is_fused(hidden) and hidden.dtype.itemsize == 2:
        size = TILE * min(MOST_TILES, max(1, HALF_CHUNK // len(weight) // TILE))
    else:
        size = max(1, CHUNK // len(weight))
    return [slice(start, start + size) for start in range(0, len(hidden), size)]


def _is_fused(hidden: Tensor) -> bool:
    return HAS_TRITON and hidden.is_cuda


def _at(
    logits: Tensor, targets: Tensor, scale: float, softcap: float | None, needed: bool
) -> tuple[Tensor, Tensor]:
    """Return log softmax(z) at the targets, (n,) fp32, and its slope by the logits, (n, v).

    The slope is computed only if `needed`, and overwrites the logits; both are 0 for `PADDING`.
    """
    if _is_fused(logits):
        if isinstance(logits, FakeTensor):  # has no memory that a kernel could read
            return logits.new_empty(len(logits), dtype=torch.float32), logits
        from bayeslora_cli.models.kernels.decoder import token_slope_triton

        return token_slope_triton.log_softmax_at(
            logits, targets, scale, softcap, slope=needed
        ), logits
    dtype, logits = logits.dtype, logits.float()
    if scale != 1.0:
        logits.mul_(scale)
    bent = None if softcap is None else logits.div_(softcap).tanh_()
    log_p = (logits if bent is None or softcap is None else bent * softcap).log_softmax(1)
    counts, aims = targets >= 0, targets.clamp(min=0)[:, None]
    found = torch.where(counts, log_p.gather(1, aims).squeeze(1), 0.0)
    if not needed:
        return found, logits
    slope = log_p.exp_()
    slope.scatter_add_(1, aims, slope.new_full(aims.shape, -1.0))
    if bent is not None:
        slope.mul_(bent.square_().neg_().add_(1))
    slope.mul_(torch.where(counts, -scale, 0.0)[:, None])
    return found, slope.to(dtype)
