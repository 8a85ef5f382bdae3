"""The chunked output layer against float64, and what its backward pass gives."""

from __future__ import annotations

import pytest
import torch

from bayeslora_cli.models.kernels.decoder import token_log_likelihood as module
from bayeslora_cli.models.kernels.decoder.token_log_likelihood import PADDING, token_log_likelihood
from bayeslora_cli.tasks.objectives import causal

N, D, V = 11, 6, 37


@pytest.fixture(params=[1, 100, 10**6], ids=["a row each", "chunks", "whole"], autouse=True)
def chunk(request, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", request.param)


def operands(*, trained=(True, True, True), bias=True, seed=0):
    generator = torch.Generator().manual_seed(seed)
    made = [torch.randn(size, generator=generator) for size in ((N, D), (V, D), (V,))]
    hidden, weight, shift = (
        x.requires_grad_(wanted) for x, wanted in zip(made, trained, strict=True)
    )
    targets = torch.randint(V, (N,), generator=generator)
    targets[[2, 9]] = PADDING
    return hidden, weight, shift if bias else None, targets


def in_float64(hidden, weight, bias, targets, scale, softcap):
    z = scale * (hidden @ weight.t() + (0 if bias is None else bias))
    z = z if softcap is None else softcap * torch.tanh(z / softcap)
    found = z.log_softmax(-1).gather(1, targets.clamp(min=0)[:, None]).squeeze(1)
    return found * (targets >= 0)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("scale", "softcap"), [(1.0, None), (0.3, None), (1.0, 2.0), (0.7, 1.5)])
def test_values_and_gradients(bias, scale, softcap):
    found, exact = operands(bias=bias), operands(bias=bias)
    exact = [x if x is None or x.dtype is torch.int64 else x.detach().double().requires_grad_()
             for x in exact]  # fmt: skip
    got = token_log_likelihood(*found, scale=scale, softcap=softcap)
    want = in_float64(*exact, scale, softcap)
    assert got.dtype is torch.float32
    torch.testing.assert_close(got.double(), want, rtol=2e-6, atol=2e-6)
    weights = torch.randn(N, generator=torch.Generator().manual_seed(4))
    (got * weights).sum().backward()
    (want * weights).sum().backward()
    for ours, theirs in zip(found[:3], exact[:3], strict=True):
        if ours is not None:
            torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=2e-5, atol=2e-6)
    assert (found[0].grad[[2, 9]] == 0).all()


def test_a_frozen_layer_gets_no_gradient():
    hidden, weight, bias, targets = operands(trained=(True, False, False))
    found = token_log_likelihood(hidden, weight, bias, targets)
    found.sum().backward()
    assert weight.grad is None
    twin, *rest = operands()
    token_log_likelihood(twin, *rest).sum().backward()
    assert torch.equal(hidden.grad, twin.grad)


def test_only_the_layer_is_trained():
    hidden, weight, bias, targets = operands(trained=(False, True, True))
    token_log_likelihood(hidden, weight, bias, targets).sum().backward()
    assert hidden.grad is None
    _, twin, other, _ = twins = operands()
    token_log_likelihood(*twins).sum().backward()
    assert torch.equal(weight.grad, twin.grad)
    assert torch.equal(bias.grad, other.grad)


def test_without_gradients_nothing_is_kept():
    with torch.no_grad():
        found = token_log_likelihood(*operands())
    assert found.grad_fn is None
    assert torch.equal(found, token_log_likelihood(*operands()).detach())


def test_padding_is_what_tasks_and_torch_call_it():
    """Kernels import nothing of ours, so the number stands twice."""
    assert PADDING == causal.PADDING == torch.nn.CrossEntropyLoss().ignore_index


def test_no_tokens():
    hidden, weight, bias, targets = operands()
    found = token_log_likelihood(hidden[:0], weight, bias, targets[:0])
    assert found.shape == (0,)
    found.sum().backward()
    assert (weight.grad == 0).all()


def test_half_precision():
    """bf16 products, fp32 log softmax: as near as the rounding of the logits allows."""
    hidden, weight, bias, targets = (
        x if x.dtype is torch.int64 else x.detach().bfloat16() for x in operands()
    )
    hidden.requires_grad_()
    found = token_log_likelihood(hidden, weight, bias, targets)
    found.sum().backward()
    exact = [x if x.dtype is torch.int64 else x.detach().double() for x in
             (hidden, weight, bias, targets)]  # fmt: skip
    exact[0].requires_grad_()
    want = in_float64(*exact, 1.0, None)
    want.sum().backward()
    assert found.dtype is torch.float32
    assert hidden.grad.dtype is torch.bfloat16
    torch.testing.assert_close(found.double(), want, rtol=0.02, atol=0.02)
    torch.testing.assert_close(hidden.grad.double(), exact[0].grad, rtol=0.02, atol=0.03)
