"""Chooses how the kernels of low-rank products cut their work, for the GPU that is there."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from typing import NamedTuple

import torch
from torch import Tensor

NARROWEST = 16
"""The matrix units' least extent."""


class Tiles(NamedTuple):
    """How a kernel cuts a product, (rows, depth) times (depth, columns)."""

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int
    """Steps along the depth that are loaded ahead, and the present one."""

    def shared_memory(self, rank: int, itemsize: int) -> int:
        """Return the bytes that a program holds of its operands, a low-rank factor's included."""
        return self.stages * (self.rows + self.columns + extent(rank)) * self.depth * itemsize


class Gpu(NamedTuple):
    """What the choices ask about a GPU."""

    multiprocessors: int
    shared_memory: int
    """Bytes that a program may use."""
    copies_tiles: bool
    """Whether an engine of its own copies tiles, sm_90 and later, and Triton (3.4) can use it."""


# the fastest of those measured on an H200 for 1,312 to 8,192 rows and 576 to 3,072 columns
SMALL, LARGE = Tiles(64, 128, 64, 4, 4), Tiles(128, 128, 64, 8, 3)
ROUNDS = 1.5
"""Large tiles per multiprocessor from which they are faster than small ones."""
MOST_ROWS, NARROW, WIDE = 8192, 768, 3072
"""Most rows, and largest extents of a layer, for which the kernels were measured to be faster."""
FEW_RANKS, MOST_RANKS = 16, 32
"""Ranks that cost a tile little, and those for which columns must fill their tiles."""
SMALLEST = 99 * 1024
"""Bytes of shared memory of a program on the GPUs that have the least."""
RESERVED = 1024
"""Bytes of shared memory that a program needs besides its operands, at most."""
# the fastest of those measured on an H200 for 2,048 rows and 768 to 3,072 columns
SPLIT, LARGE_SPLIT = Tiles(64, 64, 64, 4, 2), Tiles(128, 128, 64, 8, 3)
"""Tiles of products of halves, of which each operand has two."""
ROUNDS_SPLIT = 2.5
"""Large ones per multiprocessor from which they are faster than small ones."""
LARGEST_HALF = 13
"""Exponent of the largest number of a scaled row: sums of two halves stay below fp16's 2^16."""


def fused_tiles(rows: int, columns: int, rank: int, itemsize: int, gpu: Gpu) -> Tiles:
    """Choose the tiles of a product of (rows, columns) with its low-rank product."""
    count = -(-rows // LARGE.rows) * -(-columns // LARGE.columns)
    tiles = LARGE if count >= ROUNDS * gpu.multiprocessors else SMALL
    while tiles.shared_memory(rank, itemsize) + RESERVED > gpu.shared_memory:
        tiles = tiles._replace(stages=tiles.stages - 1)
    assert tiles.stages > 0
    return tiles


def split_tiles(rows: int, columns: int, rank: int, gpu: Gpu) -> Tiles:
    """Choose the tiles of a product (rows, columns) of halves with its low-rank product."""
    count = -(-rows // LARGE_SPLIT.rows) * -(-columns // LARGE_SPLIT.columns)
    fits = LARGE_SPLIT.shared_memory(rank, 4) + RESERVED <= gpu.shared_memory  # 2 halves of 2 bytes
    return LARGE_SPLIT if fits and count >= ROUNDS_SPLIT * gpu.multiprocessors else SPLIT


def pays(rows: int, inputs: int, outputs: int, rank: int, gpu: Gpu) -> bool:
    """Return whether the kernels are faster than separate products, as measured on an H200.

    docs/performance.md has the figures. GPUs that cannot copy tiles were not measured.
    """
    narrow, wide = sorted((inputs, outputs))
    filled = not any(size % LARGE.columns for size in (inputs, outputs))
    ranks = MOST_RANKS if filled else FEW_RANKS
    small = 0 < rows <= MOST_ROWS and narrow <= NARROW and wide <= WIDE and rank <= ranks
    return gpu.copies_tiles and small


def extent(rank: int) -> int:
    """Return the width of a tile that holds `rank` columns."""
    return max(NARROWEST, 1 << (rank - 1).bit_length())


def is_aligned(x: Tensor) -> bool:
    """Return whether a tensor starts at a multiple of 16 bytes, as copied tiles must."""
    return x.data_ptr() % 16 == 0


@cache
def gpu_of(device: torch.device) -> Gpu:
    """Return what is known about a GPU."""
    found = torch.cuda.get_device_properties(device)
    triton = bool(find_spec("triton") and find_spec("triton.tools.tensor_descriptor"))
    return Gpu(
        multiprocessors=found.multi_processor_count,
        shared_memory=getattr(found, "shared_memory_per_block_optin", SMALLEST),
        copies_tiles=torch.version.cuda is not None and found.major >= 9 and triton,
    )
