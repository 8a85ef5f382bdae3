"""Quantizers against a float64 twin in the residual form, with autograd and rounding as it is."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bayeslora_cli.models.kernels.quantize import MARGIN, codes, intervals, quantize, quantizers

LADDERS = [(2, 4, 8, 16), (2, 4), (4, 8), (8,), (2,), (4, 8, 16)]


class Round(torch.autograd.Function):
    """Straight through."""

    @staticmethod
    def forward(ctx, x):
        return x.round()

    @staticmethod
    def backward(ctx, grad):
        return grad


def twin(x, beta, signed, gates, ladder):
    """blora.md's formula, one quantizer: residuals added while the gates are open."""
    alpha = -beta if signed else 0 * beta
    step = (beta - alpha) / (2 ** ladder[0] - 1)
    high = beta * (1 - MARGIN)
    x = torch.minimum(torch.maximum(x, -high if signed else 0 * beta), high)
    found = residual_of = step * Round.apply(x / step)
    gate = torch.ones((), dtype=x.dtype)
    for width, own in zip(ladder[1:], gates, strict=True):
        step = step / (2 ** (width // 2) + 1)
        residual = step * Round.apply((x - residual_of) / step)
        gate = gate * own
        found = found + gate * residual
        residual_of = residual_of + residual
    return found


def build(log_range, signed, gates, ladder):
    """The same quantizer, of one or several ranges (G,) and gates (G, L - 1)."""
    reached = torch.cat((torch.ones_like(log_range)[:, None], gates.cumprod(1)), 1)
    shares = torch.cat((reached[:, :-1] - reached[:, 1:], reached[:, -1:]), 1)
    divisors = torch.tensor(intervals(ladder), dtype=log_range.dtype).expand(shares.shape)
    return quantizers(log_range, torch.full_like(log_range, float(signed)), divisors, shares)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(LADDERS),
    st.booleans(),
    st.integers(0, 10**6),
    st.sampled_from([0.02, 1.0, 30.0]),
)
def test_values_and_gradients_are_the_residual_forms(ladder, signed, seed, beta):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, 40, generator=generator, dtype=torch.float64) * beta
    gates = torch.rand(2, len(ladder) - 1, generator=generator, dtype=torch.float64)
    gates = torch.where(gates < 0.2, 0, torch.where(gates > 0.8, 1, gates))
    log_range = torch.tensor([beta, beta / 2], dtype=torch.float64).log()
    upstream = torch.randn(2, 40, generator=generator, dtype=torch.float64)
    found = []
    for ours in (True, False):
        leaves = [t.clone().requires_grad_() for t in (x, log_range, gates)]
        if ours:
            out = quantize(leaves[0], build(*leaves[1:2], signed, leaves[2], ladder))
        else:
            rows = zip(leaves[0], leaves[1].exp(), leaves[2], strict=True)
            out = torch.stack([twin(row, b, signed, z.unbind(), ladder) for row, b, z in rows])
        (out * upstream).sum().backward()
        found.append([out.detach(), *(leaf.grad for leaf in leaves if leaf.numel())])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12 * beta)


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("opened", [0, 1, 2, 3])
def test_open_gates_equal_rounding_directly(opened, signed):
    """In float64 to its last digits; in fp32 a few 16-bit values may be a code apart."""
    ladder = (2, 4, 8, 16)
    gates = torch.tensor([[1.0] * opened + [0.0] * (3 - opened)], dtype=torch.float64)
    x = torch.randn(1, 5000, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    beta, bits = torch.tensor([1.7], dtype=torch.float64), ladder[opened]
    step = beta * (1 + signed) / (2**bits - 1)
    direct = step * (x.clamp(-beta * signed, beta) .clamp(max=float(beta) * (1 - MARGIN),
        min=-float(beta) * signed * (1 - MARGIN)) / step).round()  # fmt: skip
    residual = twin(x[0], beta[0], signed, gates[0].unbind(), ladder)
    torch.testing.assert_close(residual, direct[0], rtol=0, atol=1e-12)
    mixed = quantize(x, build(beta.log(), signed, gates, ladder))
    torch.testing.assert_close(mixed, direct, rtol=0, atol=1e-12)
    single = quantize(x.float(), build(beta.log().float(), signed, torch.ones(1, 0), (bits,)))
    apart = ((single.double() - direct) / step).abs()
    assert apart.max() <= 1.001
    assert (apart > 0.5).double().mean() < (0.01 if bits == 16 else 0.001)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([2, 4, 8, 16]), st.floats(1e-4, 1e4), st.floats(0.5, 1e3))
def test_codes_fit_their_integers(bits, beta, far):
    """At the very end of the range too, where they would be 2, 8, 128 and 32768."""
    log_range = torch.tensor([beta]).log()
    x = torch.tensor([[-far, -1.0, 1.0, far]]) * log_range.exp()
    divisors = torch.tensor([intervals([bits])], dtype=torch.float32)
    own = quantizers(log_range, torch.ones(1), divisors).constants
    top = 2 ** (bits - 1) - 1
    found = codes(x, own)[0, 0]
    assert found.abs().max() <= top
    assert found[1] == -top
    assert found[2] == top


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6))
def test_opening_a_gate_never_raises_the_error(seed):
    """Of any element: a residual is rounded to what is nearer than nothing.

    The rounding at s_2n is nearest to x on a finer grid that has all points of that at s_n.
    """
    x = torch.randn(1, 400, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    x = x.clamp(-1.9, 1.9)
    log_range = torch.tensor([1.9], dtype=torch.float64).log()
    errors = []
    for bits in (2, 4, 8, 16):
        by = build(log_range, True, torch.ones(1, 0, dtype=torch.float64), (bits,))
        errors.append((quantize(x, by) - x).abs())
    for coarse, fine in pairwise(errors):
        assert bool((fine <= coarse + 1e-12).all())


def test_bf16_is_rounded_in_fp32():
    """Codes of 16 bits have no place in bf16's eight."""
    x = torch.randn(1, 200, generator=torch.Generator().manual_seed(0)).bfloat16()
    by = build(torch.tensor([1.0]), True, torch.ones(1, 3), (2, 4, 8, 16))
    out = quantize(x, by)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, quantize(x.float(), by).bfloat16())


def test_a_quantized_tensor_is_quantized_already():
    """An export's codes times their step, quantized again, are the same to the bit."""
    x = torch.randn(3, 500, generator=torch.Generator().manual_seed(0))
    for bits in (2, 4, 8, 16):
        by = build(torch.tensor([0.3, 1.0, 7.0]).log(), True, torch.ones(3, 0), (bits,))
        once = quantize(x, by)
        assert torch.equal(quantize(once, by), once)
        whole = codes(x, by.constants)[:, 0].to(torch.int16)
        assert torch.equal(whole.float() * by.constants[:, 2:], once)
