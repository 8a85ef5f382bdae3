"""AdamW over the bank against torch's."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bayeslora_cli.bayes.adamw import BankAdamW
from tests.bayes.test_optimizer import SHAPES, bank_of


@pytest.mark.parametrize("shapes", SHAPES)
@pytest.mark.parametrize(
    ("decay", "matrices_only", "max_norm"),
    [(0.0, False, None), (0.1, False, None), (0.1, True, None), (0.0, True, 0.5), (0.1, True, 2)],
)
def test_adamw_equals_torchs(shapes, decay, matrices_only, max_norm):
    torch.manual_seed(0)
    start = [torch.randn(s) for s in shapes]
    theirs = [nn.Parameter(p.clone()) for p in start]
    ours = [nn.Parameter(p.clone()) for p in start]
    groups = [
        {"params": [p for p in theirs if p.ndim >= 2]},
        {
            "params": [p for p in theirs if p.ndim < 2],
            "weight_decay": 0.0 if matrices_only else decay,
        },
    ]
    reference = torch.optim.AdamW(groups, lr=0.01, weight_decay=decay)
    bank = bank_of(ours, posterior=False)
    optimizer = BankAdamW(bank, weight_decay=decay, matrices_only=matrices_only, max_norm=max_norm)
    for step in range(50):
        rate = 0.01 * (1 - step / 60)
        for group in reference.param_groups:
            group["lr"] = rate
        reference.zero_grad()
        sum((p**3).sum() for p in theirs).backward()
        if max_norm is not None:
            torch.nn.utils.clip_grad_norm_(theirs, max_norm)
        reference.step()
        optimizer.sample(masked=False)
        bank.zero_local()
        sum((p**3).sum() for p in ours).backward()
        bank.collect()
        bank.accumulate(1.0, first=True)
        optimizer.update(step, rate, torch.tensor(True))
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p.data, q.data, rtol=1e-6, atol=1e-7)
