"""Trains the runs of a sweep in parallel worker processes, spread over the GPUs.

Each run has a log beside its directory, and one line on the terminal.
"""

from __future__ import annotations

import logging
import signal
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from bayeslora_cli.config.effects import kind
from bayeslora_cli.config.values import duration
from bayeslora_cli.errors import EXIT_PREEMPTED, Preempted
from bayeslora_cli.execution.signals import Stop, Stopped
from bayeslora_cli.sweeps.grid import PlannedRun
from bayeslora_cli.sweeps.workers import PROGRAM, Job, Worker, slot_environments, they_take_turns

if TYPE_CHECKING:
    from rich.console import Console

logger = logging.getLogger("bayeslora")

POLL = 0.2
"""Seconds between two checks of the processes."""
TURNS = (
    "--jobs: processes on one GPU take turns, unless NVIDIA's MPS lets them compute side by side: "
    "nvidia-cuda-mps-control -d starts it"
)


def run_jobs(
    runs: Sequence[PlannedRun],
    jobs: int,
    console: Console,
    stop: Stop,
    program: Sequence[str] = PROGRAM,
) -> dict[str, str]:
    """Train runs, `jobs` at a time.

    A signal to this process is passed on to the workers, which save their state.

    Args:
        program: the worker's command line; a run's arguments are appended to it.
    Returns:
        The error messages of failed runs by the runs' labels.
    Raises:
        Preempted: a signal has come to this process or to a worker; all workers have ended.
    """
    device = runs[0].resolved.config.device
    if they_take_turns(jobs, device):
        logger.warning(TURNS)
    slots = [_Slot(environment, program) for environment in slot_environments(jobs, device)]
    pool = _Pool(runs, slots, _Lines(console))
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


class _Slot:
    """A place for one run at a time, and the worker process that trains it."""

    def __init__(self, environment: Mapping[str, str], program: Sequence[str]) -> None:
        self.environment, self.program = environment, program
        self.job: Job | None = None
        self.worker: Worker | None = None

    def begin(self, job: Job) -> None:
        """Train a run, in the slot's process if there is one, else in a new process."""
        self.job = job
        if self.worker is None or not self.worker.give(job):
            self.close()
            self.worker = Worker(job, self.program, self.environment)

    def ended(self, *, wait: bool = False) -> int | None:
        """Return the exit code of the run's process, 0 if it waits for a run, None if it trains."""
        assert self.worker is not None
        code = self.worker.process.wait() if wait else self.worker.process.poll()
        if self.worker.is_done():
            return 0
        if code == 0 and self.worker.given and self.job and not wait:
            self.begin(self.job)  # the process was exiting already, and has not seen the run
            return None
        if code is not None:
            self.close()
        return code

    def close(self) -> None:
        """End the process; if it still trains, kill it."""
        worker, self.worker = self.worker, None
        if worker is not None:
            worker.give_no_more()
            if self.job is not None:
                worker.process.kill()
            worker.process.wait()


class _Pool:
    """The waiting runs, the slots that train runs, and the outcomes of the others."""

    def __init__(self, runs: Sequence[PlannedRun], slots: Sequence[_Slot], lines: _Lines) -> None:
        self.total = len(runs)
        self.waiting = list(runs)
        self.slots, self.lines = slots, lines
        self.done: list[str] = []
        self.stopped: list[str] = []
        self.problems: dict[str, str] = {}

    def look(self) -> bool:
        """Record the runs that have ended, and start others; return whether any is running."""
        for slot in self.slots:
            if slot.job is not None and (code := slot.ended()) is not None:
                self.ended(slot, slot.job, code)
        for slot in self.slots:
            if slot.job is None and self.waiting:
                job = Job(self._next(slot))
                slot.begin(job)
                logger.info("%s begins, its log is %s", job.planned.label, job.log)
            elif slot.job is None:
                slot.close()  # another slot may need its memory
        running = [slot.job for slot in self.slots if slot.job is not None]
        self.lines.show([self.summary(), *(job.line() for job in running)])
        return bool(running)

    def _next(self, slot: _Slot) -> PlannedRun:
        """Choose a run that can use the slot's network; else one that can use no other slot's."""
        kinds = [kind(run.resolved.config) for run in self.waiting]
        counts = Counter(kinds)
        own = None if slot.worker is None else slot.worker.kind
        others = {other.worker.kind for other in self.slots if other.worker and other is not slot}
        best = min(
            range(len(kinds)),
            key=lambda i: (kinds[i] != own, kinds[i] in others, -counts[kinds[i]], i),
        )
        return self.waiting.pop(best)

    def ended(self, slot: _Slot, job: Job, code: int) -> None:
        """Record how a run ended."""
        slot.job = None
        label, took = job.planned.label, duration(time.monotonic() - job.began)
        problem = job.problem(code)
        if problem is None:
            self.done.append(label)
            logger.info("%s is done, %s", label, took)
        elif code == EXIT_PREEMPTED:
            self.stopped.append(label)
            logger.warning("%s: %s", label, problem)
        else:
            self.problems[label] = problem
            logger.error("%s failed: %s", label, problem)

    def stop(self) -> None:
        """Have all running workers save their state, and wait for them."""
        running = [(slot, slot.job) for slot in self.slots if slot.job is not None]
        for slot, _ in running:
            assert slot.worker is not None
            slot.worker.process.send_signal(signal.SIGTERM)
        for slot, job in running:
            code = slot.ended(wait=True)
            assert code is not None
            self.ended(slot, job, code)

    def close(self) -> None:
        """End the display and all processes."""
        self.lines.close()
        for slot in self.slots:
            slot.close()

    def summary(self) -> str:
        """Write how many of the runs are done, and how many failed or were stopped."""
        counts = {"failed": len(self.problems), "stopped": len(self.stopped)}
        rest = (f", {count} {what}" for what, count in counts.items() if count)
        return f"{len(self.done)} of {self.total} runs done" + "".join(rest)


class _Lines:
    """Shows one line per run on a terminal; elsewhere nothing, since log messages tell enough."""

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
