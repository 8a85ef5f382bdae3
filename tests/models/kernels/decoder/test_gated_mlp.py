"""The gated MLP's operator: torch's own operators give the same, in value and gradients."""

from __future__ import annotations

import os
from functools import partial

import pytest
import torch
from torch.nn import functional as F

from bayeslora_cli.models.kernels.decoder import gated_mlp as kernel
from bayeslora_cli.models.kernels.decoder.gated_mlp import Adapted, gated_mlp
from bayeslora_cli.models.kernels.frozen.arithmetic import DENSE, Frozen

SIZES = [(5, 6, 7, 3, 2), (70, 24, 80, 24, 12), (1, 3, 64, 1, 1), (129, 40, 130, 16, 20)]
"""Rows, inputs, f, rank of the wide layer and of the narrow one."""
CASES = [*((sizes, 0) for sizes in SIZES), (SIZES[1], 12), (SIZES[3], 5)]
"""Of which so many ranks belong to the gate alone."""


def operands(sizes, *, biases, dtype=torch.double, device="cpu", separate=0):
    n, width, inner, rank, rank_2 = sizes
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape):
        values = torch.randn(*shape, generator=generator, dtype=torch.double) / shape[-1] ** 0.5
        return values.to(device, dtype)

    def layer(out, into, r):
        up = drawn(r, out).t()
        weight, bias = drawn(out, into), drawn(out) if biases else None
        return Adapted(Frozen((weight,), (out,), DENSE, bias), drawn(r, into), up)

    rows, wide = drawn(n, width) * width**0.5, layer(2 * inner, width, rank)
    if separate:
        assert 2 * separate <= rank
        wide.up[:inner, separate:] = 0
        wide.up[inner:, :separate] = 0
        wide.up[inner:, 2 * separate :] = 0
    return rows, wide, layer(width, inner, rank_2)


def plain(rows, wide, narrow):
    def product(x, layer):
        frozen, (weight,) = layer.frozen, layer.frozen.stored
        return F.linear(x, weight, frozen.bias) + x @ layer.down.t() @ layer.up.t()

    gate, other = product(rows, wide).chunk(2, 1)
    return product(F.silu(gate) * other, narrow)


def outcome(function, rows, wide, narrow, *, needed=True):
    """The result and the gradients of rows and of the four factors."""
    leaves = [rows, wide.down, wide.up, narrow.down, narrow.up]
    rows, *factors = (x.detach().requires_grad_(i > 0 or needed) for i, x in enumerate(leaves))
    out = function(
        rows,
        wide._replace(down=factors[0], up=factors[1]),
        narrow._replace(down=factors[2], up=factors[3]),
    )
    wanted = [rows, *factors] if needed else factors
    slope = torch.linspace(-1, 1, out.numel(), dtype=out.dtype, device=out.device).view_as(out)
    return [out.detach(), *torch.autograd.grad(out, wanted, slope)]


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("biases", [True, False])
@pytest.mark.parametrize("needed", [True, False])
def test_values_and_gradients_are_those_of_torchs_operators(sizes, biases, needed):
    given = operands(sizes, biases=biases)
    found, expected = (outcome(f, *given, needed=needed) for f in (gated_mlp, plain))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_what_is_kept_is_the_input_the_wide_product_and_the_narrow_ones():
    rows, wide, narrow = operands(SIZES[1], biases=False)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        gated_mlp(
            rows,
            wide._replace(down=wide.down.requires_grad_()),
            narrow._replace(down=narrow.down.requires_grad_()),
        )
    inner, rank, rank_2 = SIZES[1][2:]
    layers = wide, narrow
    own = {x.data_ptr() for one in layers for x in (*one.frozen.stored, one.down, one.up)}
    shapes = sorted(x.shape[1] for x in kept if x.data_ptr() not in own)
    assert shapes == sorted([rows.shape[1], 2 * inner, rank, rank_2])


def in_double(layer):
    (weight,), heights, kind, bias = layer.frozen
    frozen = Frozen((weight.double(),), heights, kind, bias.double())
    return Adapted(frozen, layer.down.double(), layer.up.double())


def check_fused(dtype, sizes, device, separate):
    """The fused kernels are no further from float64 than torch's operators of the same type."""
    given = operands(sizes, biases=True, dtype=dtype, device=device, separate=separate)
    exact = [x.double() if isinstance(x, torch.Tensor) else in_double(x) for x in given]
    assert kernel.HAS_TRITON
    sides = (
        outcome(partial(gated_mlp, separate=separate), *given),
        outcome(plain, *given),
        outcome(plain, *exact),
    )
    if separate:  # outside of the diagonal blocks any gradient may stand
        inner = sizes[2]
        for side in sides:
            side[3] = side[3].clone()
            side[3][:inner, separate:] = 0
            side[3][inner:, :separate] = 0
            side[3][inner:, 2 * separate :] = 0
    names = ("result", "rows", "down", "up", "down_2", "up_2")
    for name, found, usual, truth in zip(names, *sides, strict=True):
        far, allowed = (float((x.double() - truth).norm() / truth.norm()) for x in (found, usual))
        allowed = 3 * allowed + max(1e-5, torch.finfo(dtype).eps)
        assert far <= allowed, f"{name}: off by {far:.1e}, allowed {allowed:.1e}"


# torch 2.11 says so once, where the first work of its backward thread is a product
@pytest.mark.filterwarnings("ignore:Attempting to run cuBLAS, but there was no current CUDA")
@pytest.mark.gpu
@pytest.mark.usefixtures("a_gpu")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("sizes", "separate"), CASES)
def test_the_fused_kernels_are_torchs_operators(dtype, sizes, separate):
    """As far as rounding goes."""
    check_fused(dtype, sizes, "cuda", separate)


@pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="needs Triton and TRITON_INTERPRET=1"
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])  # it cannot multiply bf16
@pytest.mark.parametrize(("sizes", "separate"), CASES)
def test_the_fused_kernels_interpreted(dtype, sizes, separate, monkeypatch):
    monkeypatch.setattr(kernel, "_is_fused", lambda _: True)
    check_fused(dtype, sizes, "cpu", separate)
