"""The nine tasks of GLUE, and the reader of their official TSV files.

Wang et al., "GLUE: A Multi-Task Benchmark and Analysis Platform for Natural Language
Understanding", ICLR 2019. Imports neither torch nor `datasets`, so that the command line can know
the tasks without them.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bayeslora_cli.errors import DataError
from bayeslora_cli.tasks.task import Examples, Task

logger = logging.getLogger("bayeslora")

SCORE_RANGE = (0.0, 5.0)  # STS-B: from unrelated to equivalent (Cer et al., SemEval 2017, task 1)
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"  # MRPC's official train and dev files start with it


@dataclass(frozen=True, kw_only=True, slots=True)
class GlueTask(Task):
    """One task of GLUE. Its text columns are those of the hub's data set, `nyu-mll/glue`."""

    folder: str
    """The task's folder in the official TSV layout."""
    tsv_text: tuple[str, ...]
    """The text columns in the TSV files."""
    tsv_label: str
    """The label's column in the TSV files."""
    tsv_labels: tuple[str, ...]
    """Spellings of the labels in the TSV files, in the order of `classes`; () for scores."""
    train_size: int
    """Number of rows of the official training split, as on the hub."""
    label_column: str = "label"
    """The label's column in the hub's data set."""
    test_splits: tuple[str, ...] = ("test",)
    """Splits whose labels GLUE does not publish."""
    implied_header: tuple[str, ...] = ()
    """The columns of labelled files that come without a header line (CoLA)."""
    drops_corrupted: bool = False
    """Whether labelled rows with missing fields or an empty label are left out (QQP), as the
    hub's loader does; everywhere else they are errors."""


_PAIR = ("sentence1", "sentence2")
_ENTAILMENT = ("entailment", "not_entailment")
_DIGITS = ("0", "1")

_ALL = (
    GlueTask(
        name="cola",
        folder="CoLA",
        tsv_text=("sentence",),
        text_columns=("sentence",),
        tsv_label="label",
        classes=("unacceptable", "acceptable"),
        tsv_labels=_DIGITS,
        metrics=("matthews",),
        selecting="matthews",
        train_size=8551,
        implied_header=("source", "label", "mark", "sentence"),
    ),
    GlueTask(
        name="sst2",
        folder="SST-2",
        tsv_text=("sentence",),
        text_columns=("sentence",),
        tsv_label="label",
        classes=("negative", "positive"),
        tsv_labels=_DIGITS,
        metrics=("accuracy",),
        selecting="accuracy",
        train_size=67349,
    ),
    GlueTask(
        name="mrpc",
        folder="MRPC",
        tsv_text=("#1 String", "#2 String"),
        text_columns=_PAIR,
        tsv_label="Quality",
        classes=("not_equivalent", "equivalent"),
        tsv_labels=_DIGITS,
        metrics=("accuracy", "f1"),
        selecting="accuracy",
        train_size=3668,
    ),
    GlueTask(
        name="qqp",
        folder="QQP",
        tsv_text=("question1", "question2"),
        text_columns=("question1", "question2"),
        tsv_label="is_duplicate",
        classes=("not_duplicate", "duplicate"),
        tsv_labels=_DIGITS,
        metrics=("accuracy", "f1"),
        selecting="accuracy",
        train_size=363846,
        drops_corrupted=True,
    ),
    GlueTask(
        name="stsb",
        folder="STS-B",
        tsv_text=_PAIR,
        text_columns=_PAIR,
        tsv_label="score",
        classes=(),
        tsv_labels=(),
        metrics=("pearson", "spearman"),
        selecting="pearson_spearman",
        train_size=5749,
    ),
    GlueTask(
        name="mnli",
        folder="MNLI",
        tsv_text=_PAIR,
        text_columns=("premise", "hypothesis"),
        tsv_label="gold_label",
        classes=("entailment", "neutral", "contradiction"),
        tsv_labels=("entailment", "neutral", "contradiction"),
        metrics=("accuracy",),
        selecting="accuracy",
        train_size=392702,
        validation_splits=("validation_matched", "validation_mismatched"),
        test_splits=("test_matched", "test_mismatched"),
    ),
    GlueTask(
        name="qnli",
        folder="QNLI",
        tsv_text=("question", "sentence"),
        text_columns=("question", "sentence"),
        tsv_label="label",
        classes=_ENTAILMENT,
        tsv_labels=_ENTAILMENT,
        metrics=("accuracy",),
        selecting="accuracy",
        train_size=104743,
    ),
    GlueTask(
        name="rte",
        folder="RTE",
        tsv_text=_PAIR,
        text_columns=_PAIR,
        tsv_label="label",
        classes=_ENTAILMENT,
        tsv_labels=_ENTAILMENT,
        metrics=("accuracy",),
        selecting="accuracy",
        train_size=2490,
    ),
    GlueTask(
        name="wnli",
        folder="WNLI",
        tsv_text=_PAIR,
        text_columns=_PAIR,
        tsv_label="label",
        classes=("not_entailment", "entailment"),
        tsv_labels=_DIGITS,
        metrics=("accuracy",),
        selecting="accuracy",
        train_size=635,
    ),
)

TASKS: dict[str, GlueTask] = {task.name: task for task in _ALL}


def tsv_file(split: str) -> str:
    """Return the official file name of a split: `validation_matched` is in `dev_matched.tsv`."""
    return split.replace("validation", "dev") + ".tsv"


def read_tsv(path: Path, task: GlueTask, *, labelled: bool) -> Examples:
    r"""Read one file of the official layout.

    A line ends only at "\n" (U+2028 and U+0085 occur inside sentences), a field ends at a tab, and
    a quotation mark is an ordinary character. Columns are found by their names, so additional
    columns do no harm.

    Args:
        path: the file.
        task: the task that it belongs to.
        labelled: whether the file must have labels. If not, they are read if the header names the
            label's column.

    Raises:
        DataError: the file is not as expected; the message names file, line, what was found and
            what was expected.
    """
    lines = _lines(path)
    if labelled and task.implied_header:
        header, body, first_number = task.implied_header, lines, 1
    else:
        header, body, first_number = tuple(lines[0].split("\t")), lines[1:], 2
    needed = (*task.tsv_text, task.tsv_label) if labelled else task.tsv_text
    absent = [name for name in needed if name not in header]
    if absent:
        raise DataError(
            f"{path}, line 1: found the columns {_shown(header)}; "
            f"task {task.name} expects {_shown(needed)}, so {_shown(absent)} is missing"
        )
    text_places = [header.index(name) for name in task.tsv_text]
    label_place = header.index(task.tsv_label) if task.tsv_label in header else None
    index_of = {spelling: index for index, spelling in enumerate(task.tsv_labels)}

    texts: list[tuple[str, ...]] = []
    labels: list[int | float] = []
    dropped = 0
    for number, line in enumerate(body, start=first_number):
        fields = line.split("\t")
        short = len(fields) < len(header)
        corrupted = short or (label_place is not None and not fields[label_place])
        if corrupted and labelled and task.drops_corrupted:
            dropped += 1
            continue
        # the hub's loader ignores surplus fields; only for QQP are they allowed here
        if short or (len(fields) > len(header) and not task.drops_corrupted):
            raise DataError(
                f"{path}, line {number}: found {len(fields)} fields; "
                f"expected {len(header)}, separated by tabs: {_shown(header)}"
            )
        if label_place is not None:
            field = fields[label_place]
            label = index_of.get(field) if task.tsv_labels else _score(field)
            if label is None:
                raise DataError(
                    f"{path}, line {number}: found {field[:80]!r} in the column "
                    f"{task.tsv_label!r}; expected {_expected_label(task)}"
                )
            labels.append(label)
        texts.append(tuple(fields[place] for place in text_places))
    if dropped:
        logger.info("%s: left out %d corrupted rows, as the hub's loader does", path, dropped)
    if not texts:
        raise DataError(f"{path}: found no rows below the header; expected at least one")
    return Examples(
        first=[text[0] for text in texts],
        second=[text[1] for text in texts] if len(task.tsv_text) == 2 else None,
        labels=None if label_place is None else labels,
    )


def _lines(path: Path) -> list[str]:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    raw = raw.removeprefix(_BYTE_ORDER_MARK)
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        number = raw.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}, line {number}: found the byte 0x{raw[error.start]:02x}, which is not UTF-8; "
            "expected a file in UTF-8"
        ) from error
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    if not lines:
        raise DataError(f"{path}: the file is empty; expected one row per line")
    return lines


def _score(field: str) -> float | None:
    try:
        score = float(field)
    except ValueError:
        return None
    low, high = SCORE_RANGE
    return score if low <= score <= high else None  # NaN compares false


def _expected_label(task: GlueTask) -> str:
    if task.tsv_labels:
        return "one of " + _shown(task.tsv_labels)
    return "a number from {:g} to {:g}".format(*SCORE_RANGE)


def _shown(names: Sequence[str]) -> str:
    return ", ".join(repr(name[:40]) for name in names[:20])
