"""`Table`: the paper's Table I for any runs, as data and as cells to draw."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from bayeslora_cli.config.values import duration
from bayeslora_cli.errors import UserError
from bayeslora_cli.reports.results.outcomes import GROUPS, ROW
from bayeslora_cli.reports.results.rows import Results, Row

SCHEMA = 1
COUNTED = {
    "best_at_budget": "the best evaluation at the final rank budget",
    "best": "the best of all evaluations",
    "last": "the last evaluation",
}
GATE_RESULTS = {
    "mean_bits": ("mean_bits",),
    "relative_bit_operations": ("cost", "adapter_relative"),
    "relative_bit_operations_with_base": ("cost", "with_base_relative"),
}
OF_MODEL = "relative_bit_operations_of_model"
"""The same of language models only, which have a place for it in result.json: `_MODEL`."""
_MODEL = ("cost", "model_relative")
"""Results of runs with gates or quantizers: name in the table -> place in result.json."""
TITLES = {"group1": "group 1", "group2": "group 2", "all": "all 8"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Reference:
    """Published values to compare with."""

    source: str
    rows: Mapping[tuple[Any, ...], Mapping[str, float]]
    """Percent by column, for each row's values of `ROW`."""


def read_reference(path: Path) -> Reference:
    """Read {"source", "rows": [{"method", "optimizer", "criterion", "target_rank", "values":
    {column: percent}}]}, which `eval --json` of several runs has, too.

    Raises:
        UserError: there is no such file, or it has another form.
    """
    beginning = f"--reference {path}: "
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{beginning}cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{beginning}is no JSON: {error}") from error
    try:
        rows = {
            tuple(row[name] for name in ROW): {
                str(column): _number(value) for column, value in row["values"].items()
            }
            for row in found["rows"]
        }
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(
            f"{beginning}is no table of results ({type(error).__name__}: {error}); each of its "
            f"rows needs {', '.join(ROW)} and values, a number a column"
        ) from error
    return Reference(source=str(found.get("source", path)), rows=rows)


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{value!r} is no number")
    return float(value)


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """The texts of a cell of the table; a missing text is empty."""

    value: str = ""
    spread: str = ""
    """The standard deviation."""
    mark: str = ""
    """One of best, second, or empty."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of results, compared with each other and with a reference."""

    results: Results
    reference: Reference | None = None

    @cached_property
    def marks(self) -> dict[tuple[str, str], str]:
        """Return (row's name, column) -> "best" or "second", by the means as printed."""
        found: dict[tuple[str, str], str] = {}
        for column in self.results.columns:
            cells = {r.name: r.cells[column] for r in self._with(column)}
            means = {name: format(cell.mean, cell.form) for name, cell in cells.items()}
            smaller = column in self.results.smaller_is_better
            ranked = sorted(set(means.values()), key=float, reverse=not smaller)
            marked = dict(zip(ranked[:2], ("best", "second"), strict=False))
            if len(ranked) > 1:
                found |= {(n, column): marked[m] for n, m in means.items() if m in marked}
        return found

    def _with(self, column: str) -> Iterator[Row]:
        return (row for row in self.results.rows if column in row.cells)

    def differences(self, row: Row) -> dict[str, float]:
        """Return the row's means minus the reference's, for the columns that both have."""
        theirs = {} if self.reference is None else self.reference.rows.get(row.key, {})
        return {c: cell.mean - theirs[c] for c, cell in row.cells.items() if c in theirs}

    # ---- to be drawn

    def titles(self) -> list[str]:
        """Return the columns' heads; the first is empty."""
        columns = [TITLES.get(column, column) for column in self.results.columns]
        gated = ["rank", "bits", "bit ops", "with base"] * self.is_gated
        gated += ["of model"] * self.counts_models
        return ["", *columns, *gated, "seeds", "params", "time"]

    @cached_property
    def is_gated(self) -> bool:
        """Whether any row has bit operations to show, because gates learned its ranks or widths."""
        return any(
            row.mean(*GATE_RESULTS["relative_bit_operations"]) is not None
            for row in self.results.rows
        )

    @cached_property
    def counts_models(self) -> bool:
        """Whether any row has bit operations of a whole language model."""
        return any(row.mean(*_MODEL) is not None for row in self.results.rows)

    def lines(self) -> Iterator[tuple[str, list[Entry]]]:
        """Yield each row's name and cells; differences from a reference are separate lines."""
        columns = self.results.columns
        for row in self.results.rows:
            cells = [self._entry(row, column) for column in columns]
            low, high = row.seeds
            last = (
                *(self._saved(row) if self.is_gated else ()),
                f"{low}" if low == high else f"{low}-{high}",
                _millions(row.mean("trainable_parameters")),
                _time(row.mean("seconds")),
            )
            yield row.name, [*cells, *(Entry(value=text) for text in last)]
            found = self.differences(row)
            if found:
                entries = [Entry(value=f"{found[c]:+.2f}" if c in found else "") for c in columns]
                yield "- reference", [*entries, *(Entry() for _ in last)]

    def _entry(self, row: Row, column: str) -> Entry:
        cell = row.cells.get(column)
        if cell is None:
            return Entry()
        return Entry(
            value=format(cell.mean, cell.form),
            spread="" if cell.std is None else format(cell.std, cell.form),
            mark=self.marks.get((row.name, column), ""),
        )

    def _saved(self, row: Row) -> tuple[str, ...]:
        places = [*GATE_RESULTS.values(), *[_MODEL] * self.counts_models]
        bits, *operations = (row.mean(*place) for place in places)
        shares = ("" if share is None else f"{share:.1%}" for share in operations)
        return _number_text(row.mean_rank), _number_text(bits), *shares

    def caption(self) -> str:
        """Write the line below the table, which tells what its numbers are."""
        outcomes = [outcome for row in self.results.rows for outcome in row.outcomes]
        seconds: list[Any] = [o.result.get("seconds") for o in outcomes]
        text = (
            f"{COUNTED[self.results.at]}, {self._unit()}: mean and standard deviation over seeds; "
            f"params: trained at first; time: of one run on average; {len(outcomes)} "
            f"run{'s' if len(outcomes) > 1 else ''}"
        )
        if all(isinstance(s, int | float) for s in seconds):
            text += f", {_time(sum(seconds))} together"
        if self.is_gated:
            text += (
                "; rank and bits: means over matrices and quantized operands; bit ops: of the "
                "adapters (with base: and of what they adapt), relative to 32 x 32 bits at the "
                "initial rank"
            )
            if self.counts_models:
                text += "; of model: of these and all other linear layers of a language model"
        if self.reference is not None:
            text += f"; reference: {self.reference.source}"
        return text

    def _unit(self) -> str:
        """Write what the scores are: in percent, unless the smallest is the best, as of nll."""
        smaller = self.results.smaller_is_better
        losses = {
            f"{outcome.result['selecting']} of {outcome.column}": None
            for row in self.results.rows
            for outcome in row.outcomes
            if outcome.column in smaller
        }
        named = f"{', '.join(losses)}, of which less is better"
        if not losses:
            return "in percent"
        return named if smaller.issuperset(self.results.columns) else f"in percent but for {named}"

    # ---- as data

    def to_json(self) -> dict[str, Any]:
        """Return {"schema", "at", "columns", "rows": [{"name", "method", "optimizer", "criterion",
        "target_rank", "model", "settings", "values", "std", "scores", "marks",
        "trainable_parameters", "kept_parameters", "seconds", "steps_per_second", "mean_rank",
        "mean_bits", "relative_bit_operations", "relative_bit_operations_with_base", "runs"}]}, and
        "relative_bit_operations_of_model" before "runs" if a row is of a language model with gates.

        `values` (means) and `std` are percent by column, `scores` percent by task and seed, but for
        metrics whose smallest value is the best, which are as they are;
        `settings` tell a row from others of the same method, optimizer, criterion and rank. With a
        reference `reference`, its source, and in rows that it has `difference` by column.
        """
        rows = []
        for row in self.results.rows:
            found: dict[str, Any] = {
                "name": row.name,
                **dict(zip(ROW, row.key, strict=True)),
                "model": row.model,
                "settings": dict(row.settings),
                "values": {c: cell.mean for c, cell in row.cells.items()},
                "std": {c: cell.std for c, cell in row.cells.items()},
                "scores": {
                    column: {str(seed): score for seed, score in cell.scores.items()}
                    for column, cell in row.cells.items()
                    if column not in GROUPS
                },
                "marks": {c: m for (name, c), m in self.marks.items() if name == row.name},
            }
            for name in (
                "trainable_parameters", "kept_parameters", "seconds", "steps_per_second",
            ):  # fmt: skip
                found[name] = row.mean(name)
            found |= self._gated(row)
            found["runs"] = [str(outcome.run.path) for outcome in row.outcomes]
            if difference := self.differences(row):
                found["difference"] = difference
            rows.append(found)
        table = {"schema": SCHEMA, "at": self.results.at, "columns": list(self.results.columns)}
        source = {} if self.reference is None else {"reference": self.reference.source}
        return {**table, **source, "rows": rows}

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield one row per row and column of the table, for scripts."""
        for row in self.results.rows:
            differences = self.differences(row)
            for column, cell in row.cells.items():
                yield {
                    "name": row.name,
                    **dict(zip(ROW, row.key, strict=True)),
                    "model": row.model,
                    "column": column,
                    "mean": cell.mean,
                    "std": cell.std,
                    "seeds": len(cell.scores),
                    "mark": self.marks.get((row.name, column)),
                    "difference": differences.get(column),
                    "trainable_parameters": row.mean("trainable_parameters"),
                    "kept_parameters": row.mean("kept_parameters"),
                    "seconds": row.mean("seconds"),
                    **self._gated(row),
                }

    def _gated(self, row: Row) -> dict[str, float | None]:
        """Return a row's mean rank and the results of its gates; None: it has no such result."""
        return {
            "mean_rank": row.mean_rank,
            **{n: row.mean(*place) for n, place in GATE_RESULTS.items()},
            **({OF_MODEL: row.mean(*_MODEL)} if self.counts_models else {}),
        }


def _number_text(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _millions(parameters: float | None) -> str:
    if parameters is None:
        return ""
    return f"{parameters / 1e6:.2f}M" if parameters >= 1e5 else f"{parameters / 1e3:.1f}k"


def _time(seconds: float | None) -> str:
    return "" if seconds is None else duration(seconds)
