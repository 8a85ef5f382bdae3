"""Loads a task's examples: GLUE from TSV files, a saved data set or the hub; a user's files."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bayeslora_cli.config.catalogue import CHOICE_TASKS
from bayeslora_cli.config.run_config import RunConfig
from bayeslora_cli.errors import DataError, UserError
from bayeslora_cli.tasks.sources.choice_tasks.choice_task import (
    check_trainable,
    choice_task,
    load_choices,
)
from bayeslora_cli.tasks.sources.demo import DEMO, demo_examples
from bayeslora_cli.tasks.sources.glue import SCORE_RANGE, TASKS, GlueTask, read_tsv, tsv_file
from bayeslora_cli.tasks.sources.own_files import hold_out, own_examples
from bayeslora_cli.tasks.task import Examples, Task

HUB_DATASET = "nyu-mll/glue"
_HUB_NO_LABEL = -1  # stands in the hub's test splits in place of a label


def load_examples(
    config: RunConfig, splits: Sequence[str] | None = None, *, task: Task | None = None
) -> tuple[Task, dict[str, Examples]]:
    """Load a configuration's task and splits of it.

    Args:
        splits: names of the splits; None: the training split and those to evaluate on.
        task: the task of an earlier run; None: a user's own task is made from the training file.
    Raises:
        UserError: there is no such task, split, file or hub data set, or its rows are not as
            expected.
    """
    if config.train_file is not None:
        return own_examples(config, splits, task)
    if config.task == DEMO.name:
        made = demo_examples()
        return DEMO, {split: made[split] for split in splits or DEMO.required_splits}
    if config.task in CHOICE_TASKS:
        return _choice_examples(config, splits, task)
    glue = TASKS[config.task]
    data = None if config.data is None else Path(config.data)
    return glue, load_task(glue.name, data, splits or glue.required_splits)


def _choice_examples(
    config: RunConfig, splits: Sequence[str] | None, task: Task | None
) -> tuple[Task, dict[str, Examples]]:
    chosen = choice_task(config.task, config.choices)
    if task is not None:
        chosen = replace(chosen, held_out=task.held_out)
    wanted = splits or chosen.required_splits
    data = None if config.data is None else Path(config.data)
    names = {*wanted, *(("validation",) if "train" in wanted else ())}
    found = load_choices(chosen, data, names - {"validation" if chosen.held_out else ""})
    made: Task = chosen
    if "train" in wanted or ("validation" in wanted and "validation" not in found):
        if "train" not in found:
            found |= load_choices(chosen, data, ("train",))
        check_trainable(chosen, data, found)
        if "validation" not in found:
            made, parts = hold_out(chosen, found["train"], config.validation)
            found |= parts
    absent = [split for split in wanted if split not in found]
    if absent:
        raise DataError(f"task {config.task} has no split {absent[0]!r}; it has {', '.join(found)}")
    return made, {split: found[split] for split in wanted}


def load_task(
    name: str,
    data: Path | None,
    splits: Sequence[str] | None = None,
    *,
    labelled: bool = True,
) -> dict[str, Examples]:
    """Load splits of a GLUE task.

    Args:
        name: a key of `TASKS`.
        data: a directory, or None for the hub's `nyu-mll/glue` (or its copy in the local cache).
            The directory holds the official TSV layout (`DIR/RTE/train.tsv`, or `train.tsv`
            itself), or is a `DatasetDict` written by `save_to_disk`, or holds one as `DIR/<name>`.
        splits: the splits to load, each of which must exist. None: `train`, the validation splits,
            and those test splits that exist.
        labelled: whether all splits except the test splits must have labels.

    Returns:
        Examples by split: `train`, `validation`, `test`; for MNLI `validation_matched`,
        `validation_mismatched`, `test_matched` and `test_mismatched` in the place of the last two.

    Raises:
        DataError: the directory, a file or a row is not as expected.
        UserError: there is no such task, or the hub cannot be reached.
    """
    task = TASKS.get(name)
    if task is None:
        raise UserError(f"--task {name}: no such task; choose one of {', '.join(TASKS)}")
    if data is None:
        where = f"{HUB_DATASET}, {name}"
        return _from_datasets(task, _load_from_hub(task), where, splits, labelled=labelled)
    if not data.is_dir():
        raise DataError(f"--data {data}: no such directory")
    for folder in (data, data / name):
        if (folder / "dataset_dict.json").is_file():
            tables = _load_from_disk(folder)
            return _from_datasets(task, tables, str(folder), splits, labelled=labelled)
    if (data / task.folder).is_dir():
        return _from_tsv(task, data / task.folder, splits, labelled=labelled)
    if any((data / tsv_file(split)).is_file() for split in task.splits):
        return _from_tsv(task, data, splits, labelled=labelled)
    raise DataError(
        f"--data {data}: holds no data for task {name}; expected {task.folder}/train.tsv or "
        f"train.tsv (the official TSV layout), or dataset_dict.json or {name}/dataset_dict.json "
        "(a DatasetDict written by save_to_disk)"
    )


def _splits_to_read(
    task: GlueTask,
    splits: Sequence[str] | None,
    present: Collection[str],
    missing: Callable[[str], str],
) -> list[str]:
    """Return the splits to read; `missing` writes the error for one that is not present."""
    if splits is None:
        splits = [*task.required_splits, *(s for s in task.test_splits if s in present)]
    for split in splits:
        if split not in task.splits:
            raise DataError(
                f"task {task.name} has no split {split!r}; it has {', '.join(task.splits)}"
            )
        if split not in present:
            raise DataError(missing(split))
    return list(splits)


def _from_tsv(
    task: GlueTask, folder: Path, splits: Sequence[str] | None, *, labelled: bool
) -> dict[str, Examples]:
    present = [split for split in task.splits if (folder / tsv_file(split)).is_file()]

    def missing(split: str) -> str:
        return f"{folder / tsv_file(split)}: no such file; task {task.name} needs it for {split!r}"

    return {
        split: read_tsv(
            folder / tsv_file(split), task, labelled=labelled and split not in task.test_splits
        )
        for split in _splits_to_read(task, splits, present, missing)
    }


def _import_datasets() -> Any:
    try:
        import datasets  # slow, and not needed for TSV files
    except ImportError as error:
        raise UserError(
            f"the package 'datasets' cannot be imported ({error}): install it, or give the "
            "official TSV files by --data DIR"
        ) from error
    return datasets


def _load_from_hub(task: GlueTask) -> Any:
    datasets = _import_datasets()
    try:
        return datasets.load_dataset(HUB_DATASET, task.name)
    # Offline mode, no network, no cached copy, a broken download: OSError, ValueError, the HTTP
    # client's and the library's own classes, by version. The call contains no code of ours.
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{HUB_DATASET} ({task.name}) cannot be loaded from the Hugging Face hub or its "
            f"cache: {reason}. Give a local copy by --data DIR, which holds "
            f"{task.folder}/train.tsv and so on, or a folder written by save_to_disk"
        ) from error


def _load_from_disk(folder: Path) -> Any:
    datasets = _import_datasets()
    try:
        return datasets.load_from_disk(str(folder))
    except Exception as error:  # a damaged folder: JSON, Arrow and OS errors, none of them ours
        raise DataError(
            f"--data {folder}: cannot be read as a DatasetDict ({type(error).__name__}: {error}); "
            "write it again with save_to_disk"
        ) from error


def _from_datasets(
    task: GlueTask, tables: Any, where: str, splits: Sequence[str] | None, *, labelled: bool
) -> dict[str, Examples]:
    """Read examples from a `DatasetDict` with the hub's columns."""
    present = list(tables)

    def missing(split: str) -> str:
        return f"{where}: found the splits {', '.join(present)}; expected {split!r} as well"

    return {
        split: _from_table(
            task,
            tables[split],
            f"{where}, {split}",
            labelled=labelled and split not in task.test_splits,
        )
        for split in _splits_to_read(task, splits, present, missing)
    }


def _from_table(task: GlueTask, table: Any, where: str, *, labelled: bool) -> Examples:
    needed = (*task.text_columns, "label") if labelled else task.text_columns
    absent = [name for name in needed if name not in table.column_names]
    if absent:
        raise DataError(
            f"{where}: found the columns {', '.join(table.column_names)}; "
            f"task {task.name} expects {', '.join(needed)}"
        )
    if len(table) == 0:
        raise DataError(f"{where}: found no rows; expected at least one")
    has_label = "label" in table.column_names
    columns = [*task.text_columns, "label"] if has_label else [*task.text_columns]
    rows = table.with_format(None).select_columns(columns)[:]
    for name in task.text_columns:
        for row, text in enumerate(rows[name]):
            if not isinstance(text, str):
                raise DataError(f"{where}, row {row}: found {text!r} in {name!r}; expected text")
    labels = None
    if labelled or (has_label and any(label != _HUB_NO_LABEL for label in rows["label"])):
        labels = _labels(task, rows["label"], table.features["label"], where)
    return Examples(
        first=rows[task.text_columns[0]],
        second=rows[task.text_columns[1]] if len(task.text_columns) == 2 else None,
        labels=labels,
    )


def _labels(task: GlueTask, values: list[Any], feature: Any, where: str) -> list[Any]:
    """Return class indices in the order of `task.classes`, or scores."""
    index_of: dict[str | int, int] | None = None
    if not task.classes:
        low, high = SCORE_RANGE
        expected = f"a number from {low:g} to {high:g}"
    else:
        # a saved set may number its classes in another order than the hub's
        names = getattr(feature, "names", None) or task.classes
        if set(names) != set(task.classes):
            raise DataError(
                f"{where}: found the classes {', '.join(names)}; "
                f"task {task.name} expects {', '.join(task.classes)}"
            )
        expected = f"one of {', '.join(task.classes)}, or its index"
        index_of = {name: index for index, name in enumerate(task.classes)}
        index_of |= {place: task.classes.index(name) for place, name in enumerate(names)}
    labels: list[Any] = []
    for row, value in enumerate(values):
        label: int | float | None
        if index_of is not None:
            label = index_of.get(value)
        else:
            label = value if isinstance(value, int | float) and low <= value <= high else None
        if label is None:
            raise DataError(f"{where}, row {row}: found the label {value!r}; expected {expected}")
        labels.append(label)
    return labels
