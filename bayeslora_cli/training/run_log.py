"""Logs a training to metrics.jsonl, ranks.jsonl, the trackers and a reporter."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from bayeslora_cli.runs.directory import RunDir
from bayeslora_cli.runs.trackers import Trackers

if TYPE_CHECKING:
    from bayeslora_cli.methods.allocation import Allocation
    from bayeslora_cli.training.state import LoopState
    from bayeslora_cli.training.step import StepMeans


class Reporter:
    """Follows a training; this base class shows nothing. `done` is the number of steps done."""

    def start(self, *, done: int, total: int) -> None:
        """Called before the first step; `done` is above 0 in a resumed run."""

    def step(self, done: int) -> None:
        """Called after each step."""

    def log(self, done: int, line: Mapping[str, Any]) -> None:
        """Called after each log interval, with the `line` that is written to metrics.jsonl."""

    def evaluation(self, done: int, text: str, *, best: bool) -> None:
        """Called after an evaluation, which began after the last `step` or `log`."""

    def stop(self) -> None:
        """Called when the training is over or has failed; a second call does nothing."""


class RunLog:
    """Writes a training's log lines, informs trackers and reporter, and measures the time."""

    def __init__(
        self,
        run: RunDir,
        matrices: Sequence[str],
        state: LoopState,
        *,
        reporter: Reporter,
        trackers: Trackers,
        writes: bool,
    ) -> None:
        """Prepare the log; nothing is written yet.

        Args:
            matrices: names of the adapted matrices, in the order of the allocations.
            state: the loop's state, which keeps the seconds and the last allocation.
            writes: whether this process writes the run's files.
        """
        self.run, self.matrices, self.state = run, matrices, state
        self.reporter, self.trackers, self.writes = reporter, trackers, writes
        self._then = perf_counter()

    def start(self, total: int) -> None:
        """Start the clock before the first step; `total` includes steps already done."""
        self.trackers.start(self.state.step)
        self.reporter.start(done=self.state.step, total=total)
        self.restart_clock()

    def step(self) -> None:
        """Tell the reporter that a step is done."""
        self.reporter.step(self.state.step)

    def interval(
        self, means: StepMeans, *, epoch: float, lr: float, facts: Mapping[str, Any]
    ) -> None:
        """Log an interval that is over.

        Args:
            means: means over the interval's steps.
            epoch: epochs done.
            lr: learning rate of the last step.
            facts: the allocator's facts about that step.
        """
        state = self.state
        line = {
            "step": state.step - 1,
            "epoch": epoch,
            "loss": means.loss,
            "penalty": means.penalty,
            "lr": lr,
            "tokens_per_second": round(state.interval_tokens / state.interval_seconds, 1),
            **facts,
        }
        state.interval_tokens, state.interval_seconds = 0, 0.0
        self._append(self.run.metrics, [line])
        self.trackers.log(line)
        self.reporter.log(state.step, line)

    def evaluation(self, record: Mapping[str, Any], text: str, *, best: bool) -> None:
        """Log an evaluation that is over.

        Args:
            record: its step, epoch and metrics.
            text: the metrics as text.
            best: whether it is the best so far.
        """
        self._append(self.run.metrics, [record])
        self.trackers.log(record)
        self.reporter.evaluation(self.state.step, text, best=best)

    def allocations(self, history: Iterable[Allocation], before: int | None = None) -> None:
        """Write the allocations that differ from the last one written.

        Args:
            history: the result of `Allocator.fetch_history`.
            before: leave out allocations of this step and later; None: leave out none.
        """
        lines: list[Mapping[str, Any]] = []
        for step, budget, ranks, bits in history:
            found: dict[str, Any] = {"ranks": dict(zip(self.matrices, ranks, strict=True))}
            if bits is not None:
                found["bits"] = dict(zip(self.matrices, bits, strict=True))
            if found != self.state.allocation and (before is None or step < before):
                self.state.allocation = found
                lines.append({"step": step, "budget": budget, **found})
        if lines:
            self._append(self.run.ranks_history, lines)

    def result(self, result: Mapping[str, Any]) -> None:
        """Log the result of the finished run."""
        self.trackers.summary(result)

    def lap(self) -> None:
        """Count the time since the last lap or `restart_clock` as training time."""
        elapsed = perf_counter() - self._then
        self.restart_clock()
        self.state.train_seconds += elapsed
        self.state.interval_seconds += elapsed

    def restart_clock(self) -> None:
        """Do not count the time since the last lap, in which no steps were done."""
        self._then = perf_counter()

    def _append(self, path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
        if self.writes:
            self.run.append(path, lines)
