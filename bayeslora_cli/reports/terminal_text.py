"""Writes text to a terminal: escaped, printed as it is, or drawn as the console allows."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

# control characters in file names and other programs' messages, which a terminal would obey
_CONTROL = {code: f"\\x{code:02x}" for code in (*range(9), *range(11, 32), *range(127, 160))}


def print_plain(console: Console, text: str) -> None:
    """Print lines as they are: no markup, no colours, no line breaks, no control characters."""
    console.print(
        text.translate(_CONTROL), markup=False, emoji=False, highlight=False, soft_wrap=True
    )


def show(draw: Callable[..., Text], console: Console) -> None:
    """Print what `draw(width=, colour=, unicode=)` returns, as the console allows.

    Colours need a terminal with at least 256 colours and no NO_COLOR; without colours the output
    has no control characters. With an encoding other than UTF-8 it is ASCII.
    """
    text = draw(
        width=console.width,
        colour=not console.no_color and console.color_system in ("256", "truecolor"),
        unicode=not console.options.ascii_only,
    )
    console.print(text, soft_wrap=True)


def printable(name: str, *, unicode: bool = True) -> str:
    """Escape the characters of a name that a terminal would obey or cannot encode."""
    return name if name.isprintable() and (unicode or name.isascii()) else ascii(name)[1:-1]


def three_digits(number: float) -> str:
    """Write a number with three digits; large ones with all digits before the point."""
    return f"{number:.3g}" if number < 999.5 else f"{number:.0f}"
