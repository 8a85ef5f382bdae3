"""The order in which the programs of a product take its tiles."""

from __future__ import annotations

import triton
import triton.language as tl

GROUP = 8
"""Tiles of rows whose programs follow each other, so that the matrix is read from the cache."""


@triton.jit  # type: ignore[untyped-decorator]
def corner(  # type: ignore[no-untyped-def]  # noqa: ANN201
    rows, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr, GROUP: tl.constexpr,  # noqa: ANN001
):  # fmt: skip
    """Return the first row and the first column of the program's tile."""
    across, down = tl.cdiv(width, COLUMNS), tl.cdiv(rows, ROWS)
    program = tl.program_id(0)
    first = program // (GROUP * across) * GROUP
    high = tl.minimum(down - first, GROUP)
    place = program % (GROUP * across)
    return (first + place % high) * ROWS, place // high * COLUMNS
