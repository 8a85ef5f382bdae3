"""Errors that a user can fix, and the exit codes of the command line."""

from __future__ import annotations

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
