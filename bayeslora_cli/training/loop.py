"""The one training loop: every method, optimizer and criterion."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from bayeslora_cli.bayes.posterior import Posterior
from bayeslora_cli.bayes.posterior_summary import posterior_summary
from bayeslora_cli.config.resolution import Resolved
from bayeslora_cli.config.values import parse_interval
from bayeslora_cli.data.example_cache import Shared
from bayeslora_cli.errors import NonFiniteError, Preempted
from bayeslora_cli.evaluation.forward_passes import describe, evaluate_splits
from bayeslora_cli.execution.device import memory_explained, peak_memory
from bayeslora_cli.execution.processes import SINGLE, Processes
from bayeslora_cli.execution.signals import Stop, Stopped
from bayeslora_cli.methods.allocation import Allocator
from bayeslora_cli.runs.atomic_write import write_json
from bayeslora_cli.runs.checkpoint import STATES_KEPT, Checkpoints
from bayeslora_cli.runs.directory import RunDir
from bayeslora_cli.runs.environment import now, record_environment
from bayeslora_cli.runs.file_lock import locked
from bayeslora_cli.runs.trackers import Trackers
from bayeslora_cli.training.artifacts import Snapshot, write_artifacts
from bayeslora_cli.training.preparation import Prepared, prepare
from bayeslora_cli.training.run_log import Reporter
from bayeslora_cli.training.session import Session

logger = logging.getLogger("bayeslora")


def train(
    resolved: Resolved,
    progress: Reporter | None = None,
    stop: Stop | None = None,
    shared: Shared | None = None,
    processes: Processes = SINGLE,
) -> RunDir:
    """Train a run, or go on with it, or say that it is done; returns its directory.

    Args:
        progress: told of each step; None: nobody is.
        stop: `signals.listening`'s; None: signals do what they do.
        shared: of the runs that this process has trained before.
        processes: of the job, which train the run together.
    Raises:
        UserError: options, data or model that the user can mend, or another process at the run.
        NonFiniteError: the run diverged.
        Preempted: a signal came; the state is saved.
        StorageError: something could not be written.
        BayesloraError: out of GPU memory, or another process is gone.
    """
    stop, first = processes.joint_stop(stop or Stop()), processes.first
    with processes.all_or_none():
        prepared = prepare(resolved, shared)
    run, config = prepared.run, prepared.config
    if processes.from_first(_is_done(prepared)):
        return run
    progress = progress if progress and first else Reporter()
    with ExitStack() as stack:
        with processes.all_or_none():
            if first:
                stack.enter_context(locked(run.lock))
        if processes.from_first(_is_done(prepared)):  # by the process that had the lock
            return run
        stack.callback(progress.stop)
        stack.enter_context(memory_explained())
        told = config if first else replace(config, log_to=None)
        trackers = stack.enter_context(Trackers(run, told))
        try:
            training = Training(prepared, progress, stop, trackers, processes)
            training.train()
            prepared.shared.rig = training.rig  # in good order: the next run may take it over
        except NonFiniteError as error:  # found in what all processes share
            raise processes.report_once(error) from error.__cause__
    return run


def _is_done(prepared: Prepared) -> bool:
    done = prepared.run.finished and not prepared.config.overwrite
    if done:
        logger.info("already trained: %s (--overwrite trains it again)", prepared.run.path)
    return done


class Training(Session):
    """A run from its newest checkpoint to the files that it leaves."""

    def __init__(
        self,
        prepared: Prepared,
        progress: Reporter,
        stop: Stop,
        trackers: Trackers,
        processes: Processes,
    ) -> None:
        """Nothing is written before `train`."""
        super().__init__(prepared, processes)
        self.progress, self.stop, self.trackers = progress, stop, trackers
        self.checkpoints = Checkpoints(
            self.run.checkpoint,
            logs=(self.run.metrics, self.run.ranks_history),
            every=parse_interval(self.config.checkpoint_every),
            ask=processes.ask,
        )

    # ---- the loop

    def train(self) -> None:
        """Train from the newest checkpoint, or from the start, to the end; write the artifacts."""
        self._start()
        with self._saved_when_stopped():
            if self._evaluation_is_due():  # that a kill has cut short
                self._evaluate()
            while self.loop.step < self.total:
                self.generators.note(self.loop.step)
                self.step(self.loop.step, self._batch(self.loop.step))
                self.loop.step += 1
                self.progress.step(self.loop.step)
                if self._log_is_due():
                    self._log()
                if self.checkpoints.due(self.loop.step):
                    self._checkpoint()
                if self._evaluation_is_due():
                    self._evaluate()
                self.stop.check()
            self._checkpoint(keep=1)
        with self.processes.all_or_none():
            if self.processes.first:
                self._finish()

    def _start(self) -> None:
        self.stop.check()  # a library may have swallowed what the signal raised
        first, resumed = self.processes.first, False
        # dropout; noise has a generator of its own
        torch.manual_seed(self.processes.seed(self.config.seed))
        self.network.module.train()
        self.network.bank.check_views()
        with self.processes.all_or_none():
            if first:
                self.run.begin(self.config, self.task, overwrite=self.config.overwrite)
                resumed = self.checkpoints.restore(self.parts)
        if self.processes.broadcast_state(self.parts, resumed):
            logger.info("resuming after step %d of %d", self.loop.step, self.total)
        with self.processes.all_or_none():
            if first:
                self._record_environment()
        self.trackers.start(self.loop.step)
        self.progress.start(done=self.loop.step, total=self.total)
        self._clock = perf_counter()

    def _record_environment(self) -> None:
        revision = getattr(self.network.module.config, "_commit_hash", None)
        sha256, processes = self.network.backbone_sha256, self.processes.world
        record_environment(self.run, self.device, revision, sha256, processes)

    @contextmanager
    def _saved_when_stopped(self) -> Iterator[None]:
        """Signals are noted, and found where the state is whole; then it is saved."""
        try:
            with self.stop.noted():
                yield
        except Stopped as signal:
            self._checkpoint()
            raise self.processes.report_once(
                Preempted(
                    f"stopped by {signal}: checkpoint at step {self.loop.step} of {self.total} in "
                    f"{self.run.path}. Run the same command again to go on"
                )
            ) from None

    def _batch(self, step: int) -> list[dict[str, Tensor]]:
        """This process's micro-batches of a step, on the device."""
        rows = self.order.indices(step)
        self.loop.interval_tokens += int(self.feed.lengths[rows].sum())
        parts = self.processes.share(rows).tensor_split(self.config.grad_accum)
        return [self.feed.batch(indices) for indices in parts if len(indices)]

    # ---- what happens once in a while

    def _log_is_due(self) -> bool:
        return self.loop.step % self.config.log_every == 0 or self._evaluation_is_due()

    def _evaluation_is_due(self) -> bool:
        done, every = self.loop.step, self.config.eval_every
        if done == self.loop.evaluated:
            return False
        if done == self.total or done % self.steps_per_epoch == 0:
            return True
        return every is not None and done > self.steps_per_epoch and done % every == 0

    def _log(self) -> None:
        self._stop_if_diverged()
        self._lap()
        progress, loop = self.step.progress(), self.loop
        line = {
            "step": loop.step - 1,
            "epoch": loop.step / self.steps_per_epoch,
            "loss": progress.loss,
            "penalty": progress.penalty,
            "lr": self.step.learning_rate(loop.step - 1),
            "tokens_per_second": round(loop.interval_tokens / loop.interval_seconds, 1),
        }
        loop.interval_tokens, loop.interval_seconds = 0, 0.0
        if self.allocator is not None:
            line |= self.allocator.facts(loop.step - 1)
            self._log_allocations(self.allocator)
        self._append(self.run.metrics, [line])
        self.trackers.log(line)
        self.progress.log(loop.step, line)

    def _lap(self) -> None:
        """Count the time since the last lap as the steps'."""
        elapsed, self._clock = perf_counter() - self._clock, perf_counter()
        self.loop.train_seconds += elapsed
        self.loop.interval_seconds += elapsed

    def _checkpoint(self, keep: int = STATES_KEPT) -> None:
        self._stop_if_diverged()
        self._lap()
        if self.allocator is not None:
            self._log_allocations(self.allocator)
        took = self._save(keep)
        logger.debug("checkpoint at step %d, %.2f s", self.loop.step, took)
        self.loop.checkpoint_seconds += took
        self._clock = perf_counter()

    def _save(self, keep: int = STATES_KEPT) -> float:
        """Write the state; returns the seconds that it took."""
        self.processes.check_state(self.loop.step, self.network.bank)
        self.generators.gather()
        start = perf_counter()
        with self.processes.all_or_none():
            if self.processes.first:
                self.checkpoints.save(self.loop.step, self.parts, keep=keep)
        return perf_counter() - start

    def _append(self, path: Path, lines: list[Mapping[str, Any]]) -> None:
        if self.processes.first:
            self.run.append(path, lines)

    def _stop_if_diverged(self) -> None:
        """After a step that was not finite, leave the state before it; the device has kept it."""
        bad_step = self.step.bad_step()
        if bad_step is None:
            return
        self.processes.check_masks(bad_step)
        saved = "The last checkpoint"
        if self.generators.rewind(bad_step):
            saved = "The state before that step"
            self.step.forget(self.loop.step - bad_step)
            self.loop.step = bad_step
            if self.allocator is not None:
                self._log_allocations(self.allocator, before=bad_step)
            self._save()
        there = f". {saved} is in {self.run.checkpoint}" if self.run.checkpoint.is_dir() else ""
        raise NonFiniteError(
            f"step {bad_step}: the loss, a gradient or a score is not finite; lower --lr (and "
            f"--boost-lr), or try --precision fp32{there}"
        )

    def _log_allocations(self, allocator: Allocator, before: int | None = None) -> None:
        lines: list[Mapping[str, Any]] = []
        names = list(self.network.adapters)
        for step, budget, ranks, bits in allocator.fetch_history():
            found: dict[str, Any] = {"ranks": dict(zip(names, ranks, strict=True))}
            if bits is not None:
                found["bits"] = dict(zip(names, bits, strict=True))
            if found != self.loop.allocation and (before is None or step < before):
                self.loop.allocation = found
                lines.append({"step": step, "budget": budget, **found})
        if lines:
            self._append(self.run.ranks_history, lines)

    def _evaluate(self) -> None:
        start, done = perf_counter(), self.loop.step
        metrics = evaluate_splits(
            self.network, self.task, self.splits, self.stop.check, self.step.runner
        )
        found = {"step": done - 1, "epoch": done / self.steps_per_epoch, "metrics": metrics}
        self._append(self.run.metrics, [found])
        self.trackers.log(found)
        value = metrics[self.task.validation_splits[0]][self.task.selecting]
        at_budget = self.allocator is None or done > self.allocator.final_step
        best_before = self.best.records.get("best")
        if self.best.offer(found, value, at_budget=at_budget):
            self._snapshot()
        is_best = self.best.records["best"] is not best_before
        self.loop.evaluated = done
        self.progress.evaluation(done, describe(metrics), best=is_best)
        self.loop.evaluation_seconds += perf_counter() - start
        self._clock = perf_counter()

    def _snapshot(self) -> None:
        """Keep the present posterior and scores: the best at the final budget so far."""
        bank, sigma = self.network.bank, self.optimizer.sigma()
        scores = None if self.allocator is None else self.allocator.scores(sigma)
        self.best.keep(bank.mean, sigma, bank.mask, scores)

    def _finish(self) -> None:
        loop, bank = self.loop, self.network.bank
        ranks = bank.mask.sum(1).round().long().tolist()
        best, training_rows = self.best, self.training_rows
        at_best = Posterior(mean=best.mean, sigma=best.sigma, mask=best.mask)
        result = {
            **best.records,
            "selecting": self.task.selecting,
            "task": self.task.name,
            "outputs": self.network.labels.outputs,
            "training_rows": training_rows,
            "steps": self.total,
            "seconds": round(
                loop.train_seconds + loop.evaluation_seconds + loop.checkpoint_seconds, 3
            ),
            "train_seconds": round(loop.train_seconds, 3),
            "checkpoint_seconds": round(loop.checkpoint_seconds, 3),
            "steps_per_second": round(self.total / loop.train_seconds, 3),
            "trainable_parameters": bank.trainable(),
            "kept_parameters": bank.kept(),
            "ranks": dict(zip(self.network.adapters, ranks, strict=True)),
            **({} if self.allocator is None else self.allocator.result(best.mean, best.mask)),
            "posterior": posterior_summary(bank, at_best, self.config, training_rows),
            "peak_memory_bytes": peak_memory(self.device),
        }
        snapshot = Snapshot(
            posterior=at_best, scores=None if self.allocator is None else best.scores
        )
        started = self.run.read_json(self.run.environment)
        write_json(self.run.environment, {**started, "end": now()})
        write_artifacts(self.run, self.network, self.config, snapshot, bank.mask, result)
        self.trackers.summary(result)
