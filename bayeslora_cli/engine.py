"""The one training loop: every method, optimizer and criterion."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any, NoReturn

import torch
from torch import Tensor

from bayeslora_cli import checkpoint
from bayeslora_cli.allocator import RankAllocator
from bayeslora_cli.artifacts import Snapshot, environment, now, write_artifacts
from bayeslora_cli.backbone import Labels
from bayeslora_cli.bank import AdapterBank
from bayeslora_cli.batches import TokenisedSplit, TrainOrder, steps_per_epoch, tokenise
from bayeslora_cli.config import RunConfig
from bayeslora_cli.console import Reporter
from bayeslora_cli.criteria import CRITERIA
from bayeslora_cli.device import peak_memory, pick_device, set_precision
from bayeslora_cli.errors import NonFiniteError
from bayeslora_cli.evaluate import describe, evaluate_splits
from bayeslora_cli.model import METHODS, build_network
from bayeslora_cli.optim import OPTIMIZERS
from bayeslora_cli.posterior import Posterior
from bayeslora_cli.posterior_summary import posterior_summary
from bayeslora_cli.prepare import Prepared, learning_rate, prepare, rank_budget
from bayeslora_cli.resolve import Resolved
from bayeslora_cli.rundir import RunDir, recover, write_json
from bayeslora_cli.state import BestSoFar, Generators, Loop
from bayeslora_cli.step import TrainStep

logger = logging.getLogger("bayeslora")


def train(resolved: Resolved, progress: Reporter | None = None) -> RunDir:
    """Train a run, or say that it is done; returns its directory.

    Args:
        progress: told of each step; None: nobody is.
    Raises:
        UserError: options, data or model that the user can mend.
        NonFiniteError: the run diverged.
    """
    prepared = prepare(resolved)
    run, overwrite = prepared.run, prepared.config.overwrite
    if run.finished and not overwrite:
        logger.info("already trained: %s (--overwrite trains it again)", run.path)
        return run
    progress = progress or Reporter()
    try:
        Session(prepared, progress).train()
    finally:
        progress.stop()
    return run


class Session:
    """What a run works with, from the loaded backbone to the files it leaves."""

    def __init__(self, prepared: Prepared, progress: Reporter) -> None:
        """Nothing is written before `train`."""
        config, task, tokenizer = prepared.config, prepared.task, prepared.tokenizer
        assert config.schedule_steps is not None
        self.config, self.task, self.run = config, task, prepared.run
        self.progress = progress
        self.total = config.schedule_steps
        self.device = pick_device(config.device)
        set_precision(config.precision)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

        maker = OPTIMIZERS[config.optimizer]
        self.network = build_network(
            config,
            Labels(classes=task.classes),
            tokenizer,
            posterior=maker.posterior,
            device=self.device,
        )
        self.splits = {
            name: tokenise(found, tokenizer, config.max_length, regression=task.regression)
            for name, found in prepared.examples.items()
        }
        train_split = self.splits.pop("train")
        self.train_split: TokenisedSplit = train_split
        self.order = TrainOrder(len(train_split), config.batch_size, config.seed)
        self.steps_per_epoch = steps_per_epoch(len(train_split), config.batch_size)

        noise = torch.Generator(self.device).manual_seed(config.seed)
        self.optimizer = maker.build(config, self.network.bank, len(train_split), noise)
        self.allocator = _allocator(config, self.network.bank)
        self.step = TrainStep(
            self.network,
            self.optimizer,
            self.allocator,
            learning_rate=learning_rate(config),
            orth_reg=config.orth_reg if METHODS[config.method].adaptive else 0.0,
            samples=config.train_samples,
        )
        self.loop = Loop()
        self.best = BestSoFar(self.network.bank, posterior=maker.posterior)
        self.parts: dict[str, checkpoint.Stateful] = {
            "bank": self.network.bank,
            "optimizer": self.optimizer,
            "step": self.step,
            "generators": Generators(self.device, noise),
            "loop": self.loop,
            "best": self.best,
        }
        if self.allocator is not None:
            self.parts["allocator"] = self.allocator

    # ---- the loop

    def train(self) -> None:
        """Train from the checkpoint, or from the start, to the end, and write the artifacts."""
        self._start()
        for step in range(self.loop.step, self.total):
            self.step(step, self._batch(step))
            self.loop.step = step + 1
            self.progress.step(step + 1)
            if self._log_is_due(step):
                self._log(step)
            if self._evaluation_is_due(step):
                self._evaluate(step)
                checkpoint.save(self.run.checkpoint, self.parts)
                self._clock = time.perf_counter()
        self._finish()

    def _start(self) -> None:
        self.run.begin(self.config, self.task, overwrite=self.config.overwrite)
        torch.manual_seed(self.config.seed)  # dropout; noise has a generator of its own
        self.network.module.train()
        self.network.bank.check_views()
        recover(self.run.checkpoint)
        if self.run.checkpoint.is_dir():
            checkpoint.load(self.run.checkpoint, self.parts)
            logger.info("resuming at step %d of %d", self.loop.step, self.total)
        for path in (self.run.metrics, self.run.ranks_history):
            self.run.cut(path, lambda line: line["step"] < self.loop.step)
        revision = getattr(self.network.module.config, "_commit_hash", None)
        found = environment(self.device, revision, self.network.backbone_sha256)
        if self.run.environment.is_file():  # a resumed run: keep the first process's record
            first = self.run.read_json(self.run.environment)
            found = {**first, "resumed": [*first.get("resumed", []), found]}
        write_json(self.run.environment, found)
        self.progress.start(done=self.loop.step, total=self.total)
        self._clock = time.perf_counter()
        self._tokens = 0

    def _batch(self, step: int) -> list[dict[str, Tensor]]:
        """The micro-batches of a step, on the device."""
        parts = []
        for indices in self.order.indices(step).tensor_split(self.config.grad_accum):
            if len(indices):
                batch = self.train_split.batch(indices)
                self._tokens += int(batch["attention_mask"].sum())
                parts.append({k: v.to(self.device, non_blocking=True) for k, v in batch.items()})
        return parts

    # ---- what happens once in a while

    def _log_is_due(self, step: int) -> bool:
        return (step + 1) % self.config.log_every == 0 or self._evaluation_is_due(step)

    def _evaluation_is_due(self, step: int) -> bool:
        done, every = step + 1, self.config.eval_every
        if done == self.total or done % self.steps_per_epoch == 0:
            return True
        return every is not None and done > self.steps_per_epoch and done % every == 0

    def _log(self, step: int) -> None:
        progress = self.step.progress()
        if progress.bad_step is not None:
            self._stop_at(progress.bad_step)
        elapsed, self._clock = time.perf_counter() - self._clock, time.perf_counter()
        self.loop.train_seconds += elapsed
        line = {
            "step": step,
            "epoch": (step + 1) / self.steps_per_epoch,
            "loss": progress.loss,
            "penalty": progress.penalty,
            "lr": self.step.learning_rate(step),
            "tokens_per_second": round(self._tokens / elapsed, 1),
        }
        self._tokens = 0
        if self.allocator is not None:
            line["budget"] = self.allocator.budget(step)
            self._log_allocations(self.allocator)
        self.run.append(self.run.metrics, [line])
        self.progress.log(step + 1, line)

    def _stop_at(self, bad_step: int) -> NoReturn:
        """Leave the state before a step that was not finite; the device has kept it."""
        self.loop.step = bad_step
        if self.allocator is not None:
            self._log_allocations(self.allocator, before=bad_step)
        checkpoint.save(self.run.checkpoint, self.parts)
        raise NonFiniteError(
            f"step {bad_step}: the loss, a gradient or a score is not finite; lower --lr (and "
            "--boost-lr), or try --precision fp32. The state before that step is in "
            f"{self.run.checkpoint}"
        )

    def _log_allocations(self, allocator: RankAllocator, before: int | None = None) -> None:
        lines: list[Mapping[str, Any]] = []
        names = list(self.network.adapters)
        for step, budget, ranks in allocator.fetch_history():
            if ranks != self.loop.ranks and (before is None or step < before):
                self.loop.ranks = ranks
                lines.append(
                    {"step": step, "budget": budget, "ranks": dict(zip(names, ranks, strict=True))}
                )
        if lines:
            self.run.append(self.run.ranks_history, lines)

    def _evaluate(self, step: int) -> None:
        start = time.perf_counter()
        metrics = evaluate_splits(self.network, self.task, self.splits, self.config.eval_batch_size)
        found = {"step": step, "epoch": (step + 1) / self.steps_per_epoch, "metrics": metrics}
        self.run.append(self.run.metrics, [found])
        value = metrics[self.task.validation_splits[0]][self.task.selecting]
        at_budget = self.allocator is None or step >= self.allocator.budget.final_step
        best_before = self.best.records.get("best")
        if self.best.offer(found, value, at_budget=at_budget):
            self._snapshot(step)
        is_best = self.best.records["best"] is not best_before
        self.progress.evaluation(step + 1, describe(metrics), best=is_best)
        self.loop.evaluation_seconds += time.perf_counter() - start

    def _snapshot(self, step: int) -> None:
        """Keep the present posterior and scores: the best at the final budget so far."""
        bank, sigma = self.network.bank, self.optimizer.sigma()
        scores = None if self.allocator is None else self.allocator.scores(sigma)
        self.best.keep(bank.mean, sigma, bank.mask, scores)

    def _finish(self) -> None:
        loop, bank = self.loop, self.network.bank
        ranks = bank.mask.sum(1).round().long().tolist()
        best, training_rows = self.best, len(self.train_split)
        at_best = Posterior(mean=best.mean, sigma=best.sigma, mask=best.mask)
        result = {
            **best.records,
            "selecting": self.task.selecting,
            "task": self.task.name,
            "outputs": self.network.labels.outputs,
            "training_rows": training_rows,
            "steps": self.total,
            "seconds": round(loop.train_seconds + loop.evaluation_seconds, 3),
            "train_seconds": round(loop.train_seconds, 3),
            "steps_per_second": round(self.total / loop.train_seconds, 3),
            "trainable_parameters": bank.trainable(),
            "kept_parameters": bank.kept(),
            "ranks": dict(zip(self.network.adapters, ranks, strict=True)),
            "posterior": posterior_summary(bank, at_best, self.config, training_rows),
            "peak_memory_bytes": peak_memory(self.device),
        }
        snapshot = Snapshot(
            posterior=at_best, scores=None if self.allocator is None else best.scores
        )
        started = self.run.read_json(self.run.environment)
        write_json(self.run.environment, {**started, "end": now()})
        write_artifacts(self.run, self.network, self.config, snapshot, bank.mask, result)


def _allocator(config: RunConfig, bank: AdapterBank) -> RankAllocator | None:
    """The allocator of a method that has one."""
    if config.criterion is None:
        return None
    return RankAllocator(bank, CRITERIA[config.criterion], rank_budget(config, len(bank.matrices)))
