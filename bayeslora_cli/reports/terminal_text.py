"""Writes text to a terminal: escaped, printed as it is, or drawn as the console allows."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterable
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

# what a terminal would obey, in file names and other people's messages; the last two ranges change
# the direction of writing, so that a name reads as another one
_OBEYED = (
    *range(9),
    *range(11, 32),
    *range(127, 160),
    *range(0x202A, 0x202F),
    *range(0x2066, 0x206A),
)
_CONTROL = {code: ascii(chr(code))[1:-1] for code in _OBEYED}


def harmless(text: str) -> str:
    """Escape what a terminal would obey; tabs and line breaks stay."""
    return text.translate(_CONTROL)


def say(text: object, *, file: IO[str] | None = None) -> None:
    """Print text that may hold names from elsewhere, on stdout or `file`."""
    print(harmless(str(text)), file=file)


def say_path(path: object) -> None:
    """Print a path on stdout: escaped on a terminal, and as it is for the program that reads it."""
    print(harmless(str(path)) if sys.stdout.isatty() else path)


def shell_line(words: Iterable[str]) -> str:
    """Join words to a command in one line, for bash or zsh where a word has control characters."""
    return " ".join(shlex.quote(word) if word.isprintable() else _ansi_c(word) for word in words)


def _ansi_c(word: str) -> str:
    """Quote as $'...'."""
    escaped = word.replace("\\", r"\\").replace("'", r"\'")
    return "$'" + "".join(c if c.isprintable() else _code(c) for c in escaped) + "'"


def _code(character: str) -> str:
    try:
        found = character.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # half of a pair, which a file can name and no command line hold
        found = character.encode("utf-8", "surrogatepass")
    return "".join(f"\\x{byte:02x}" for byte in found)


def print_plain(console: Console, text: str) -> None:
    """Print lines as they are: no markup, no colours, no line breaks, no control characters."""
    console.print(harmless(text), markup=False, emoji=False, highlight=False, soft_wrap=True)


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
