"""Holds out a share of the training rows, where a task has no rows to evaluate on.

Rows are drawn by their content: the draw depends neither on their order nor on the run's seed, so
runs of several seeds and methods are compared on the same rows. Equal rows stay on one side, and so
do answers to the same prompt: a model that has learned one of them has seen what the other is.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from hashlib import sha256
from itertools import chain
from typing import Any

from bayeslora_cli.errors import DataError
from bayeslora_cli.tasks.task import Examples

_DRAW = "bayeslora validation 1"  # changes which rows are drawn
_DIGITS = 16  # hexadecimal digits of a digest: two of a million rows agree once in 10^7 tables


def draw(rows: Examples, share: float, *, by_label: bool) -> tuple[str, ...]:
    """Return the digests to hold out, in order: of prompts where rows have them, else of rows.

    Where few prompts have so many rows each that less than half of the share would be held out,
    rows are drawn one by one after all.

    Args:
        share: of all rows, above 0 and below 1; at least one row is held out.
        by_label: whether each label keeps its share, rounded.
    Raises:
        DataError: there are fewer than two different rows.
    """
    labels = rows.labels if by_label and rows.labels is not None else [0] * len(rows)
    if rows.prompts is not None:
        found = _drawn(_digests_of_prompts(rows), labels, share)
        if 2 * len(parted(rows, found)[1]) >= share * len(rows):
            return found
    found = _drawn(digests_of(rows), labels, share)
    if not found:
        same = "the training rows are all the same"
        raise DataError(
            f"--validation: {'there is one training row' if len(rows) == 1 else same}, so none can "
            "be held out; give --eval-file"
        )
    return found


def parted(rows: Examples, held_out: Collection[str]) -> tuple[Examples, Examples]:
    """Return the rows to train on, and those whose digests were held out; both keep their order."""
    held = frozenset(held_out)
    outside = [not held.isdisjoint(digests) for digests in _all_digests(rows)]
    return (
        take(rows, [row for row, out in enumerate(outside) if not out]),
        take(rows, [row for row, out in enumerate(outside) if out]),
    )


def number_found(rows: Examples, held_out: Collection[str]) -> int:
    """Return how many digests are those of rows, or of their prompts."""
    return len(frozenset(held_out) & frozenset(chain.from_iterable(_all_digests(rows))))


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
        prompts=of(rows.prompts),
        place=lambda row: where(places[row]),
    )


def digests_of(rows: Examples) -> list[str]:
    """Return a digest of each row, of its texts and its label; equal rows have equal ones."""
    nothing: list[Any] = [None] * len(rows)
    return list(map(_digest, rows.first, rows.second or nothing, rows.labels or nothing))


def _digests_of_prompts(rows: Examples) -> list[str]:
    return [_digest(prompt) for prompt in rows.prompts or ()]


def _all_digests(rows: Examples) -> list[tuple[str, ...]]:
    """Return the digests of each row: its own, and that of its prompt if it has one."""
    columns = [digests_of(rows), *([_digests_of_prompts(rows)] if rows.prompts else [])]
    return list(zip(*columns, strict=True))


def _digest(*values: Any) -> str:
    return sha256(json.dumps([_DRAW, *values], default=str).encode()).hexdigest()[:_DIGITS]


def _drawn(digests: Sequence[str], labels: Sequence[Any], share: float) -> tuple[str, ...]:
    """Return the digests of a share of each label's rows, in order; () if all rows are the same."""
    found: set[str] = set()
    strata: dict[Any, list[str]] = {}
    for label, digest in zip(labels, digests, strict=True):
        strata.setdefault(label, []).append(digest)
    for members in strata.values():
        found |= _first(members, round(share * len(members)))
    counts = Counter(digests)
    if not found and len(counts) > 1:  # a row, or the fewest equal ones
        found = {min(counts, key=lambda digest: (counts[digest], digest))}
    return tuple(sorted(found))


def _first(digests: Sequence[str], rows: int) -> set[str]:
    """Return the smallest digests that together are `rows` rows, or fewer; never all."""
    counts, found = Counter(digests), set[str]()
    for digest in sorted(counts)[:-1]:
        if counts[digest] <= rows:
            rows -= counts[digest]
            found.add(digest)
    return found
