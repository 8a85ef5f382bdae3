"""Triton kernels of `gated_base`, for GPUs whose engine copies tiles: two products per layer.

The gradient of Qx(x) is a frozen product with a low-rank one. That of Qw(W) is as large as W and is
never written: a program adds up what its tile of it gives the quantizer.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from bayeslora_cli.models.kernels.low_rank.tile_order_triton import GROUP, corner
from bayeslora_cli.models.kernels.low_rank.tiles import Gpu, Tiles, extent
from bayeslora_cli.models.kernels.quantize_triton import rounded

WIDE, NARROW = Tiles(64, 128, 64, 4, 4), Tiles(64, 64, 64, 4, 4)
"""Tiles of the gradients of Qw(W): the narrow ones where wide ones do not fill the GPU."""
UNALIGNED = ["learned", "constants"]
"""Rows of larger tensors."""


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


@triton.jit(do_not_specialize=["rows"], do_not_specialize_on_alignment=["constants"])  # type: ignore[untyped-decorator]
def _weight_sums(  # type: ignore[no-untyped-def]
    grad, taken, weight, constants, sums, rows, height, width, height_0, height_1,  # noqa: ANN001
    L: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
    GROUP: tl.constexpr,
) -> None:  # fmt: skip
    """Grad and taken are descriptors. A tile of the weight lies in one layer."""
    top, start = corner(height, width, ROWS, COLUMNS, GROUP)
    layer = (top >= height_0).to(tl.int32) + (top >= height_0 + height_1)
    slope = tl.zeros((ROWS, COLUMNS), tl.float32)
    for k in range(0, rows, DEPTH):  # beyond the layer's last row grad is 0
        by = tl.trans(grad.load([k, top]))
        slope = tl.dot(by, taken.load([layer * rows + k, start]), slope, input_precision="ieee")
    row, column = top + tl.arange(0, ROWS), start + tl.arange(0, COLUMNS)
    inside = (row[:, None] < height) & (column[None, :] < width)
    place = row[:, None] * width + column[None, :]
    value = tl.load(weight + place, inside, 0.0).to(tl.float32)
    constants += layer * (2 + L)
    low, high = tl.load(constants), tl.load(constants + 1)
    value_in = tl.clamp(value, low, high, propagate_nan=tl.PropagateNan.ALL)
    sums += (top // ROWS * tl.cdiv(width, COLUMNS) + start // COLUMNS) * (1 + L)
    tl.store(sums, tl.sum(tl.where(value_in == value, slope, 0.0) * value_in))
    for n in tl.static_range(L):
        step = tl.load(constants + 2 + n)
        codes = rounded(value_in, step, tl.div_rn(1.0, step))
        tl.store(sums + 1 + n, tl.sum(codes * slope))


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


def weight_tiles(outputs: int, inputs: int, gpu: Gpu) -> Tiles:
    """Choose the tiles of `weight_sums`."""
    count = -(-outputs // WIDE.rows) * -(-inputs // WIDE.columns)
    return WIDE if count >= gpu.multiprocessors else NARROW


def weight_sums(
    grad: Tensor, taken: Tensor, weight: Tensor, constants: Tensor, heights: Sequence[int],
    tiles: Tiles,
) -> Tensor:  # fmt: skip
    """Compute the gradients of Qw of m layers, (m, 1 + L).

    Args:
        grad: gradient of the layers' outputs, side by side: (n, outputs), contiguous, as all are.
        taken: Qx(x) of each layer, (m, n, in).
        weight: W of each layer, stacked: (outputs, in).
        constants: of Qw, (m, 2 + L).
        heights: outputs of each layer; of several, multiples of the tiles' rows.
    """
    (layers, rows, width), height = taken.shape, len(weight)
    down, across = triton.cdiv(height, tiles.rows), triton.cdiv(width, tiles.columns)
    widths = constants.shape[1] - 2
    sums = torch.empty(down, across, 1 + widths, device=grad.device)
    ends = [*heights[:2], *(2 - len(heights[:2])) * [height]]
    _weight_sums[(down * across,)](
        TensorDescriptor.from_tensor(grad, [tiles.depth, tiles.rows]),
        TensorDescriptor.from_tensor(taken.view(-1, width), [tiles.depth, tiles.columns]),
        weight, constants.contiguous(), sums, rows, height, width, *ends,
        widths, tiles.rows, tiles.columns, tiles.depth, GROUP,
        num_warps=tiles.warps, num_stages=tiles.stages, enable_fp_fusion=False,
    )  # fmt: skip
    if len({*heights}) == 1:
        return sums.view(layers, -1, 1 + widths).sum(1)
    each = [triton.cdiv(own, tiles.rows) for own in heights]
    return torch.stack([part.sum((0, 1)) for part in torch.split(sums, each)])
