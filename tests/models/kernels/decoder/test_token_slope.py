"""The fused log softmax of tokens: torch's operators give the same."""

from __future__ import annotations

import os

import pytest
import torch

from bayeslora_cli.models.kernels.decoder import fp8_output
from bayeslora_cli.models.kernels.decoder import token_log_likelihood as module
from bayeslora_cli.models.kernels.decoder.fp8_output import Fp8Output, quantized_output
from bayeslora_cli.models.kernels.decoder.token_log_likelihood import PADDING, token_log_likelihood
from bayeslora_cli.models.kernels.frozen.fp8_rows import FP8

CASES = [(1.0, None), (0.3, None), (0.7, 1.5)]


def operands(dtype, device):
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(n, 16, generator=generator) for n in (37, 5003))
    targets = torch.randint(5003, (37,), generator=generator)
    targets[[0, 1]] = torch.tensor([0, 5002])
    targets[[2, 36]] = PADDING
    return hidden.to(device, dtype).requires_grad_(), weight.to(device, dtype), targets.to(device)


def test_slopes_of_fp8_numbers_follow_those_of_the_whole_layer():
    """Against torch's operators on the same weight; targets at either end, and one that is none."""
    hidden, weight, targets = operands(torch.float32, "cpu")
    weight = weight[:4992]
    targets[1] = 4991
    output = quantized_output(weight)
    for scale, softcap in CASES:
        found = [
            outcome(hidden, weight, targets.clamp(max=4991), scale, softcap, given)
            for given in (None, output)
        ]
        torch.testing.assert_close(found[1][0], found[0][0])
        errors = (found[1][1] - found[0][1]).norm(dim=1) / found[0][1].norm(dim=1)
        assert (errors.nan_to_num() < 0.05).all()
        assert not found[1][1][[2, 36]].any()


def outcome(hidden, weight, targets, scale, softcap, output=None):
    found = token_log_likelihood(
        hidden, weight, None, targets, scale=scale, softcap=softcap, output=output
    )
    slope = torch.linspace(-1, 1, len(found), device=found.device)
    return found.detach(), *torch.autograd.grad(found, hidden, slope)


def check_codes(dtype, device, scale, softcap):
    """The kernel's codes and steps are those of torch's operators, but for rounding."""
    from bayeslora_cli.models.kernels.decoder import token_slope_triton

    generator = torch.Generator().manual_seed(1)
    logits = 4 * torch.randn(37, 5003, generator=generator)
    targets = torch.randint(5003, (37,), generator=generator)
    logits[3, targets[3]] = 40  # whose slope, nearly 0, is not to hide the others
    targets[[0, 1, 2]] = torch.tensor([0, 5002, PADDING])
    scales = torch.rand(5003, generator=generator) + 0.5
    given = [x.to(device) for x in (logits.to(dtype), targets, scales, scales.max())]
    output = Fp8Output(torch.empty(0), given[2], given[3], False)
    found = token_slope_triton.coded_slopes(*given, scale, softcap, FP8)
    expected = fp8_output._slopes(given[0].cpu(), targets, output_on_cpu(output), scale, softcap)
    for place in (0, 2, 3):
        torch.testing.assert_close(found[place].cpu(), expected[place], rtol=1e-5, atol=1e-5)
    ours, theirs = (x[1].float().cpu() for x in (found, expected))
    # Triton's interpreter halves a number that is rounded up to a power of 2, and cuts off others
    assert ((ours - theirs).abs() <= theirs.abs() / 2 + 2.0**-9).all()
    assert (ours == theirs).float().mean() >= (0.8 if device == "cpu" else 0.999)
    assert not ours[2].any()


def output_on_cpu(output):
    return Fp8Output(output.codes, output.scale.cpu(), output.largest.cpu(), output.logits)


def check(dtype, device, scale, softcap, monkeypatch):
    given = operands(dtype, device)
    monkeypatch.setattr(module, "_is_fused", lambda _: True)
    with torch.no_grad():
        alone = token_log_likelihood(given[0], given[1], None, given[2], scale=scale,
                                     softcap=softcap)  # fmt: skip
    found = outcome(*given, scale, softcap)
    monkeypatch.setattr(module, "_is_fused", lambda _: False)
    expected = outcome(*given, scale, softcap)
    torch.testing.assert_close(alone, found[0], rtol=0, atol=0)
    bound = 1e-5 if dtype == torch.float32 else 1e-2
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours.float() - theirs.float()).norm() <= bound * theirs.float().norm()
    assert not found[0][[2, 36]].any()
    assert not found[1][[2, 36]].any()


@pytest.mark.gpu
@pytest.mark.usefixtures("a_gpu")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("scale", "softcap"), CASES)
def test_the_fused_kernel_is_torchs_operators(dtype, scale, softcap, monkeypatch):
    check(dtype, "cuda", scale, softcap, monkeypatch)
    check_codes(dtype, "cuda", scale, softcap)


@pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="needs Triton and TRITON_INTERPRET=1"
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("scale", "softcap"), CASES)
def test_the_fused_kernel_interpreted(dtype, scale, softcap, monkeypatch):
    check(dtype, "cpu", scale, softcap, monkeypatch)
    check_codes(dtype, "cpu", scale, softcap)
