"""Holds out a share of the training rows, where a task has no rows to evaluate on.

Rows are drawn by their content: the draw depends neither on their order nor on the run's seed, so
runs of several seeds and methods are compared on the same rows, and equal rows stay on one side.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from hashlib import sha256
from typing import Any

from bayeslora_cli.errors import DataError
from bayeslora_cli.tasks.task import Examples

_DRAW = "bayeslora validation 1"  # changes which rows are drawn
_DIGITS = 16  # hexadecimal digits of a digest: two of a million rows agree once in 10^7 tables


def draw(rows: Examples, share: float, *, by_label: bool) -> tuple[str, ...]:
    """Return the digests of the rows to hold out, in order.

    Args:
        share: of all rows, above 0 and below 1; at least one row is held out.
        by_label: whether each label keeps its share, rounded.
    Raises:
        DataError: there are fewer than two different rows.
    """
    digests = digests_of(rows)
    found: set[str] = set()
    labels = rows.labels if by_label and rows.labels is not None else [0] * len(rows)
    strata: dict[Any, list[str]] = {}
    for label, digest in zip(labels, digests, strict=True):
        strata.setdefault(label, []).append(digest)
    for members in strata.values():
        found |= _first(members, round(share * len(members)))
    counts = Counter(digests)
    if not found and len(counts) > 1:  # a row, or the fewest equal ones
        found = {min(counts, key=lambda digest: (counts[digest], digest))}
    if not found:
        raise DataError(
            "--validation: the training rows are all the same, so none can be held out; give "
            "--eval-file"
        )
    return tuple(sorted(found))


def parted(rows: Examples, held_out: Collection[str]) -> tuple[Examples, Examples]:
    """Return the rows to train on, and those whose digests were held out; both keep their order."""
    held = frozenset(held_out)
    outside = [digest in held for digest in digests_of(rows)]
    return (
        take(rows, [row for row, out in enumerate(outside) if not out]),
        take(rows, [row for row, out in enumerate(outside) if out]),
    )


def take(rows: Examples, places: Sequence[int]) -> Examples:
    """Return some rows, which keep their places in messages."""

    def of(values: list[Any] | None) -> list[Any] | None:
        return None if values is None else [values[place] for place in places]

    where: Callable[[int], str] = rows.where
    return Examples(
        first=[rows.first[place] for place in places],
        second=of(rows.second),
        labels=of(rows.labels),
        groups=of(rows.groups),
        place=lambda row: where(places[row]),
    )


def digests_of(rows: Examples) -> list[str]:
    """Return a digest of each row, of its texts and its label; equal rows have equal ones."""
    nothing: list[Any] = [None] * len(rows)
    columns = rows.first, rows.second or nothing, rows.labels or nothing
    return [
        sha256(json.dumps([_DRAW, *row], default=str).encode()).hexdigest()[:_DIGITS]
        for row in zip(*columns, strict=True)
    ]


def _first(digests: Sequence[str], rows: int) -> set[str]:
    """Return the smallest digests that together are `rows` rows, or fewer; never all."""
    counts, found = Counter(digests), set[str]()
    for digest in sorted(counts)[:-1]:
        if counts[digest] <= rows:
            rows -= counts[digest]
            found.add(digest)
    return found
