"""Handles signals that ask a process to stop.

During training a signal is recorded, so that the loop can save the state; otherwise it stops the
process at once. Schedulers send SIGTERM or SIGUSR1 before they kill; a terminal sends SIGINT,
and SIGHUP when it is closed.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from math import inf
from threading import current_thread, main_thread
from time import monotonic
from types import FrameType
from typing import Any

from bayeslora_cli.errors import Preempted

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)
EXIT_INTERRUPTED = 128 + signal.SIGINT  # the code that shells use


class Stopped(BaseException):
    """Raised when a signal has come. Not an `Exception`, since libraries catch those and go on."""


class _Abandoned(BaseException):
    """Raised when a second SIGINT has come."""


class Stop:
    """Knows whether a signal has asked this process to stop; only `listening` records signals."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self.noting = False
        """Whether signals are recorded for `check`; otherwise a signal raises at once."""
        self.patience = 0.0
        """A second SIGINT within these seconds counts as the first."""

    def check(self) -> None:
        """Raise if a signal has come; otherwise do nothing.

        Raises:
            Stopped: a signal has come.
        """
        if self.signal is not None:
            raise Stopped(self.signal.name)

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Record signals inside this block; the code inside calls `check`, and so does its end."""
        self.noting = True
        try:
            yield
        finally:
            self.noting = False
        self.check()


@contextmanager
def listening() -> Iterator[Stop]:
    """Handle `SIGNALS` inside this block; restore the former handlers afterwards.

    Ignored signals stay ignored, as SIGINT is in a shell's background jobs. This works only in the
    main thread.

    Raises:
        Preempted: a signal came, and no code inside has reported it.
        SystemExit: a second SIGINT came.
    """
    stop = Stop()
    interrupts, last = 0, -inf

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal interrupts, last
        if number == signal.SIGINT and monotonic() - last >= stop.patience:
            interrupts, last = interrupts + 1, monotonic()
        if interrupts == 2:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # a third one kills the process
            raise _Abandoned
        first, stop.signal = stop.signal is None, stop.signal or signal.Signals(number)
        if first and not stop.noting:
            raise Stopped(stop.signal.name)

    before = {}
    try:
        try:
            for number in SIGNALS:
                if signal.getsignal(number) != signal.SIG_IGN:
                    before[number] = signal.signal(number, handle)
            yield stop
        finally:
            stop.noting = True
    except Stopped as stopped:
        raise Preempted(
            f"stopped by {stopped}, outside of the training's steps: nothing is lost. Run the same "
            "command again"
        ) from None
    except _Abandoned:
        raise SystemExit(EXIT_INTERRUPTED) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def deferred() -> Iterator[None]:
    """Let SIGINT and SIGTERM take effect at the end of this block; a second one at once.

    Signals reach only the main thread; in others this does nothing.
    """
    if current_thread() is not main_thread():
        yield
        return
    before: dict[int, Any] = {}
    come: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        come.append(number)
        signal.signal(number, before[number])

    for asked in (signal.SIGINT, signal.SIGTERM):
        before[asked] = signal.signal(asked, handle)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for number in come[:1]:
            signal.raise_signal(number)
