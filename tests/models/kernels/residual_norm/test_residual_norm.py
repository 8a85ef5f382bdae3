"""Dropout, residual sum and layer norm in one kernel, against the formula in float64.

`TRITON_INTERPRET=1 pytest tests/models/kernels/residual_norm` runs the kernels on a CPU.
"""

from __future__ import annotations

import os

import pytest
import torch
from torch.nn import functional as F

needs_interpreter = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="needs Triton and TRITON_INTERPRET=1"
)
BOUNDS = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1e-2}
SHAPES = [(3, 40), (2, 5, 128), (7, 200)]


def check(shape, dtype, device, dropout):
    """Result and gradients, with the weights that were kept, and the same bits a second time."""
    generator = torch.Generator().manual_seed(0)

    def normal(*size):
        return torch.randn(*size, generator=generator, dtype=torch.float64).to(device, dtype)

    x, residual, slope = (normal(*shape) for _ in range(3))
    weight, bias = 1 + normal(shape[-1]), normal(shape[-1])
    seed = torch.tensor([2**40 + 3], device=device) if dropout else None
    leaves = [x.requires_grad_(), residual.requires_grad_()]

    def call(*operands):
        return torch.ops.bayeslora.residual_norm(*operands, weight, bias, seed, dropout, 1e-7)

    def ours():
        out = call(*leaves)[0]
        return [out.detach(), *torch.autograd.grad(out, leaves, slope)]

    found = ours()
    assert all(torch.equal(a, b) for a, b in zip(found, ours(), strict=True))
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    dropped = exact[0]
    if dropout:
        kept = call(torch.ones_like(x), torch.zeros_like(x))[1] != 0
        if kept.numel() > 1000:
            assert abs(float(kept.double().mean()) - (1 - dropout)) < 0.04
        dropped = exact[0] * kept / (1 - round(dropout * 2**16) / 2**16)
    want = F.layer_norm(dropped + exact[1], shape[-1:], weight.double(), bias.double(), 1e-7)
    wanted = [want.detach(), *torch.autograd.grad(want, exact, slope.double())]
    for mine, twin in zip(found, wanted, strict=True):
        error = float((mine.double() - twin).norm() / twin.norm())
        assert error <= BOUNDS[dtype], f"{error:.1e}"


@needs_interpreter
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_kernels_interpreted(shape, dtype, dropout):
    import bayeslora_cli.models.kernels.residual_norm.residual_norm  # noqa: F401

    check(shape, dtype, "cpu", dropout)


@pytest.mark.gpu
@pytest.mark.usefixtures("a_gpu")
@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("shape", [*SHAPES, (2048, 768), (3, 1024)])
def test_the_kernels(shape, dtype, dropout):
    import bayeslora_cli.models.kernels.residual_norm.residual_norm  # noqa: F401

    check(shape, dtype, "cuda", dropout)
