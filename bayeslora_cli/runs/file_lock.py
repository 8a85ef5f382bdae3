"""File locks: one process per run directory, and one per piece of work whose result others reuse.

The `filelock` package does the locking. This module adds the name of a lock's holder, waits for the
holder or refuses, and removes the file when the lock is released.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from time import monotonic, sleep

from filelock import FileLock, Timeout

from bayeslora_cli.errors import RunDirError

logger = logging.getLogger("bayeslora")

POLL = 0.1
"""Seconds between two attempts to get a lock."""
SILENCE = 5.0
"""Seconds of waiting before a line is printed about it."""
UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""Errors of a file system that has no locks."""


class _NoLocks(OSError):
    """Raised when the file system has no locks."""


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock file inside this block; it is removed afterwards, with directories left empty.

    The kernel keeps the lock: it ends with the process that holds it, however that ends, and over
    NFS with its machine. A lock file that is left behind locks no process out.

    Raises:
        RunDirError: another process holds the lock, or its file cannot be made.
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
        if held is not None:
            _release(held)
        _remove(made)


@contextmanager
def once(made: Path, what: str, patience: float) -> Iterator[bool]:
    """Yield whether this process should make `made` inside the block; other processes wait for it.

    If the first process fails or takes longer than `patience`, each waiting process makes it
    without a lock. If the file system has no locks, no process waits.

    Args:
        what: the work, for the message of those that wait: a verb and its object.
        patience: the longest wait in seconds.
    """
    lock = made.with_suffix(".lock")
    with ExitStack() as stack:
        with suppress(OSError):
            if not os.path.exists(made):  # os.path: no error if reading is forbidden
                lock.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                if isinstance(held := _acquire(lock), str):
                    _wait(made, lock, f"waiting for {held} to {what}", patience)
                else:
                    stack.callback(_release, held)
        yield not os.path.exists(made)


def holder(path: Path) -> str | None:
    """Return the name of the process that holds a lock, without touching the lock.

    None: no process holds it. A process of another machine, of which only the file tells, counts as
    holding it.
    """
    with suppress(OSError):
        name = path.read_text("utf-8", "replace").partition("\n")[0]
        if (found := re.match(r"process (\d+) on (\S+) since ", name)) is None:
            return None
        if found[2] == socket.gethostname() and not _is_alive(int(found[1])):
            return None
        return "".join(c for c in name if c.isprintable())
    return None


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # of another user
        return True
    with suppress(OSError):  # killed, but its parent has not noticed yet
        return not re.search(r"\) Z ", Path(f"/proc/{process}/stat").read_text("utf-8", "replace"))
    return True


def _wait(made: Path, lock: Path, notice: str, patience: float) -> None:
    """Wait until `made` is there, its lock is free, or `patience` seconds have passed."""
    began, told = monotonic(), False
    while not os.path.exists(made) and (waited := monotonic() - began) < patience:
        if not isinstance(held := _acquire(lock), str):
            _release(held)
            return
        if waited > SILENCE and not told:
            logger.info("%s", notice)
            told = True
        sleep(POLL)


def _acquire(path: Path) -> FileLock | str:
    """Return the lock, held, or the name of its holder.

    Raises:
        OSError: the file cannot be made.
        _NoLocks: the file cannot be locked.
    """
    # without flock, filelock would use the file's existence as the lock, which outlives a killed
    # holder
    lock = FileLock(path, mode=0o644, thread_local=False, fallback_to_soft=False, on_acquired=_sign)
    while True:
        try:
            lock.acquire(blocking=False)
        except Timeout:
            with suppress(FileNotFoundError):  # the holder has just removed the file: try again
                holder = path.read_text("utf-8", "replace").partition("\n")[0]
                return "".join(c for c in holder if c.isprintable()) or "another process"
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise
            path.unlink(missing_ok=True)
            raise _NoLocks(*error.args) from error
        else:
            return lock


def _sign(descriptor: int) -> None:
    """Write the name of the process that holds a lock to its file."""
    now = datetime.now().astimezone().isoformat(timespec="seconds")
    holder = f"process {os.getpid()} on {socket.gethostname()} since {now}\n"
    with suppress(OSError):  # on a full disk the lock holds all the same
        os.ftruncate(descriptor, 0)
        os.write(descriptor, holder.encode())


def _release(lock: FileLock) -> None:
    with suppress(OSError):
        os.unlink(lock.lock_file)
    with suppress(OSError):
        lock.release()


def _remove(directories: list[Path]) -> None:
    for directory in directories:
        with suppress(OSError):  # the directory is not empty
            directory.rmdir()
