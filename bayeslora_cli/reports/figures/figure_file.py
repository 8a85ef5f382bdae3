"""Checks a figure's file before anything is computed, and writes it whole or not at all."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bayeslora_cli.errors import UserError
from bayeslora_cli.runs.atomic_write import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".svg", ".pdf")
DPI = 200


def check_figure(path: Path, option: str, without: str | None = None) -> None:
    """Check that a figure can be written to `path`.

    Args:
        option: the option that names the file, for messages.
        without: what the user may give instead to need no file, for messages.
    Raises:
        UserError: the suffix names no format, the path is a directory, or matplotlib is missing.
    """
    if path.suffix not in SUFFIXES:
        raise UserError(
            f"{option} {path}: the suffix {path.suffix!r} is not a format of figures; "
            f"use one of {', '.join(SUFFIXES)}" + (f", or {without}" if without else "")
        )
    if path.is_dir():
        raise UserError(f"{option} {path}: is a directory; give the name of a file")
    if importlib.util.find_spec("matplotlib") is None:
        raise UserError(
            f"{option} {path}: figures need matplotlib; pip install 'bayeslora[plot]'"
            + (f", or give {without}" if without else "")
        )


def write_figure(figure: Figure, path: Path, option: str, metadata: Any = None) -> None:
    """Write a figure in the format of the path's suffix.

    Args:
        option: the option that names the file, for the message.
        metadata: passed to `Figure.savefig`.
    Raises:
        UserError: the file cannot be written.
    """
    try:
        with replacing(path) as temporary:
            figure.savefig(temporary, format=path.suffix[1:], dpi=DPI, metadata=metadata)
    except OSError as error:
        raise UserError(f"{option} {path}: cannot be written: {error.strerror}") from error
