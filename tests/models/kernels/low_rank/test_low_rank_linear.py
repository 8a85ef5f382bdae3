"""The linear layer with its low-rank product."""

from __future__ import annotations

import os
from importlib.util import find_spec

import pytest
import torch
from torch.nn import functional as F

from bayeslora_cli.models.kernels.low_rank import low_rank_linear as operator
from bayeslora_cli.models.kernels.low_rank import tiles
from bayeslora_cli.models.kernels.low_rank.low_rank_linear import low_rank_linear
from bayeslora_cli.models.kernels.low_rank.tiles import LARGE, SMALL, Gpu, fused_tiles, pays


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


# ---- the kernels

H200 = Gpu(multiprocessors=132, shared_memory=227 * 1024, copies_tiles=True)
A10 = Gpu(multiprocessors=72, shared_memory=99 * 1024, copies_tiles=False)
CASES = [
    # rows, inputs, outputs, rank
    (5, 64, 64, 8), (1, 72, 200, 16), (150, 136, 264, 24), (300, 264, 72, 8), (70, 64, 136, 32),
]  # fmt: skip
LARGER = [*CASES, (1312, 768, 2304, 24), (2049, 768, 3072, 8), (1312, 3072, 768, 8)]


def check_kernels(sizes, dtype, device, *, bias=True, needed=True, transposed=False):
    """Output and gradients against float64, and to the same bits a second time."""
    generator = torch.Generator().manual_seed(0)
    n, inputs, outputs, rank = sizes

    def normal(*shape):
        drawn = torch.randn(*shape, generator=generator, dtype=torch.float64)
        return (drawn / shape[-1] ** 0.5).to(device, dtype)

    weight = normal(inputs, outputs).t() if transposed else normal(outputs, inputs)
    leaves = [normal(n, inputs), normal(rank, inputs), normal(rank, outputs).t()]
    frozen = weight, normal(outputs) if bias else None
    slopes = normal(n, outputs)

    def results(call, kind):
        rows, down, up = (x.detach().to(kind).requires_grad_() for x in leaves)
        rows.requires_grad_(needed)
        out = call(rows, *(None if x is None else x.to(kind) for x in frozen), down, up)
        wanted = [x for x in (rows, down, up) if x.requires_grad]
        return [out.detach(), *torch.autograd.grad(out, wanted, slopes.to(kind))]

    found, again = results(low_rank_linear, dtype), results(low_rank_linear, dtype)
    tolerance = 1e-2 if dtype == torch.bfloat16 else 2e-3
    for mine, same, exact in zip(found, again, results(written_out, torch.float64), strict=True):
        assert (mine.double() - exact).norm() <= tolerance * exact.norm() > 0
        assert torch.equal(mine, same)


@pytest.mark.gpu
@pytest.mark.usefixtures("a_gpu")
# torch 2.11's, of a backward thread whose first work is a product
@pytest.mark.filterwarnings("ignore:Attempting to run cuBLAS:UserWarning")
@pytest.mark.parametrize("sizes", LARGER)
def test_the_kernels(sizes):
    n, inputs, outputs, rank = sizes
    if not pays(n, inputs, outputs, rank, tiles.gpu_of(torch.device("cuda", 0))):
        pytest.skip("this GPU is not given the kernels")
    check_kernels(sizes, torch.bfloat16, "cuda")
    check_kernels(sizes, torch.bfloat16, "cuda", bias=False, transposed=True)
    check_kernels(sizes, torch.bfloat16, "cuda", needed=False)


@pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="needs Triton and TRITON_INTERPRET=1"
)
@pytest.mark.parametrize("sizes", CASES)
def test_the_kernels_interpreted(sizes, monkeypatch):
    monkeypatch.setattr(operator, "is_fused", lambda *_: True)
    monkeypatch.setattr(tiles, "gpu_of", lambda _: H200)
    check_kernels(sizes, torch.float16, "cpu")  # it cannot multiply bf16
    check_kernels(sizes, torch.float16, "cpu", bias=False, transposed=True)
    check_kernels(sizes, torch.float16, "cpu", needed=False)


def test_shares_of_rows():
    """Every row belongs to one share, and none is empty."""
    if not find_spec("triton"):
        pytest.skip("needs Triton")
    from bayeslora_cli.models.kernels.low_rank.gradients_triton import shares_of

    for rows in (1, 128, 129, 1312, 2048, 8192, 100_000):
        for count in (2, 24, 60, 300):
            each, shares = shares_of(rows, count)
            assert (shares - 1) * each < rows <= shares * each


@pytest.mark.parametrize("gpu", [H200, A10])
def test_tiles_fit_into_shared_memory(gpu):
    for rows in (1, 700, 1312, 2048, 8192, 100_000):
        for columns in (64, 768, 2304, 4096):
            for rank in (8, 16, 32):
                cut = fused_tiles(rows, columns, rank, 2, gpu)
                assert cut.shared_memory(rank, 2) < gpu.shared_memory
                assert cut.stages >= 2


def test_tiles_as_measured():
    """The fastest, or within 3% of it: docs/performance.md."""
    for rows, columns, tile in (
        (1312, 768, SMALL), (1312, 2304, LARGE), (1312, 3072, LARGE), (2048, 768, SMALL),
        (2048, 2304, LARGE), (2048, 3072, LARGE), (8192, 768, LARGE), (8192, 576, LARGE),
    ):  # fmt: skip
        assert fused_tiles(rows, columns, 8, 2, H200) == tile


def test_where_the_kernels_pay():
    assert pays(1312, 768, 2304, 24, H200)
    assert pays(8192, 3072, 768, 8, H200)
    assert pays(8192, 576, 576, 16, H200)
    assert not pays(1312, 768, 2304, 40, H200), "the low-rank product takes a third of the tile's"
    assert not pays(8192, 576, 960, 24, H200), "a twelfth of the tiles' columns are no columns"
    assert not pays(8192, 2048, 2048, 16, H200), "cuBLAS is nearer to the peak on large products"
    assert not pays(16_384, 768, 768, 8, H200), "never measured"
    assert not pays(1312, 768, 768, 8, A10), "never measured"
    assert not pays(0, 768, 768, 8, H200)
