"""Reads rows to evaluate a finished run on that are not its own splits: a user's file, another
task, out-of-distribution rows."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from bayeslora_cli.config.catalogue import CHOICE_TASKS, COMPLETIONS
from bayeslora_cli.config.run_config import RunConfig
from bayeslora_cli.errors import DataError, UserError
from bayeslora_cli.tasks.sources.choice_tasks.choice_task import choice_task, load_to_score
from bayeslora_cli.tasks.sources.demo import DEMO, demo_examples
from bayeslora_cli.tasks.sources.glue import TASKS, GlueTask
from bayeslora_cli.tasks.sources.loading import load_examples, load_task
from bayeslora_cli.tasks.sources.table_reader import read_table
from bayeslora_cli.tasks.sources.tabular import reader_of, table_examples
from bayeslora_cli.tasks.task import Examples, Task


def check_data_is_read(config: RunConfig, data: str, file: str | None) -> None:
    """Check that a run's rows come from the directory `data`.

    Args:
        file: the user's file that is read instead of the run's rows; None: there is none.
    Raises:
        UserError: the rows come from elsewhere.
    """
    if file is not None:
        reason = f"--eval-file {file} is read instead"
    elif config.train_file is not None:
        reason = "the run has files of its own; --eval-file FILE names other rows"
    elif config.task == DEMO.name:
        reason = f"the task {DEMO.name} is built in"
    else:
        return
    raise UserError(f"--data {data}: has no effect, {reason}; leave it out")


def load_file(source: str, task: Task, loss_on: str = COMPLETIONS) -> dict[str, Examples]:
    """Read a file or hub data set with a task's text columns, and its labels if it has them.

    Args:
        loss_on: the value of --loss-on.

    Raises:
        UserError: raised by `read_table` or `table_examples`.
    """
    table = read_table(source, "--eval-file", split="validation")
    return {"file": table_examples(table, task, labelled=None, loss_on=loss_on)}


def load_outside(source: str, config: RunConfig, task: Task, *, own_rows: bool = True) -> Examples:
    """Read rows to compare with a task's own rows, as text without labels.

    Args:
        source: `ood` or the name of the task's out-of-distribution split; or another task, of GLUE
            its first validation split, of multiple choice what it is scored on; or a file or hub
            data set with the task's text columns.
        config: the run's configuration, which names the directory of the data.
        own_rows: whether the run's own rows are read from that directory as well.
    Raises:
        UserError: there is no such split, task, file or hub data set, or its rows differ.
    """
    reader = reader_of(task.objective)
    chosen = choice_task(source, config.choices) if source in CHOICE_TASKS else None
    labelled = source in (DEMO.name, *TASKS)
    if (reader is not None and labelled) or (chosen and chosen.objective != task.objective):
        expected = " and ".join(task.text_columns) if reader is None else reader.expected
        raise DataError(
            f"--ood {source}: its rows are of another form than those of {task.name}; give a file "
            f"with {expected}"
        )
    data = None if config.data is None else Path(config.data)
    if source in ("ood", *task.ood_splits):
        if not task.ood_splits:
            raise DataError(
                f"--ood {source}: {task.name} has no such split; give another task "
                f"({', '.join((*TASKS, DEMO.name))}) or a file with the columns "
                f"{', '.join(task.text_columns)}"
            )
        split = task.ood_splits[0] if source == "ood" else source
        found = load_examples(config, (split,), task=task)[1][split]
    elif source == DEMO.name:
        found = demo_examples()[DEMO.validation_splits[0]]
    elif source in TASKS:
        own = TASKS.get(config.task) if own_rows else None
        found = _load_other(TASKS[source], data, own)
    elif chosen is not None:
        (found,) = load_to_score(chosen, data, None).values()
    else:
        table = read_table(source, "--ood", split="validation")
        return table_examples(table, task, labelled=False, loss_on=config.loss_on)
    return replace(found, labels=None)


def _load_other(task: GlueTask, data: Path | None, own: GlueTask | None) -> Examples:
    """Read another task's first validation split, with or without labels.

    Args:
        data: directory of GLUE's data; None: the hub.
        own: the task that is read from there as well; None: no other task is.
    """
    split = task.validation_splits[0]
    if data is not None and own not in (None, task) and not _within(own, data):
        # `data` is the folder of `own`: its columns might fit the other task
        beside = [path for path in (data, data.resolve().parent) if _within(task, path)]
        if not beside:
            raise DataError(
                f"--ood {task.name}: --data {data} holds only {own.name}, and there is no "
                f"{task.folder} beside it; give --data DIR, which holds {own.folder} and "
                f"{task.folder}, or --ood FILE"
            )
        data = beside[0]
    try:
        return load_task(task.name, data, (split,))[split]
    except DataError:
        with suppress(DataError):
            return load_task(task.name, data, (split,), labelled=False)[split]
        raise


def _within(task: GlueTask, data: Path) -> bool:
    """Return whether a directory holds the task's folder."""
    return (data / task.folder).is_dir() or (data / task.name).is_dir()
