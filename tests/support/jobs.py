"""Jobs of several processes on the CPU, and what each process says and leaves."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.faults import ROOT

LIMIT = 60
"""Seconds until a job that hangs is killed."""


@dataclass
class Job:
    """A job that has ended, one way or another."""

    codes: list[int]
    """Exit codes by rank; minus the signal that killed a process."""
    texts: list[str]
    """What each has printed."""
    traces: list[list[dict[str, Any]]]
    """What each has come to at each step: digests of mean, mask and noise, rows, losses."""
    directory: Path

    @property
    def run(self) -> Path:
        """The run's directory."""
        (found,) = self.directory.glob("out/*/*/seed-*")
        return found

    def lines(self, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
        """A log of the run."""
        return [json.loads(line) for line in (self.run / name).read_text().splitlines()]


class Jobs:
    """Starts them, one after the other."""

    def __init__(self, directory: Path, options: list[str]) -> None:
        """Runs are written below `directory`; `options` are those of all of them."""
        self.directory, self.options = directory, options
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.job_server"], cwd=ROOT, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        self._send({"warm": True, "arguments": self._arguments("warm", ())})

    def _arguments(self, name: str, more: tuple[str, ...]) -> list[str]:
        return ["train", *self.options, "--output", str(self.directory / name / "out"), *more]

    def _send(self, order: dict[str, Any]) -> list[int]:
        print(json.dumps(order), file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())

    def close(self) -> None:
        self.process.communicate()

    def train(self, name: str, processes: int, *more: str, slurm: bool = False, **harm: Any) -> Job:
        """`bayeslora train` with its output at `name`.

        Args:
            slurm: as srun starts them, and not torchrun.
            harm: `rank`, and `more` arguments for it, or `what` it does to itself at a `step` or
                at its evaluation's `turn`.
        """
        root = self.directory / name
        root.mkdir(exist_ok=True)
        codes = self._send(
            {
                "arguments": self._arguments(name, more), "root": str(root), "world": processes,
                "limit": LIMIT, "slurm": slurm, "harm": harm,
            }
        )  # fmt: skip
        return Job(
            codes,
            [(root / f"log-{rank}").read_text() for rank in range(processes)],
            [
                [json.loads(line) for line in (root / f"trace-{rank}").read_text().splitlines()]
                for rank in range(processes)
            ],
            root,
        )
