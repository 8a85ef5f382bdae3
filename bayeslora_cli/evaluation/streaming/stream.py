"""Predicts rows window by window: in constant memory, and in the order in which they came."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bayeslora_cli.config.catalogue import OBJECTIVES
from bayeslora_cli.config.files.own_columns import TEXT_COLUMNS
from bayeslora_cli.config.run_config import RunConfig
from bayeslora_cli.data.counted_rows import check_counts
from bayeslora_cli.data.splits import Batches, check_tokens
from bayeslora_cli.data.tokenization import tokenise
from bayeslora_cli.errors import DataError, RunDirError, UserError
from bayeslora_cli.evaluation.forward_passes import (
    Sampling,
    draw,
    predict_at_mean,
    predict_over_samples,
)
from bayeslora_cli.evaluation.run_loading import LoadedRun
from bayeslora_cli.evaluation.streaming.columns import PredictedRows, beside, predicted_columns
from bayeslora_cli.tasks.sources.rows.reader import check_column
from bayeslora_cli.tasks.sources.tables.table import Table, shown
from bayeslora_cli.tasks.sources.tabular import reader_of, table_examples
from bayeslora_cli.tasks.task import Examples, Task

logger = logging.getLogger("bayeslora")
KEPT_BYTES = 2**28
"""Most bytes of samples that are kept; more are drawn for each window anew."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PredictionRequest:
    """What is asked about the rows."""

    sampling: Sampling | None = None
    """How to sample the posterior; None: predictions at its mean."""
    top: int | None = None
    """Number of likeliest classes to name; None: see `predicted_columns`."""
    keep: tuple[str, ...] | None = None
    """Columns of the input to keep; None: all."""
    text_columns: tuple[str, ...] | None = None
    """Columns that hold the texts; None: those of the task, or of their usual names."""
    batch_size: int | None = None
    """Rows per forward pass; None: as in training."""

    def check(self, task: Task) -> None:
        """Check what can be checked before a model is loaded.

        Raises:
            UserError: options do not fit the task.
        """
        if self.top is not None and not task.classes:
            predicts = OBJECTIVES[task.objective].predicts
            raise UserError(
                f"--top-k {self.top}: the run predicts {predicts}, which has no classes to choose "
                "among"
            )
        expected = task.text_columns
        if self.text_columns is None:
            return
        named, reader = ",".join(self.text_columns), reader_of(task.objective)
        if reader is None and len(self.text_columns) != len(expected):
            raise UserError(
                f"--text-columns {named}: the run reads {len(expected)} "
                f"column{'s' * (len(expected) > 1)}, {' and '.join(expected)}"
            )
        if reader is None or reader.numbers is None:
            return
        numbers = sorted([*reader.numbers, *([1] if reader.single_texts else [])])
        if len(self.text_columns) not in numbers:
            known = " or ".join(map(str, numbers))
            if len(numbers) > 3:
                known = f"{numbers[0]} to {numbers[-1]}"
            raise UserError(f"--text-columns {named}: a row has {known} columns of texts")


@dataclass(frozen=True, kw_only=True, slots=True)
class Window:
    """Consecutive rows, before anything is computed."""

    kept: dict[str, Sequence[Any]]
    """The columns of the input that are kept."""
    examples: Examples
    """What is predicted, without labels."""


def read_windows(
    tables: Iterable[Table], config: RunConfig, task: Task, asked: PredictionRequest
) -> Iterator[Window]:
    """Read the rows of tables; labels, if there are any, are not read. No model is needed.

    Raises:
        UserError: a table lacks a column, or a value is not as expected.
    """
    reader = reader_of(task.objective)
    for given in tables:
        table = given
        if reader is not None and given.names == ("text",):
            table = reader.of_texts(given, task.text_columns)
        names = table.names if asked.keep is None else asked.keep
        for name in names:
            if name not in table.names:
                raise UserError(
                    f"--keep {name}: {table.title} has no such column, only {shown(table.names)}"
                )
        for name in asked.text_columns or ():
            check_column(table, name, "--text-columns")
        own = replace(task, text_columns=asked.text_columns or _given(table, task))
        for part, examples in _examples(table, own, config.loss_on):
            yield Window(kept={name: part.read_column(name) for name in names}, examples=examples)


def predict_windows(
    loaded: LoadedRun, config: RunConfig, windows: Iterable[Window], asked: PredictionRequest
) -> Iterator[PredictedRows]:
    """Predict windows of rows, one after the other.

    Within a window rows of similar length share batches; the results are in the order of the rows.

    Yields:
        Columns by name, kept ones of the input and those of `predicted_columns`, of one window.
    Raises:
        UserError: a row cannot be predicted, or a kept column has the name of a prediction's.
    """
    network, tokenizer, posterior = loaded
    sampling, drawn = asked.sampling, None
    if sampling is not None and not posterior.can_sample:
        raise RunDirError("the run's posterior is corrupt: it has no sigma to sample with")
    if sampling is not None and sampling.samples * posterior.mean.nbytes <= KEPT_BYTES:
        drawn = list(draw(posterior, sampling))
    device = network.bank.theta.device
    size = asked.batch_size or config.eval_batch_size
    cut = longest = 0
    for window in windows:
        network = loaded.predicting(window.examples).network
        rows = tokenise(
            window.examples, tokenizer, config.max_length, network.objective, packed=network.packed
        )
        check_counts(rows, window.examples, config.max_length)
        check_tokens(network.module, config.model, [rows])
        batches = {"rows": Batches(rows, size, device)}
        if sampling is None:
            found = predict_at_mean(network, batches)["rows"]
        else:
            found = predict_over_samples(network, posterior, batches, sampling, drawn)["rows"]
        more, most = rows.truncated()
        cut, longest = cut + more, max(longest, most)
        predicted = predicted_columns(
            found, sampled=sampling is not None, top=asked.top, items=rows.items
        )
        yield beside(window.kept, predicted)
    if cut:
        logger.warning(
            "%s rows are longer than the run's --max-length %d and were cut there; the longest has "
            "%s tokens", f"{cut:,}", config.max_length, f"{longest:,}",
        )  # fmt: skip


def _examples(table: Table, task: Task, loss_on: str) -> Iterator[tuple[Table, Examples]]:
    """Read a table; one with a bad row in parts, down to the row before it."""
    try:
        found = table_examples(table, task, labelled=False, loss_on=loss_on)
    except DataError:
        if table.rows == 1:
            raise
        half = table.rows // 2
        yield from _examples(table.part(slice(0, half)), task, loss_on)
        yield from _examples(table.part(slice(half, table.rows)), task, loss_on)
    else:
        yield table, found


def _given(table: Table, task: Task) -> tuple[str, ...]:
    """Return the columns of the texts: the task's own, or others of usual names.

    Readers of rows of other forms know the usual names themselves.
    """
    wanted = task.text_columns
    if reader_of(task.objective) is not None or set(wanted) <= set(table.names):
        return wanted
    for guess in TEXT_COLUMNS:
        if len(guess) == len(wanted) and set(guess) <= set(table.names):
            return guess
    raise UserError(
        f"{table.title}: found the columns {shown(table.names)}; the run reads "
        f"{' and '.join(wanted)}: name others by --text-columns"
    )
