"""What every optimizer over the bank promises."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bayeslora_cli.bayes.adamw import BankAdamW
from bayeslora_cli.bayes.ivon import BankIVON
from bayeslora_cli.models.adapters.bank import AdapterBank

SHAPES = [[(5, 7)], [(3, 2), (64,), (11, 3, 2)]]
IVON = {
    "ess": 300.0,
    "hess_init": 0.7,
    "beta1": 0.9,
    "beta2": 0.99,
    "weight_decay": 1e-3,
    "clip_radius": 0.05,
}


def bank_of(parameters, posterior):
    others = [(f"p{i}", "full", p) for i, p in enumerate(parameters)]
    return AdapterBank([], others, posterior=posterior)


@pytest.mark.parametrize("kind", ["ivon", "adamw"])
def test_a_bad_update_changes_nothing(kind):
    torch.manual_seed(0)
    bank = bank_of([nn.Parameter(torch.randn(5))], posterior=kind == "ivon")
    if kind == "ivon":
        optimizer = BankIVON(bank, generator=torch.Generator(), lr=0.1, **IVON)
    else:
        optimizer = BankAdamW(bank, weight_decay=0.1)
    bank.local.fill_(1.0)
    bank.accumulate(1.0, first=True)
    optimizer.update(0, 0.1, torch.tensor(True))
    before = {k: v.clone() for k, v in {**optimizer.tensors(), **bank.tensors()}.items()}
    bank.local.fill_(float("nan"))
    bank.accumulate(1.0, first=True)
    optimizer.update(1, 0.1, torch.tensor(False))
    for name, value in {**optimizer.tensors(), **bank.tensors()}.items():
        assert torch.equal(value, before[name]), name
