"""Prepares a run's data, final schedule and directory, before any weight is read."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bayeslora_cli.config.catalogue import OBJECTIVES
from bayeslora_cli.config.resolution import Resolved, scale_schedule
from bayeslora_cli.config.run_config import RunConfig
from bayeslora_cli.data.batching import steps_per_epoch
from bayeslora_cli.data.example_cache import ExampleCache
from bayeslora_cli.data.tokenization import TokenisedSplit
from bayeslora_cli.errors import ConfigError, RunDirError
from bayeslora_cli.methods.method import find_method
from bayeslora_cli.methods.schedules import LearningRate
from bayeslora_cli.models.backbones.loading import load_tokenizer, usable_length, warn_of_padding
from bayeslora_cli.runs.directory import RunDir, run_name
from bayeslora_cli.runs.trackers import check_trackers
from bayeslora_cli.tasks.task import Examples, Task

logger = logging.getLogger("bayeslora")


@dataclass(frozen=True, kw_only=True, slots=True)
class PreparedRun:
    """A run that is ready to begin, with nothing on a device yet."""

    config: RunConfig
    """The configuration, with its final schedule."""
    task: Task
    """What is predicted, from which columns."""
    examples: Mapping[str, Examples]
    """Rows by split."""
    tokenizer: Any
    """The backbone's tokenizer."""
    run: RunDir
    """The run's directory, which need not exist yet."""
    cache: ExampleCache
    """The cache that `examples` came from, and that keeps their tokens."""

    def tokens(self) -> dict[str, TokenisedSplit]:
        """Return the tokens of each split; the first run that needs them makes them.

        Raises:
            UserError: raised by `tokenise`.
        """
        return self.cache.tokens(self.config, self.task, self.examples, self.tokenizer)


def prepare(resolved: Resolved, cache: ExampleCache | None = None) -> PreparedRun:
    """Read the data and fix the schedule; this writes nothing.

    Args:
        cache: rows and tokens of the runs before this one.
    Raises:
        UserError: options, data or model cannot be used, or the directory holds another run; the
            message tells the remedy.
    """
    check_trackers(resolved.config.log_to or ())
    for idle in resolved.notices:
        logger.warning("%s", idle)
    cache = cache or ExampleCache()
    task, examples = cache.examples(resolved.config)
    kinds = f"{len(task.classes)} classes" if task.classes else OBJECTIVES[task.objective].predicts
    logger.info(
        "%s: %d training rows, %s predicted from %s",
        task.name, len(examples["train"]), kinds, " and ".join(task.text_columns),
    )  # fmt: skip
    warn_of_few_steps(resolved, len(examples["train"]))
    config, notice = scale_schedule(resolved, total_steps(resolved.config, len(examples["train"])))
    if notice:
        logger.info("%s", notice)
    warning = find_method(config.method).warning(config)
    if warning:
        logger.warning("%s", warning)
    trust = config.trust_remote_code
    tokenizer = load_tokenizer(config.model, trust_remote_code=trust)
    limit = usable_length(config.model, tokenizer, trust_remote_code=trust)
    warn_of_padding(config.model, trust_remote_code=trust)
    special = tokenizer.num_special_tokens_to_add(pair=True)
    length_typed = resolved.sources["max_length"] == "command line"
    config = replace(config, max_length=input_length(config, limit, special, typed=length_typed))
    run = RunDir(Path(config.output) / run_name(resolved))
    if not config.overwrite:
        run.check(config)
        if run.task.is_file() and run.read_task() != Task.from_json(task.to_json(), task.name):
            raise RunDirError(
                f"{run.path} holds a run on other columns or classes of these files. "
                "Use --overwrite to replace it, or another --output"
            )
    return PreparedRun(
        config=config, task=task, examples=examples, tokenizer=tokenizer, run=run, cache=cache
    )


def warn_of_few_steps(resolved: Resolved, train_size: int) -> None:
    """Warn if a typed --eval-every never counts."""
    config = resolved.config
    steps, epoch = total_steps(config, train_size), steps_per_epoch(train_size, config.batch_size)
    if resolved.sources["eval_every"] == "command line" and steps <= epoch:
        logger.warning(
            "--eval-every %s has no effect: it counts from the second epoch on, and the run's %d "
            "steps are not more than the first epoch's %d; it is evaluated once, at its end",
            config.eval_every, steps, epoch,
        )  # fmt: skip


def total_steps(config: RunConfig, train_size: int) -> int:
    """Return the optimisation steps of a run on `train_size` examples."""
    if config.max_steps is not None:
        return config.max_steps
    return max(1, round(config.epochs * steps_per_epoch(train_size, config.batch_size)))


def input_length(config: RunConfig, limit: int | None, special: int, *, typed: bool) -> int:
    """Return the largest number of tokens per example, within the backbone's positions.

    Args:
        limit: the backbone's positions; None: no limit known.
        special: number of tokens that the tokenizer adds to a pair.
        typed: whether the user gave the length; then it is not lowered but refused.
    Raises:
        ConfigError: the backbone lacks positions for a typed length, or no room is left for text.
    """
    if config.max_length <= special:
        raise ConfigError(
            [f"--max-length {config.max_length}: the special tokens take up {special}"]
        )
    if limit is None or config.max_length <= limit:
        return config.max_length
    if typed:
        raise ConfigError([f"--max-length {config.max_length}: the backbone takes {limit} tokens"])
    logger.info("--max-length lowered to the backbone's %d tokens", limit)
    return limit


def learning_rate(config: RunConfig) -> LearningRate:
    """Return the learning rate of each step; `config` has its final schedule."""
    return LearningRate(
        peak=config.lr,
        total=config.total_steps,
        warmup=config.warmup_steps,
        boost=config.boost_lr if config.lr_schedule == "boost" else None,
        boost_until=config.boost_until_step,
    )
