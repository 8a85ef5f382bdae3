"""Log-likelihoods of tokens from hidden states: the output layer and log softmax, in chunks.

The logits of all tokens would be the largest tensor of a step. Here they exist for a chunk of
tokens at a time. A token's log-likelihood depends on its own hidden state only, so that the forward
pass can store its derivative, which the backward pass multiplies by the incoming gradient: the
logits are computed once.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

PADDING = -100
"""The target of tokens that do not count: their log-likelihood is 0 and has no gradient."""
CHUNK = 2**25
"""Logits of a chunk, at most: 128 MiB in fp32."""


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
            logits, inner = _logits(hidden[rows], weight, bias, scale, softcap)
            aims = targets[rows]
            found[rows] = _log_softmax_at(logits, aims)
            if slope is not None:
                slope[rows] = _slope(logits, inner, aims, scale, hidden.dtype) @ weight
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
        logits, inner = _logits(hidden[rows], weight, bias, ctx.scale, ctx.softcap)
        _log_softmax_at(logits, targets[rows])
        to_logits = _slope(logits, inner, targets[rows], ctx.scale, hidden.dtype)
        to_logits.mul_(grad[rows, None])
        to_weight.addmm_(to_logits.t(), hidden[rows])
        if to_bias is not None:
            to_bias += to_logits.sum(0)
    return to_weight, to_bias


def _chunks(hidden: Tensor, weight: Tensor) -> list[slice]:
    """Cut the tokens into chunks of `CHUNK` logits or fewer, all of one size but the last."""
    size = max(1, CHUNK // len(weight))
    return [slice(start, start + size) for start in range(0, len(hidden), size)]


def _logits(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, scale: float, softcap: float | None
) -> tuple[Tensor, Tensor | None]:
    """Return z (n, v) in fp32, and d z / d (scaled logits) if it is not 1."""
    logits = F.linear(hidden, weight, bias).float()
    if scale != 1.0:
        logits.mul_(scale)
    if softcap is None:
        return logits, None
    bent = logits.div_(softcap).tanh_()
    return bent * softcap, 1 - bent.square()


def _log_softmax_at(logits: Tensor, targets: Tensor) -> Tensor:
    """Return log softmax of z (n, v) at the targets (n,), and turn z into probabilities."""
    aims = targets.clamp(min=0)[:, None]
    most = logits.amax(1, keepdim=True)
    at_target = logits.gather(1, aims) - most
    total = logits.sub_(most).exp_().sum(1, keepdim=True)
    logits.div_(total)
    return torch.where(targets >= 0, (at_target - total.log()).squeeze(1), 0.0)


def _slope(
    probabilities: Tensor, inner: Tensor | None, targets: Tensor, scale: float, dtype: torch.dtype
) -> Tensor:
    """Return d log softmax / d logits (n, v) at the targets, in `dtype`; it overwrites its input.

    Rows whose target is `PADDING` are 0.
    """
    slope = probabilities.neg_()
    aims = targets.clamp(min=0)[:, None]
    slope.scatter_add_(1, aims, torch.ones_like(aims, dtype=slope.dtype))
    if inner is not None:
        slope.mul_(inner)
    slope.mul_(torch.where(targets >= 0, scale, 0.0)[:, None])
    return slope.to(dtype)
