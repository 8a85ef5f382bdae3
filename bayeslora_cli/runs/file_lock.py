"""One process at a time: in a run directory, or at work that others can use when it is done."""

from __future__ import annotations

import fcntl
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from time import monotonic, sleep

from bayeslora_cli.errors import RunDirError

logger = logging.getLogger("bayeslora")

POLL = 0.1
"""Seconds between two looks at a lock that is waited for."""
SILENCE = 5.0
"""Seconds of waiting before a line says so."""


class _NoLocks(OSError):
    """The file system has none."""


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock file, made with its directory; at the end it goes, and they if nothing came.

    The lock is the kernel's: it ends with the process that holds it, however that ends, and over
    NFS with its machine. A file that is left behind locks nobody out.

    Raises:
        RunDirError: another process holds it, or it cannot be made.
    """
    directories = [path.parent, *path.parent.parents]
    made = [directory for directory in directories if not directory.exists()]
    held = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        held = _acquire(path)
    except _NoLocks as error:
        logger.warning("%s cannot be locked (%s): start no second process on it", path, error)
    except OSError as error:
        _remove(made)
        raise RunDirError(f"--output: cannot write {path.parent}: {error.strerror}") from error
    if isinstance(held, str):
        raise RunDirError(
            f"{path.parent} is being trained by {held}; wait for it or stop it, or give another "
            "--output"
        )
    try:
        yield
    finally:
        _give_up(path, held)
        _remove(made)


@contextmanager
def once(made: Path, what: str, patience: float) -> Iterator[bool]:
    """Whether `made` is to be made inside, by this process; those who ask meanwhile wait for it.

    Who has waited in vain makes it without a lock, at the same time as others who have: the one
    before could not, or takes longer than `patience`. Nobody waits where nothing can be locked.

    Args:
        what: is being done, for who waits: a verb and its object.
        patience: seconds.
    """
    lock = made.with_suffix(".lock")
    with ExitStack() as stack:
        with suppress(OSError):
            if not os.path.exists(made):  # no error where nobody may look
                lock.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                if isinstance(held := _acquire(lock), str):
                    _wait(made, lock, f"waiting for {held} to {what}", patience)
                else:
                    stack.callback(_give_up, lock, held)
        yield not os.path.exists(made)


def _wait(made: Path, lock: Path, notice: str, patience: float) -> None:
    """Until something is made, or its lock is free."""
    began, told = monotonic(), False
    while not os.path.exists(made) and (waited := monotonic() - began) < patience:
        if not isinstance(held := _acquire(lock), str):
            _give_up(lock, held)
            return
        if waited > SILENCE and not told:
            logger.info("%s", notice)
            told = True
        sleep(POLL)


def _give_up(path: Path, descriptor: int | None) -> None:
    with suppress(OSError):
        path.unlink()
    if descriptor is not None:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_UN)  # closing is not enough if a child has it
        os.close(descriptor)


def _remove(directories: list[Path]) -> None:
    for directory in directories:
        with suppress(OSError):  # there is something in it
            directory.rmdir()


def _acquire(path: Path) -> int | str:
    """The locked file's descriptor, or who holds it.

    Raises:
        OSError: it cannot be made or locked.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 200).decode("utf-8", "replace").partition("\n")[0]
            os.close(descriptor)
            return "".join(c for c in holder if c.isprintable()) or "another process"
        except OSError as error:
            _give_up(path, descriptor)
            raise _NoLocks(*error.args) from error
        # whoever had it may have removed it just before: then this file is nobody's
        with suppress(FileNotFoundError):
            if os.path.samestat(os.stat(path), os.fstat(descriptor)):
                break
        os.close(descriptor)
    now = datetime.now().astimezone().isoformat(timespec="seconds")
    holder = f"process {os.getpid()} on {socket.gethostname()} since {now}\n"
    with suppress(OSError):  # a full disk: the lock holds all the same
        os.ftruncate(descriptor, 0)
        os.write(descriptor, holder.encode())
    return descriptor
