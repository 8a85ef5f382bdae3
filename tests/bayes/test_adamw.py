"""AdamW over the bank against torch's."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bayeslora_cli.bayes.adamw import BankAdamW
from tests.bayes.test_optimizer import SHAPES, bank_of


@pytest.mark.parametrize("shapes", SHAPES)
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_adamw_equals_torchs(shapes, decay):
    torch.manual_seed(0)
    start = [torch.randn(s) for s in shapes]
    theirs = [nn.Parameter(p.clone()) for p in start]
    ours = [nn.Parameter(p.clone()) for p in start]
    reference = torch.optim.AdamW(theirs, lr=0.01, weight_decay=decay)
    bank = bank_of(ours, posterior=False)
    optimizer = BankAdamW(bank, weight_decay=decay)
    for step in range(50):
        rate = 0.01 * (1 - step / 60)
        reference.param_groups[0]["lr"] = rate
        reference.zero_grad()
        sum((p**3).sum() for p in theirs).backward()
        reference.step()
        optimizer.sample(masked=False)
        bank.zero_local()
        sum((p**3).sum() for p in ours).backward()
        bank.collect()
        bank.accumulate(1.0, first=True)
        optimizer.update(step, rate, torch.tensor(True))
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p.data, q.data, rtol=1e-6, atol=1e-7)
