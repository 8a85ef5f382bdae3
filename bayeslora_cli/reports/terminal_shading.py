"""Shades the cells of a terminal drawing: background colours, or a character after the number."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING

from rich.text import Text

if TYPE_CHECKING:
    pass

# Background and text of a cell. The colours are among xterm's 256, so a terminal with fewer than
# 2^24 colours shows the same ones; their lightness rises evenly.
# from 0 (grey) to the largest value
RAMP = (
    ("#1c1c1c", "#949494"),
    ("#5f0087", "#ffffff"),
    ("#005f87", "#ffffff"),
    ("#008787", "#000000"),
    ("#00af87", "#000000"),
    ("#5fd787", "#000000"),
    ("#d7ff5f", "#000000"),
)
# from the most negative value (blue) over 0 (grey) to the most positive (orange)
DIVERGING = (
    ("#87d7ff", "#000000"),
    ("#00afd7", "#000000"),
    ("#005f87", "#ffffff"),
    ("#1c1c1c", "#949494"),
    ("#875f00", "#ffffff"),
    ("#d78700", "#000000"),
    ("#ffd787", "#000000"),
)
SHADES = " ░▒▓█"


@dataclass(frozen=True, kw_only=True, slots=True)
class Shading:
    """The shades of one drawing; without colours and characters its numbers are not shaded."""

    top: float
    """The absolute value of a number that has the strongest shade."""
    colour: bool
    """Whether to shade by background colours."""
    characters: bool
    """Whether to shade by a character after the number, chosen by its absolute value."""
    signed: bool = False
    """Whether the colours show the sign as well."""

    def mark(self, value: float) -> str:
        """Return the character after the number; empty without `characters`."""
        return SHADES[self._level(abs(value), len(SHADES))] if self.characters else ""

    def style(self, value: float) -> str:
        """Return the rich style of a cell; empty without colours."""
        if not self.colour:
            return ""
        background, foreground = self.colours(value)
        return f"{foreground} on {background}"

    def colours(self, value: float) -> tuple[str, str]:
        """Return the background and text colour of a cell, as #rrggbb."""
        if self.signed:
            half = len(DIVERGING) // 2
            level = self._level(abs(value), half + 1)
            return DIVERGING[half + (level if value > 0 else -level)]
        return RAMP[self._level(value, len(RAMP))]

    def legend(self, number: Callable[[float], str]) -> Text:
        """Draw the shades with the numbers at their ends; empty if there are no shades."""
        low = number(-self.top if self.signed else 0)
        if self.colour:
            line = Text(f"{low} ")
            for background, _ in DIVERGING if self.signed else RAMP:
                line.append("  ", f"on {background}")
            return line.append(f" {number(self.top)}")
        if self.characters:
            sign = "±" if self.signed else ""
            return Text(f"0 {SHADES.strip()} {sign}{number(self.top).lstrip('+')}")
        return Text()

    def _level(self, size: float, levels: int) -> int:
        """Return the index of the shade of `size`; only 0 has the first one."""
        return ceil(size / self.top * (levels - 1)) if size else 0
