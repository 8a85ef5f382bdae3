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

from bayeslora_cli.errors import RunDirError

logger = logging.getLogger("bayeslora")


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
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _acquire(path)
    except OSError as error:
        _remove(made)
        raise RunDirError(f"--output: cannot write {path.parent}: {error.strerror}") from error
    try:
        yield
    finally:
        _give_up(path, descriptor)
        _remove(made)


@contextmanager
def once(made: Path) -> Iterator[bool]:
    """Whether `made` is to be made inside, by this process; those who ask meanwhile wait for it.

    Where nothing can be locked, nobody waits.
    """
    lock = made.with_suffix(".lock")
    with ExitStack() as held:
        if not made.exists():
            with suppress(OSError):
                lock.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                held.callback(_give_up, lock, _acquire(lock, wait=True))
            if made.exists():  # by another process, and all who have waited may use it at once
                held.close()
        yield not made.exists()


def _give_up(path: Path, descriptor: int) -> None:
    with suppress(OSError):
        path.unlink()
    with suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_UN)  # closing is not enough where a child has it too
    os.close(descriptor)


def _remove(directories: list[Path]) -> None:
    for directory in directories:
        with suppress(OSError):  # there is something in it
            directory.rmdir()


def _acquire(path: Path, *, wait: bool = False) -> int:
    """The locked file's descriptor; whoever does not `wait` for it is told who has it."""
    flags = fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB)
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        try:
            fcntl.flock(descriptor, flags)
        except BlockingIOError as error:
            holder = os.read(descriptor, 200).decode("utf-8", "replace").partition("\n")[0]
            os.close(descriptor)
            who = "".join(c for c in holder if c.isprintable()) or "another process"
            raise RunDirError(
                f"{path.parent} is being trained by {who}; wait for it or stop it, or give another "
                "--output"
            ) from error
        except OSError as error:  # a file system without locks
            if wait:
                os.close(descriptor)
                raise
            logger.warning("%s cannot be locked (%s): start no second process on it", path, error)
            return descriptor
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
