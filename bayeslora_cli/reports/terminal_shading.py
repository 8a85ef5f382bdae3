"""Shades of the cells of a terminal drawing: background colours or a character by the number."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING

from rich.text import Text

if TYPE_CHECKING:
    pass

# Background and text of a cell. The colours are of the 256 of xterm, so a terminal with fewer than
# 2^24 shows the same ones; their lightness rises evenly.
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
    """The shades of one drawing; with neither colours nor characters its numbers have none."""

    top: float
    """The size of a number with the strongest shade."""
    colour: bool
    """Shade by background colours."""
    characters: bool
    """Shade by a character after the number, by its size without the sign."""
    signed: bool = False
    """The colours show the sign as well."""

    def mark(self, value: float) -> str:
        """The character after the number; empty without `characters`."""
        return SHADES[self._level(abs(value), len(SHADES))] if self.characters else ""

    def style(self, value: float) -> str:
        """The rich style of a cell; empty without colours."""
        if not self.colour:
            return ""
        if self.signed:
            half = len(DIVERGING) // 2
            level = self._level(abs(value), half + 1)
            background, foreground = DIVERGING[half + (level if value > 0 else -level)]
        else:
            background, foreground = RAMP[self._level(value, len(RAMP))]
        return f"{foreground} on {background}"

    def legend(self, number: Callable[[float], str]) -> Text:
        """The shades with the numbers at their ends; empty where there are no shades."""
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
        """Index of the shade of `size`; only 0 has the first."""
        return ceil(size / self.top * (levels - 1)) if size else 0
