"""How often something is to happen: every so many steps, or every so many seconds."""

from __future__ import annotations

import re
from dataclasses import dataclass

_UNITS = {"s": 1, "m": 60, "h": 3600}  # seconds
FORM = "auto, a number of steps (500), or a time (30s, 10m, 2h)"


@dataclass(frozen=True, slots=True)
class Interval:
    """A number of steps, or a time, or neither: whatever is best."""

    steps: int | None = None
    seconds: int | None = None


def parse_interval(text: str) -> Interval:
    """Read what `FORM` says.

    Raises:
        ValueError: something else, or nothing of it.
    """
    if text == "auto":
        return Interval()
    found = re.fullmatch(r"([0-9]{1,9})([smh]?)", text)
    if found is None or int(found[1]) == 0:
        raise ValueError(f"give {FORM}")
    number, unit = int(found[1]), found[2]
    return Interval(seconds=number * _UNITS[unit]) if unit else Interval(steps=number)
