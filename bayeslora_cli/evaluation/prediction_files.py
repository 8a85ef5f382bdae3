"""Writes predictions to files: one row per example, or GLUE's submission files."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from torch import Tensor

from bayeslora_cli.data.tokenised_split import TokenisedSplit
from bayeslora_cli.errors import UserError
from bayeslora_cli.evaluation.predictive import Predictive
from bayeslora_cli.evaluation.request import OUTSIDE, EvaluationRequest
from bayeslora_cli.runs.atomic_write import replacing
from bayeslora_cli.tasks.objectives.objective import Objective, objective_of
from bayeslora_cli.tasks.shortest_numbers import shortest_numbers
from bayeslora_cli.tasks.sources.glue import SCORE_RANGE, TASKS, GlueTask
from bayeslora_cli.tasks.sources.label_column import number_in
from bayeslora_cli.tasks.task import Task

SUFFIXES = (".csv", ".tsv", ".jsonl")
_CELLS_A_TIME = 2**20  # probabilities that are Python numbers at the same time
_BEGIN_FORMULAS = ("=", "+", "-", "@", "\t", "\r")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Predicted:
    """The predictions for the n examples of one split, in the order of its file."""

    values: Tensor
    """(n, classes) probabilities, or (n,) scores."""
    labels: Tensor | None = None
    """(n, ...) as `Objective.label_tensor` makes them; None if the split has no labels."""
    items: Tensor | None = None
    """(rows,) number of predictions of each row, of which `values` and the others then have a line
    each; None: one."""
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

    In CSV a field that holds a comma, a quotation mark or a line break stands in quotation marks,
    which are doubled inside. In TSV so does a field that holds a tab or a line break, or begins
    with a quotation mark, and no other: readers that know no quotation marks read it as well. In
    both, text that a spreadsheet would take for a formula has a ' in front. Lines end with "\n".
    Numbers have the fewest digits that give the same float back.

    Args:
        path: the file; its directory is created if missing.
        task: names the classes.
        splits: predictions by split, at least one.
    Raises:
        UserError: raised by `check_path`, or the file cannot be written.
    """
    check_path(path)
    names, rows = _names(task, splits), _rows(task, splits)
    try:
        with (
            replacing(path) as temporary,
            temporary.open("w", encoding="utf-8", newline="") as file,
        ):
            if path.suffix == ".jsonl":
                objects = (dict(zip(names, row, strict=True)) for row in rows)
                file.writelines(json.dumps(row, allow_nan=False) + "\n" for row in objects)
            else:
                # before 3.13 the writer leaves a lone carriage return bare, where the reader
                # ends a line: then all text is quoted
                risky = any("\r" in name for name in task.classes)
                writer = csv.writer(
                    file,
                    lineterminator="\n",
                    quoting=csv.QUOTE_NONNUMERIC if risky else csv.QUOTE_MINIMAL,
                )
                for row in chain([names], (map(flat, row) for row in rows)):
                    cells = [no_formula(cell) if isinstance(cell, str) else cell for cell in row]
                    if path.suffix == ".csv":
                        writer.writerow(cells)
                    else:
                        file.write("\t".join(map(tsv_field, cells)) + "\n")
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


def write_files(
    asked: EvaluationRequest,
    rows: Mapping[str, TokenisedSplit],
    predictives: Mapping[str, Mapping[str, Predictive]],
) -> None:
    """Write the predictions, averaged over samples if there are any, to the requested files."""
    at = "sampled" if "sampled" in predictives else "mean"
    predicted = {
        name: Predicted(
            values=found.values.float(),
            labels=rows[name].labels,
            items=rows[name].items,
            extra={k: v.float() for k, v in found.measures(sampled=at == "sampled").items()},
        )
        for name, found in predictives[at].items()
        if name != OUTSIDE
    }
    if asked.predictions is not None:
        write_predictions(asked.predictions, asked.task, predicted)
    if asked.submission is not None:
        write_submission(asked.submission, TASKS[asked.task.name], predicted)


def _names(task: Task, splits: Mapping[str, Predicted]) -> list[str]:
    """Return the names of the columns."""
    several, labelled = len(splits) > 1, _are_labelled(task, splits)
    extra = next(iter(splits.values())).extra
    first = ["split"] * several + ["row", "prediction"] + ["label"] * labelled
    return [*first, *(f"p({name})" for name in task.classes), *extra]


def _are_labelled(task: Task, splits: Mapping[str, Predicted]) -> bool:
    known = any(predicted.labels is not None for predicted in splits.values())
    return known and objective_of(task).has_labels


def _rows(task: Task, splits: Mapping[str, Predicted]) -> Iterator[list[Any]]:
    """Yield the rows of the file, the cells in the order of `_names`."""
    objective, labelled = objective_of(task), _are_labelled(task, splits)
    for split, predicted in splits.items():
        if predicted.items is not None:
            named = [split] * (len(splits) > 1)
            yield from _of_items(named, predicted, objective, labelled=labelled)
            continue
        n = len(predicted.values)
        columns: list[list[Any]] = [[split] * n] * (len(splits) > 1)
        columns += [list(range(n)), objective.spell(objective.decide(predicted.values))]
        if labelled:
            labels = predicted.labels
            columns.append([None] * n if labels is None else objective.spell(labels))
        extra = [shortest_numbers(values) for values in predicted.extra.values()]
        rows_a_time = max(1, _CELLS_A_TIME // max(1, len(task.classes)))
        for start in range(0, n, rows_a_time):
            part = slice(start, start + rows_a_time)
            first, last = (
                list(zip(*(column[part] for column in some), strict=True))
                for some in (columns, extra)
            )
            none: list[Any] = [()] * len(first)
            shares = shortest_numbers(predicted.values[part]) if task.classes else none
            for cells in zip(first, shares, last if extra else none, strict=True):
                yield list(chain.from_iterable(cells))


def _of_items(
    first: list[Any], predicted: Predicted, objective: Objective, *, labelled: bool
) -> Iterator[list[Any]]:
    """Yield rows whose cells, behind `first` and the row, are lists of a value per item."""
    assert predicted.items is not None
    sizes = predicted.items.tolist()
    start = 0
    for row, size in enumerate(sizes):
        own = slice(start, start := start + size)
        values, labels = predicted.values[own], predicted.labels
        cells: list[Any] = [objective.spell(objective.decide(values))]
        if labelled:
            cells.append(None if labels is None else objective.spell(labels[own]))
        cells += [shortest_numbers(column) for column in values.unbind(-1)]
        cells += [shortest_numbers(column[own]) for column in predicted.extra.values()]
        yield [*first, row, *cells]


def flat(value: Any) -> Any:
    """Return a value as a field of csv or tsv holds it: of a list its parts with | between them, or
    JSON if a part has a |."""
    if not isinstance(value, list):
        return value
    parts = ["" if part is None else str(part) for part in value]
    return json.dumps(value) if any("|" in part for part in parts) else "|".join(parts)


def no_formula(text: str) -> str:
    """Return the text, with a ' in front if a spreadsheet would take it for a formula."""
    is_formula = text[:1] in _BEGIN_FORMULAS and text and number_in(text) is None
    return f"'{text}" if is_formula else text


def tsv_field(value: object) -> str:
    """Write a field of a tsv file: in quotation marks only if it could not be read otherwise."""
    text = "" if value is None else str(value)
    if text.startswith('"') or any(c in text for c in "\t\n\r"):
        return '"' + text.replace('"', '""') + '"'
    return text
