"""The terminal side of training: log lines, the progress bar and the closing table."""

from __future__ import annotations

import io
import logging
import os
import sys
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, TextIO

from bayeslora_cli.api.training import Reporter
from bayeslora_cli.config.values import duration
from bayeslora_cli.errors import StorageError
from bayeslora_cli.reports.terminal_text import print_plain, three_digits

if TYPE_CHECKING:
    from rich.console import Console
    from rich.live import Live
    from rich.table import Table

logger = logging.getLogger("bayeslora")

REDRAW = 0.1
"""Seconds between two redraws."""
LOOKS = 100
"""Number of redraws over which the pace is averaged: ten seconds, or a hundred slow steps."""
MARGIN = 3
"""Columns right of the bar: a terminal's echo of ^C would break a full line, and double the bar."""
# control characters in file names and other programs' messages, which a terminal would obey


def set_up_logging(*, quiet: bool, verbose: bool) -> Console:
    """Let the package's logger write to stderr; return the console that it writes through.

    It shows information and warnings; with `quiet` only warnings, or else with `verbose` all
    messages.
    """
    from rich.console import Console

    # with FORCE_COLOR rich would treat a pipe as a terminal, and fill it with cursor movements
    console = Console(stderr=True, force_terminal=sys.stderr.isatty())
    logger.handlers = [_Handler(console)]
    logger.setLevel(logging.WARNING if quiet else logging.DEBUG if verbose else logging.INFO)
    return console


class _Handler(logging.Handler):
    """Prints records through a console, above its progress bar if it has one."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self.console = console
        self._said: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        once = getattr(record, "once", None)  # what is said of the first of many runs only
        if once in self._said:
            return
        if once is not None:
            self._said.add(once)
        try:
            prefix = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
            print_plain(self.console, prefix + self.format(record))
        except Exception:
            self.handleError(record)


class ProgressBar(Reporter):
    """Shows a bar on a terminal; elsewhere writes one line per log interval."""

    def __init__(self, console: Console) -> None:
        """`console`: returned by `set_up_logging`; there is no bar if the logger is quiet."""
        self._console = console
        self._live: Live | None = None

    def start(self, *, done: int, total: int) -> None:
        """Show the bar."""
        self._done, self._total = done, total
        self._line: Mapping[str, Any] = {}
        self._pace = _Pace(done)
        self._last = self._looked = perf_counter()
        is_terminal = self._console.is_terminal and self._console.is_interactive
        if is_terminal and logger.isEnabledFor(logging.INFO):
            from rich.live import Live

            # no thread redraws, the training's own steps do; the bar must not touch stdout
            self._live = Live(
                self._bar(), console=self._console, auto_refresh=False, redirect_stdout=False
            )
            self._live.start(refresh=True)

    def step(self, done: int) -> None:
        """Count a step; this takes microseconds, except for ten redraws per second."""
        self._done = done
        self._last = perf_counter()
        if self._last - self._looked >= REDRAW:
            self._look()

    def log(self, done: int, line: Mapping[str, Any]) -> None:
        """Show loss, learning rate and budget; without a terminal as a line."""
        self._done, self._line = done, line
        self._last = perf_counter()
        self._look()
        level = logging.INFO if self._live is None else logging.DEBUG
        logger.log(level, "%s", "  ".join([f"step {done}/{self._total}", *self._facts()]))

    def evaluation(self, done: int, text: str, *, best: bool) -> None:
        """Write an evaluation's line; its time does not count as time of steps."""
        now = perf_counter()
        self._pace.skip(now - self._last)
        self._last = now
        logger.info("step %d/%d  %s%s", done, self._total, text, "  (best)" if best else "")

    def stop(self) -> None:
        """Stop redrawing, with the bar as it is, and release the terminal."""
        live, self._live = self._live, None
        if live is not None:
            live.update(self._bar())
            live.stop()

    def _look(self) -> None:
        self._looked = self._last
        self._pace.look(self._last, self._done)
        if self._live is not None:
            self._live.update(self._bar(), refresh=True)

    def _facts(self) -> Iterator[str]:
        """Yield the known facts, for the bar and the line."""
        if self._line:
            yield f"loss {self._line['loss']:.4f}"
            yield f"lr {self._line['lr']:.3g}"
        if "budget" in self._line:
            yield f"budget {self._line['budget']}"
        if "relative_bit_operations" in self._line:
            yield f"rank {self._line['rank']:.2f}"
            yield f"bits {self._line['bits']:.2f}"
        if self._pace.rate:
            yield f"{three_digits(self._pace.rate)} steps/s"
            yield f"{duration(self._pace.seconds(self._total - self._done))} left"

    def _bar(self) -> Table:
        from rich import progress_bar
        from rich.table import Table

        line = Table.grid(padding=(0, 1))
        line.width = max(1, self._console.width - MARGIN)
        line.add_column(ratio=1)
        line.add_column(no_wrap=True)
        line.add_row(
            progress_bar.ProgressBar(self._total, self._done),
            "  ".join([f"{self._done}/{self._total}", *self._facts()]),
        )
        return line


class _Pace:
    """Steps per second over the last redraws, without the evaluations in between."""

    def __init__(self, done: int) -> None:
        self._looks = deque([(perf_counter(), done)], maxlen=LOOKS)
        self._first, self._done = done, done
        self._skipped = 0.0
        self.rate: float | None = None
        """Steps per second; None until a step is done."""

    def look(self, now: float, done: int) -> None:
        """Record that `done` steps are done."""
        self._done = done
        self._looks.append((now, done))
        then, before = self._looks[0]
        if now > then and done > before:
            self.rate = (done - before) / (now - then)

    def skip(self, seconds: float) -> None:
        """Leave out the last `seconds`, by moving the earlier times."""
        self._looks = deque(((then + seconds, done) for then, done in self._looks), maxlen=LOOKS)
        self._skipped += seconds

    def seconds(self, steps: int) -> float:
        """Estimate the seconds that `steps` will take, with evaluations as frequent as so far."""
        assert self.rate is not None
        return steps * (1 / self.rate + self._skipped / (self._done - self._first))


class LastingStream:
    """A standard stream whose reader may go away: what it is told from then on goes nowhere."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write text, unless there is no reader any more.

        Raises:
            StorageError: the stream is a file on a full disk.
        """
        with self._enduring():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush what was written, likewise."""
        with self._enduring():
            self._stream.flush()

    @contextmanager
    def _enduring(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            # else the interpreter's own flush at its end would fail as well
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
            if not isinstance(error, BrokenPipeError):
                raise StorageError(Path(self._stream.name.strip("<>")), error) from error


@contextmanager
def lasting_streams() -> Iterator[None]:
    """Inside, stdout and stderr may lose their readers, or be closed, and nothing stops for it.

    Raises:
        StorageError: stdout is a file on a full disk.
    """
    before = sys.stdout, sys.stderr
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        for name in ("stdout", "stderr"):
            stream = getattr(sys, name)
            if stream is None:  # closed by who started this process
                setattr(sys, name, nowhere)
            elif type(stream) is io.TextIOWrapper:  # and not a test's
                setattr(sys, name, LastingStream(stream))
        try:
            yield
        finally:
            try:
                sys.stdout.flush()
                sys.stderr.flush()
            finally:
                sys.stdout, sys.stderr = before
