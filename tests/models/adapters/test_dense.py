"""`DenseLinear`: what it keeps beside the weight."""

from __future__ import annotations

import torch
from torch import nn

from bayeslora_cli.models.adapters.dense import DenseLinear
from bayeslora_cli.models.kernels.low_rank import split_linear


def test_halves_follow_the_weight(monkeypatch):
    """Also those of the stack that a layer is a part of."""
    monkeypatch.setattr(split_linear, "is_able", lambda *_: True)
    torch.manual_seed(0)
    forms = [DenseLinear(nn.Linear(6, 4)) for _ in range(2)]
    stack = DenseLinear.join(forms)
    assert all(form.keep_halves() for form in (stack, *forms))
    places = [x.data_ptr() for form in (stack, *forms) for x in form.halves]
    forms[1].replace_dense(torch.randn(4, 6) * 50)
    for form in (stack, *forms):
        (upper, lower), unit = form.halves
        torch.testing.assert_close((upper.float() + lower.float()) * unit, form.dense())
    assert places == [x.data_ptr() for form in (stack, *forms) for x in form.halves]
    rows, down, up = torch.randn(3, 6), torch.randn(40, 6), torch.randn(8, 40)
    with_halves = stack.product(rows, down, up)
    stack.halves = None
    assert torch.equal(with_halves, stack.product(rows, down, up))  # ranks beyond the kernels


def test_a_cpu_keeps_no_halves():
    form = DenseLinear(nn.Linear(8, 8))
    assert not form.keep_halves()
    assert form.halves is None
