"""The linear layer with its low-rank product in fp32, by halves of fp16."""

from __future__ import annotations

import os
from importlib.util import find_spec

import pytest
import torch
from torch.nn import functional as F

from bayeslora_cli.models.kernels.low_rank import split_linear as operator
from bayeslora_cli.models.kernels.low_rank import tiles
from bayeslora_cli.models.kernels.low_rank.low_rank_linear import low_rank_linear
from bayeslora_cli.models.kernels.low_rank.split_linear import halves_of, split_linear

needs_interpreter = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="needs Triton and TRITON_INTERPRET=1"
)
# of ranks beyond a layer's, whose memory nothing has written
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
H200 = tiles.Gpu(multiprocessors=132, shared_memory=227 * 1024, copies_tiles=True)
CASES = [
    # rows, inputs, outputs, rank
    (5, 64, 64, 4), (1, 72, 200, 16), (150, 136, 264, 12), (70, 264, 72, 3),
]  # fmt: skip
LARGER = [*CASES, (1312, 768, 2304, 12), (2049, 768, 3072, 4), (1312, 3072, 768, 8)]


def drawn(sizes, device, *, spread=1.0):
    """Rows, weight, bias, down and up; `spread`: rows and the weight's differ by powers of it."""
    generator = torch.Generator().manual_seed(0)
    n, inputs, outputs, rank = sizes

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64) / shape[-1] ** 0.5

    sizes_of_rows = spread ** torch.randn(n, 1, generator=generator, dtype=torch.float64)
    rows = normal(n, inputs) * inputs**0.5 * sizes_of_rows
    tensors = rows, normal(outputs, inputs), normal(outputs), normal(rank, inputs)
    return [x.float().to(device) for x in (*tensors, normal(rank, outputs))]


def results(call, tensors, kind, *, needed=True):
    """Output, and gradients of rows, down and up."""
    rows, weight, bias, down, up = (x.to(kind) for x in tensors)
    rows.requires_grad_(needed)
    leaves = [x.requires_grad_() for x in (down, up)]
    out = call(rows, weight, bias, down, up.t())
    slopes = torch.linspace(-1, 1, out.numel(), device=out.device, dtype=kind).view_as(out)
    wanted = [rows, *leaves] if needed else leaves
    return [out.detach(), *torch.autograd.grad(out, wanted, slopes)]


def written_out(rows, weight, bias, down, up):
    return F.linear(rows, weight, bias) + F.linear(F.linear(rows, down), up)


def by_halves(rows, weight, bias, down, up):
    return split_linear(rows, weight, halves_of(weight), bias, down, up)


def errors_of(found, exact):
    return [
        ((mine.double() - true).norm() / true.norm()).item()
        for mine, true in zip(found, exact, strict=True)
    ]


def test_halves():
    """Their sum is the weight up to 2^-22 of each number, and to 2^-38 of the largest."""
    generator = torch.Generator().manual_seed(0)
    for scale in (1e-6, 0.02, 1.0, 300.0):
        weight = torch.randn(40, 24, generator=generator) * scale
        weight[0, :3] = torch.tensor([0.0, scale * 1e-4, -scale * 1e-9])
        (upper, lower), unit = halves_of(weight)
        assert upper.abs().max() < 2**14
        apart = (upper.double() + lower.double()) * unit - weight.double()
        assert (apart.abs() <= weight.abs() * 2**-22 + weight.abs().max() * 2**-38).all()
    assert halves_of(torch.zeros(2, 8))[0].eq(0).all()
    values, unit = halves_of(torch.full((2, 8), 1e-40))
    assert values.isfinite().all()
    assert unit == 2.0**-126


def test_as_an_operator():
    """What torch asks of an operator: schema, shapes without data, gradients under a compiler."""
    rows, weight, bias, down, up = drawn((5, 7, 4, 40), "cpu")
    given = rows.requires_grad_(), weight, *halves_of(weight), bias, down.requires_grad_(), up.t()
    tests = ("test_schema", "test_faketensor", "test_autograd_registration")
    torch.library.opcheck(torch.ops.bayeslora.split_linear.default, given, test_utils=tests)


def test_ranks_that_the_kernels_do_not_take():
    tensors = drawn((5, 16, 8, 40), "cpu")
    found, expected = (results(c, tensors, torch.float32) for c in (by_halves, low_rank_linear))
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


def check_kernels(sizes, device, bound, **options):
    """Against float64, and to the same bits a second time."""
    tensors = drawn(sizes, device, spread=options.pop("spread", 1.0))
    found, again = (results(by_halves, tensors, torch.float32, **options) for _ in range(2))
    exact = results(written_out, tensors, torch.float64, **options)
    assert max(errors_of(found, exact)) <= bound
    assert all(torch.equal(*pair) for pair in zip(found, again, strict=True))


@needs_interpreter
@pytest.mark.parametrize(("sizes", "large"), [(sizes, sizes in CASES[1:3]) for sizes in CASES])
def test_the_kernels_interpreted(sizes, large, monkeypatch):
    monkeypatch.setattr(tiles, "gpu_of", lambda _: H200)
    monkeypatch.setattr(tiles, "ROUNDS_SPLIT", 0 if large else 2.5)
    check_kernels(sizes, "cpu", 1e-6)
    check_kernels(sizes, "cpu", 1e-6, needed=False, spread=1e4)


@needs_interpreter
def test_split_rows_interpreted():
    from bayeslora_cli.models.kernels.low_rank.split_triton import split

    x = torch.randn(7, 200, generator=torch.Generator().manual_seed(0))
    x *= torch.tensor([1.0, 1e-30, 1e-38, 1e30, 3e37, 1e-3, 0.0])[:, None]
    x[5, 7] = torch.inf
    (upper, lower), scale = split(x)
    found = (upper.double() + lower.double()) * scale[:, None].double()
    most = x.abs().amax(1, keepdim=True).double()
    known = [0, 1, 3, 4, 6]
    apart = (found - x.double()).abs()
    assert (apart <= x.double().abs() * 2**-22 + most * 2**-38)[known].all()
    assert (apart[2] <= 2e-38).all()  # near the smallest number of fp32
    assert not found[5, 7].isfinite()


@pytest.mark.gpu
@pytest.mark.usefixtures("a_gpu")
# torch 2.11's, of a backward thread whose first work is a product
@pytest.mark.filterwarnings("ignore:Attempting to run cuBLAS:UserWarning")
@pytest.mark.parametrize("sizes", LARGER)
def test_the_kernels(sizes):
    """At most twice as far from float64 as torch's products in fp32."""
    weight = torch.empty(sizes[2], sizes[1], device="cuda")
    if not operator.is_able(weight):
        pytest.skip("this GPU is not given the kernels")
    tensors = drawn(sizes, "cuda")
    exact = results(written_out, tensors, torch.float64)
    plain = errors_of(results(low_rank_linear, tensors, torch.float32), exact)
    mine = errors_of(results(by_halves, tensors, torch.float32), exact)
    print(f"{sizes}: {mine}, torch {plain}")
    assert all(a <= 2 * b + 1e-7 for a, b in zip(mine, plain, strict=True))
    check_kernels(sizes, "cuda", 1e-6, spread=1e4)
    check_kernels(sizes, "cuda", 1e-6, needed=False)


def test_which_tiles():
    """What was measured on an H200; and a GPU with less shared memory has room for them."""
    small = H200._replace(shared_memory=tiles.SMALLEST)
    for columns, expected in ((768, tiles.SPLIT), (2304, tiles.SPLIT), (3072, tiles.LARGE_SPLIT)):
        assert tiles.split_tiles(2048, columns, 8, H200) == expected
        found = tiles.split_tiles(2048, columns, tiles.MOST_RANKS, small)
        assert found.shared_memory(tiles.MOST_RANKS, 4) + tiles.RESERVED <= small.shared_memory


def test_which_weights():
    assert not operator.is_able(torch.empty(64, 64))  # on a CPU
    if find_spec("triton"):
        from bayeslora_cli.models.kernels.low_rank import split_triton  # noqa: F401
