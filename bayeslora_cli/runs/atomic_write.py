"""Writes files and directories atomically, and cleans up after a write that was killed."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from bayeslora_cli.errors import StorageError

_UMASK = os.umask(0)  # it can only be read by setting it
os.umask(_UMASK)
# safetensors wraps the system's errors in its own, with the number in the text; the second is 0.5's
_SYSTEM_ERROR = re.compile(r"(?:\(os error |\bOs \{ code: )(\d+)")


def _sync(path: Path) -> None:
    """Flush a file or a directory's entries to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path for a file or a directory; on success it is renamed to `path`.

    At any time `path` is the complete old content or the complete new one. A directory cannot be
    replaced in one system call: the old one is renamed just before, and `recover` undoes that if
    the process was killed in between.

    Raises:
        StorageError: the disk is full or `path` cannot be written; the old content is unchanged.
    """
    temporary, old = aside(path, "tmp"), aside(path, "old")
    try:
        with named(path):
            recover(path)
            path.parent.mkdir(parents=True, exist_ok=True)
            remove(temporary)
            yield temporary
            _settle(temporary, path, old)
    except BaseException:
        with suppress(OSError):  # report the first error; a leftover does no harm
            recover(path)
            remove(temporary)
        raise


def _settle(temporary: Path, path: Path, old: Path) -> None:
    """Flush the temporary file or directory to disk and rename it to `path`."""
    for written in (*temporary.rglob("*"), temporary):
        if written.is_file():
            written.chmod(0o666 & ~_UMASK)  # safetensors lets only the owner read its files
        _sync(written)
    if path.is_dir():
        path.rename(old)
    temporary.rename(path)
    _sync(path.parent)
    remove(old)


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Turn the system's errors inside this block into errors that name `path`.

    Raises:
        StorageError: instead of such an error.
    """
    try:
        yield
    except StorageError:
        raise
    except Exception as error:
        number = _SYSTEM_ERROR.search(str(error))
        if number is not None and not isinstance(error, OSError):
            error = OSError(int(number[1]), os.strerror(int(number[1])))
        if not isinstance(error, OSError) or error.errno is None:
            raise
        raise StorageError(path, error) from error


def recover(path: Path) -> None:
    """After a kill inside `replacing`, restore the old directory, or remove it if replaced."""
    old = aside(path, "old")
    if not old.is_dir():
        return
    if path.exists():
        remove(old)
    else:
        old.rename(path)


def discard(path: Path) -> None:
    """Remove a directory atomically: at any time it exists completely or not at all.

    Raises:
        StorageError: it cannot be removed.
    """
    with named(path):
        temporary = aside(path, "tmp")
        remove(temporary)
        path.rename(temporary)
        remove(temporary)


def tidy(path: Path) -> None:
    """Remove what a killed `replacing` or `discard` left of `path`.

    Raises:
        StorageError: it cannot be removed.
    """
    with named(path):
        recover(path)
        remove(aside(path, "tmp"))


def leftovers(directory: Path) -> list[Path]:
    """Return the paths in one of our directories at which `tidy` would remove something."""
    found = (*directory.glob(".*.old"), *directory.glob(".*.tmp"))
    return [path.with_name(path.stem.removeprefix(".")) for path in found]


def aside(path: Path, ending: str) -> Path:
    """Return the path used while `path` is written (`tmp`) or replaced (`old`)."""
    return path.with_name(f".{path.name}.{ending}")


def remove(path: Path) -> None:
    """Remove a file or a directory if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def to_json(value: Any) -> str:
    """Return strict JSON as text, as `write_json` writes it.

    Raises:
        ValueError: the value has a NaN or an infinity, which JSON cannot express.
    """
    return json.dumps(value, indent=2, allow_nan=False) + "\n"


def write_json(path: Path, value: Any) -> None:
    """Write strict JSON atomically.

    Raises:
        ValueError: raised by `to_json`.
    """
    write_text(path, to_json(value))
