"""Worker processes of --jobs, as the pool uses them, and the GPUs that each of them gets."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from bayeslora_cli.config.effects import kind
from bayeslora_cli.runs.atomic_write import named
from bayeslora_cli.sweeps.grid import PlannedRun

PROGRAM = (sys.executable, "-m", "bayeslora_cli.cli.worker")
"""The command line of a worker, without the arguments of its first run."""
TAIL = 4096
"""Number of bytes at a log's end that are searched for the run's progress."""


class Worker:
    """A process that trains one run after another, as `cli.worker` does."""

    def __init__(self, job: Job, program: Sequence[str], environment: Mapping[str, str]) -> None:
        """Start the process; `program` may also be one that trains a single run and exits."""
        self.kind = kind(job.planned.resolved.config)
        """The `kind` of its last run, whose network it holds."""
        self.given = False
        """Whether it was given another run after its first one."""
        self._channel, theirs = socket.socketpair()
        with theirs, job.log.open("ab") as file:
            # in a group of its own: a terminal's ^C reaches it only through this process
            self.process: subprocess.Popen[bytes] = subprocess.Popen(
                [*program, *job.planned.arguments()],
                stdin=theirs.fileno(),
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environment},
                process_group=0,
            )

    def give(self, job: Job) -> bool:
        """Give it another run; return whether the process still runs."""
        order = {"arguments": job.planned.arguments(), "log": str(job.log)}
        try:
            self._channel.sendall(json.dumps(order).encode() + b"\n")
        except OSError:
            return False
        self.kind, self.given = kind(job.planned.resolved.config), True
        return True

    def is_done(self) -> bool:
        """Return whether it has reported since the last call that its run is done."""
        try:
            return bool(self._channel.recv(1, socket.MSG_DONTWAIT))
        except OSError:  # no report has come
            return False

    def give_no_more(self) -> None:
        """Tell it that there are no more runs."""
        self._channel.close()


class Job:
    """A run that a worker trains, and the worker's log of it."""

    def __init__(self, planned: PlannedRun) -> None:
        """Create the log.

        Raises:
            StorageError: the log cannot be written.
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
        """Write the run's progress: the last step that its log names."""
        steps = [line for line in self._text(TAIL).splitlines() if re.match(r"step \d+/\d+", line)]
        return f"{self.planned.label}  {steps[-1] if steps else 'starting'}"

    def problem(self, code: int) -> str | None:
        """Tell why the run failed, if its process has exited with `code`; None: it did not fail."""
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
        """Read the log since this job began, or its `last` bytes."""
        with self.log.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(self._start if last is None else max(self._start, end - last))
            return file.read().decode("utf-8", "replace")


ANY_GPU = ("auto", "cuda")
"""Values of --device that do not name one GPU."""


def slot_environments(jobs: int, device: str) -> list[dict[str, str]]:
    """Return the environment variables of each of `jobs` processes: its GPU and its threads.

    With at most as many jobs as GPUs, each job has a GPU to itself; with more, they share the GPUs
    evenly. The user's own number of threads and visible GPUs are kept.
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
    """Return whether `jobs` processes take turns on a GPU; with NVIDIA's MPS they do not.

    MPS is detected by the socket that it listens on.
    """
    gpus = len(visible_gpus()) if device in ANY_GPU else device.startswith("cuda")
    # NVIDIA's own default of that variable
    pipes = os.environ.get("CUDA_MPS_PIPE_DIRECTORY") or "/tmp/nvidia-mps"
    return 0 < gpus < jobs and not (Path(pipes) / "control").exists()


def visible_gpus() -> list[str]:
    """Return the names of the GPUs that this process may use, as CUDA_VISIBLE_DEVICES has them."""
    import torch

    count = torch.cuda.device_count()
    typed = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = map(str, range(count)) if typed is None else (n.strip() for n in typed.split(","))
    return list(names)[:count]
