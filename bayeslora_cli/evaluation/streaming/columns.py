"""The columns that predictions of a window of rows have beside those of the input."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from bayeslora_cli.errors import UserError
from bayeslora_cli.evaluation.predictive import Predictive
from bayeslora_cli.tasks.shortest_numbers import shortest_numbers

MOST_CLASSES = 20
"""With more classes only the likeliest are written, unless the user asks otherwise."""
USUAL_TOP = 5


class PredictedRows(NamedTuple):
    """Rows with their predictions."""

    columns: dict[str, Sequence[Any]]
    """By name, all of one length: the kept ones of the input, then the predictions."""
    ours: int
    """Number of columns, the last ones, that hold predictions."""

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(next(reversed(self.columns.values())))


def predicted_columns(
    found: Predictive, *, sampled: bool, top: int | None = None, items: Tensor | None = None
) -> dict[str, list[Any]]:
    """Return the columns of n predictions, as files and `Run.predict_rows` show them.

    The first, `Objective.column`, is what `Objective.decide` and `spell` make of them. Classes have
    probabilities: `p(CLASS)` each, or with `top` the likeliest: `top1`, `p(top1)`, `top2` and so
    on. Then come `Predictive.measures`. Columns have the names of `eval --predictions`.

    Args:
        sampled: whether the predictions are averages over samples.
        top: number of likeliest classes to name; None: all, or `USUAL_TOP` of more than
            `MOST_CLASSES`.
        items: (rows,) number of predictions of each row, of kinds that predict several: each column
            then has a list for each row; None: one.
    """
    objective, values = found.objective, found.values.float()
    columns: dict[str, list[Any]] = {objective.column: objective.spell(objective.decide(values))}
    classes = objective.classes
    if classes and values.ndim == 2 and values.shape[1] == len(classes):
        columns |= _shares(values, classes, top)
    for name, measure in found.measures(sampled=sampled).items():
        columns[name] = shortest_numbers(measure.float())
    if items is None:
        return columns
    ends = items.cumsum(0).tolist()
    starts = [0, *ends[:-1]]
    return {
        name: [column[start:end] for start, end in zip(starts, ends, strict=True)]
        for name, column in columns.items()
    }


def _shares(values: Tensor, classes: Sequence[str], top: int | None) -> dict[str, list[Any]]:
    """Return the columns of probabilities (n, classes): of all classes, or of the likeliest."""
    if top is None and len(classes) > MOST_CLASSES:
        top = USUAL_TOP
    if top is None:
        names = [f"p({name})" for name in classes]
        return dict(zip(names, shortest_numbers(values.t()), strict=True))
    columns: dict[str, list[Any]] = {}
    best = values.sort(dim=-1, descending=True, stable=True)
    for place in range(min(top, len(classes))):
        named = [classes[index] for index in best.indices[:, place].tolist()]
        columns[f"top{place + 1}"] = named
        columns[f"p(top{place + 1})"] = shortest_numbers(best.values[:, place])
    return columns


def beside(
    kept: Mapping[str, Sequence[Any]], predicted: Mapping[str, Sequence[Any]]
) -> PredictedRows:
    """Put predictions behind the kept columns of the input.

    Raises:
        UserError: two columns have one name.
    """
    both = sorted(kept.keys() & predicted.keys())
    if both:
        raise UserError(
            f"the input has a column {both[0]!r}, as the predictions have; name the columns to "
            "keep by --keep, or none by --keep ''"
        )
    return PredictedRows(columns={**kept, **predicted}, ours=len(predicted))
