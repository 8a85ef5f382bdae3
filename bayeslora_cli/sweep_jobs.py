"""The runs of a sweep as processes of their own, several at a time, one a GPU where there are many.

Each has its log beside its run directory, and on the terminal a line.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from bayeslora_cli.atomic import named
from bayeslora_cli.console import duration
from bayeslora_cli.errors import EXIT_PREEMPTED, Preempted
from bayeslora_cli.signals import Stop, Stopped
from bayeslora_cli.sweep import PlannedRun

if TYPE_CHECKING:
    from rich.console import Console

logger = logging.getLogger("bayeslora")

PROGRAM = (sys.executable, "-m", "bayeslora_cli")
POLL = 0.2
"""Seconds between two looks at the processes."""
TAIL = 4096
"""Bytes of a log's end that are looked at for its progress."""


class Job:
    """A run in a process of its own."""

    def __init__(
        self, planned: PlannedRun, program: Sequence[str], environment: Mapping[str, str]
    ) -> None:
        """Starts it.

        Raises:
            StorageError: its log cannot be written.
        """
        self.planned = planned
        self.began = time.monotonic()
        run = planned.run.path
        self.log = run.with_name(f"{run.name}.log")
        with named(self.log):
            run.parent.mkdir(parents=True, exist_ok=True)
            file = self.log.open("ab")
        with file:
            self._start = file.tell()
            # a terminal's ^C is not to reach it twice, at once and by way of this process
            self.process = subprocess.Popen(
                [*program, *planned.arguments()],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environment},
                process_group=0,
            )

    def line(self) -> str:
        """What it is at, of its log's last line of a step."""
        steps = [line for line in self._text(TAIL).splitlines() if re.match(r"step \d+/\d+", line)]
        return f"{self.planned.label}  {steps[-1] if steps else 'starting'}"

    def problem(self) -> str | None:
        """What went wrong with it, now that it has ended; None: nothing."""
        code = self.process.returncode
        if code == 0:
            return None
        if code < 0:
            return f"killed by {signal.Signals(-code).name}; its log is {self.log}"
        text = self._text().rstrip()
        _, found, message = text.rpartition("\nerror: ")
        if not found:
            message = text.rpartition("\n")[2]
        return f"{message.removeprefix('error: ')} (exit code {code}, {self.log})"

    def _text(self, last: int | None = None) -> str:
        """What this process has written to the log, or the `last` bytes of it."""
        with self.log.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(self._start if last is None else max(self._start, end - last))
            return file.read().decode("utf-8", "replace")


def run_jobs(
    runs: Sequence[PlannedRun],
    jobs: int,
    console: Console,
    stop: Stop,
    program: Sequence[str] = PROGRAM,
) -> dict[str, str]:
    """Train runs, `jobs` at a time; what has gone wrong: the run's label -> what.

    A signal goes on to all that are running, which save their state.

    Args:
        program: what is called with each run's arguments.
    Raises:
        Preempted: a signal has come, here or to one of the processes; the others have ended.
    """
    environments = slot_environments(jobs, runs[0].resolved.config.device)
    pool = _Pool(runs, environments, program, _Lines(console))
    try:
        with stop.noted():
            while pool.look():
                stop.check()
                time.sleep(POLL)
    except Stopped as found:
        pool.stop()
        raise Preempted(
            f"stopped by {found}: {pool.summary()}. Run the same command again to go on"
        ) from None
    finally:
        pool.close()
    if pool.stopped:
        raise Preempted(f"{pool.summary()}. Run the same command again to go on")
    return pool.problems


class _Pool:
    """The runs that wait, those that run, and what became of the others."""

    def __init__(
        self,
        runs: Sequence[PlannedRun],
        environments: Sequence[Mapping[str, str]],
        program: Sequence[str],
        lines: _Lines,
    ) -> None:
        self.total = len(runs)
        self.waiting = list(runs)
        self.free = list(environments)
        self.running: list[tuple[Job, Mapping[str, str]]] = []
        self.program, self.lines = program, lines
        self.done: list[str] = []
        self.stopped: list[str] = []
        self.problems: dict[str, str] = {}

    def look(self) -> bool:
        """Note what has ended, start what there is room for; returns whether any is left."""
        for job, environment in list(self.running):
            if job.process.poll() is not None:
                self.running.remove((job, environment))
                self.free.insert(0, environment)
                self.ended(job)
        while self.waiting and self.free:
            environment = self.free.pop(0)
            job = Job(self.waiting.pop(0), self.program, environment)
            self.running.append((job, environment))
            logger.info("%s begins, its log is %s", job.planned.label, job.log)
        self.lines.show([self.summary(), *(job.line() for job, _ in self.running)])
        return bool(self.running)

    def ended(self, job: Job) -> None:
        """Note what became of a run."""
        label, took = job.planned.label, duration(time.monotonic() - job.began)
        problem = job.problem()
        if problem is None:
            self.done.append(label)
            logger.info("%s is done, %s", label, took)
        elif job.process.returncode == EXIT_PREEMPTED:
            self.stopped.append(label)
            logger.warning("%s: %s", label, problem)
        else:
            self.problems[label] = problem
            logger.error("%s failed: %s", label, problem)

    def stop(self) -> None:
        """Have all that are running save their state, and wait for them."""
        for job, _ in self.running:
            job.process.send_signal(signal.SIGTERM)
        while self.running:
            job, _ = self.running.pop()
            job.process.wait()
            self.ended(job)

    def close(self) -> None:
        """Leave no process behind."""
        self.lines.close()
        for job, _ in self.running:
            job.process.kill()
            job.process.wait()

    def summary(self) -> str:
        """How many of how many."""
        counts = {"failed": len(self.problems), "stopped with a checkpoint": len(self.stopped)}
        rest = (f", {count} {what}" for what, count in counts.items() if count)
        return f"{len(self.done)} of {self.total} runs done" + "".join(rest)


class _Lines:
    """A line a run on a terminal; elsewhere nothing, the log says when each begins and ends."""

    def __init__(self, console: Console) -> None:
        from rich.live import Live

        shown = console.is_terminal and console.is_interactive
        self.live = None
        if shown and logger.isEnabledFor(logging.INFO):
            self.live = Live(
                console=console, auto_refresh=False, redirect_stdout=False, transient=True
            )
            self.live.start()

    def show(self, lines: Sequence[str]) -> None:
        if self.live is not None:
            from rich.text import Text

            text = Text("\n".join(lines), no_wrap=True, overflow="ellipsis")
            self.live.update(text, refresh=True)

    def close(self) -> None:
        live, self.live = self.live, None
        if live is not None:
            live.stop()


# ---- the machine


def slot_environments(jobs: int, device: str) -> list[dict[str, str]]:
    """Variables of each of `jobs` processes: its GPU where there are several, its threads.

    With as many jobs as GPUs or fewer each has one to itself, with more they share them evenly.
    What the user has set stays: the threads, and which GPUs there are.
    """
    found: list[dict[str, str]] = [{} for _ in range(jobs)]
    gpus = visible_gpus() if device in ("auto", "cuda") else []
    if len(gpus) > 1:
        for slot, environment in enumerate(found):
            environment["CUDA_VISIBLE_DEVICES"] = gpus[slot % len(gpus)]
    if "OMP_NUM_THREADS" not in os.environ:
        threads = max(1, len(os.sched_getaffinity(0)) // jobs)
        for environment in found:
            environment["OMP_NUM_THREADS"] = str(threads)
    return found


def visible_gpus() -> list[str]:
    """Names of the GPUs that this process may use, as CUDA_VISIBLE_DEVICES has them."""
    import torch

    count = torch.cuda.device_count()
    typed = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = map(str, range(count)) if typed is None else (n.strip() for n in typed.split(","))
    return list(names)[:count]
