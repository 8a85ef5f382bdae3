"""Dropout on a CPU: how much is dropped, what is kept, and attention with it."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from bayeslora_cli.models.kernels.cpu_dropout import cpu_dropout

CPU = torch.device("cpu")


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("p", [0.1, 0.5, 0.937])
def test_as_much_is_dropped_as_asked(p, kind):
    """Within five standard deviations, anywhere in the tensor; the rest grows by as much."""
    torch.manual_seed(0)
    x = torch.full((11, 13, 401), 3.0, dtype=kind, requires_grad=True)
    with cpu_dropout(CPU):
        found = F.dropout(x, p)
    found.sum().backward()
    kept = found != 0
    for share in (kept.double().mean(), kept[:, :, :200].double().mean(), kept[5].double().mean()):
        bound = 5 * (p * (1 - p) / (kept.numel() / 11)) ** 0.5
        assert abs(float(share) - (1 - p)) < bound
    expected = torch.full_like(found[kept], 3 / (1 - p))
    torch.testing.assert_close(found[kept], expected, rtol=4e-3, atol=0)
    assert torch.equal(x.grad != 0, kept)
    torch.testing.assert_close(x.grad[kept] * 3, found[kept].detach(), rtol=4e-3, atol=0)


def test_the_expectation_is_exact():
    """What is kept is divided by what it is kept with, not by 1 - p."""
    with cpu_dropout(CPU):
        found = F.dropout(torch.ones(1000, dtype=torch.float64), 0.1)
    assert float(found.max()) == 65536 / (65536 - 6554)


def test_elements_are_independent():
    """No correlation between neighbours, nor between those of one number of the generator."""
    torch.manual_seed(0)
    with cpu_dropout(CPU):
        kept = (F.dropout(torch.ones(400_000), 0.5) != 0).double() - 0.5
    for lag in (1, 2, 3, 4, 8, 64):
        assert abs(float((kept[lag:] * kept[:-lag]).mean())) < 5 * 0.25 / 400_000**0.5


@pytest.mark.parametrize(
    "options", [{"p": 0.0}, {"p": 1.0}, {"training": False}, {"inplace": True}, {"p": 1e-6}]
)
def test_the_rest_is_torchs(options):
    x = torch.randn(37)
    found = []
    for context in (cpu_dropout(CPU), cpu_dropout(torch.device("meta"))):
        torch.manual_seed(0)
        with context:
            found.append(F.dropout(x.clone(), **options))
    assert torch.equal(*found)


def test_the_generator_decides():
    """The same state, the same draws, on any number of threads; each call draws others."""
    found, threads = [], torch.get_num_threads()
    try:
        for count in (1, 2, 1):
            torch.set_num_threads(count)
            torch.manual_seed(3)
            with cpu_dropout(CPU):
                found.append([F.dropout(torch.ones(70_001), 0.3) for _ in range(2)])
    finally:
        torch.set_num_threads(threads)
    assert all(
        torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True)
    )
    assert not torch.equal(*found[0])


MASKS = {
    "none": None,
    "bool": torch.arange(7) < torch.tensor([[7], [3], [0]])[:, None, None],  # the last has no key
    "float": torch.randn(3, 1, 7, 7, generator=torch.Generator().manual_seed(5)),
    "-inf": torch.zeros(3, 1, 1, 7).masked_fill(
        torch.arange(7) >= torch.tensor([[7], [3], [0]])[:, None, None], -torch.inf
    ),
}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("scale", [None, 0.7])
def test_attention_is_torchs(mask, scale, monkeypatch):
    """But for the dropout itself, gradients included."""
    monkeypatch.setattr("bayeslora_cli.models.kernels.cpu_dropout._dropout", lambda x, p: x)
    generator = torch.Generator().manual_seed(0)
    given = [torch.randn(3, 2, 7, 5, dtype=torch.float64, generator=generator) for _ in range(4)]
    bias = MASKS[mask].double() if mask in ("float", "-inf") else MASKS[mask]
    found = []
    for p in (0.1, 0.0):
        q, k, v = (x.clone().requires_grad_() for x in given[:3])
        with cpu_dropout(CPU):
            out = F.scaled_dot_product_attention(q, k, v, bias, p, scale=scale)
        out.backward(given[3])
        found.append((out.detach(), q.grad, k.grad, v.grad))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_attention_drops_weights():
    """As often as asked, and each on its own."""
    torch.manual_seed(0)
    q = torch.randn(4, 3, 50, 8)
    with cpu_dropout(CPU):
        found = F.scaled_dot_product_attention(q, q, torch.eye(50).expand(4, 3, 50, 50), None, 0.25)
    kept = found != 0
    assert abs(float(kept.double().mean()) - 0.75) < 5 * (0.25 * 0.75 / kept.numel()) ** 0.5
    whole = F.scaled_dot_product_attention(q, q, torch.eye(50).expand(4, 3, 50, 50))
    torch.testing.assert_close(found[kept], whole[kept] / 0.75)


@pytest.mark.parametrize("options", [{"is_causal": True}, {"enable_gqa": True}])
def test_other_attention_is_torchs(options):
    q = torch.randn(2, 4, 6, 8)
    k = q[:, :2] if "enable_gqa" in options else q
    found = []
    for context in (cpu_dropout(CPU), cpu_dropout(torch.device("meta"))):
        torch.manual_seed(0)
        with context:
            found.append(F.scaled_dot_product_attention(q, k, k, dropout_p=0.3, **options))
    assert torch.equal(*found)
