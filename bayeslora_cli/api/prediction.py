"""Predicts rows of any number with a run: from files, pipes or Python, window by window."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from bayeslora_cli.api.arguments import sampling_of
from bayeslora_cli.config.catalogue import OBJECTIVES
from bayeslora_cli.errors import BayesloraError, StorageError, UserError
from bayeslora_cli.tasks.sources.tables.windows import FORMS as FORMS
from bayeslora_cli.tasks.sources.tables.windows import STDIN as STDIN
from bayeslora_cli.tasks.sources.tables.windows import object_windows, table_windows

if TYPE_CHECKING:
    from bayeslora_cli.config.run_config import RunConfig
    from bayeslora_cli.evaluation.run_loading import LoadedRun
    from bayeslora_cli.evaluation.streaming.columns import PredictedRows
    from bayeslora_cli.evaluation.streaming.writers import RowWriter
    from bayeslora_cli.tasks.task import Task

logger = logging.getLogger("bayeslora")
OUTPUT_FORMS = ("csv", "tsv", "jsonl")
"""What standard output may be written in."""


class Predicting(Protocol):
    """What is needed of an `api.run.Run`."""

    @property
    def config(self) -> RunConfig:
        """The options that it was trained with."""

    @property
    def task(self) -> Task:
        """What is predicted."""

    @property
    def loaded(self) -> LoadedRun:
        """The network, at the posterior's mean, its tokenizer and the posterior."""

    def load(self, base_precision: str | None = None) -> LoadedRun:
        """Load it anew, with frozen weights in another precision."""


def predicted_windows(
    run: Predicting,
    source: str | Path | Iterable[Any],
    *,
    samples: int | None = None,
    temperature: float | None = None,
    seed: int | None = None,
    top_k: int | None = None,
    keep: Sequence[str] | None = None,
    text_columns: Sequence[str] | None = None,
    input_format: str | None = None,
    batch_size: int | None = None,
    base_precision: str | None = None,
) -> Iterator[PredictedRows]:
    """Yield the columns of some thousand rows at a time: those of the input, and the predictions.

    Args:
        source: a file, `-` for standard input, or rows: texts, tuples of texts or dictionaries.
        samples, temperature, seed: as for `Run.evaluate`; predictions are averages over samples.
        top_k: name this many likeliest classes in place of all probabilities.
        keep: columns of the input to keep; None: all.
        text_columns: columns that hold the texts; None: those of the run's task, or usual names.
        input_format: one of `FORMS`; None: by the file's ending, or found.
        batch_size: rows per forward pass; None: as in training.
        base_precision: of the frozen weights, as for `Run.evaluate`.
    Raises:
        UserError: options do not fit the run, or a row is not as expected.
    """
    from bayeslora_cli.evaluation.request import check_sampling
    from bayeslora_cli.evaluation.streaming.stream import (
        PredictionRequest,
        predict_windows,
        read_windows,
    )

    if input_format is not None and input_format not in FORMS:
        raise UserError(f"--input-format {input_format}: give one of {', '.join(FORMS)}")
    if top_k is not None and top_k < 1:
        raise UserError(f"--top-k {top_k}: must be at least 1")
    task = run.task
    asked = PredictionRequest(
        sampling=sampling_of(samples, temperature, seed),
        top=top_k,
        keep=None if keep is None else tuple(keep),
        text_columns=None if text_columns is None else tuple(text_columns),
        batch_size=batch_size,
    )
    config = run.config
    check_sampling(config, asked.sampling)
    asked.check(task)
    # rows of other forms than texts and a label have a form of their own for plain text
    plain = (
        ("text",) if OBJECTIVES[task.objective].rows else asked.text_columns or task.text_columns
    )
    name = str(source) if isinstance(source, str | Path) else "rows"
    if isinstance(source, str | Path):
        tables = table_windows(name, "FILE", plain, input_format)
    else:
        tables = object_windows(source, name, plain)
    windows = read_windows(tables, config, task, asked)
    if name != STDIN:  # a pipe's first row may come late: the model is loaded before it is read
        first = next(windows, None)
        if first is None:
            raise UserError(f"{name}: found no rows")
        windows = chain((first,), windows)
    another = base_precision not in (None, config.base_precision)
    loaded = run.load(base_precision) if another else run.loaded
    return predict_windows(loaded, config, windows, asked)


def predicted_rows(
    run: Predicting, source: str | Path | Iterable[Any], **options: Any
) -> Iterator[dict[str, Any]]:
    """Yield a dictionary for each row; the arguments are those of `predicted_windows`."""
    for columns, _ in predicted_windows(run, source, **options):
        for row in zip(*columns.values(), strict=True):
            yield dict(zip(columns, row, strict=True))


def predict_file(
    run: Predicting,
    source: str | Path,
    output: str | Path | None,
    *,
    output_format: str | None = None,
    progress: Callable[[int], None] = lambda rows: None,
    **options: Any,
) -> int:
    """Write the rows of a file, with their predictions, to another; return their number.

    What is written is always whole rows, also if the process is interrupted, a later row is bad or
    the disk is full; a warning then says how many they are.

    Args:
        source: a file, or `-` for standard input.
        output: a file whose ending names its form, which is replaced; None: standard output.
        output_format: of standard output, csv, tsv or jsonl; None: as the input, else JSON Lines.
        progress: is told after each window how many rows are written.
        options: those of `predicted_windows`.
    Raises:
        UserError: options do not fit the run, or a row is not as expected.
        StorageError: the output cannot be written.
        BrokenPipeError: nobody reads standard output any more.
    """
    from bayeslora_cli.execution.signals import deferred

    if output is None:
        form = output_format or _as_input(str(source), options.get("input_format"))
        if form not in OUTPUT_FORMS:
            raise UserError(f"--output-format {form}: give one of {', '.join(OUTPUT_FORMS)}")
    else:
        output = Path(output)
        form = _form_of_file(output, source, output_format)
    windows = predicted_windows(run, source, **options)
    written = 0
    with ExitStack() as stack:
        writer: RowWriter | None = None
        try:
            for found in windows:
                if writer is None:  # a file is replaced only when there is something to write
                    writer = stack.enter_context(_writing(form, output))
                with deferred():
                    writer.write(found.columns, ours=found.ours)
                written += found.rows
                progress(written)
        except (BayesloraError, KeyboardInterrupt):
            if written:
                place = output or "standard output"
                logger.warning("rows written to %s: %s", place, f"{written:,}")
            raise
    return written


def _form_of_file(output: Path, source: str | Path, output_format: str | None) -> str:
    """Return the form that the ending of an output names; it must not be the input."""
    from bayeslora_cli.evaluation.streaming.writers import form_of

    form = form_of(output)
    if output_format is not None:
        raise UserError(
            f"--output-format {output_format}: --output {output} is written as its ending says"
        )
    if output.exists() and os.path.exists(source) and os.path.samefile(source, output):
        raise UserError(f"--output {output}: is the input; give another file")
    return form


@contextmanager
def _writing(form: str, output: Path | None) -> Iterator[RowWriter]:
    """Open the output, and close it with what its form needs behind the last row.

    Args:
        output: a file, which is replaced; None: standard output, which stays open.
    """
    from bayeslora_cli.evaluation.streaming.writers import LineWriter, ParquetWriter, to_descriptor

    if form == "parquet":
        assert output is not None
        with closing(ParquetWriter(output)) as writer:
            yield writer
        return
    if output is None:
        sys.stdout.flush()
        descriptor = sys.stdout.fileno()
    else:
        try:
            descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        except OSError as error:
            raise StorageError(output, error) from error
    name = output or Path("standard output")
    try:
        with closing(LineWriter(form, to_descriptor(descriptor, name))) as writer:
            yield writer
    finally:
        if output is not None:
            os.close(descriptor)


def _as_input(source: str, typed: str | None) -> str:
    """Return the form of standard output that suits an input: csv and tsv stay as they are."""
    form = typed or Path(source).suffix.lower().removeprefix(".")
    return form if form in ("csv", "tsv") else "jsonl"
