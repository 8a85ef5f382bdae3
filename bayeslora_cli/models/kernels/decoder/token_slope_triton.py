"""Triton kernel of `token_log_likelihood`: log softmax at the targets, and its slope in place.

A program reads one token's logits twice and writes the slope over them: six bytes of traffic per
logit in bf16, where torch's operators take sixty.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

WIDTH, WARPS = 4096, 8
"""Logits that a program reads at once, and its warps."""


@triton.jit  # type: ignore[untyped-decorator]
def _bent(logits, place, inside, scale, cap, CAPPED: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Return z of some logits in fp32, and its slope; z = cap tanh(scale x / cap), or scale x."""
    value = scale * tl.load(logits + place, inside, 0.0).to(tl.float32)
    slope = scale
    if CAPPED:
        tanh = 2 * tl.sigmoid(2 * value / cap) - 1
        value = cap * tanh
        slope = scale * (1 - tanh * tanh)
    return tl.where(inside, value, float("-inf")), slope


@triton.jit  # type: ignore[untyped-decorator]
def _token(  # type: ignore[no-untyped-def]
    logits, targets, found, vocabulary, scale, cap,  # noqa: ANN001
    CAPPED: tl.constexpr, SLOPE: tl.constexpr, WIDTH: tl.constexpr,
) -> None:  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    target = tl.load(targets + row)
    counts = target >= 0
    logits += row * vocabulary
    most = tl.full((), float("-inf"), tl.float32)
    total = tl.zeros((), tl.float32)
    for start in range(0, vocabulary, WIDTH):
        place = start + tl.arange(0, WIDTH)
        value, _ = _bent(logits, place, place < vocabulary, scale, cap, CAPPED)
        higher = tl.maximum(most, tl.max(value, 0))
        total = total * tl.exp(most - higher) + tl.sum(tl.exp(value - higher), 0)
        most = higher
    aim = tl.maximum(target, 0) + tl.zeros((1,), tl.int64)
    own, _ = _bent(logits, aim, aim >= 0, scale, cap, CAPPED)
    norm = most + tl.log(total)
    tl.store(found + row, tl.where(counts, tl.sum(own, 0) - norm, 0.0))
    if SLOPE:
        for start in range(0, vocabulary, WIDTH):
            place = start + tl.arange(0, WIDTH)
            value, slope = _bent(logits, place, place < vocabulary, scale, cap, CAPPED)
            slope *= tl.where(place == target, 1.0, 0.0) - tl.exp(value - norm)
            slope = tl.where(counts, slope, 0.0)
            tl.store(logits + place, slope.to(logits.dtype.element_ty), place < vocabulary)


def log_softmax_at(
    logits: Tensor, targets: Tensor, scale: float, softcap: float | None, *, slope: bool
) -> Tensor:
    """Compute log softmax(z) at the targets, z = cap tanh(scale x / cap): (n,) fp32.

    Args:
        logits: x, (n, v), contiguous; overwritten by d result / dx if `slope`.
        targets: (n,) int64; a negative one: the result and its slope are 0.
        softcap: None: z = scale x.
    """
    found = torch.empty(len(logits), device=logits.device, dtype=torch.float32)
    if len(logits):
        _token[(len(logits),)](
            logits, targets, found, logits.shape[1], scale, softcap or 1.0,
            softcap is not None, slope, WIDTH, num_warps=WARPS,
        )  # fmt: skip
    return found
