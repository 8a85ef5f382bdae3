"""The orthogonality penalty against autograd, PEFT's formula and finite cases."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bayeslora_cli.methods.adalora.orthogonality import _gram, orthogonality
from bayeslora_cli.models.adapters.bank import AdapterBank
from bayeslora_cli.models.adapters.bank_layout import Matrix

SHAPES = [(6, 9), (9, 6), (6, 9), (5, 5), (128, 64)]  # in one piece and in several


def build(rank, std):
    torch.manual_seed(0)
    matrices = [
        Matrix(
            name=f"m{i}",
            a=nn.Parameter(torch.randn(rank, w) * std),
            b=nn.Parameter(torch.randn(h, rank) * std),
            e=nn.Parameter(torch.zeros(rank, 1)),
        )
        for i, (w, h) in enumerate(SHAPES)
    ]
    return AdapterBank(matrices, [], posterior=False), matrices


@pytest.mark.parametrize("rank", [1, 3, 5])
@pytest.mark.parametrize("std", [0.02, 0.7])
def test_value_and_gradient_equal_pefts_in_float64(rank, std):
    """PEFT's loop (AdaLoraModel.forward) over the same tensors, with autograd, in float64."""
    bank, matrices = build(rank, std)
    twins = [
        (p.detach().double().requires_grad_(), q)
        for m in matrices
        for p, q in ((m.a, "a"), (m.b, "b"))
    ]
    total = 0
    for p, part in twins:
        covariance = p @ p.T if part == "a" else p.T @ p
        total = total + torch.norm(covariance - torch.eye(rank).double(), p="fro")
    expected = 0.3 * total / len(twins)
    expected.backward()
    bank.zero_local()
    value = orthogonality(bank, 0.3)
    assert value.item() == pytest.approx(expected.item(), rel=1e-6)
    for index, matrix in enumerate(matrices):
        for offset, parameter in enumerate((matrix.a, matrix.b)):
            torch.testing.assert_close(
                parameter.grad.double(), twins[2 * index + offset][0].grad, rtol=1e-5, atol=1e-7
            )
        assert bool((matrix.e.grad == 0).all())


def test_it_adds_to_the_tasks_gradient():
    bank, _ = build(3, 0.5)
    orthogonality(bank, 0.3)
    alone = bank.local.clone()
    bank.local.fill_(2.0)
    orthogonality(bank, 0.3)
    torch.testing.assert_close(bank.local, alone + 2.0)


def test_orthonormal_factors_have_no_gradient():
    """At the norm's kink the subgradient 0 is taken, as torch takes it, and never NaN."""
    bank, matrices = build(3, 0.5)
    for m in matrices:
        m.a.data.copy_(torch.eye(*m.a.shape))
        m.b.data.copy_(torch.eye(*m.b.shape))
    assert orthogonality(bank, 0.3).item() == 0
    assert bool((bank.local == 0).all())


def test_no_batch_has_more_products_than_gpus_compute(monkeypatch):
    """Also of 160 matrices with 28,672 outputs, and where the pieces would not fit a row."""
    found = []
    product = torch.Tensor.__matmul__

    def counted(left, right):
        found.append(left.shape[:-2].numel())
        return product(left, right)

    monkeypatch.setattr(torch.Tensor, "__matmul__", counted)
    for count, length in ((160, 28672), (160, 28736), (3, 128), (3, 65)):
        assert _gram(torch.empty(count, 12, length, device="meta")).shape == (count, 12, 12)
    assert found == [160 * 224, 160, 6, 3]
    rows = torch.randn(4, 3, 256, generator=torch.Generator().manual_seed(0))
    whole = _gram(rows)
    monkeypatch.setattr("bayeslora_cli.methods.adalora.orthogonality.MOST", 8)
    torch.testing.assert_close(_gram(rows), whole)
    assert found[-2:] == [16, 8]
