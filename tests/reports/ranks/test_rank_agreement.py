"""How far runs agree, and how far they would by chance."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bayeslora_cli.reports.ranks.rank_agreement import between, within
from tests.support.ranked_runs import (
    PRUNED_REPORTS,
    allocation,
    constant,
    group,
    names,
    with_kept,
)

NAMES = names(2)


@settings(max_examples=60, deadline=None)
@given(st.lists(PRUNED_REPORTS, min_size=2, max_size=4))
def test_triplets_in_common(some):
    found = within(group(some))
    wanted = []
    for a, b in combinations(some, 2):
        ours, theirs = (
            {(m.name, i) for m in r.matrices for i, k in enumerate(m.kept) if k} for r in (a, b)
        )
        if ours and theirs:
            wanted.append(2 * len(ours & theirs) / (len(ours) + len(theirs)))
    assert found.pairs == len(some) * (len(some) - 1) // 2
    assert list(found.in_common) == pytest.approx(wanted)


@settings(max_examples=40, deadline=None)
@given(PRUNED_REPORTS)
def test_a_run_agrees_with_itself(report):
    found = between(group([report]), group([report]))
    kept_any = report.budget > 0
    assert found.in_common == ((1.0,) if kept_any else ())
    assert found.rank_correlation in ((), (pytest.approx(1),))
    if kept_any:
        assert found.by_chance == pytest.approx(report.budget / 39)
        assert found.by_chance - 1e-12 <= found.by_chance_at_ranks <= 1 + 1e-12


def test_chance_levels_are_what_chance_gives():
    """Against draws: triplets of all matrices, and triplets in each matrix at its rank."""
    rng = np.random.default_rng(0)
    one, two = allocation(NAMES, seed=1), allocation(NAMES, seed=2, share=0.4)
    found = between(group([one]), group([two]))
    anywhere, at_ranks = [], []
    for _ in range(600):
        masks = []
        for report in (one, two):
            flat = rng.permutation([k for m in report.matrices for k in m.kept])
            masks.append(with_kept(report, flat.reshape(-1, 3).tolist()))
        anywhere += between(group(masks[:1]), group(masks[1:])).in_common
        masks = [
            with_kept(r, [rng.permutation(m.kept).tolist() for m in r.matrices]) for r in (one, two)
        ]
        at_ranks += between(group(masks[:1]), group(masks[1:])).in_common
    for drawn, expected in ((anywhere, found.by_chance), (at_ranks, found.by_chance_at_ranks)):
        assert np.mean(drawn) == pytest.approx(expected, abs=4 * np.std(drawn) / len(drawn) ** 0.5)
    assert abs(found.by_chance - found.by_chance_at_ranks) > 0.01


def test_constant_ranks_have_no_correlation():
    lora = constant(allocation(NAMES, share=1))
    found = within(group([lora, lora])).to_json()
    assert found["rank_correlation"] is None
    assert found["in_common"] == {"mean": 1.0, "min": 1.0, "max": 1.0}


def test_one_run_agrees_with_nobody():
    assert within(group([allocation(NAMES)])) is None
