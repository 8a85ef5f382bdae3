"""A process of --jobs as seen from the pool, and the GPUs that each gets."""

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

from bayeslora_cli.config.run_config import kind
from bayeslora_cli.runs.atomic_write import named
from bayeslora_cli.sweeps.grid import PlannedRun

PROGRAM = (sys.executable, "-m", "bayeslora_cli.cli.worker")


TAIL = 4096
"""Bytes of a log's end that are looked at for its progress."""


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
