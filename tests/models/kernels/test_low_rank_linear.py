"""The linear layer with its low-rank product."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from bayeslora_cli.models.kernels.low_rank_linear import low_rank_linear


def written_out(rows, weight, bias, down, up):
    return F.linear(rows, weight, bias) + F.linear(F.linear(rows, down), up)


def arguments(*, bias=True, needed=True, frozen=False):
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    rows, down, up = normal(5, 7), normal(3, 7), normal(3, 4).t()
    for tensor, wanted in ((rows, needed), (down, not frozen), (up, not frozen)):
        tensor.requires_grad_(wanted)
    return rows, normal(4, 7), normal(4) if bias else None, down, up


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("needed", [True, False])
@pytest.mark.parametrize("compiled", [True, False])
def test_output_and_gradients(bias, needed, compiled):
    """As written out in torch's own operators; rows may be the embeddings, which need none."""
    inputs = arguments(bias=bias, needed=needed)
    call = (
        torch.compile(low_rank_linear, fullgraph=True, backend="aot_eager", dynamic=False)
        if compiled
        else low_rank_linear
    )
    wanted = [x for x in inputs if x is not None and x.requires_grad]
    assert len(wanted) == 2 + needed
    found, expected = call(*inputs), written_out(*inputs)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    slopes = torch.linspace(-1, 1, found.numel(), dtype=found.dtype).view_as(found)
    gradients = [torch.autograd.grad(y, wanted, slopes) for y in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)


def test_without_gradients():
    inputs = arguments(needed=False, frozen=True)
    found = low_rank_linear(*inputs)
    assert not found.requires_grad
    torch.testing.assert_close(found, written_out(*inputs), rtol=1e-12, atol=1e-12)


def test_as_an_operator():
    """What torch asks of an operator: schema, shapes without data, gradients under a compiler."""
    operator = torch.ops.bayeslora.low_rank_linear.default
    tests = ("test_schema", "test_faketensor", "test_autograd_registration")
    torch.library.opcheck(operator, arguments(), test_utils=tests)
