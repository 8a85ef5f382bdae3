"""Chooses how the kernels of attention within rows cut their work, for the GPU that is there."""

from __future__ import annotations

from typing import NamedTuple

from bayeslora_cli.models.kernels.low_rank.tiles import RESERVED, Gpu, extent

WIDEST = 128
"""Largest size of a head."""
PROGRAMS = 396
"""Most programs of one sum over all rows: as many as an H200 runs at a time."""


class Tiles(NamedTuple):
    """How a kernel cuts scores, (own tokens, other tokens)."""

    own: int
    other: int
    warps: int
    stages: int
    """Tiles of other tokens that are loaded ahead, and the present one."""

    def shared_memory(self, size: int, itemsize: int) -> int:
        """Return the bytes that a program holds at most.

        They are two operands of its own tokens, two of other tokens and the positions' scores in
        each stage, a tile that changes its layout, and sums that do.
        """
        width, square = extent(size), self.own * self.other
        ahead = self.stages * (2 * self.other * width + square)
        return itemsize * (2 * self.own * width + ahead + square) + 4 * self.own * width


class Plan(NamedTuple):
    """The tiles of each kernel."""

    forward: Tiles
    to_queries: Tiles
    to_keys: Tiles
    positions: Tiles
    """Of both kernels of relative positions, whose tiles are square."""


HALVED = Plan(
    forward=Tiles(64, 32, 4, 1),
    to_queries=Tiles(64, 32, 4, 2),
    to_keys=Tiles(64, 64, 4, 1),
    positions=Tiles(64, 64, 8, 2),
)
"""For bf16 and fp16, from sm_90 on."""
OLDER = Plan(
    forward=Tiles(64, 32, 4, 2),
    to_queries=Tiles(64, 32, 4, 2),
    to_keys=Tiles(32, 32, 4, 2),
    positions=Tiles(64, 64, 8, 2),
)
"""For GPUs before that, whose products keep more in registers; not measured."""
FULL = Plan(
    forward=Tiles(32, 32, 4, 2),
    to_queries=Tiles(32, 32, 4, 2),
    to_keys=Tiles(32, 32, 4, 2),
    positions=Tiles(32, 32, 4, 2),
)
"""For fp32."""


def plan_of(size: int, itemsize: int, gpu: Gpu) -> Plan:
    """Choose the tiles of heads of `size`, in numbers of `itemsize` bytes."""
    plan = FULL if itemsize == 4 else HALVED if gpu.copies_tiles else OLDER
    return Plan(*(_fitting(cut, size, itemsize, gpu.shared_memory - RESERVED) for cut in plan))


def _fitting(cut: Tiles, size: int, itemsize: int, limit: int) -> Tiles:
    while cut.shared_memory(size, itemsize) > limit:
        if cut.stages > 1:
            cut = cut._replace(stages=cut.stages - 1)
        else:
            cut = cut._replace(own=cut.own // 2, other=min(cut.other, cut.own // 2))
    assert cut.own >= extent(1), "a GPU with too little shared memory"
    return cut


def shares_of(rows: int, sums: int) -> int:
    """Return among how many programs the rows of one sum are divided."""
    return max(1, min(rows, PROGRAMS // sums))
