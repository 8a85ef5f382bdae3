"""Predicts rows window by window: in constant memory, and in the order in which they came."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from bayeslora_cli.config.files.own_columns import TEXT_COLUMNS
from bayeslora_cli.config.run_config import RunConfig
from bayeslora_cli.data.counted_rows import check_counts
from bayeslora_cli.data.splits import Batches, check_tokens
from bayeslora_cli.data.tokenization import tokenise
from bayeslora_cli.errors import RunDirError, UserError
from bayeslora_cli.evaluation.forward_passes import (
    Sampling,
    predict_at_mean,
    predict_over_samples,
)
from bayeslora_cli.evaluation.predictive import Predictive
from bayeslora_cli.evaluation.run_loading import LoadedRun
from bayeslora_cli.evaluation.streaming.columns import beside, predicted_columns
from bayeslora_cli.tasks.sources.tables.table import Table, shown
from bayeslora_cli.tasks.sources.tabular import reader_of, table_examples
from bayeslora_cli.tasks.task import Examples, Task

logger = logging.getLogger("bayeslora")


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
            raise UserError(f"--top-k {self.top}: {task.name} has no classes to choose among")
        expected = task.text_columns
        if self.text_columns is None:
            return
        if reader_of(task.objective) is None and len(self.text_columns) != len(expected):
            raise UserError(
                f"--text-columns {','.join(self.text_columns)}: the run reads {len(expected)} "
                f"column{'s' * (len(expected) > 1)}, {' and '.join(expected)}"
            )


def predict_windows(
    loaded: LoadedRun,
    config: RunConfig,
    task: Task,
    windows: Iterable[Table],
    asked: PredictionRequest,
) -> Iterator[dict[str, Sequence[Any]]]:
    """Predict tables of rows, one after the other.

    Within a window rows of one length share batches; the results are in the order of the rows.

    Yields:
        Columns by name, kept ones of the input and those of `predicted_columns`, of one window.
    Raises:
        UserError: a table lacks a column, or a value is not as expected.
    """
    network, tokenizer, posterior = loaded
    if asked.sampling is not None and not posterior.can_sample:
        raise RunDirError("the run's posterior is corrupt: it has no sigma to sample with")
    device = network.bank.theta.device
    size = asked.batch_size or config.eval_batch_size
    cut = longest = 0
    for table in windows:
        examples = _examples(table, task, config, asked)
        rows = tokenise(
            examples, tokenizer, config.max_length, network.objective, packed=network.packed
        )
        check_counts(rows, examples, config.max_length)
        check_tokens(network.module, config.model, [rows])
        batches = {"rows": Batches(rows, size, device)}
        if asked.sampling is None:
            found = predict_at_mean(network, batches)["rows"]
        else:
            found = predict_over_samples(network, posterior, batches, asked.sampling)["rows"]
        more, most = rows.truncated()
        cut, longest = cut + more, max(longest, most)
        yield _columns(table, found, asked, getattr(rows, "items", None))
    if cut:
        logger.warning(
            "%s rows are longer than the run's --max-length %d and were cut there; the longest has "
            "%s tokens", f"{cut:,}", config.max_length, f"{longest:,}",
        )  # fmt: skip


def _examples(table: Table, task: Task, config: RunConfig, asked: PredictionRequest) -> Examples:
    """Read the rows of a window; labels, if it has any, are not read."""
    if reader_of(task.objective) is not None:
        own = task if asked.text_columns is None else replace(task, text_columns=asked.text_columns)
        return table_examples(table, own, labelled=False, loss_on=config.loss_on)
    given = asked.text_columns or _given(table, task)
    return table_examples(table, replace(task, text_columns=given), labelled=False)


def _given(table: Table, task: Task) -> tuple[str, ...]:
    """Return the columns of the texts: the task's own, or others of usual names."""
    wanted = task.text_columns
    if set(wanted) <= set(table.names):
        return wanted
    for guess in TEXT_COLUMNS:
        if len(guess) == len(wanted) and set(guess) <= set(table.names):
            return guess
    raise UserError(
        f"{table.title}: found the columns {shown(table.names)}; the run reads "
        f"{' and '.join(wanted)}: name others by --text-columns"
    )


def _columns(
    table: Table, found: Predictive, asked: PredictionRequest, items: Tensor | None
) -> dict[str, Sequence[Any]]:
    names = table.names if asked.keep is None else asked.keep
    for name in names:
        if name not in table.names:
            raise UserError(
                f"--keep {name}: {table.title} has no such column, only {shown(table.names)}"
            )
    kept = {name: table.read_column(name) for name in names}
    predicted = predicted_columns(
        found, sampled=asked.sampling is not None, top=asked.top, items=items
    )
    return beside(kept, predicted)
