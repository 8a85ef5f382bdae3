"""Errors that a user can fix, and the exit codes of the command line."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from pathlib import Path

EXIT_FAILED = 1
EXIT_USER = 2
EXIT_PREEMPTED = 75  # EX_TEMPFAIL of sysexits.h: try again


class BayesloraError(Exception):
    """A known failure: it is printed as one message on stderr, without a traceback."""

    exit_code = EXIT_FAILED
    reported_elsewhere = False
    """Whether another process of the job prints it."""
    on_all_processes = False
    """Whether all processes of the job raise it, and so have made the same calls so far."""


class UserError(BayesloraError):
    """An error that the user can fix; the message names the option or file, the value, the fix."""

    exit_code = EXIT_USER


class ConfigError(UserError):
    """All problems of one configuration, reported together."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


class DataError(UserError):
    """A file or table that cannot be read as a data set."""


class MissingSplitError(DataError):
    """A data set has no split of this name."""


class ModelError(UserError):
    """A backbone that cannot be loaded or adapted as asked."""


class RunDirError(UserError):
    """A run directory that cannot be read or written as asked."""


class NonFiniteError(BayesloraError):
    """The loss, a gradient or a score is not finite; the last finite state is kept."""


class DriftError(BayesloraError):
    """The processes of a job have computed different results."""


class Preempted(BayesloraError):
    """A signal has stopped the run; the same command resumes it."""

    exit_code = EXIT_PREEMPTED


class StorageError(BayesloraError, OSError):
    """A file could not be written: no space, or no permission. What it held before is kept."""

    def __init__(self, path: Path, error: OSError) -> None:
        super().__init__(error.errno, error.strerror)
        self.path = path

    def __str__(self) -> str:
        return f"cannot write {self.path}: {self.strerror}; what was saved before is still there"


def explained(error: BaseException) -> BayesloraError | None:
    """Return an error with a message for one of the machine, or of a name that it cannot take.

    None: the error is none of these.
    """
    said = str(error)
    if _no_memory(error, said):
        detail = said.splitlines()[0] if said else type(error).__name__
        return BayesloraError(
            "out of memory on the CPU; lower --batch-size, --max-length or a rank, or raise the "
            f"limit: {detail}"
        )
    if "can't start new thread" in said or "ThreadPoolBuildError" in said:
        return BayesloraError("no thread can be started: raise the limit of processes (ulimit -u)")
    if isinstance(error, ValueError) and "embedded null" in said:
        return UserError("a path or name has a NUL character, which no file can have")
    if isinstance(error, RuntimeError) and "home directory" in said:
        return UserError(f"a path that begins with ~: {said}; give it in full")
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return UserError(f"{str(error.filename)[:60]}…: the path is too long")
    return None


def _no_memory(error: BaseException, said: str) -> bool:
    """Return whether there was no memory for Python, torch, or a library to be loaded."""
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    signs = ("DefaultCPUAllocator", "std::bad_alloc", "failed to map segment", "os error 12")
    # a SystemError is what C code raises that was not told why an allocation failed
    kinds = (MemoryError, SystemError)
    return isinstance(error, kinds) or any(sign in said for sign in signs)
