"""Quantizers with widths that double (Bayesian Bits: van Baalen et al., NeurIPS 2020).

A quantizer rounds to multiples of a step, after clipping to its range, [-beta, beta] or [0, beta].
With n bits the step is s_n = (range's length) / (2^n - 1), so that s_2n = s_n / (2^n + 1). The
residual form, x_q = x_2 + z_4 (e_4 + z_8 (e_8 + z_16 e_16)), is a weighted mean of x rounded at
each width, since x_2 + e_4 + … + e_n is x rounded at s_n:

    x_q = sum over n of f_n round(clip(x) / s_n),   f_n = share_n s_n,
    share_2 = 1 - z_4,  share_4 = z_4 (1 - z_8),  …,  share_16 = z_4 z_8 z_16

Rounding passes gradients straight through; clipping passes those of clipped elements to beta, which
is trained as its logarithm: it stays positive, and a learning rate is relative to the range.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor

# share of the range left out at its ends, where the codes would be 2, 8, 128 and 32768
MARGIN = 1e-6
SMALLEST_RANGE = 1e-6  # of a tensor of zeros: the range's logarithm must be finite
HAS_TRITON = find_spec("triton") is not None


class Quantizers(NamedTuple):
    """Tensors of quantizers (...), each of which mixes L widths."""

    learned: Tensor
    """(..., 1 + L): -ln beta and the factors f_n; only these get gradients."""
    constants: Tensor
    """(..., 2 + L): the ends of the range, margin left out, and the steps s_n."""


def intervals(widths: Sequence[int]) -> list[int]:
    """Return 2^n - 1 for each width n: the steps in a range's length."""
    return [2**n - 1 for n in widths]


def quantizers(
    log_range: Tensor, signed: Tensor, divisors: Tensor, shares: Tensor | None = None
) -> Quantizers:
    """Build the tensors that `quantize` takes.

    Args:
        log_range: ln beta (...).
        signed: (...) 1 for [-beta, beta], 0 for [0, beta].
        divisors: steps in the range's length (..., L).
        shares: of the widths (..., L), with a sum of 1; None: all 1, of a single width.
    """
    beta = log_range.exp()
    steps = (beta * (1 + signed))[..., None] / divisors
    factors = steps if shares is None else shares * steps
    high = beta.detach() * (1 - MARGIN)
    ends = torch.stack((-high * signed, high), -1)
    return Quantizers(
        torch.cat((-log_range[..., None], factors), -1), torch.cat((ends, steps.detach()), -1)
    )


def codes(x: Tensor, constants: Tensor) -> Tensor:
    """Compute integer codes of x (G, K) at each of L widths: (G, L, K), dtype of `constants`."""
    return _rounded(_clipped(x, constants), constants)


def _clipped(x: Tensor, constants: Tensor) -> Tensor:
    # the result has the constants' type, since they are not scalars
    return x.clamp(constants[:, :1], constants[:, 1:2])


def _rounded(clipped: Tensor, constants: Tensor) -> Tensor:
    return (clipped[:, None] / constants[:, 2:, None]).round_()


def is_fused(x: Tensor) -> bool:
    """Return whether our own Triton kernels quantize x."""
    return x.is_cuda and HAS_TRITON


class _Quantize(torch.autograd.Function):
    """Autograd function of `quantize`. It uses few kernels, since every product calls it; the
    backward pass recomputes the codes, which are L times as large as x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, learned: Tensor, constants: Tensor) -> Tensor:
        ctx.save_for_backward(x, constants)
        if is_fused(x):
            from bayeslora_cli.models.kernels import quantize_triton

            found: Tensor = quantize_triton.forward(x, learned, constants)
            return found
        found = codes(x, constants).mul_(learned[:, 1:, None])
        return (found[:, 0] if found.shape[1] == 1 else found.sum(1)).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        """Return the gradients of x and of `learned`.

        Let g be the gradient of the output and <,> a sum over K. x gets g_x: g where x is not
        clipped, else 0. f_n gets <g, code_n>, and -ln beta gets <g_x, x>. Through f_n, ln beta gets
        the sum of f_n <g, code_n> as well, together <g, x_q> - <g_x, x>: within the range each
        rounding error, and beyond it the whole value, is proportional to beta.
        """
        (x, constants), (grad,) = ctx.saved_tensors, grads
        if is_fused(x):
            from bayeslora_cli.models.kernels import quantize_triton

            return *quantize_triton.backward(x, grad, constants), None
        clipped = _clipped(x, constants)
        of_factors = _rounded(clipped, constants).mul_(grad[:, None]).sum(-1)
        of_x = grad * (clipped == x)
        of_range = clipped.mul_(of_x).sum(-1)  # where x is not clipped, clipped x is x
        return of_x, torch.cat((of_range[:, None], of_factors), -1), None


def quantize(x: Tensor, by: Quantizers) -> Tensor:
    """Quantize x (G, ...) by G quantizers: the result has x's type, rounding uses theirs."""
    out: Tensor = _Quantize.apply(x.reshape(x.shape[0], -1), *by)  # type: ignore[no-untyped-call]
    return out.view(x.shape)
