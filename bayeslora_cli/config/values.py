"""Reads and bounds the values of options: lists, ranges, intervals and ladders as text."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any

LARGEST_PENALTY = 1e9
_UNITS = {"s": 1, "m": 60, "h": 3600}  # seconds


FORM = "auto, a number of steps (500), or a time (30s, 10m, 2h)"


@dataclass(frozen=True, slots=True)
class Interval:
    """A number of steps, or a time, or neither: then the program chooses."""

    steps: int | None = None
    seconds: int | None = None


def parse_interval(text: str) -> Interval:
    """Read an interval in the form that `FORM` describes.

    Raises:
        ValueError: the text has another form, or the interval is 0.
    """
    if text == "auto":
        return Interval()
    found = re.fullmatch(r"([0-9]{1,9})([smh]?)", text)
    if found is None or int(found[1]) == 0:
        raise ValueError(f"give {FORM}")
    number, unit = int(found[1]), found[2]
    return Interval(seconds=number * _UNITS[unit]) if unit else Interval(steps=number)


WIDTHS = (2, 4, 8, 16)


def parse_ladder(text: str) -> tuple[int, ...]:
    """Read `2,4,8,16`, or only neighbours among these, the narrowest first.

    Raises:
        ValueError: the text is anything else; the message tells what to give.
    """
    names = [part.strip() for part in text.split(",")]
    for start in range(len(WIDTHS)):
        for stop in range(start + 1, len(WIDTHS) + 1):
            if names == [str(width) for width in WIDTHS[start:stop]]:
                return WIDTHS[start:stop]
    known = ",".join(str(width) for width in WIDTHS)
    raise ValueError(f"give {known}, or neighbours among them, such as 4,8")


BALANCED = "balanced"


def parse_weights(text: str) -> dict[str, float]:
    """Read weights of classes, as in spam=5,ham=1; `balanced`, which follows from the rows, is {}.

    Raises:
        ValueError: the text has another form.
    """
    if text == BALANCED:
        return {}
    found: dict[str, float] = {}
    for part in text.split(","):
        name, _, number = part.rpartition("=")
        try:
            weight = float(number)
        except ValueError:
            weight = math.nan
        if not name.strip() or not 0 <= weight < math.inf or name.strip() in found:
            raise ValueError(
                f"give {BALANCED}, or LABEL=WEIGHT,… with a weight of 0 or more, each label once"
            )
        found[name.strip()] = weight
    return found


MOST = 10_000
"""Most numbers of a range: a longer one is taken for a typing error."""


def parse_names(text: str) -> tuple[str, ...]:
    """Read a comma list of names, each kept once, in order.

    Raises:
        ValueError: the list is empty.
    """
    found = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if not found:
        raise ValueError("give a name, or several with commas between them")
    return found


def parse_reals(text: str) -> tuple[float, ...]:
    """Read a comma list of numbers, each kept once, in order: 1e-4,0.001.

    Raises:
        ValueError: the text is anything else.
    """
    try:
        return tuple(dict.fromkeys(float(part) for part in text.split(",")))
    except ValueError:
        raise ValueError("give a number, or several with commas between them") from None


def parse_numbers(text: str) -> tuple[int, ...]:
    """Read a comma list of whole numbers and ranges, each number kept once, in order: 1,5,7-9.

    Raises:
        ValueError: the text is anything else.
    """
    return tuple(dict.fromkeys(_numbers(text)))


def _numbers(text: str) -> Iterator[int]:
    for part in text.split(","):
        found = re.fullmatch(r"\s*(-?\d{1,19})(?:-(\d{1,19}))?\s*", part, re.ASCII)
        if found is None:
            raise ValueError("give whole numbers and ranges, such as 2021-2025 or 1,5,7-9")
        first, last = int(found[1]), int(found[2] or found[1])
        if last < first:
            raise ValueError(f"the range {part.strip()} is empty; give the smaller number first")
        if last - first >= MOST:
            raise ValueError(f"the range {part.strip()} has more than {MOST:,} numbers")
        yield from range(first, last + 1)


def ranks_text(ranks: Collection[int]) -> str:
    """Write the smallest and the largest of ranks: "rank 2", or "ranks 1 to 3"."""
    least, most = min(ranks), max(ranks)
    return f"rank {least}" if least == most else f"ranks {least} to {most}"


def duration(seconds: float) -> str:
    """Write seconds as 45s, 2m10s or 3h05m."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60}h{minutes % 60:02}m"
    return f"{minutes}m{rest:02}s" if minutes else f"{rest}s"


# ---- bounds: each raises a ValueError that says what the value must be


def _bound(holds: Callable[[Any], bool], fix: str) -> Callable[[Any], None]:
    def check(value: Any) -> None:
        if not holds(value):
            raise ValueError(fix)

    return check


at_least_one = _bound(lambda value: value >= 1, "must be at least 1")
positive = _bound(lambda value: value > 0, "must be positive")
positive_and_finite = _bound(lambda value: 0 < value < math.inf, "must be positive and finite")
not_negative = _bound(lambda value: 0 <= value < math.inf, "must be finite and not negative")
below_one = _bound(lambda value: 0 <= value < 1, "must be at least 0 and below 1")
share = _bound(lambda value: 0 < value < 1, "must be above 0 and below 1")
below_two_to_63 = _bound(lambda value: value < 2**63, "must be below 2^63")
# the squares that AdamW takes of a penalty must be finite in fp32
penalty = _bound(lambda value: value <= LARGEST_PENALTY, "must be at most 1e9")
