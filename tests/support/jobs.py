"""Jobs of several processes on the CPU, and what each process says and leaves."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.warm_process import WarmProcess

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

    def __init__(self, warm: WarmProcess, directory: Path, options: list[str]) -> None:
        """Runs are written below `directory`; `options` are those of all of them."""
        self.warm, self.directory, self.options = warm, directory, options
        warm.warm_up(self._arguments("warm", ()))

    def _arguments(self, name: str, more: tuple[str, ...]) -> list[str]:
        return ["train", *self.options, "--output", str(self.directory / name / "out"), *more]

    def train(self, name: str, processes: int, *more: str, slurm: bool = False, **harm: Any) -> Job:
        """`bayeslora train` with its output at `name`.

        Args:
            slurm: as srun starts them, and not torchrun.
            harm: `rank`, and `more` arguments for it, or `what` it does to itself at a `step` or
                at its evaluation's `turn`.
        """
        root = self.directory / name
        root.mkdir(exist_ok=True)
        codes = self.warm.ask(
            "job", arguments=self._arguments(name, more), root=str(root), world=processes,
            limit=LIMIT, slurm=slurm, harm=harm,
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
