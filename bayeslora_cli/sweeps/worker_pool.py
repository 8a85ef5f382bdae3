"""The runs of a sweep in other processes, several at a time, one a GPU where there are many.

Each run has its log beside its directory, and on the terminal a line.
"""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bayeslora_cli.config.run_config import kind
from bayeslora_cli.config.values import duration
from bayeslora_cli.errors import EXIT_PREEMPTED, Preempted
from bayeslora_cli.execution.signals import Stop, Stopped
from bayeslora_cli.runs.atomic_write import named
from bayeslora_cli.sweeps.grid import PlannedRun

if TYPE_CHECKING:
    from rich.console import Console

logger = logging.getLogger("bayeslora")

PROGRAM = (sys.executable, "-m", "bayeslora_cli.cli.worker")
POLL = 0.2
"""Seconds between two looks at the processes."""
TAIL = 4096
"""Bytes of a log's end that are looked at for its progress."""
TURNS = (
    "--jobs: processes on one GPU take turns, unless NVIDIA's MPS lets them compute side by side: "
    "nvidia-cuda-mps-control -d starts it"
)


class Worker:
    """A process that trains a run, and another one when it is done, see `worker`."""

    def __init__(self, job: Job, program: Sequence[str], environment: Mapping[str, str]) -> None:
        """Starts it; `program` may as well train a single run and end."""
        self.kind = kind(job.planned.resolved.config)
        """Of its last run, whose network it has."""
        self.given = False  # a run after its first
        self._channel, theirs = socket.socketpair()
        with theirs, job.log.open("ab") as file:
            # a terminal's ^C is not to reach it twice, at once and by way of this process
            self.process: subprocess.Popen[bytes] = subprocess.Popen(
                [*program, *job.planned.arguments()],
                stdin=theirs.fileno(),
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environment},
                process_group=0,
            )

    def give(self, job: Job) -> bool:
        """Have it train another run; returns whether it is there to do so."""
        order = {"arguments": job.planned.arguments(), "log": str(job.log)}
        try:
            self._channel.sendall(json.dumps(order).encode() + b"\n")
        except OSError:
            return False
        self.kind, self.given = kind(job.planned.resolved.config), True
        return True

    def is_done(self) -> bool:
        """Whether it has said, since it was asked last, that its run is done."""
        try:
            return bool(self._channel.recv(1, socket.MSG_DONTWAIT))
        except OSError:  # it has said nothing
            return False

    def leave(self) -> None:
        """Give it no more."""
        self._channel.close()


class Job:
    """A run, and what its process says of it."""

    def __init__(self, planned: PlannedRun) -> None:
        """Finds a place for its log.

        Raises:
            StorageError: it cannot be written.
        """
        self.planned = planned
        self.began = time.monotonic()
        run = planned.run.path
        self.log = run.with_name(f"{run.name}.log")
        with named(self.log):
            run.parent.mkdir(parents=True, exist_ok=True)
            with self.log.open("ab") as file:
                self._start = file.tell()

    def line(self) -> str:
        """What it is at, of its log's last line of a step."""
        steps = [line for line in self._text(TAIL).splitlines() if re.match(r"step \d+/\d+", line)]
        return f"{self.planned.label}  {steps[-1] if steps else 'starting'}"

    def problem(self, code: int) -> str | None:
        """What went wrong with it, if its process has ended with `code`; None: nothing."""
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
        program: what is called with a run's arguments.
    Raises:
        Preempted: a signal has come, here or to one of the processes; the others have ended.
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
    """Room for one run at a time, and the process that is there."""

    def __init__(self, environment: Mapping[str, str], program: Sequence[str]) -> None:
        self.environment, self.program = environment, program
        self.job: Job | None = None
        self.worker: Worker | None = None

    def begin(self, job: Job) -> None:
        """Train a run, in the process that is there or a new one."""
        self.job = job
        if self.worker is None or not self.worker.give(job):
            self.close()
            self.worker = Worker(job, self.program, self.environment)

    def ended(self, *, wait: bool = False) -> int | None:
        """The exit code of the run's process, 0 if that waits for another run; None: it goes on."""
        assert self.worker is not None
        code = self.worker.process.wait() if wait else self.worker.process.poll()
        if self.worker.is_done():
            return 0
        if code == 0 and self.worker.given and self.job and not wait:
            self.begin(self.job)  # it was leaving already, and has not seen the run
            return None
        if code is not None:
            self.close()
        return code

    def close(self) -> None:
        """Leave no process behind: one that trains is killed."""
        worker, self.worker = self.worker, None
        if worker is not None:
            worker.leave()
            if self.job is not None:
                worker.process.kill()
            worker.process.wait()


class _Pool:
    """The runs that wait, those that run, and what became of the others."""

    def __init__(self, runs: Sequence[PlannedRun], slots: Sequence[_Slot], lines: _Lines) -> None:
        self.total = len(runs)
        self.waiting = list(runs)
        self.slots, self.lines = slots, lines
        self.done: list[str] = []
        self.stopped: list[str] = []
        self.problems: dict[str, str] = {}

    def look(self) -> bool:
        """Note what has ended, start what there is room for; returns whether any is left."""
        for slot in self.slots:
            if slot.job is not None and (code := slot.ended()) is not None:
                self.ended(slot, slot.job, code)
        for slot in self.slots:
            if slot.job is None and self.waiting:
                job = Job(self._next(slot))
                slot.begin(job)
                logger.info("%s begins, its log is %s", job.planned.label, job.log)
            elif slot.job is None:
                slot.close()  # its memory may be wanted
        running = [slot.job for slot in self.slots if slot.job is not None]
        self.lines.show([self.summary(), *(job.line() for job in running)])
        return bool(running)

    def _next(self, slot: _Slot) -> PlannedRun:
        """One that can go on with the network of the slot's process; else one that no other can."""
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
        """Note what became of a run."""
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
        """Have all that are running save their state, and wait for them."""
        running = [(slot, slot.job) for slot in self.slots if slot.job is not None]
        for slot, _ in running:
            assert slot.worker is not None
            slot.worker.process.send_signal(signal.SIGTERM)
        for slot, job in running:
            code = slot.ended(wait=True)
            assert code is not None
            self.ended(slot, job, code)

    def close(self) -> None:
        """Leave no process behind."""
        self.lines.close()
        for slot in self.slots:
            slot.close()

    def summary(self) -> str:
        """How many of how many."""
        counts = {"failed": len(self.problems), "stopped": len(self.stopped)}
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

ANY_GPU = ("auto", "cuda")
"""Values of --device that leave open which GPU."""


def slot_environments(jobs: int, device: str) -> list[dict[str, str]]:
    """Variables of each of `jobs` processes: its GPU where there are several, its threads.

    With as many jobs as GPUs or fewer each has one to itself, with more they share them evenly.
    What the user has set stays: the threads, and which GPUs there are.
    """
    found: list[dict[str, str]] = [{} for _ in range(jobs)]
    gpus = visible_gpus() if device in ANY_GPU else []
    if len(gpus) > 1:
        for slot, environment in enumerate(found):
            environment["CUDA_VISIBLE_DEVICES"] = gpus[slot % len(gpus)]
    if "OMP_NUM_THREADS" not in os.environ:
        threads = max(1, len(os.sched_getaffinity(0)) // jobs)
        for environment in found:
            environment["OMP_NUM_THREADS"] = str(threads)
    return found


def they_take_turns(jobs: int, device: str) -> bool:
    """Whether `jobs` processes wait for each other on the GPUs: MPS listens at a socket."""
    gpus = len(visible_gpus()) if device in ANY_GPU else device.startswith("cuda")
    # NVIDIA's own default for where its daemon listens
    pipes = os.environ.get("CUDA_MPS_PIPE_DIRECTORY") or "/tmp/nvidia-mps"
    return 0 < gpus < jobs and not (Path(pipes) / "control").exists()


def visible_gpus() -> list[str]:
    """Names of the GPUs that this process may use, as CUDA_VISIBLE_DEVICES has them."""
    import torch

    count = torch.cuda.device_count()
    typed = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = map(str, range(count)) if typed is None else (n.strip() for n in typed.split(","))
    return list(names)[:count]
