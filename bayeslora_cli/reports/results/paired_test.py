"""Tests whether two rows of the table differ by more than noise, paired by task and seed."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bayeslora_cli.errors import UserError
from bayeslora_cli.reports.results.outcomes import GROUPS
from bayeslora_cli.reports.results.rows import Results, Row

LEVEL = 0.05
"""Probability under which a difference counts as more than noise."""
EXACT = 16
"""Wilcoxon's test is exact up to this many pairs: it counts all choices of signs, with ties."""


def find_row(results: Results, text: str) -> Row:
    """Find a row by its whole name or by words of it, such as "ivon snr r2".

    Raises:
        UserError: no row fits, or several do.
    """
    rows = results.rows
    exact = [row for row in rows if row.name == text]
    found = exact or [row for row in rows if set(text.split()) <= _words(row)]
    if len(found) == 1:
        return found[0]
    listed = ", ".join(repr(row.name) for row in found or rows)
    what = "several rows have this name" if found else "no such row"
    raise UserError(f"--paired {text}: {what}; give one of {listed}")


def _words(row: Row) -> set[str]:
    *parts, rank = row.key
    return {*row.name.split(), *(part for part in parts if part), f"r{rank}"}


def compare(a: Row, b: Row) -> dict[str, Any]:
    """Test the differences a - b over the tasks and seeds that both rows have.

    Both tests are two-sided. Wilcoxon's signed-rank test assumes no distribution, so tasks of
    different spread may be tested together. Student's paired t-test is for few seeds: with 5 pairs
    the smallest p of Wilcoxon's test is 0.0625.

    Returns:
        {"a", "b", "smaller_is_better", "pairs", "difference", "interval", "wilcoxon", "t",
        "significant", "by", "tasks": {task: the last seven for it only}}. `difference` and
        `interval` (the t-test's, at 95%) are in percent, or as the scores are where the smallest is
        the best. `wilcoxon` and `t` are p-values, null where there are too few pairs. `by` is the
        test that decides: wilcoxon where it can reach 5%, else t.
    Raises:
        UserError: the rows have no pair, or their scores cannot be put together.
    """
    tasks, smaller = {}, {}
    for task, cell in a.cells.items():
        if task in b.cells and task not in GROUPS:
            theirs = b.cells[task].scores
            pairs = [score - theirs[seed] for seed, score in cell.scores.items() if seed in theirs]
            if pairs:
                tasks[task], smaller[task] = pairs, cell.smaller_is_better
    if len(set(smaller.values())) > 1:
        raise UserError(
            f"--paired '{a.name}' '{b.name}': of {', '.join(t for t in tasks if smaller[t])} the "
            "smallest score is the best, of the others the largest; name runs of one kind"
        )
    if not tasks:
        raise UserError(
            f"--paired '{a.name}' '{b.name}': they have no task and seed in common; train both "
            "with the same --seeds"
        )
    together = [difference for pairs in tasks.values() for difference in pairs]
    return {
        "a": a.name,
        "b": b.name,
        "smaller_is_better": any(smaller.values()),
        **_tested(together),
        "tasks": {task: _tested(pairs) for task, pairs in tasks.items()},
    }


def _tested(differences: Sequence[float]) -> dict[str, Any]:
    from scipy import stats

    d = np.array(differences)
    count, moved = len(d), int((d != 0).sum())
    wilcoxon = t = interval = None
    if count > 1:
        if moved <= 1:
            wilcoxon = 1.0
        elif moved <= EXACT:
            wilcoxon = _signed_ranks(d[d != 0])
        else:
            wilcoxon = float(stats.wilcoxon(d, method="approx").pvalue)
        if np.ptp(d) > 0:
            with warnings.catch_warnings():
                # scipy warns of nearly equal numbers; their t is used all the same
                warnings.simplefilter("ignore", RuntimeWarning)
                found = stats.ttest_1samp(d, 0.0)
            t, bounds = float(found.pvalue), found.confidence_interval(0.95)
            interval = [float(bounds.low), float(bounds.high)]
    reaches = 2.0 ** (1 - moved) < LEVEL
    by = "wilcoxon" if reaches or t is None else "t"
    p = wilcoxon if by == "wilcoxon" else t
    return {
        "pairs": count,
        "difference": float(d.mean()),
        "interval": interval,
        "wilcoxon": wilcoxon,
        "t": t,
        "significant": p is not None and p < LEVEL,
        "by": by,
    }


def _signed_ranks(differences: NDArray[np.float64]) -> float:
    """Return the exact two-sided p of Wilcoxon's test of (n,) differences, none of them zero.

    The sums of ranks under all choices of signs are counted rank by rank. (scipy's exact test does
    not allow ties; its permutation test goes through all choices, which takes hundreds of times as
    long.)
    """
    from scipy.stats import rankdata

    ranks = (2 * rankdata(np.abs(differences))).astype(int)  # ties have half ranks
    counts = np.ones(1)  # by sum
    for rank in ranks:
        counts = np.pad(counts, (0, rank)) + np.pad(counts, (rank, 0))
    found = ranks[differences > 0].sum()
    tail = min(counts[: found + 1].sum(), counts[found:].sum())
    return min(1.0, float(2 * tail / counts.sum()))


def describe(found: dict[str, Any]) -> str:
    """Write the outcome: one line per task, one for all together, and a sentence."""
    parts = {**found["tasks"], "together": found} if len(found["tasks"]) > 1 else found["tasks"]
    width = max(map(len, parts))
    form, of = "+.2f", ""
    if found["smaller_is_better"]:
        form, of = "+.4f", ", of scores of which less is better"
    lines = [f"{found['a']} minus {found['b']}{of}"]
    lines.append(f"{'':{width}}  pairs  difference  95% interval       Wilcoxon p  t-test p")
    for name, test in parts.items():
        difference = format(test["difference"], form)
        low_high = " to ".join(format(end, form) for end in test["interval"] or ()) or "-"
        lines.append(
            f"{name:{width}}  {test['pairs']:5}  {difference:>10}  {low_high:17}  "
            f"{_p(test['wilcoxon']):>10}  {_p(test['t']):>8}"
        )
    lines.append(verdict(found))
    return "\n".join(lines)


def verdict(found: dict[str, Any]) -> str:
    """Say in a sentence whether the difference is more than noise."""
    name = {"wilcoxon": "Wilcoxon's signed-rank test", "t": "the paired t-test"}[found["by"]]
    if found[found["by"]] is None:
        return "a single pair says nothing about noise"
    if found["significant"]:
        return f"more than noise: {name} over {found['pairs']} pairs, p < {LEVEL}"
    return f"no more than noise: {name} over {found['pairs']} pairs, p >= {LEVEL}"


def _p(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
