"""Who is told of a run's steps, logs and evaluations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class Reporter:
    """Hears how a training goes; this one says nothing. `done` is the number of steps done."""

    def start(self, *, done: int, total: int) -> None:
        """The steps begin; `done` is above 0 in a resumed run."""

    def step(self, done: int) -> None:
        """A step is done."""

    def log(self, done: int, line: Mapping[str, Any]) -> None:
        """A log interval is over; `line` goes into metrics.jsonl."""

    def evaluation(self, done: int, text: str, *, best: bool) -> None:
        """An evaluation is over, begun after the last `step` or `log`."""

    def stop(self) -> None:
        """The training is over or has failed; calling it again does nothing."""
