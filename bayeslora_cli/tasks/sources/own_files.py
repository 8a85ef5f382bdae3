"""Reads a user's own files: rows to train on, and rows to evaluate on, which may be held out."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bayeslora_cli.config.catalogue import COMPLETIONS, OBJECTIVES
from bayeslora_cli.config.run_config import OPTIONS, RunConfig, flag
from bayeslora_cli.errors import DataError, MissingSplitError
from bayeslora_cli.tasks.sources.table_reader import read_table
from bayeslora_cli.tasks.sources.tables.arrow import has_saved_splits
from bayeslora_cli.tasks.sources.tables.table import Table
from bayeslora_cli.tasks.sources.tabular import custom_task, reader_of, table_examples
from bayeslora_cli.tasks.task import Examples, Task
from bayeslora_cli.tasks.validation_share import draw, number_found, parted

logger = logging.getLogger("bayeslora")


def own_examples(
    config: RunConfig, splits: Sequence[str] | None, task: Task | None
) -> tuple[Task, dict[str, Examples]]:
    """Load splits of a user's own files.

    Args:
        splits: `train` or `validation`, or both (None).
        task: the task of an earlier run; None: it is made from the training file.
    Raises:
        UserError: there is no such file or data set, or its rows are not as expected.
    """
    assert config.train_file is not None
    wanted = splits or ("train", "validation")
    training: Table | None = None
    fresh = task is None
    if task is None or "train" in wanted or task.held_out:
        training = read_table(config.train_file, "--train-file", split="train")
    if task is None:
        assert training is not None
        task = custom_task(
            training,
            text_columns=config.text_columns,
            label_column=config.label_column,
            task_type=config.task_type,
            loss_on=config.loss_on,
        )
        task = replace(task, settings=_settings(config, task.objective))
        if config.loss_on != COMPLETIONS and reader_of(task.objective) is None:
            logger.warning("--loss-on %s has no effect: the rows have labels", config.loss_on)
    evaluated = None
    if "validation" in wanted and not task.held_out:
        evaluated = _evaluation_table(config)
    tables = {"train": training, "validation": evaluated}
    found = {
        split: table_examples(table, task, labelled=True, loss_on=config.loss_on)
        for split, table in tables.items()
        if table is not None
    }
    if fresh and "validation" in found:
        task = _selecting(task, found["validation"])
    if task.held_out or ("validation" in wanted and evaluated is None):
        task, found = hold_out(task, found["train"], config.validation)
    return task, {split: found[split] for split in wanted}


def _settings(config: RunConfig, objective: str) -> dict[str, Any]:
    """Return the options that this kind of task reads and that differ from their defaults; say so
    of those that only other kinds read."""
    own, found = OBJECTIVES[objective], {}
    for name in dict.fromkeys(name for kind in OBJECTIVES.values() for name in kind.settings):
        value = getattr(config, name)
        if name in own.settings and value != OPTIONS[name].default:
            found[name] = value
        elif value != OPTIONS[name].default:
            logger.warning("%s %s has no effect: %s is predicted", flag(name), value, own.predicts)
    return found


def _selecting(task: Task, rows: Examples) -> Task:
    """Have the best evaluation selected by the metric that these rows are for, if there is one."""
    from bayeslora_cli.tasks.objectives.objective import objective_of  # imports torch

    name = objective_of(task).metric_of(rows)
    return task if name is None else replace(task, metrics=(*task.metrics, name), selecting=name)


def _evaluation_table(config: RunConfig) -> Table | None:
    """Read the table of --eval-file, or the validation split of the data set that --train-file
    names; None: there is neither."""
    assert config.train_file is not None
    if config.eval_file is not None:
        return read_table(config.eval_file, "--eval-file", split="validation")
    source = config.train_file.partition("@")[0]
    if Path(source).exists() and not has_saved_splits(source):
        return None
    try:
        return read_table(source, "--train-file", split="validation")
    except MissingSplitError:
        return None


def hold_out(task: Task, train: Examples, share: float) -> tuple[Task, dict[str, Examples]]:
    """Make a validation split of training rows.

    Args:
        task: rows that it has held out before are held out again; else they are drawn.
        share: of the training rows.
    Returns:
        The task with its `held_out`, and the splits.
    Raises:
        DataError: none can be held out, or those held out before are not among the rows.
    """
    drawn = task.held_out or draw(train, share, by_label=OBJECTIVES[task.objective].by_label)
    rest, held = parted(train, drawn)
    found = number_found(train, drawn)
    if not len(rest) or found < len(drawn):
        what = "rows" if train.prompts is None else "prompts"
        raise DataError(
            f"found {found} of the {len(drawn)} {what} that were held out of training "
            f"among {len(train)} rows: the training rows have changed; put the old ones back, or "
            "name rows to evaluate on by --eval-file"
        )
    if not task.held_out:
        logger.info(
            "%d of %d training rows are held out to evaluate on (--validation %g), the same for "
            "every --seed",
            len(held), len(train), share,
        )  # fmt: skip
        task = replace(task, held_out=drawn)
    return task, {"train": rest, "validation": held}
