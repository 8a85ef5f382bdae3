"""Two adapted layers with gelu between them as one operator, against their formula in float64."""

from __future__ import annotations

import os

import pytest
import torch
from torch.nn import functional as F

from bayeslora_cli.models.kernels.low_rank import low_rank_linear as layer
from bayeslora_cli.models.kernels.low_rank import tiles
from bayeslora_cli.models.kernels.low_rank.feed_forward import Adapted, feed_forward
from bayeslora_cli.models.kernels.low_rank.tiles import Gpu, pays

H200 = Gpu(multiprocessors=132, shared_memory=227 * 1024, copies_tiles=True)
CASES = [
    # rows, inputs, inner, outputs, ranks
    (5, 64, 72, 64, 8, 8), (150, 72, 136, 64, 8, 24), (70, 136, 264, 72, 16, 8),
]  # fmt: skip
LARGER = [*CASES, (1312, 768, 3072, 768, 8, 8), (2049, 768, 3072, 768, 16, 8)]


def written_out(rows, first, second):
    def adapted(x, of):
        return F.linear(x, of.weight, of.bias) + F.linear(F.linear(x, of.down), of.up)

    return adapted(F.gelu(adapted(rows, first)), second)


def operands(sizes, *, bias=True):
    """Rows, both layers and a gradient of the result, in float64."""
    n, inputs, inner, outputs, *ranks = sizes
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64) / shape[-1] ** 0.5

    def made(width, height, rank):
        down, up = normal(rank, width), normal(rank, height).t()
        return Adapted(normal(height, width), normal(height) if bias else None, down, up)

    layers = made(inputs, inner, ranks[0]), made(inner, outputs, ranks[1])
    return 3 * normal(n, inputs), *layers, normal(n, outputs)


def results(call, sizes, dtype, device, *, bias=True, needed=True):
    """The output, and the gradients of rows, if `needed`, and of all factors."""
    rows, first, second, slopes = operands(sizes, bias=bias)

    def cast(x):
        return None if x is None else x.to(device, dtype)

    first, second = (Adapted(*(cast(x) for x in of)) for of in (first, second))
    rows = cast(rows).requires_grad_(needed)
    leaves = [first.down, first.up, second.down, second.up]
    wanted = [rows] * needed + [x.requires_grad_() for x in leaves]
    out = call(rows, first, second)
    return [out.detach(), *torch.autograd.grad(out, wanted, cast(slopes))]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("needed", [True, False])
@pytest.mark.parametrize("compiled", [True, False])
def test_output_and_gradients(bias, needed, compiled):
    call = feed_forward
    if compiled:
        call = torch.compile(call, fullgraph=True, backend="aot_eager", dynamic=False)
    found, expected = (
        results(x, (5, 7, 9, 6, 3, 2), torch.float64, "cpu", bias=bias, needed=needed)
        for x in (call, written_out)
    )
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_as_an_operator():
    rows, first, second, _ = operands((5, 7, 9, 6, 3, 2))
    for x in (rows, first.down, first.up, second.down, second.up):
        x.requires_grad_()
    tests = ("test_schema", "test_faketensor", "test_autograd_registration")
    operator = torch.ops.bayeslora.feed_forward.default
    torch.library.opcheck(operator, (rows, *first, *second), test_utils=tests)


def check_kernels(sizes, dtype, device, **options):
    """Against float64, and to the same bits a second time."""
    found, again = (results(feed_forward, sizes, dtype, device, **options) for _ in range(2))
    expected = results(written_out, sizes, torch.float64, device, **options)
    tolerance = 1e-2 if dtype == torch.bfloat16 else 2e-3
    for mine, same, exact in zip(found, again, expected, strict=True):
        assert (mine.double() - exact).norm() <= tolerance * exact.norm() > 0
        assert torch.equal(mine, same)


@pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="needs Triton and TRITON_INTERPRET=1"
)
@pytest.mark.parametrize("sizes", CASES)
def test_the_kernels_interpreted(sizes, monkeypatch):
    monkeypatch.setattr(layer, "is_fused", lambda *_: True)
    monkeypatch.setattr(tiles, "gpu_of", lambda _: H200)
    check_kernels(sizes, torch.float16, "cpu")
    check_kernels(sizes, torch.float16, "cpu", bias=False, needed=False)


@pytest.mark.gpu
@pytest.mark.usefixtures("a_gpu")
# torch 2.11's, of a backward thread whose first work is a product
@pytest.mark.filterwarnings("ignore:Attempting to run cuBLAS:UserWarning")
@pytest.mark.parametrize("sizes", LARGER)
def test_the_kernels(sizes):
    n, inputs, inner, outputs, rank, _ = sizes
    gpu = tiles.gpu_of(torch.device("cuda", 0))
    if not (pays(n, inputs, inner, rank, gpu) and pays(n, inner, outputs, rank, gpu)):
        pytest.skip("this GPU is not given the kernels")
    check_kernels(sizes, torch.bfloat16, "cuda")
    check_kernels(sizes, torch.bfloat16, "cuda", bias=False, needed=False)
