"""Reads the history of a group's ranks and bit widths from the runs' ranks.jsonl."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from bayeslora_cli.errors import RunDirError, UserError
from bayeslora_cli.reports.ranks.history import History, Ints, Turns
from bayeslora_cli.reports.ranks.run_groups import Group
from bayeslora_cli.runs.directory import RunDir
from bayeslora_cli.runs.rank_report import FLOAT_BITS, RankReport
from bayeslora_cli.tasks.rank_correlation import Floats


def load_history(group: Group) -> History:
    """Read the history of a group's runs.

    Raises:
        UserError: the ranks are constant, the runs differ in length, or a file is missing or
            corrupt.
    """
    runs = list(zip(group.runs, group.reports, strict=True))
    for run, report in runs:
        if report.criterion is None:
            raise UserError(
                f"--history: the ranks of {run.path} are constant, it has no criterion; leave it "
                "out"
            )
        if report.step != group.reports[0].step:
            raise UserError(
                f"--history: {group.runs[0].path} has {group.reports[0].step + 1} steps, "
                f"{run.path} {report.step + 1}; show runs of one length"
            )
    changes = [read_changes(run, report) for run, report in runs]
    steps = np.unique(np.concatenate([s for s, *_ in changes]))
    at = [np.searchsorted(s, steps, side="right") - 1 for s, *_ in changes]
    initial = np.array([m.init_rank for m in group.matrices], dtype=float)
    first, settled = _turns([(s, own, initial) for s, own, _ in changes])
    found = History(
        group=group,
        steps=steps,
        ranks=np.mean([own[i] for (_, own, _), i in zip(changes, at, strict=True)], axis=0),
        first_loss=first,
        settled=settled,
    )
    widths = [(s, bits) for s, _, bits in changes if bits is not None]
    if len(widths) < len(changes):
        return found
    first, settled = _turns([_quantized(s, bits) for s, bits in widths])
    bits = np.mean([own[i] for (_, own), i in zip(widths, at, strict=True)], axis=0)
    return replace(found, bits=bits, first_narrower=first, settled_bits=settled)


def read_changes(run: RunDir, report: RankReport) -> tuple[Ints, Floats, Floats | None]:
    """Read the steps (t,) at which a run's ranks or bit widths changed; the first step is 0.

    Returns:
        The steps; the ranks and the mean bit widths (t, matrices) from each step on. The widths
        are None if nothing is quantized.
    Raises:
        RunDirError: the file is missing or corrupt.
    """
    return parse_changes(run.read_text(run.ranks_history), str(run.ranks_history), report)


def parse_changes(text: str, name: str, report: RankReport) -> tuple[Ints, Floats, Floats | None]:
    """Read the changes, as `read_changes` returns them, from the text of ranks.jsonl.

    Args:
        name: the file's name, for messages.
    Raises:
        RunDirError: the text is corrupt.
    """
    initial = [m.init_rank for m in report.matrices]
    quantized = all(m.bits is not None for m in report.matrices)
    steps, ranks = [0], [initial]  # the values until the first change
    bits = [[float(FLOAT_BITS)] * len(initial)]
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            value = json.loads(line)
            step, row = value["step"], [value["ranks"][m.name] for m in report.matrices]
            widths = [
                fmean(value["bits"][m.name].values()) if quantized else bits[0][i]
                for i, m in enumerate(report.matrices)
            ]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise RunDirError(f"{name}, line {number}: corrupt: {error}") from error
        whole = all(isinstance(v, int) for v in (step, *row))
        if (
            not whole
            or not all(0 <= r <= top for r, top in zip(row, initial, strict=True))
            or not all(1 <= width <= FLOAT_BITS for width in widths)
            or not (steps[-1] < step or number == 1)
            or not 0 <= step <= report.step
        ):
            raise RunDirError(f"{name}, line {number}: corrupt: not ranks at a later step")
        # the first line repeats the initial ranks if no triplet was lost yet
        if (row, widths) == (ranks[-1], bits[-1]):
            continue
        if step == 0:
            steps, ranks, bits = [], [], []
        steps.append(step)
        ranks.append(row)
        bits.append(widths)
    found = np.array(steps, dtype=np.int64), np.array(ranks, dtype=float)
    return *found, np.array(bits) if quantized else None


def _quantized(steps: Ints, bits: Floats) -> tuple[Ints, Floats, Floats]:
    """Leave out the steps before all operands are quantized.

    Returns:
        The remaining steps (t,) and widths (t, matrices), and the first widths (1, matrices).
    """
    there = np.flatnonzero((bits < FLOAT_BITS).all(axis=1))
    return steps[there], bits[there], bits[there[:1]].reshape(-1, bits.shape[1])


def _turns(courses: Sequence[tuple[Ints, Floats, Floats]]) -> tuple[Turns, Turns]:
    """Find for each matrix the step at which its number first fell, and that of its last change.

    Args:
        courses: for each run the steps (t,), the numbers (t, matrices) and the numbers before the
            first step.
    """
    first, last = [], []
    for steps, own, initial in courses:
        before = np.vstack([initial, own[:-1]])
        first.append(_when(steps, own < before, last=False))
        last.append(_when(steps, own != before, last=True))
    return _means(first), _means(last)


def _when(steps: Ints, happens: NDArray[np.bool_], *, last: bool) -> Floats:
    """Return the first or last step at which `happens` is true for each matrix: (matrices,).

    NaN: never.
    """
    order = slice(None, None, -1 if last else 1)
    where = np.argmax(happens[order], axis=0)
    return np.where(happens.any(axis=0), steps[order][where], np.nan)


def _means(steps: list[Floats]) -> Turns:
    """Average each matrix's step over the runs that have one; None: no run has."""
    columns = (column[~np.isnan(column)] for column in np.array(steps).T)
    return tuple(float(column.mean()) if column.size else None for column in columns)
