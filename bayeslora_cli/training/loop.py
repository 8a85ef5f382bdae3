"""The training loop, the same for every method, optimizer and criterion."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from time import perf_counter

import torch
from torch import Tensor

from bayeslora_cli.config.entries.metrics import smaller_is_better
from bayeslora_cli.config.resolution import Resolved
from bayeslora_cli.config.values import parse_interval
from bayeslora_cli.data.batching import TrainOrder, steps_per_epoch
from bayeslora_cli.errors import NonFiniteError, Preempted, RunDirError
from bayeslora_cli.evaluation.forward_passes import describe, evaluate_splits
from bayeslora_cli.execution.device import memory_explained
from bayeslora_cli.execution.processes import SINGLE, Processes
from bayeslora_cli.execution.signals import Stop, Stopped
from bayeslora_cli.runs.atomic_write import write_json
from bayeslora_cli.runs.checkpoint import STATES_KEPT, Checkpoints, Stateful
from bayeslora_cli.runs.directory import RunDir
from bayeslora_cli.runs.environment import now, record_environment
from bayeslora_cli.runs.file_lock import locked
from bayeslora_cli.runs.trackers import Trackers
from bayeslora_cli.tasks.task import data_checksum, rows_identity
from bayeslora_cli.training.artifacts import run_result, write_artifacts
from bayeslora_cli.training.assembly import TrainingSetup, Workspace, reuse_or_build
from bayeslora_cli.training.evaluations import evaluations_of
from bayeslora_cli.training.preparation import PreparedRun, check_unchanged, prepare
from bayeslora_cli.training.run_log import Reporter, RunLog
from bayeslora_cli.training.state import BestSoFar, Generators, InputChecksums, LoopState

logger = logging.getLogger("bayeslora")


def train(
    resolved: Resolved,
    reporter: Reporter | None = None,
    stop: Stop | None = None,
    workspace: Workspace | None = None,
    processes: Processes = SINGLE,
) -> RunDir:
    """Train or resume a run, or report that it is already trained; return its directory.

    Args:
        reporter: is called at each step; None: nothing is shown.
        stop: from `signals.listening`; None: signals have their ordinary effect.
        workspace: what this process has kept from the runs that it trained before.
        processes: the processes of the job, which train the run together.
    Raises:
        UserError: options, data or model cannot be used, or another process trains the run; the
            message tells the remedy.
        NonFiniteError: the run diverged.
        Preempted: a signal came; the state is saved.
        StorageError: a file could not be written.
        BayesloraError: out of GPU memory, or another process is gone.
    """
    stop, first = processes.joint_stop(stop or Stop()), processes.first
    workspace = workspace or Workspace()
    with processes.all_or_none():
        prepared = prepare(resolved, workspace.examples)
    run, config = prepared.run, prepared.config
    if processes.from_first(_is_done(prepared)):
        return run
    reporter = reporter if reporter and first else Reporter()
    with ExitStack() as stack:
        with processes.all_or_none():
            if first:
                stack.enter_context(locked(run.lock))
        # trained by the process that had the lock before
        if processes.from_first(_is_done(prepared)):
            return run
        stack.callback(reporter.stop)
        stack.enter_context(memory_explained())
        tracked = config if first else replace(config, log_to=None)
        trackers = stack.enter_context(Trackers(run, tracked))
        try:
            setup = reuse_or_build(prepared, workspace, processes)
            TrainingLoop(prepared, setup, reporter, trackers, stop).run()
            workspace.setup = setup  # the run ended well: the next run may reuse the setup
        except NonFiniteError as error:  # all processes raise it, from values that they share
            raise processes.report_once(error) from error.__cause__
    return run


def _is_done(prepared: PreparedRun) -> bool:
    done = prepared.run.finished and not prepared.config.overwrite
    if done:
        prepared.run.verify()
        check_unchanged(prepared.run, prepared.config, prepared.cache)
        logger.info("already trained: %s (--overwrite trains it again)", prepared.run.path)
    return done


class TrainingLoop:
    """Trains a run from its newest checkpoint to the files of the finished run."""

    def __init__(
        self,
        prepared: PreparedRun,
        setup: TrainingSetup,
        reporter: Reporter,
        trackers: Trackers,
        stop: Stop,
    ) -> None:
        """Prepare the loop; only `run` writes files."""
        self.config, self.task, self.directory = prepared.config, prepared.task, prepared.run
        self.examples = prepared.examples
        self.moved = prepared.moved
        self.tokenizer = prepared.tokenizer
        self.setup, self.stop, self.total = setup, stop, prepared.config.total_steps
        self.network, self.allocator = setup.network, setup.allocator
        self.processes = setup.processes
        config, data = prepared.config, setup.data
        if config.group_by_length and setup.network.packed and self.processes.first:
            logger.info("--group-by-length saves nothing here: rows are packed, without padding")
        self.order = TrainOrder(
            data.training_rows, config.batch_size, config.seed,
            group_by=data.feed.lengths if config.group_by_length else None,
        )  # fmt: skip
        self.steps_per_epoch = steps_per_epoch(data.training_rows, config.batch_size)
        final_step = -1 if self.allocator is None else self.allocator.final_step
        self.evaluations = evaluations_of(config, self.steps_per_epoch, final_step)
        self.state = LoopState()
        self.best = BestSoFar(self.network.bank, posterior=setup.optimizer.posterior)
        self.generators = Generators(setup.device, setup.noise, self.processes)
        self.parts: dict[str, Stateful] = {
            "inputs": InputChecksums(setup.checksums),
            **setup.parts,
            "generators": self.generators,
            "loop": self.state,
            "best": self.best,
        }
        self.checkpoints = Checkpoints(
            self.directory.checkpoint,
            logs=(self.directory.metrics, self.directory.ranks_history),
            every=parse_interval(config.checkpoint_every),
            ask=self.processes.ask,
        )
        self.log = RunLog(
            self.directory, list(self.network.adapters), self.state,
            reporter=reporter, trackers=trackers, writes=self.processes.first,
        )  # fmt: skip

    def run(self) -> None:
        """Train from the newest checkpoint, or from the start, to the end; write the artifacts."""
        state = self.state
        self._start()
        divided = self.network.divided
        gathering = self.processes.gathering() if divided else nullcontext()
        with gathering, self._saved_when_stopped():
            if self._evaluation_is_due():  # the process was killed before the evaluation was over
                self._evaluate()
            self.setup.compile_kernels(partial(self._micro_batches, state.step))
            while state.step < self.total and not self.evaluations.over(state.waited):
                self.generators.note(state.step)
                self.setup.step(state.step, self._micro_batches(state.step))
                state.step += 1
                self.log.step()
                if self._log_is_due():
                    self._log()
                if self.checkpoints.due(state.step):
                    self._checkpoint()
                if self._evaluation_is_due():
                    self._evaluate()
                self.stop.check()
            self._checkpoint(keep=1)
        with self.processes.all_or_none():
            if self.processes.first:
                self._finish()

    def _start(self) -> None:
        """Restore the newest checkpoint if there is one, and bring all processes to its state."""
        self.stop.check()  # a library may have swallowed the exception that the signal raised
        first, resumed = self.processes.first, False
        # dropout draws from torch's generators; the posterior's noise has its own
        torch.manual_seed(self.processes.seed(self.config.seed))
        self.network.module.train()
        self.network.bank.check_views()
        with self.processes.all_or_none():
            if first:
                self.directory.begin(
                    self.config, self.task, overwrite=self.config.overwrite, same=self.moved
                )
                resumed = self.checkpoints.restore(self.parts)
                if self.state.step > self.total:
                    raise RunDirError(
                        f"{self.directory.checkpoint} is of another run: step {self.state.step}, "
                        f"and the run has {self.total}"
                    )
        if self.processes.broadcast_state(self.parts, resumed):
            logger.info("resuming after step %d of %d", self.state.step, self.total)
        with self.processes.all_or_none():
            if first:
                revision = getattr(self.network.module.config, "_commit_hash", None)
                record_environment(
                    self.directory, self.setup.device, revision, self.network.backbone_sha256,
                    self.processes.world,
                    {**self.setup.identity, **rows_identity(self.task, self.examples)},
                )  # fmt: skip
        if self.processes.first and (warning := self.evaluations.warning()) is not None:
            logger.warning("%s", warning)
        self.log.start(self.total)

    @contextmanager
    def _saved_when_stopped(self) -> Iterator[None]:
        """Record signals inside; the loop finds them between two steps and saves the state."""
        try:
            with self.stop.noted():
                yield
        except Stopped as signal:
            self._checkpoint()
            raise self.processes.report_once(
                Preempted(
                    f"stopped by {signal}: checkpoint at step {self.state.step} of {self.total} in "
                    f"{self.directory.path}. Run the same command again to go on"
                )
            ) from None

    def _micro_batches(self, step: int) -> list[dict[str, Tensor]]:
        """Return this process's micro-batches of a step, on the device."""
        feed, rows = self.setup.data.feed, self.order.indices(step)
        self.state.interval_tokens += int(feed.lengths[rows].sum())
        parts = self.processes.share(rows, feed.counts).tensor_split(self.config.grad_accum)
        own = [feed.batch(indices) for indices in parts if len(indices)]
        if self.network.divided:  # all processes have to run as many passes
            most = min(self.config.grad_accum, self.processes.most(len(rows)))
            for _ in range(most - len(own)):
                self.setup.step.take_part(feed.batch(rows[:1]))
        return own

    # ---- logs

    def _log_is_due(self) -> bool:
        return self.state.step % self.config.log_every == 0 or self._evaluation_is_due()

    def _log(self) -> None:
        self._stop_if_diverged()
        self.log.lap()
        step, done = self.setup.step, self.state.step
        means = step.means()
        facts = {} if self.allocator is None else self.allocator.facts(done - 1)
        self._log_allocations()
        self.log.interval(
            means, epoch=done / self.steps_per_epoch, lr=step.learning_rate(done - 1), facts=facts
        )

    def _log_allocations(self, before: int | None = None) -> None:
        if self.allocator is not None:
            self.log.allocations(self.allocator.fetch_history(), before)

    # ---- checkpoints

    def _checkpoint(self, keep: int = STATES_KEPT) -> None:
        self._stop_if_diverged()
        self.log.lap()
        self._log_allocations()
        took = self._save(keep)
        logger.debug("checkpoint at step %d, %.2f s", self.state.step, took)
        self.state.checkpoint_seconds += took
        self.log.restart_clock()

    def _save(self, keep: int = STATES_KEPT) -> float:
        """Write the state; return the seconds that it took."""
        self.processes.check_state(self.state.step, self.network.bank)
        self.generators.gather()
        start = perf_counter()
        with self.processes.all_or_none():
            if self.processes.first:
                self.checkpoints.save(self.state.step, self.parts, keep=keep)
        return perf_counter() - start

    def _stop_if_diverged(self) -> None:
        """If a step was not finite, save the state before it, which the device has kept, and raise.

        Raises:
            NonFiniteError: there was such a step.
            DriftError: the processes' masks differ.
        """
        bad_step = self.setup.step.bad_step()
        if bad_step is None:
            return
        self.processes.check_masks(bad_step)
        saved = "The last checkpoint"
        if self.generators.rewind(bad_step):
            saved = "The state before that step"
            self.setup.step.forget(self.state.step - bad_step)
            self.state.step = bad_step
            self._log_allocations(before=bad_step)
            self._save()
        place = self.directory.checkpoint
        there = f". {saved} is in {place}" if place.is_dir() else ""
        raise NonFiniteError(
            f"step {bad_step}: the loss, a gradient or a score is not finite; lower --lr (and "
            f"--boost-lr), or try --precision fp32{there}"
        )

    # ---- evaluations

    def _evaluation_is_due(self) -> bool:
        return self.state.step != self.state.evaluated and self.evaluations.due(self.state.step)

    def _evaluate(self) -> None:
        """Evaluate at the posterior's mean; keep the best state at the final rank budget."""
        start, done = perf_counter(), self.state.step
        metrics = evaluate_splits(
            self.network, self.task, self.setup.data.splits, self.stop.check, self.setup.step.runner
        )
        record = {"step": done - 1, "epoch": done / self.steps_per_epoch, "metrics": metrics}
        value = metrics[self.task.validation_splits[0]][self.task.selecting]
        at_budget = self.evaluations.at_budget(done)
        best_before = self.best.records.get("best")
        smaller = smaller_is_better(self.task.selecting)
        self.state.waited += at_budget
        if self.best.offer(record, value, at_budget=at_budget, smaller=smaller):
            self.state.waited = 0
            bank, sigma = self.network.bank, self.setup.optimizer.sigma()
            scores = None if self.allocator is None else self.allocator.scores(sigma)
            self.best.keep(bank.mean, sigma, bank.mask, scores)
        is_best = self.best.records["best"] is not best_before
        self.state.evaluated = done
        self.log.evaluation(record, describe(metrics), best=is_best)
        self.state.evaluation_seconds += perf_counter() - start
        self.log.restart_clock()

    # ---- the end

    def _finish(self) -> None:
        """Write the run's files, result.json last."""
        run = self.directory
        result = run_result(
            self.config, self.task, self.setup, self.state, self.best,
            data_checksum(self.task, self.examples),
        )  # fmt: skip
        started = run.read_json(run.environment)
        write_json(run.environment, {**started, "end": now(), "checksums": run.checksums.name})
        # a pass of divided weights would need the other processes
        splits = () if self.network.divided else self.setup.data.splits.values()
        write_artifacts(
            run, self.network, self.config, at=self.best.posterior,
            scores=None if self.allocator is None else self.best.scores,
            mask=self.network.bank.mask, result=result, tokenizer=self.tokenizer,
            batch=next((batches.few[0] for batches in splits if batches.few), None),
        )  # fmt: skip
        self.log.result(result)
