"""Attention within packed rows by our kernels, against the formula in float64 with the same bits.

`TRITON_INTERPRET=1 pytest tests/models/kernels/row_attention` runs the kernels on a CPU.
"""

from __future__ import annotations

import os
from itertools import pairwise

import pytest
import torch

from bayeslora_cli.models.kernels.low_rank.tiles import SMALLEST, Gpu
from bayeslora_cli.models.kernels.row_attention import row_attention as operator
from bayeslora_cli.models.kernels.row_attention.joint import joint_row_attention
from bayeslora_cli.models.kernels.row_attention.tiles import extent, plan_of

needs_interpreter = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="needs Triton and TRITON_INTERPRET=1"
)
# of places behind a row, whose memory nothing has written
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
BOUNDS = {torch.float32: 1e-5, torch.float16: 3e-3, torch.bfloat16: 1e-2}


H200 = Gpu(multiprocessors=132, shared_memory=232_448, copies_tiles=True)
A10 = Gpu(multiprocessors=72, shared_memory=SMALLEST, copies_tiles=False)


def offsets_of(lengths, device):
    return torch.tensor([0, *lengths], device=device).cumsum(0).int()


def kept_weights(kept, rows):
    """What a row keeps of its weights, of the bits of all: list of (h, n, n)."""
    shift = torch.arange(64, device=kept.device)
    bits = ((kept[..., None] >> shift) & 1).flatten(2).bool()
    return [bits[:, a:b, : b - a] for a, b in rows]


def written_out(query, key, value, rows, scaling, kept=None, gain=1.0, window=None, reach=0):
    """The attention as its formula says, row by row: (t, h, d)."""
    tokens, found = len(value), []
    for i, (a, b) in enumerate(rows):
        score = torch.einsum("ihd,jhd->hij", query[a:b], key[a:b])
        place = torch.arange(b - a, device=value.device)
        apart = place[:, None] - place
        if reach:
            positions = tokens + reach + apart
            score = score + torch.einsum("ihd,ijhd->hij", query[a:b], key[positions])
            score = score + torch.einsum("jhd,ijhd->hij", key[a:b], query[positions])
        score = score * scaling
        if window is not None:
            score = score.masked_fill(apart.abs() >= window, -torch.inf)
        weight = score.softmax(-1)
        if kept is not None:
            weight = weight * kept[i] * gain
        found.append(torch.einsum("hij,jhd->ihd", weight, value[a:b]))
    return torch.cat(found)


def check(lengths, heads, size, dtype, device, *, dropout=0.0, window=None, reach=0, joint=False):
    """Result and gradients against float64, and against a repetition; poisoned memory."""
    torch.manual_seed(len(lengths))
    tokens, more = sum(lengths), 2 * reach
    offsets = offsets_of(lengths, device)
    stops = offsets.tolist()
    rows = list(pairwise(stops))
    flat = torch.randn(tokens + more, 3, heads, size, device=device).to(dtype)
    parts = flat.unbind(1) if joint else [x.contiguous() for x in flat.unbind(1)]
    given = [x.detach().requires_grad_() for x in (parts[0], parts[1], parts[2][:tokens])]
    slope = torch.randn(tokens, heads, size, device=device).to(dtype)
    scaling, gain, kept = (size * (3 if reach else 1)) ** -0.5, 1.0, None
    arguments = (reach or max(lengths), reach, scaling, dropout, window or 0)
    seed = torch.tensor([1234567], device=device) if dropout else None

    def ours():
        out, _, _, kept = torch.ops.bayeslora.row_attention(*given, offsets, seed, *arguments)
        return kept, [out, *torch.autograd.grad(out, given, slope)]

    kept, found = ours()
    again = ours()[1]
    if dropout:
        from bayeslora_cli.models.kernels.row_attention.kept_triton import shares

        gain = shares(dropout)[1]
        kept = kept_weights(kept, rows)
        if tokens > 300:
            share = torch.cat([x.flatten() for x in kept]).double().mean()
            assert abs(share - (1 - dropout)) < 0.01
    exact = [x.detach().double().requires_grad_() for x in given]
    want = written_out(*exact, rows, scaling, kept if dropout else None, gain, window, reach)
    wanted = [want, *torch.autograd.grad(want, exact, slope.double())]
    for name, mine, same, twin in zip(("out", "q", "k", "v"), found, again, wanted, strict=True):
        assert torch.equal(mine, same), f"{name}: a repetition gives other bits"
        pieces = {"tokens": slice(0, tokens), "positions": slice(tokens, None)}
        for piece, place in pieces.items():
            a, b = mine[place].detach().double(), twin[place].detach()
            if b.numel():
                error = float((a - b).norm() / b.norm())
                assert error <= BOUNDS[dtype], f"{name}, {piece}: {error:.1e}"


SMALL = (5, 1, 0, 40, 3)


@needs_interpreter
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(
    "options",
    [{}, {"dropout": 0.3}, {"window": 7}, {"reach": 64, "dropout": 0.3}],
    ids=["plain", "dropout", "window", "relative"],
)
def test_the_kernels_interpreted(options, dtype, monkeypatch):
    monkeypatch.setattr(operator, "gpu_of", lambda _: H200)
    check(SMALL, 2, 16, dtype, "cpu", **options)


@needs_interpreter
def test_rows_of_several_tiles_interpreted(monkeypatch):
    monkeypatch.setattr(operator, "gpu_of", lambda _: A10)
    check((70, 3, 130), 1, 16, torch.float16, "cpu", dropout=0.1, reach=192, joint=True)
    check((70, 130), 1, 12, torch.float16, "cpu", window=40)


REAL = {
    "32 x 64": (64,) * 32,
    "4 x 256": (256,) * 4,
    "lengths like MNLI's": (114, 97, 80, 71, 64, 63, *range(60, 34, -1), 9, 1, 0, 0),
}


@pytest.mark.gpu
@pytest.mark.usefixtures("a_gpu")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("lengths", REAL.values(), ids=REAL)
def test_the_kernels(lengths, dtype):
    reach = operator.reach_of(max(lengths))
    check(lengths, 12, 64, dtype, "cuda", dropout=0.1)
    check(lengths, 12, 64, dtype, "cuda", dropout=0.1, reach=reach, joint=True)
    check(lengths, 4, 64, dtype, "cuda", reach=reach)


@pytest.mark.gpu
@pytest.mark.usefixtures("a_gpu")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [16, 40, 128])
def test_other_sizes_of_heads_and_windows(size, dtype):
    check((300, 65, 1), 3, size, dtype, "cuda", dropout=0.1, window=64)
    check((300, 65, 1), 3, size, dtype, "cuda", dropout=0.1, reach=320)


@pytest.mark.gpu
@pytest.mark.usefixtures("a_gpu")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tiles_of_a_gpu_with_little_shared_memory(dtype, monkeypatch):
    monkeypatch.setattr(operator, "gpu_of", lambda _: A10)
    for size in (64, 128):
        check((140, 33), 2, size, dtype, "cuda", dropout=0.1, reach=192)


@pytest.mark.gpu
@pytest.mark.usefixtures("a_gpu")
def test_captured_calls_are_eager_calls():
    """To the bit: dropout's seed comes from torch's generator, which graphs move on."""
    offsets = offsets_of((70, 58), "cuda")
    torch.manual_seed(0)
    query, key, value = (torch.randn(128, 4, 32, device="cuda").half() for _ in range(3))

    def call():
        return operator.row_attention(query, key, value, offsets, 70, scaling=0.2, dropout=0.5)

    call()
    torch.manual_seed(1)
    eager = [call() for _ in range(3)]
    assert not torch.equal(eager[0], eager[1])
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = call()
    torch.manual_seed(1)
    for expected in eager:
        graph.replay()
        assert torch.equal(found, expected)


@pytest.mark.parametrize("gpu", [H200, A10])
def test_tiles_fit_into_shared_memory(gpu):
    for size in (8, 32, 64, 96, 128):
        for itemsize in (2, 4):
            for cut in plan_of(size, itemsize, gpu):
                assert cut.shared_memory(size, itemsize) < gpu.shared_memory
                assert min(cut.own, cut.other) >= extent(1)
                assert operator.WIDTH % cut.own == 0, "blocks of positions are whole"


def test_positions_reach_as_far_as_rows():
    assert [operator.reach_of(n) for n in (1, 64, 65, 256)] == [64, 64, 128, 256]


def check_joint(lengths, heads, size, dtype, device, *, dropout, reach):
    """Side by side, to the bits of separate operands."""
    torch.manual_seed(0)
    tokens = sum(lengths)
    offsets, seed = offsets_of(lengths, device), torch.tensor([77], device=device)
    joint = torch.randn(tokens + 2 * reach, 3, heads, size, device=device).to(dtype)
    slope = torch.randn(tokens, heads, size, device=device).to(dtype)
    options = {"scaling": 0.2, "dropout": dropout, "seed": seed}
    whole, parts = (joint.clone().requires_grad_() for _ in range(2))
    found = joint_row_attention(whole, offsets, reach, **options)
    query, key, value = parts.unbind(1)
    expected = operator.relative_row_attention(
        query, key, value[:tokens], offsets, reach, **options
    )
    assert torch.equal(found, expected)
    gradients = [
        torch.autograd.grad(out, x, slope)[0] for out, x in ((found, whole), (expected, parts))
    ]
    assert torch.equal(*gradients)


@needs_interpreter
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_joint_operands_interpreted(dropout, monkeypatch):
    monkeypatch.setattr(operator, "gpu_of", lambda _: H200)
    check_joint(SMALL, 2, 16, torch.float16, "cpu", dropout=dropout, reach=64)


@pytest.mark.gpu
@pytest.mark.usefixtures("a_gpu")
@pytest.mark.parametrize("dtype", BOUNDS)
def test_joint_operands(dtype):
    check_joint((130, 7, 64, 256), 3, 64, dtype, "cuda", dropout=0.1, reach=256)
