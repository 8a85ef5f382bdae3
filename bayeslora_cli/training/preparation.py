"""Prepares a run's data, final schedule and directory, before any weight is read."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bayeslora_cli.config.catalogue import AUTO, OBJECTIVES
from bayeslora_cli.config.effects import affecting
from bayeslora_cli.config.resolution import Resolved, scale_schedule
from bayeslora_cli.config.run_config import RunConfig, flag
from bayeslora_cli.data.batching import steps_per_epoch
from bayeslora_cli.data.example_cache import ExampleCache
from bayeslora_cli.data.tokenised_split import TokenisedSplit
from bayeslora_cli.errors import ConfigError, RunDirError, UserError
from bayeslora_cli.execution.device import is_cpu
from bayeslora_cli.methods.method import find_method
from bayeslora_cli.methods.schedules import LearningRate
from bayeslora_cli.models.backbones.identity import (
    changed_configuration,
    differences,
    model_identity,
)
from bayeslora_cli.models.backbones.loading import (
    check_architecture,
    load_tokenizer,
    usable_length,
    warn_of_padding,
)
from bayeslora_cli.models.backbones.packing import packing_that_pays
from bayeslora_cli.runs.directory import RunDir, run_name, runs_elsewhere
from bayeslora_cli.runs.trackers import check_trackers
from bayeslora_cli.tasks.class_balance import advice, weights_text
from bayeslora_cli.tasks.objectives.objective import Objective, objective_of
from bayeslora_cli.tasks.selecting import selected_by
from bayeslora_cli.tasks.sources.tables.table import listed
from bayeslora_cli.tasks.task import DATA_CHECKSUM, Examples, Task

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
    moved: tuple[str, ...] = ()
    """Options whose values are other places of the same content."""
    cache: ExampleCache
    """The cache that `examples` came from, and that keeps their tokens."""

    def tokens(self) -> dict[str, TokenisedSplit]:
        """Return the tokens of each split; the first run that needs them makes them.

        Raises:
            UserError: raised by `tokenise`.
        """
        found = self.cache.tokens(self.config, self.task, self.examples, self.tokenizer)
        if not (weights := self.class_weights()):
            return found
        train = found["train"].weighed(objective_of(self.task), [*weights.values()])
        return {**found, "train": train}

    def class_weights(self) -> dict[str, float]:
        """Return the weight of each class in the loss; {}: all count the same.

        Raises:
            ConfigError: the kind of task has no classes to weigh, or there is no such class.
        """
        asked, objective = self.config.class_weights, objective_of(self.task)
        if asked is None:
            return {}
        if not objective.weighs_classes:
            raise ConfigError(
                [f"--class-weights: {self.task.name} predicts {objective.entry.predicts}, and no "
                 "class of a row to weigh; leave it out"]
            )  # fmt: skip
        weights = objective.class_weights(asked, self.examples["train"].labels or ())
        return dict(zip(self.task.classes, weights, strict=True))


def prepare(resolved: Resolved, cache: ExampleCache | None = None) -> PreparedRun:
    """Read the data and fix the schedule; this writes nothing.

    A run of the same model and rows at other places is this run.

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
    task = selected_by(task, resolved.config.select)
    _tell_rows(resolved.config, task, examples["train"])
    trust = resolved.config.trust_remote_code
    kind = OBJECTIVES[task.objective]
    # of a task by name --task-type changes nothing
    instead = kind.instead if resolved.config.train_file is not None else ""
    check_architecture(
        resolved.config.model, kind.auto_class, trust_remote_code=trust, instead=instead
    )
    tokenizer = load_tokenizer(resolved.config.model, trust_remote_code=trust)
    limit = usable_length(resolved.config.model, tokenizer, trust_remote_code=trust)
    warn_of_padding(resolved.config.model, trust_remote_code=trust)
    special = tokenizer.num_special_tokens_to_add(pair=True)
    length_typed = resolved.sources["max_length"] == "command line"
    length = input_length(resolved.config, limit, special, typed=length_typed)
    shortened = replace(resolved.config, max_length=length)
    rows = cache.training_rows(shortened, task, examples, tokenizer)
    warn_of_few_steps(resolved, rows)
    config, notice = scale_schedule(resolved, total_steps(resolved.config, rows))
    config = replace(config, max_length=length)
    if notice:
        logger.info("%s", notice)
    warning = find_method(config.method).warning(config)
    if warning:
        logger.warning("%s", warning)
    run, moved = _directory(resolved, config, task, cache)
    prepared = PreparedRun(
        config=with_packing(config, run, objective_of(task)),
        task=task,
        examples=examples,
        tokenizer=tokenizer,
        run=run,
        cache=cache,
        moved=moved,
    )
    if weights := prepared.class_weights():
        logger.info("weights in the loss: %s", weights_text(weights))
    return prepared


def _tell_rows(config: RunConfig, task: Task, train: Examples) -> None:
    """Log what is predicted from how many rows, and what helps if their classes are uneven."""
    entry = OBJECTIVES[task.objective]
    kinds = entry.predicts
    if task.classes and entry.head:  # else they are places of choices
        kinds = f"{len(task.classes)} classes"
    logger.info(
        "%s: %d training rows, %s predicted from %s",
        task.name, len(train), kinds, listed(task.text_columns),
    )  # fmt: skip
    advised = config.train_file is not None and config.select is None
    advised = advised and objective_of(task).weighs_classes
    if advised and (line := advice(task, train.labels or ())) is not None:
        logger.info("%s", line)


def _directory(
    resolved: Resolved, config: RunConfig, task: Task, cache: ExampleCache
) -> tuple[RunDir, tuple[str, ...]]:
    """Return the run's directory, which is free or holds this very run, and what has moved.

    Args:
        config: the final configuration.
    Raises:
        RunDirError: it holds another run.
    """
    run = RunDir(Path(config.output) / run_name(resolved))
    if config.overwrite:
        return run, ()
    run, moved = _find_moved(run, config, cache)
    run.check(config, moved)
    _check_configuration(run, config)
    if run.task.is_file() and (what := _others(run.read_task(), task)) is not None:
        raise RunDirError(
            f"{run.path} holds a run on other {what} of these files. "
            "Use --overwrite to replace it, or another --output"
        )
    return run, moved


def with_packing(config: RunConfig, run: RunDir, objective: Objective) -> RunConfig:
    """Decide whether rows are packed, unless --packing is typed; a run goes on as it was begun.

    Runs of versions before this rule have auto in their configuration, or nothing: they padded the
    rows of encoders.

    Raises:
        ModelError: the model's configuration cannot be loaded.
    """
    if config.packing != AUTO:
        return config
    if run.started and not config.overwrite:
        return replace(config, packing=run.read_config().packing)
    packing = packing_that_pays(config, objective, on_cpu=is_cpu(config.device))
    return replace(config, packing=packing)


def _others(then: Task, now: Task) -> str | None:
    """Return in what a run's task differs from that of now; None: in nothing."""
    now = Task.from_json(now.to_json(), now.name)
    if replace(then, held_out=now.held_out) != now:
        return "columns or classes"
    return None if then.held_out == now.held_out else "rows, or rows to evaluate on,"


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


def _find_moved(
    run: RunDir, config: RunConfig, cache: ExampleCache
) -> tuple[RunDir, tuple[str, ...]]:
    """Find a run of the same model and rows at other places, where `run` itself is not begun.

    Returns:
        The run, and the options whose values are other places; `run` and none if there is none.
    """
    for found, moved in runs_elsewhere(run, affecting(config)):
        try:
            then = _recorded(found)
        except UserError:
            continue
        if then is None or then.get("rows") != cache.checksum(config):
            continue
        if not differences(then, _present(config)):
            logger.info("%s is this run: %s moved", found.path, " and ".join(map(flag, moved)))
            return found, moved
    return run, ()


def _recorded(run: RunDir) -> dict[str, Any] | None:
    """The model's identity when the run was begun; None: the run has not recorded it."""
    try:
        found = run.read_json(run.environment).get("identity")
    except RunDirError:  # an unfinished run writes that file anew
        return None
    return found if isinstance(found, dict) else None


def _present(config: RunConfig) -> dict[str, Any]:
    return model_identity(config.model, trust_remote_code=config.trust_remote_code)


def _check_configuration(run: RunDir, config: RunConfig) -> None:
    """Check that an unfinished run would go on with the backbone's configuration of then.

    Raises:
        RunDirError: it has changed.
    """
    then = None if run.finished else _recorded(run)
    changed = None if then is None else changed_configuration(then, _present(config))
    if changed is not None:
        raise RunDirError(
            f"--model {config.model}: {changed}: {run.path} was begun with the former one, and "
            "going on would give neither run. Put it back, or use --overwrite or another --output"
        )


def check_unchanged(run: RunDir, config: RunConfig, cache: ExampleCache) -> None:
    """Check that a finished run was trained on the model and the rows of now.

    Of a run of an earlier version only what it has recorded is compared.

    Raises:
        RunDirError: something has changed since; the message says what.
        UserError: model or data cannot be loaded.
    """
    then, changed = _recorded(run), []
    if then is not None:
        now = _present(config)
        changed = [f"of --model {config.model} {what}" for what in differences(then, now)]
    rows = run.read_json(run.result).get(DATA_CHECKSUM)
    if rows is not None and rows != cache.checksum(config):
        changed.append("the rows or labels of its data are others now")
    if changed:
        raise RunDirError(
            f"{run.path} is already trained, but {' and '.join(changed)}. Put the old ones back, "
            "or use --overwrite or another --output"
        )


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
        decay=config.lr_schedule,
    )
