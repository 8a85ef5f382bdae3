"""The fused log softmax of tokens: torch's operators give the same."""

from __future__ import annotations

import os

import pytest
import torch

from bayeslora_cli.models.kernels.decoder import token_log_likelihood as module
from bayeslora_cli.models.kernels.decoder.token_log_likelihood import PADDING, token_log_likelihood

CASES = [(1.0, None), (0.3, None), (0.7, 1.5)]


def operands(dtype, device):
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(n, 16, generator=generator) for n in (37, 5003))
    targets = torch.randint(5003, (37,), generator=generator)
    targets[[0, 1]] = torch.tensor([0, 5002])
    targets[[2, 36]] = PADDING
    return hidden.to(device, dtype).requires_grad_(), weight.to(device, dtype), targets.to(device)


def outcome(hidden, weight, targets, scale, softcap):
    found = token_log_likelihood(hidden, weight, None, targets, scale=scale, softcap=softcap)
    slope = torch.linspace(-1, 1, len(found), device=found.device)
    return found.detach(), *torch.autograd.grad(found, hidden, slope)


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


@pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="needs Triton and TRITON_INTERPRET=1"
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("scale", "softcap"), CASES)
def test_the_fused_kernel_interpreted(dtype, scale, softcap, monkeypatch):
    check(dtype, "cpu", scale, softcap, monkeypatch)
