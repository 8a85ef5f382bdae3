"""`Agreement`: how far the allocations of pairs of runs agree."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from typing import Any

import numpy as np

from bayeslora_cli.reports.ranks.run_groups import Group
from bayeslora_cli.runs.rank_report import GATES, RankReport
from bayeslora_cli.tasks.rank_correlation import spearman


@dataclass(frozen=True, kw_only=True, slots=True)
class Agreement:
    """Agreement of pairs of runs in their ranks; an empty tuple or None: undefined."""

    pairs: int
    rank_correlation: tuple[float, ...]
    """Spearman's correlation of the matrices' ranks for each pair; pairs with constant ranks are
    left out."""
    in_common: tuple[float, ...]
    """For each pair, the share of kept triplets that both runs keep: 2 |A and B| / (|A| + |B|).

    A triplet is identified by its index in its matrix. With another seed the same index starts
    from another direction, so the share can only follow from the ranks: compare
    `by_chance_at_ranks`.
    """
    by_chance: float | None
    """Mean share expected if each run kept as many triplets, but drew them from all at random."""
    by_chance_at_ranks: float | None
    """Mean share expected if each run kept its ranks, but drew each matrix's triplets at random."""

    def to_json(self) -> dict[str, Any]:
        """Return means over the pairs, with the smallest and the largest value; null: undefined."""
        return {
            "pairs": self.pairs,
            "rank_correlation": _summary(self.rank_correlation),
            "in_common": _summary(self.in_common),
            "by_chance": self.by_chance,
            "by_chance_at_ranks": self.by_chance_at_ranks,
        }


def within(group: Group) -> Agreement | None:
    """Compare every two runs of a group; None: it has only one run."""
    return _agreement(combinations(group.reports, 2)) if len(group.runs) > 1 else None


def between(a: Group, b: Group) -> Agreement:
    """Compare each run of `a` with each run of `b`."""
    return _agreement(product(a.reports, b.reports))


def _agreement(pairs: Iterable[tuple[RankReport, RankReport]]) -> Agreement:
    count = 0
    correlations, common, chance, chance_at_ranks = [], [], [], []
    for a, b in pairs:
        count += 1
        x, y = (np.array([m.rank for m in report.matrices], dtype=float) for report in (a, b))
        correlation = spearman(x, y)
        if correlation is not None:
            correlations.append(correlation)
        sizes = [m.init_rank for m in a.matrices]
        # gates keep the first triplets of each matrix: the indices tell no more than the ranks
        if GATES in (a.criterion, b.criterion):
            continue
        if sizes != [m.init_rank for m in b.matrices] or not x.any() or not y.any():
            continue
        ours, theirs = (np.array([k for m in report.matrices for k in m.kept]) for report in (a, b))
        total = x.sum() + y.sum()
        common.append(float(2 * (ours & theirs).sum() / total))
        chance.append(float(2 * x.sum() * y.sum() / sum(sizes) / total))
        chance_at_ranks.append(float(2 * (x * y / sizes).sum() / total))
    return Agreement(
        pairs=count,
        rank_correlation=tuple(correlations),
        in_common=tuple(common),
        by_chance=float(np.mean(chance)) if chance else None,
        by_chance_at_ranks=float(np.mean(chance_at_ranks)) if chance_at_ranks else None,
    )


def _summary(values: Sequence[float]) -> dict[str, float] | None:
    if not values:
        return None
    return {"mean": float(np.mean(values)), "min": min(values), "max": max(values)}
