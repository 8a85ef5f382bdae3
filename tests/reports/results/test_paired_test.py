"""The paired test, against scipy's own words and by counting through."""

from __future__ import annotations

from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import rankdata, ttest_rel

from bayeslora_cli.errors import UserError
from bayeslora_cli.reports.results.paired_test import compare, describe, find_row, verdict
from bayeslora_cli.reports.results.rows import Cell, load_results
from tests.support.scored_runs import write_scored, write_sweep


def row(name, **tasks):
    cells = {t: Cell(scores=dict(enumerate(s)), mean=float(np.mean(s))) for t, s in tasks.items()}
    return SimpleNamespace(name=name, cells=cells)


def signed_ranks(differences):
    """Two-sided p by all sign flips of the ranks: the definition."""
    d = np.array([x for x in differences if x != 0])
    if not len(d):
        return 1.0
    ranks = rankdata(np.abs(d))
    observed = ranks[d > 0].sum()
    sums = np.array([np.dot(ranks, signs) for signs in product((0, 1), repeat=len(d))])
    # a little room: ranks are halves, sums of them exact
    low, high = (sums <= observed).mean(), (sums >= observed).mean()
    return min(1.0, 2 * min(low, high))


scores = st.lists(st.integers(0, 6).map(float), min_size=2, max_size=9)


@given(st.data())
@settings(deadline=None, max_examples=40)
def test_p_values(data):
    """Ties and zeros included: scores of small tasks are a few distinct numbers."""
    a = data.draw(scores)
    b = data.draw(st.lists(st.integers(0, 6).map(float), min_size=len(a), max_size=len(a)))
    found = compare(row("a", rte=a), row("b", rte=b))
    d = np.subtract(a, b)
    assert found["pairs"] == len(a)
    assert found["difference"] == pytest.approx(d.mean())
    assert found["wilcoxon"] == pytest.approx(signed_ranks(d))
    if np.ptp(d) > 0:
        assert found["t"] == pytest.approx(ttest_rel(a, b).pvalue)
        low, high = found["interval"]
        assert low < d.mean() < high
    else:
        assert found["t"] is None
    assert found["tasks"]["rte"] == {k: found[k] for k in found["tasks"]["rte"]}


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=30))
@settings(deadline=None, max_examples=30)
def test_it_is_antisymmetric(differences):
    zeros = [0.0] * len(differences)
    there = compare(row("a", rte=differences), row("b", rte=zeros))
    back = compare(row("b", rte=zeros), row("a", rte=differences))
    assert there["difference"] == -back["difference"]
    assert there["wilcoxon"] == pytest.approx(back["wilcoxon"])
    assert there["significant"] == back["significant"]


def test_pairs_are_common_tasks_and_seeds():
    a, b = row("a", rte=[1.0, 2.0, 3.0], mrpc=[5.0]), row("b", rte=[0.0, 0.0], cola=[1.0])
    found = compare(a, b)
    assert found["pairs"] == 2
    assert found["tasks"].keys() == {"rte"}
    a.cells["all"] = b.cells["all"] = Cell(scores={1: 2.0}, mean=2.0)  # no task
    assert compare(a, b)["pairs"] == 2
    with pytest.raises(UserError, match="no task and seed in common"):
        compare(row("a", rte=[1.0]), row("b", mrpc=[1.0]))


def test_what_decides():
    """The signed ranks where they can reach 5%, else the t-test; one pair says nothing."""
    five = compare(row("a", rte=[1.0, 1.1, 0.9, 1.0, 1.2]), row("b", rte=[0.0] * 5))
    assert (five["wilcoxon"], five["by"], five["significant"]) == (0.0625, "t", True)
    assert verdict(five) == "more than noise: the paired t-test over 5 pairs, p < 0.05"
    six = compare(row("a", rte=[1.0] * 6), row("b", rte=[0.0] * 6))
    assert (six["wilcoxon"], six["by"], six["significant"]) == (0.03125, "wilcoxon", True)
    mixed = compare(row("a", rte=[1.0, -1.0, 2.0, -2.0, 3.0, -3.0]), row("b", rte=[0.0] * 6))
    assert verdict(mixed).startswith("no more than noise: Wilcoxon's signed-rank test over 6 pairs")
    one = compare(row("a", rte=[1.0]), row("b", rte=[0.0]))
    assert (one["significant"], one["wilcoxon"], one["t"]) == (False, None, None)
    assert "a single pair" in verdict(one)
    same = compare(row("a", rte=[1.0, 2.0]), row("b", rte=[1.0, 2.0]))
    assert (same["wilcoxon"], same["significant"]) == (1.0, False)
    assert "no more than noise" in verdict(same)


def test_it_is_described():
    a, b = row("a", rte=[1.0, 2.0, 4.0], mrpc=[5.0]), row("b", rte=[0.0] * 3, mrpc=[0.0])
    lines = describe(compare(a, b)).splitlines()
    assert lines[0] == "a minus b"
    assert [line.split()[0] for line in lines[2:-1]] == ["rte", "mrpc", "together"]
    assert lines[3].split() == ["mrpc", "1", "+5.00", "-", "-", "-"]
    assert lines[4].split()[1:3] == ["4", "+3.00"]


def test_small_differences_of_losses_are_written():
    cells = ({"rte": Cell(scores=dict(enumerate(s)), mean=0.6, smaller_is_better=True)}
             for s in ([0.601, 0.6012], [0.6, 0.6]))  # fmt: skip
    lines = describe(
        compare(*(SimpleNamespace(name=n, cells=c) for n, c in zip("ab", cells, strict=True)))
    )
    assert lines.splitlines()[0] == "a minus b, of scores of which less is better"
    assert lines.splitlines()[2].split()[2] == "+0.0011"


def test_rows_are_named_by_their_words(tmp_path):
    write_sweep(tmp_path, tasks=("rte",), seeds=(1,))
    write_scored(tmp_path, "rte", 0.5, seed=1, criterion="snr-abs")
    write_scored(tmp_path, "rte", 0.5, seed=1, lr=3.0)
    results = load_results([tmp_path])
    for text, name in (
        ("snr-abs", "adalora-ivon-snr-abs-r2"),
        ("adamw sensitivity", "adalora-adamw-sensitivity-r2"),
        ("snr lr=3.0", "adalora-ivon-snr-r2 lr=3.0"),
        ("adalora-ivon-snr-r2", "adalora-ivon-snr-r2"),
        ("full", "full-adamw"),
    ):
        assert find_row(results, text).name == name
    with pytest.raises(UserError, match="--paired snr: several rows have this name; give one of"):
        find_row(results, "snr")
    with pytest.raises(UserError, match="--paired blora: no such row; give one of 'full-adamw', "):
        find_row(results, "blora")


def test_an_nll_is_not_put_together_with_an_accuracy(tmp_path):
    """A better nll is smaller, a better accuracy larger: their differences would cancel."""
    for seed in (1, 2, 3):
        for row in ({}, {"criterion": "magnitude"}):
            better = 0.1 * seed if row else 0.0
            nll = {"more_result": {"selecting": "nll"}}
            write_scored(tmp_path / "nll", "rte", 2.5 - better, seed=seed, **row, **nll)
            write_scored(tmp_path / "share", "mrpc", 0.5 + better, seed=seed, **row)
    both = load_results([tmp_path])
    names = [find_row(both, word) for word in ("magnitude", "snr")]
    with pytest.raises(UserError, match="of rte the smallest score is the best"):
        compare(*names)
    alone = load_results([tmp_path / "nll"])
    found = compare(*(find_row(alone, word) for word in ("magnitude", "snr")))
    assert found["difference"] == pytest.approx(-0.2)
