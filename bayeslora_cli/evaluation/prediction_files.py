"""Writes predictions to files: one row per example, or GLUE's submission files."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from bayeslora_cli.errors import UserError
from bayeslora_cli.runs.atomic_write import replacing
from bayeslora_cli.tasks.objectives.objective import objective_of, shortest_numbers
from bayeslora_cli.tasks.sources.glue import SCORE_RANGE, GlueTask
from bayeslora_cli.tasks.task import Task

SUFFIXES = (".csv", ".tsv", ".jsonl")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Predicted:
    """The predictions for the n examples of one split, in the order of its file."""

    values: Tensor
    """(n, classes) probabilities, or (n,) scores."""
    labels: Tensor | None = None
    """(n, ...) as `Objective.label_tensor` makes them; None if the split has no labels."""
    extra: Mapping[str, Tensor] = field(default_factory=dict)
    """Further columns by name, each (n,); every split has the same columns."""


def check_path(path: Path) -> None:
    """Check that predictions can be written to `path`, before hours are spent on them.

    Raises:
        UserError: the suffix names no format, or the path is a directory.
    """
    if path.suffix not in SUFFIXES:
        raise UserError(
            f"--predictions {path}: the suffix {path.suffix!r} names no format; "
            f"use one of {', '.join(SUFFIXES)}"
        )
    if path.is_dir():
        raise UserError(f"--predictions {path}: is a directory; give the name of a file")


def write_predictions(path: Path, task: Task, splits: Mapping[str, Predicted]) -> None:
    r"""Write one row per example, in the format that the suffix names, whole or not at all.

    The columns: `split` (if there are several), `row` (from 0, in the split), `prediction` and
    `label` (as `Objective.spell` has them: a class's name, or a score; `label` if any split has
    labels), `p(CLASS)` for each class, and the extra ones. In CSV and TSV a missing label is an
    empty field, in JSON null.

    Both CSV and TSV are what Python's csv module writes: a field that holds the delimiter, a
    quotation mark or a line break stands in quotation marks, which are doubled inside. Lines end
    with "\n". Numbers have the fewest digits that give the same float back.

    Args:
        path: the file; its directory is created if missing.
        task: names the classes.
        splits: predictions by split, at least one.
    Raises:
        UserError: raised by `check_path`, or the file cannot be written.
    """
    check_path(path)
    rows = _rows(task, splits)
    try:
        with (
            replacing(path) as temporary,
            temporary.open("w", encoding="utf-8", newline="") as file,
        ):
            if path.suffix == ".jsonl":
                file.writelines(json.dumps(row, allow_nan=False) + "\n" for row in rows)
            else:
                # before 3.13 the writer leaves a lone carriage return bare, where the reader
                # ends a line: then all text is quoted
                risky = any("\r" in name for name in task.classes)
                writer = csv.writer(
                    file,
                    delimiter="," if path.suffix == ".csv" else "\t",
                    lineterminator="\n",
                    quoting=csv.QUOTE_NONNUMERIC if risky else csv.QUOTE_MINIMAL,
                )
                for number, row in enumerate(rows):
                    if number == 0:
                        writer.writerow(row)
                    writer.writerow(row.values())
    except OSError as error:
        raise UserError(f"--predictions {path}: cannot be written: {error.strerror}") from error


def write_submission(
    directory: Path, task: GlueTask, splits: Mapping[str, Predicted]
) -> tuple[Path, ...]:
    r"""Write the files that gluebenchmark.com takes for a task, one for each test split.

    The format follows the site's instructions, as the GLUE authors' own toolkit writes it
    (jiant, `glue_submission_formatter.py`): a header "index\tprediction", the index from 0,
    classes spelled as in the task's labelled TSV files, STS-B's scores within 0 and 5 with three
    decimals; MNLI-m.tsv and MNLI-mm.tsv for MNLI's matched and mismatched split, the name of the
    task's folder otherwise.

    Args:
        directory: where the files are written; it is created if missing.
        splits: predictions by test split of the task.
    Returns:
        The files written.
    Raises:
        UserError: a file cannot be written.
    """
    assert splits.keys() <= set(task.test_splits)
    low, high = SCORE_RANGE
    written = []
    for split, predicted in splits.items():
        ending = {"test_matched": "-m", "test_mismatched": "-mm"}.get(split, "")
        path = directory / f"{task.folder}{ending}.tsv"
        if task.tsv_labels:
            found = [task.tsv_labels[index] for index in predicted.values.argmax(-1).tolist()]
        else:
            found = [f"{score:.3f}" for score in predicted.values.clamp(low, high).tolist()]
        try:
            with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
                file.write("index\tprediction\n")
                file.writelines(f"{index}\t{text}\n" for index, text in enumerate(found))
        except OSError as error:
            raise UserError(
                f"--submission {directory}: cannot write {path.name}: {error.strerror}"
            ) from error
        written.append(path)
    return tuple(written)


def _rows(task: Task, splits: Mapping[str, Predicted]) -> Iterator[dict[str, Any]]:
    """Yield the rows of the file by column, all with the same columns."""
    objective = objective_of(task)
    labelled = any(predicted.labels is not None for predicted in splits.values())
    for split, predicted in splits.items():
        columns: dict[str, list[Any]] = {}
        n = len(predicted.values)
        if len(splits) > 1:
            columns["split"] = [split] * n
        columns["row"] = list(range(n))
        columns["prediction"] = objective.spell(objective.decide(predicted.values))
        if labelled:
            labels = predicted.labels
            columns["label"] = [None] * n if labels is None else objective.spell(labels)
        for index, name in enumerate(task.classes):
            columns[f"p({name})"] = shortest_numbers(predicted.values[:, index])
        columns |= {name: shortest_numbers(values) for name, values in predicted.extra.items()}
        for row in zip(*columns.values(), strict=True):
            yield dict(zip(columns, row, strict=True))
