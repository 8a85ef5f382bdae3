"""Writes that happen whole or not at all, and what clears up after one that was cut short."""

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

_UMASK = os.umask(0)  # there is no way to read it but to set it
os.umask(_UMASK)
# safetensors reports the system's errors as its own, with the number in the text
_SYSTEM_ERROR = re.compile(r"\(os error (\d+)\)")


def _sync(path: Path) -> None:
    """Flush a file or a directory's entries to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, a file or a directory to be; renamed to it on success.

    Whoever looks sees the old thing or the new one, whole. A directory cannot be exchanged in one
    call: the old one steps aside just before, and `recover` brings it back after a kill in between.

    Raises:
        StorageError: the disk is full, the place cannot be written to; the old thing is there.
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
        with suppress(OSError):  # the first error counts; what stays is out of everybody's way
            recover(path)
            remove(temporary)
        raise


def _settle(temporary: Path, path: Path, old: Path) -> None:
    """Flush the temporary thing to the disk and give it its name."""
    for written in (*temporary.rglob("*"), temporary):
        if written.is_file():
            written.chmod(0o666 & ~_UMASK)  # safetensors keeps its files from everyone else
        _sync(written)
    if path.is_dir():
        path.rename(old)
    temporary.rename(path)
    _sync(path.parent)
    remove(old)


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Errors of the system inside say what could not be written.

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
    """Undo what a kill inside `replacing` left: the old directory comes back, or goes for good."""
    old = aside(path, "old")
    if not old.is_dir():
        return
    if path.exists():
        remove(old)
    else:
        old.rename(path)


def discard(path: Path) -> None:
    """Remove a directory: whoever looks sees all of it, or nothing.

    Raises:
        StorageError: it cannot be removed.
    """
    with named(path):
        temporary = aside(path, "tmp")
        remove(temporary)
        path.rename(temporary)
        remove(temporary)


def tidy(path: Path) -> None:
    """Clear away what a kill inside `replacing` or `discard` left of `path`.

    Raises:
        StorageError: it cannot be removed.
    """
    with named(path):
        recover(path)
        remove(aside(path, "tmp"))


def leftovers(directory: Path) -> list[Path]:
    """The paths in a directory of ours that `tidy` would have something to do for."""
    found = (*directory.glob(".*.old"), *directory.glob(".*.tmp"))
    return [path.with_name(path.stem.removeprefix(".")) for path in found]


def aside(path: Path, ending: str) -> Path:
    """Where a thing is while it is written (`tmp`), or steps aside (`old`)."""
    return path.with_name(f".{path.name}.{ending}")


def remove(path: Path) -> None:
    """Remove a file or a directory, if there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write strict JSON, whole or not at all.

    Raises:
        ValueError: a NaN or an infinity, which JSON has no word for.
    """
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")
