"""Records a training: metrics.jsonl, ranks.jsonl, the trackers, and whoever watches."""

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
    """Is told how a training goes; this one shows nothing. `done` is the number of steps done."""

    def start(self, *, done: int, total: int) -> None:
        """The steps begin; `done` is above 0 in a resumed run."""

    def step(self, done: int) -> None:
        """A step is done."""

    def log(self, done: int, line: Mapping[str, Any]) -> None:
        """A log interval is over; `line` is written to metrics.jsonl."""

    def evaluation(self, done: int, text: str, *, best: bool) -> None:
        """An evaluation is over, begun after the last `step` or `log`."""

    def stop(self) -> None:
        """The training is over or has failed; calling it again does nothing."""


class RunLog:
    """Writes a training's lines, tells trackers and reporter, and keeps its time."""

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
        """Nothing is written yet.

        Args:
            matrices: names of the adapted matrices, in the order of the allocations.
            state: the loop's; the seconds and the last allocation are kept there.
            writes: whether this process writes the run's files.
        """
        self.run, self.matrices, self.state = run, matrices, state
        self.reporter, self.trackers, self.writes = reporter, trackers, writes
        self._then = perf_counter()

    def start(self, total: int) -> None:
        """The steps begin, `total` of them with those that are done."""
        self.trackers.start(self.state.step)
        self.reporter.start(done=self.state.step, total=total)
        self.restart_clock()

    def step(self) -> None:
        """A step is done."""
        self.reporter.step(self.state.step)

    def interval(
        self, means: StepMeans, *, epoch: float, lr: float, facts: Mapping[str, Any]
    ) -> None:
        """A log interval is over.

        Args:
            means: over the interval's steps.
            epoch: epochs done.
            lr: learning rate of the last step.
            facts: the allocator's, of that step.
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
        """An evaluation is over.

        Args:
            record: its step, epoch and metrics.
            text: the metrics in words.
            best: whether it is the best so far.
        """
        self._append(self.run.metrics, [record])
        self.trackers.log(record)
        self.reporter.evaluation(self.state.step, text, best=best)

    def allocations(self, history: Iterable[Allocation], before: int | None = None) -> None:
        """Write the allocations that differ from the last one written.

        Args:
            history: what `Allocator.fetch_history` gives.
            before: leave out those of this step and later ones; None: of no step.
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
        """The run is finished."""
        self.trackers.summary(result)

    def lap(self) -> None:
        """Count the time since the last lap, or since the clock was restarted, as the steps'."""
        elapsed = perf_counter() - self._then
        self.restart_clock()
        self.state.train_seconds += elapsed
        self.state.interval_seconds += elapsed

    def restart_clock(self) -> None:
        """Leave out the time since the last lap: no steps were done in it."""
        self._then = perf_counter()

    def _append(self, path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
        if self.writes:
            self.run.append(path, lines)
