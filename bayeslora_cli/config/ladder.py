"""The bit widths that a quantizer may have: each twice the one before."""

from __future__ import annotations

WIDTHS = (2, 4, 8, 16)


def parse_ladder(text: str) -> tuple[int, ...]:
    """`2,4,8,16`, or neighbours among these alone, the narrowest first.

    Raises:
        ValueError: anything else; the message says what to give.
    """
    names = [part.strip() for part in text.split(",")]
    for start in range(len(WIDTHS)):
        for stop in range(start + 1, len(WIDTHS) + 1):
            if names == [str(width) for width in WIDTHS[start:stop]]:
                return WIDTHS[start:stop]
    known = ",".join(str(width) for width in WIDTHS)
    raise ValueError(f"give {known}, or neighbours among them, such as 4,8")
