"""B-LoRA's fused layers against torch's operators: on a GPU, and interpreted."""

from __future__ import annotations

import os

import pytest
import torch
from torch.nn import functional as F

from bayeslora_cli.models.kernels.gated import gated_linear
from bayeslora_cli.models.kernels.gated.gated_base import gated_base_product
from bayeslora_cli.models.kernels.gated.gated_linear import gated_product
from bayeslora_cli.models.kernels.low_rank import tiles
from bayeslora_cli.models.kernels.quantize import (
    Quantizers,
    codes,
    intervals,
    quantize,
    quantizers,
)

H200 = tiles.Gpu(multiprocessors=132, shared_memory=227 * 1024, copies_tiles=True)
LADDER = (2, 4, 8, 16)
CASES = [([40], 24), ([24, 8, 8], 24), ([40, 40], 130)]
"""Outputs of each layer, and inputs."""


def quantizers_of(layers, widths, generator, *, signed, beta):
    """Some for each layer; with one width as at the thresholds."""
    ranges = torch.empty(layers).uniform_(beta / 2, beta, generator=generator).log()
    divisors = torch.tensor(intervals(LADDER[-widths:]), dtype=torch.float32)
    shares = torch.rand(layers, widths, generator=generator).softmax(1)
    signs = torch.full((layers,), float(signed))
    return quantizers(ranges, signs, divisors.expand(shares.shape), shares)


def operands(heights, width, dtype, widths, *, rows=37, rank=5, base=False):
    """A few rows more than whole tiles, a rank that fills none; some values are clipped.

    `base`: with quantizers of the frozen weights.
    """
    g, m = torch.Generator().manual_seed(0), len(heights)

    def drawn(*shape):
        return torch.randn(*shape, generator=g).to(dtype)

    by = [
        quantizers_of(m, widths, g, signed=signed, beta=beta)
        for signed, beta in ((True, 2.5), (True, 8.0), (False, 8.0), (True, 2.0))[: 3 + base]
    ]
    e = torch.randn(m, rank, generator=g)
    return [drawn(rows, width), drawn(sum(heights), width), drawn(sum(heights)),
            drawn(m, rank, width), e, drawn(sum(heights), rank), *by]  # fmt: skip


def plain(rows, weight, bias, a, e, b, of_x, of_a, of_h, *rest):
    """One layer after the other, by torch's operators."""
    *of_base, heights = rest

    def q(value, by, i):
        own = Quantizers(*(part[i : i + 1] for part in by))
        return quantize(value.reshape(1, -1), own).view(value.shape)

    found = []
    for i, (w, own, up) in enumerate(
        zip(*(x.split(heights) for x in (weight, bias, b)), strict=True)
    ):
        taken = q(rows, of_x, i)
        frozen = F.linear(taken, q(w, *of_base, i), own) if of_base else F.linear(rows, w, own)
        h = q(taken @ a[i].t(), of_a, i) * e[i].to(rows.dtype)
        found.append(frozen + q(h, of_h, i) @ up.t())
    return torch.cat(found, 1)


def outcome(function, given, heights):
    """The result and all gradients, by name."""
    rows, weight, bias, *rest = given
    leaves = [x.detach().requires_grad_() for x in (rows, *rest[:3])]
    by = [q._replace(learned=q.learned.detach().requires_grad_()) for q in rest[3:]]
    out = function(leaves[0], weight, bias, *leaves[1:], *by, heights)
    slope = torch.linspace(-1, 1, out.numel(), device=out.device).view_as(out).to(out.dtype)
    found = torch.autograd.grad(out, [*leaves, *(q.learned for q in by)], slope)
    names = ("rows", "a", "e", "b", "Qx", "Qa", "Qh", "Qw")[: len(found)]
    return {"out": out.detach(), **dict(zip(names, found, strict=True))}


def of_weights(given, heights):
    """The gradients of the weights' quantizers, of float64 products: (m, 1 + L)."""
    rows, weight, *_, of_w = given
    out = torch.empty(len(rows), len(weight), device=rows.device)
    slope = torch.linspace(-1, 1, out.numel(), device=out.device).view_as(out).to(rows.dtype)
    found = []
    for i, (grad, w) in enumerate(zip(slope.split(heights, 1), weight.split(heights), strict=True)):
        own = Quantizers(*(part[i : i + 1] for part in given[6]))
        taken = quantize(rows.reshape(1, -1), own).view(rows.shape)
        product = (grad.double().t() @ taken.double()).flatten()
        w = w.flatten().float()
        inside = w.clamp(*of_w.constants[i, :2]) == w
        by_code = codes(w[None], of_w.constants[i : i + 1])[0].double() @ product
        found.append(torch.cat(((product * inside) @ w.double()[:, None], by_code)))
    return torch.stack(found)


def check(dtype, heights, width, widths, device, *, base=False, **sizes):
    """No further from torch's operators than two orders of a sum are, or a code's step."""
    given = [
        Quantizers(*(part.to(device) for part in x)) if isinstance(x, Quantizers) else x.to(device)
        for x in operands(heights, width, dtype, widths, base=base, **sizes)
    ]
    function = gated_base_product if base else gated_product
    found, expected = (outcome(f, given, heights) for f in (function, plain))
    if base and device == "cuda":
        # its sums cancel, and torch's operators round the product before they add it up
        truth = of_weights(given, heights).float()
        assert float((found["Qw"] - truth).norm()) <= 1e-3 * float(truth.norm())
        del found["Qw"]
    for name, value in found.items():
        truth = expected[name]
        far = float((value.double() - truth.double()).norm() / truth.double().norm())
        bound = 1e-4 if dtype == torch.float32 else 2e-2
        assert value.dtype == truth.dtype, name
        assert far <= bound, f"{name}: off by {far:.1e}"


@pytest.mark.gpu
@pytest.mark.usefixtures("a_gpu")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("heights", "width"), CASES)
@pytest.mark.parametrize("widths", [1, 4])
def test_the_fused_layers_are_torchs_operators(dtype, heights, width, widths):
    """As far as rounding goes."""
    check(dtype, heights, width, widths, "cuda")


ADDED = [([40], 24), ([128, 128, 128], 72), ([192, 64, 64], 64), ([64, 192], 64)]
"""Such as are added in the frozen product's kernel: whole 16 bytes, joints of multiples of 64."""


@pytest.mark.gpu
@pytest.mark.usefixtures("a_gpu")
@pytest.mark.parametrize(("heights", "width"), ADDED)
@pytest.mark.parametrize("rows", [1, 150, 2050])
def test_in_the_frozen_products_kernel(heights, width, rows):
    weight = torch.empty(sum(heights), width, device="cuda", dtype=torch.bfloat16)
    if not gated_linear.is_added(weight[:1], weight, weight[:, :8].contiguous(), heights):
        pytest.skip("this GPU is not given the kernels")
    check(torch.bfloat16, heights, width, 4, "cuda", rows=rows, rank=8)


@pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="needs Triton and TRITON_INTERPRET=1"
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of places that nothing is read from
@pytest.mark.parametrize(("heights", "width"), ADDED)
@pytest.mark.parametrize("rows", [1, 150])
def test_in_the_frozen_products_kernel_interpreted(heights, width, rows, monkeypatch):
    monkeypatch.setattr(gated_linear, "is_added", lambda *_: True)
    monkeypatch.setattr(tiles, "gpu_of", lambda _: H200)
    check(torch.float16, heights, width, 4, "cpu", rows=rows, rank=8)


@pytest.mark.parametrize(
    ("heights", "rank", "added"),
    [([768], 8, True), ([768, 768, 768], 8, True), ([576, 192, 192], 8, True),
     ([100, 100], 8, False),
     ([40, 40], 8, False), ([768], 5, False), ([768], 64, False)],
)  # fmt: skip
def test_what_is_added_in_the_frozen_product(heights, rank, added, monkeypatch):
    class OnGpu(torch.Tensor):
        is_cuda = True

    monkeypatch.setattr(tiles, "gpu_of", lambda _: H200)
    rows, weight = (torch.empty(n, 768, dtype=torch.bfloat16) for n in (64, sum(heights)))
    b = torch.empty(sum(heights), rank, dtype=torch.bfloat16)
    assert not gated_linear.is_added(rows, weight, b, heights)  # on a CPU
    assert gated_linear.is_added(rows.as_subclass(OnGpu), weight, b, heights) == added


@pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="needs Triton and TRITON_INTERPRET=1"
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])  # it cannot multiply bf16
@pytest.mark.parametrize(("heights", "width"), CASES)
@pytest.mark.parametrize("widths", [1, 4])
def test_the_fused_layers_interpreted(dtype, heights, width, widths):
    check(dtype, heights, width, widths, "cpu")
