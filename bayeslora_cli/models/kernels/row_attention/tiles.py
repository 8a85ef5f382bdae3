"""Chooses how the kernels of attention within rows cut their work, for the GPU that is there."""

from __future__ import annotations

from typing import NamedTuple

LEAST = 16
"""The matrix units' least extent."""
WIDEST = 128
"""Largest size of a head."""


class Tiles(NamedTuple):
    """How a kernel cuts scores, (own tokens, other tokens)."""

    own: int
    other: int
    warps: int
    stages: int
    """Tiles of other tokens that are loaded ahead, and the present one."""


class Plan(NamedTuple):
    """The tiles of each kernel."""

    forward: Tiles
    to_queries: Tiles
    to_keys: Tiles
    positions: Tiles
    """Of both kernels of relative positions; `other` is not used."""


HALVED = Plan(
    forward=Tiles(64, 64, 4, 2),
    to_queries=Tiles(64, 64, 4, 2),
    to_keys=Tiles(64, 64, 4, 2),
    positions=Tiles(64, 64, 4, 2),
)
"""For bf16 and fp16."""
FULL = Plan(
    forward=Tiles(32, 32, 4, 2),
    to_queries=Tiles(32, 32, 4, 2),
    to_keys=Tiles(32, 32, 4, 2),
    positions=Tiles(32, 32, 4, 2),
)
"""For fp32."""


def extent(size: int) -> int:
    """Return the width of a tile that holds a head of `size`."""
    return max(LEAST, 1 << (size - 1).bit_length())


PROGRAMS = 528
"""Programs that fill a GPU: four per multiprocessor of an H200."""


def shares_of(rows: int, sums: int) -> int:
    """Return among how many programs the rows of one sum are divided."""
    return max(1, min(rows, -(-PROGRAMS // sums)))
