"""Log-likelihoods of tokens by a frozen output layer, whose backward product is one of fp8 numbers.

A slope by the logits is p - 1 at the target and p elsewhere, and most p are small. So the target's
part is computed with the layer's own weight, and the scale of a row of codes follows from the
largest p of the other tokens.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from bayeslora_cli.models.kernels.frozen.fp8_rows import (
    FP8,
    LARGEST,
    quantize_rows,
    scaled_product,
    transposed,
)

HAS_TRITON = find_spec("triton") is not None
LEAST_STEP = 1e-30
"""Step of a row of slopes that are all 0."""
ROWS = 1024
"""Tokens whose logits exist at a time."""


class Fp8Output(NamedTuple):
    """A quantized output layer."""

    codes: Tensor
    """(v, d), fp8."""
    scale: Tensor
    """(v,), fp32."""
    largest: Tensor
    """() fp32, the largest scale."""
    logits: bool
    """Whether logits are computed of fp8 numbers too."""


def quantized_output(weight: Tensor, *, logits: bool = False) -> Fp8Output | None:
    """Quantize an output layer's weight (v, d); None: scaled products do not take its sizes."""
    if weight.shape[0] % 16 or weight.shape[1] % 16:
        return None
    codes, scale = quantize_rows(weight.detach())
    return Fp8Output(codes, scale[:, 0], scale.max(), logits)


def log_likelihood_and_slope(
    hidden: Tensor,
    weight: Tensor,
    output: Fp8Output,
    targets: Tensor,
    scale: float,
    softcap: float | None,
    *,
    fast: bool = False,
) -> tuple[Tensor, Tensor]:
    """Compute log softmax(z)[target] and its slope by the hidden states.

    Args:
        hidden: (n, d).
        weight: (v, d), of which `output` is made.
        targets: (n,) int64; a negative one: the result and its slope are 0.
        scale: and the cap, as in `token_log_likelihood`.
        fast: let the second product, a sum over the vocabulary, keep fewer bits of its sums.
    Returns:
        (n,) fp32 and (n, d), of the type of `hidden`.
    """
    found = hidden.new_empty(len(hidden), dtype=torch.float32)
    slope = torch.empty_like(hidden)
    back, ones = transposed(output.codes)
    for start in range(0, len(hidden), ROWS):
        rows = slice(start, start + ROWS)
        logits = (
            scaled_product(*quantize_rows(hidden[rows]), output.codes, output.scale, hidden.dtype)
            if output.logits
            else F.linear(hidden[rows], weight)
        )
        found[rows], codes, step, own = _slopes(logits, targets[rows], output, scale, softcap)
        part = scaled_product(codes, step, back, ones, hidden.dtype, fast=fast)
        aimed = weight.index_select(0, targets[rows].clamp(min=0))
        torch.addcmul(part, aimed, own, out=slope[rows])  # in fp32, rounded once
    return found, slope


def _slopes(
    logits: Tensor, targets: Tensor, output: Fp8Output, scale: float, softcap: float | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return log softmax(z) at the targets, and its slope by the logits in two parts.

    Returns:
        (n,) fp32; codes (n, v) and steps (n, 1) of the slopes of all tokens but the target, times
        the output layer's scales; and the slope at the target, (n, 1) fp32.
    """
    if HAS_TRITON and logits.is_cuda:
        from bayeslora_cli.models.kernels.decoder import token_slope_triton

        return token_slope_triton.coded_slopes(
            logits, targets, output.scale, output.largest, scale, softcap, FP8
        )
    z = logits.float() * scale
    bent = None if softcap is None else torch.tanh(z / softcap)
    z = z if bent is None or softcap is None else bent * softcap
    counts, aims = (targets >= 0)[:, None], targets.clamp(min=0)[:, None]
    norm = z.logsumexp(1, keepdim=True)
    found = torch.where(counts, z.gather(1, aims) - norm, 0.0)[:, 0]
    slope = torch.where(counts, scale, 0.0) * (1 if bent is None else 1 - bent.square())
    p = (z - norm).exp()
    own = (slope.expand_as(p) * (1 - p)).gather(1, aims)
    others = z.scatter(1, aims, float("-inf")).amax(1, keepdim=True)
    step = ((others - norm).exp() * abs(scale) * output.largest / LARGEST).clamp_min(LEAST_STEP)
    codes = (-slope * p * output.scale).scatter(1, aims, 0.0) / step
    return found, codes.to(FP8), step, own
