"""The shift between products with positions and scores."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bayeslora_cli.models.kernels.position_bias import position_bias, skew


@given(length=st.integers(1, 12), seed=st.integers(0, 1000), shift=st.integers(0, 1))
def test_skew(length, seed, shift):
    offset = length - shift
    x = torch.randn(2, length, 2 * length, generator=torch.Generator().manual_seed(seed))
    y = skew(x, offset)
    assert y.shape == (2, length, length)
    for i in range(length):
        assert torch.equal(y[:, i], x[:, i, offset - i : offset - i + length])


def bias_of(c2p, p2c):
    """Element by element."""
    length = c2p.shape[-2]
    return torch.stack(
        [
            torch.stack(
                [
                    c2p[..., i, length - 1 - i + j] + p2c[..., j, length - j + i]
                    for j in range(length)
                ],
                -1,
            )
            for i in range(length)
        ],
        -2,
    )


def products(length, dtype=torch.float64, device="cpu"):
    generator = torch.Generator().manual_seed(length)
    return [
        torch.randn(3, 2, length, 2 * length, generator=generator)
        .to(device, dtype)
        .requires_grad_()
        for _ in range(2)
    ]


@given(length=st.integers(1, 9))
def test_position_bias(length):
    found = products(length)
    assert torch.equal(position_bias(*found), bias_of(*found))


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method")  # in torch's own imports
@pytest.mark.parametrize("length", [1, 3, 16, 40, 64, 65, 200, 256])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("compiled", [False, True])
def test_its_gradients_by_the_kernel(length, dtype, compiled):
    """To the bit those of the views, whatever the memory held, and for a gradient in any order."""
    by_kernel = pytest.importorskip(
        "bayeslora_cli.models.kernels.position_bias_triton"
    ).position_bias
    found = products(length, dtype, "cuda")
    call = torch.compile(by_kernel, dynamic=False) if compiled else by_kernel
    weights = torch.randn(2, 3, length, length, device="cuda").to(dtype).transpose(0, 1)
    poison = torch.full((4, *found[0].shape), float("nan"), device="cuda", dtype=dtype)
    del poison  # its memory is what the kernel gets
    gradients = torch.autograd.grad((call(*found) * weights).sum(), found)
    cpu = [x.detach().cpu().requires_grad_() for x in found]
    expected = torch.autograd.grad((position_bias(*cpu) * weights.cpu()).sum(), cpu)
    assert all(
        torch.equal(one.cpu(), other) for one, other in zip(gradients, expected, strict=True)
    )
