"""Quantizers with widths that double (Bayesian Bits: van Baalen et al., NeurIPS 2020).

A quantizer rounds to multiples of a step, after clipping to its range, [-beta, beta] or [0, beta].
With n bits the step is s_n = (range's length) / (2^n - 1), so that s_2n = s_n / (2^n + 1). The
residual form, x_q = x_2 + z_4 (e_4 + z_8 (e_8 + z_16 e_16)), is a mean of what the widths give on
their own, since x_2 + e_4 + … + e_n is x rounded at s_n:

    x_q = sum over n of share_n s_n round(clip(x) / s_n),
    share_2 = 1 - z_4,  share_4 = z_4 (1 - z_8),  …,  share_16 = z_4 z_8 z_16

Rounding passes gradients straight through; clipping passes those of clipped elements to beta, which
is trained as its logarithm: it stays positive, and a learning rate is relative to the range.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

# of the range, left out at its ends: there the codes would be 2, 8, 128 and 32768
MARGIN = 1e-6
SMALLEST_RANGE = 1e-6  # of a tensor of zeros, whose logarithm must be finite


class Quantizers(NamedTuple):
    """G quantizers that mix L widths each."""

    learned: Tensor
    """(G, 1 + L): ln beta and the widths' shares."""
    constants: Tensor
    """(G, 2 + L): the ends of the range, margin left out, and the widths' steps."""


def intervals(widths: Sequence[int]) -> list[int]:
    """2^n - 1 of each width: steps in a range's length."""
    return [2**n - 1 for n in widths]


def constants(log_range: Tensor, signed: Tensor, divisors: Tensor) -> Tensor:
    """`Quantizers.constants` without a gradient.

    Args:
        log_range: ln beta (...).
        signed: (...) 1 for [-beta, beta], 0 for [0, beta].
        divisors: steps in the range's length (..., L).
    """
    beta = log_range.detach().exp()
    high = beta * (1 - MARGIN)
    steps = (beta * (1 + signed))[..., None] / divisors
    return torch.cat((torch.stack((-high * signed, high), -1), steps), -1)


def codes(x: Tensor, constants: Tensor) -> Tensor:
    """What x (G, K) is as whole numbers of each width's step: (G, L, K), of x's type."""
    low, high, steps = constants[:, :1], constants[:, 1:2], constants[:, 2:, None]
    clipped = torch.maximum(torch.minimum(x, high), low)
    return (clipped[:, None] / steps).round_()


class _Quantize(torch.autograd.Function):
    """See `quantize`. The backward pass makes the codes again: they are L times as large as x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, learned: Tensor, constants: Tensor) -> Tensor:
        ctx.save_for_backward(x, learned, constants)
        factors = learned[:, 1:] * constants[:, 2:]
        found = codes(x.to(constants.dtype), constants)
        if found.shape[1] == 1:
            return found[:, 0].mul_(factors).to(x.dtype)
        return found.mul_(factors[..., None]).sum(1).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        """Of x, of ln beta and the shares.

        With x_n, x rounded at s_n, <,> a sum over K, and the gradient g of what came out:
        share_n gets <g, x_n>, x gets g where it is not clipped, ln beta <g, x_q> - <g_x, x>
        (within the range each x_n - x, clipped elements as a whole, are proportional to beta).
        """
        x, learned, constants = ctx.saved_tensors
        kind = x.dtype
        x, grad = x.to(constants.dtype), grads[0].to(constants.dtype)
        found = codes(x, constants)
        of_shares = found.mul_(grad[:, None]).sum(-1) * constants[:, 2:]
        inside = (x >= constants[:, :1]) & (x <= constants[:, 1:2])
        of_x = grad * inside
        of_range = (learned[:, 1:] * of_shares).sum(-1, keepdim=True)
        of_range = of_range - (of_x * x).sum(-1, keepdim=True)
        return of_x.to(kind), torch.cat((of_range, of_shares), -1), None


def quantize(x: Tensor, by: Quantizers) -> Tensor:
    """x (G, ...) quantized by G quantizers, in x's own type; rounded in that of the quantizers."""
    out: Tensor = _Quantize.apply(x.reshape(x.shape[0], -1), *by)  # type: ignore[no-untyped-call]
    return out.view(x.shape)
