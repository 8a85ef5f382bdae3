"""Triton kernels of `gated_base`.

`slopes` computes the gradient of Qx(x), a frozen product with a low-rank one, on GPUs whose engine
copies tiles. `weight_sums` adds up what the gradient of Qw(W) gives the quantizers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from bayeslora_cli.models.kernels.low_rank.tile_order_triton import GROUP, corner
from bayeslora_cli.models.kernels.low_rank.tiles import Tiles, extent
from bayeslora_cli.models.kernels.quantize_triton import rounded, steps_of

SIZE, BLOCKS, WARPS = 2048, 4, 8
"""Elements of a weight that a program of so many warps adds at a time, and how often it does."""


@triton.jit(do_not_specialize=["rows"])  # type: ignore[untyped-decorator]
def _slopes(  # type: ignore[no-untyped-def]
    grad, matrix, to_p, a, out, rows, width, height_0, height_1, height_2,  # noqa: ANN001
    R: tl.constexpr, RANK: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, GROUP: tl.constexpr,
) -> None:  # fmt: skip
    """Grad and matrix are descriptors; beyond their tensors they read zeros."""
    layer = tl.program_id(1)
    first, last = height_0 * 0, height_0
    if layer == 1:
        first, last = height_0, height_0 + height_1
    if layer == 2:
        first, last = height_0 + height_1, height_0 + height_1 + height_2
    top, start = corner(rows, width, ROWS, COLUMNS, GROUP)
    found = tl.zeros((ROWS, COLUMNS), tl.float32)
    for k in range(first, last, DEPTH):
        found = tl.dot(grad.load([top, k]), matrix.load([k, start]), found, input_precision="ieee")
    row, column = top + tl.arange(0, ROWS), start + tl.arange(0, COLUMNS)
    rank = tl.arange(0, RANK)
    there, known = row[:, None] < rows, column[None, :] < width
    far, few = layer.to(tl.int64) * rows + row[:, None], rank < R
    own = tl.load(to_p + far * R + rank[None, :], there & few[None, :], 0.0)
    a += layer * R * width
    down = tl.load(a + rank[:, None] * width + column[None, :], few[:, None] & known, 0.0)
    found = tl.dot(own, down, found, input_precision="ieee")
    tl.store(out + far * width + column[None, :], found.to(out.dtype.element_ty), there & known)


@triton.jit(do_not_specialize_on_alignment=["constants"])  # type: ignore[untyped-decorator]
def _weight_sums(  # type: ignore[no-untyped-def]
    product, weight, constants, sums, size,  # noqa: ANN001
    L: tl.constexpr, SIZE: tl.constexpr, BLOCKS: tl.constexpr,
) -> None:  # fmt: skip
    """Add up what some elements of a weight give its quantizer."""
    layer = tl.program_id(1)
    product += layer.to(tl.int64) * size
    weight += layer.to(tl.int64) * size
    constants += layer * (2 + L)
    low, high = tl.load(constants), tl.load(constants + 1)
    steps, inverses, _ = steps_of(constants, constants, L)
    found = (tl.zeros((SIZE,), tl.float32),) * (1 + L)
    for block in range(BLOCKS):
        place = (tl.program_id(0) * BLOCKS + block) * SIZE + tl.arange(0, SIZE)
        value = tl.load(weight + place, place < size, 0.0).to(tl.float32)
        slope = tl.load(product + place, place < size, 0.0).to(tl.float32)
        value_in = tl.clamp(value, low, high, propagate_nan=tl.PropagateNan.ALL)
        more = (found[0] + tl.where(value_in == value, slope, 0.0) * value_in,)
        for n in tl.static_range(L):
            own = rounded(value_in, steps[n], inverses[n]) * slope
            more += (found[1 + n] + own,)  # type: ignore[assignment]
        found = more
    sums += (layer * tl.num_programs(0) + tl.program_id(0)) * (1 + L)
    for n in tl.static_range(1 + L):
        tl.store(sums + n, tl.sum(found[n]))


def slopes(
    grad: Tensor, base: Tensor, to_p: Tensor, a: Tensor, heights: Sequence[int], tiles: Tiles
) -> Tensor:
    """Compute the gradients of Qx(x) of m layers: grad Qw(W) + to_p a, (m, n, in).

    Args:
        grad: gradient of the layers' outputs, side by side: (n, outputs), contiguous, as all are.
        base: Qw(W) of each layer, stacked: (outputs, in).
        to_p: gradient of p, (m, n, r).
        a: (m, r, in).
        heights: outputs of each layer; of several, multiples of the tiles' depth.
    """
    (rows, outputs), (layers, rank, width) = grad.shape, a.shape
    out = grad.new_empty(layers, rows, width)
    _slopes[(triton.cdiv(rows, tiles.rows) * triton.cdiv(width, tiles.columns), layers)](
        TensorDescriptor.from_tensor(grad, [tiles.rows, tiles.depth]),
        TensorDescriptor.from_tensor(base, [tiles.depth, tiles.columns]),
        to_p, a, out, rows, width, *heights, *(3 - layers) * [0], rank, extent(rank),
        tiles.rows, tiles.columns, tiles.depth, GROUP,
        num_warps=tiles.warps, num_stages=tiles.stages, enable_fp_fusion=False,
    )  # fmt: skip
    assert outputs == sum(heights)
    return out


def weight_sums(product: Tensor, weight: Tensor, constants: Tensor) -> Tensor:
    """Compute partial sums of the gradients of Qw of m layers, (m, parts, 1 + L).

    Args:
        product: gradients of Qw(W), (m, out, in), contiguous.
        weight: W of each layer, alike.
        constants: of Qw, (m, 2 + L).
    """
    layers, size, widths = len(product), product[0].numel(), constants.shape[1] - 2
    programs = triton.cdiv(size, SIZE * BLOCKS)
    sums = torch.empty(layers, programs, 1 + widths, device=product.device)
    _weight_sums[(programs, layers)](
        product, weight, constants.contiguous(), sums, size,
        L=widths, SIZE=SIZE, BLOCKS=BLOCKS, num_warps=WARPS, enable_fp_fusion=False,
    )  # fmt: skip
    return sums
