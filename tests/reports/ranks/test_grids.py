"""Grids against the reports that they are made of."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bayeslora_cli.reports.ranks.grids import (
    PAPER_KINDS,
    bit_grid,
    difference_grid,
    mean_grid,
    rank_grid,
)
from bayeslora_cli.reports.ranks.heatmap import draw_grid
from bayeslora_cli.reports.ranks.rank_agreement import within
from tests.reports.ranks.test_heatmap import (
    DIGITS,
    WIDTHS,
    full_report,
    matrix,
    quantized,
    report,
    reports,
)
from tests.support.ranked_runs import PRUNED_REPORTS, allocation, group, with_kept

groups = st.lists(PRUNED_REPORTS, min_size=1, max_size=4).map(group)


def numbers(grid):
    """Every number of a grid by what it is of; None left out."""
    inside = {
        (kind, layer): value
        for kind, row in zip(grid.kinds, grid.values, strict=True)
        for layer, value in zip(grid.layers, row, strict=True)
    }
    return {k: v for k, v in (inside | dict(grid.outside)).items() if v is not None}


@settings(max_examples=60, deadline=None)
@given(groups)
def test_means_and_deviations(some):
    grid = mean_grid(some)
    grids = [numbers(rank_grid(report)) for report in some.reports]
    for key, value in numbers(grid).items():
        values = [found[key] for found in grids]
        assert value == pytest.approx(np.mean(values))
        if len(values) > 1:
            assert numbers(grid.spread)[key] == pytest.approx(np.std(values, ddof=1))
    assert (grid.spread is None) == (len(grids) == 1)
    assert sum(numbers(grid).values()) == pytest.approx(some.ranks.sum() / len(grids))


@settings(max_examples=20, deadline=None)
@given(st.lists(PRUNED_REPORTS, min_size=2, max_size=3))
def test_the_order_of_runs_does_not_matter(some):
    wanted = mean_grid(group(some))
    for order in permutations(some):
        found = mean_grid(group(order))
        assert numbers(found) == pytest.approx(numbers(wanted))
        assert numbers(found.spread) == pytest.approx(numbers(wanted.spread))
        assert within(group(order)).by_chance == pytest.approx(within(group(some)).by_chance)


@settings(max_examples=60, deadline=None)
@given(groups, groups)
def test_a_difference_is_antisymmetric(a, b):
    there, back = numbers(difference_grid(a, b)), numbers(difference_grid(b, a))
    assert there == {key: -value for key, value in back.items()}
    means = numbers(mean_grid(a)), numbers(mean_grid(b))
    assert there == pytest.approx({key: means[0][key] - means[1][key] for key in there})
    assert not any(numbers(difference_grid(a, a)).values())


def test_matrices_in_one_cell_are_summed_before_the_deviation():
    """In a report from elsewhere: the deviation of their sum, not the sum of their deviations."""
    experts = ["encoder.layer.0.experts.0.w1", "encoder.layer.0.experts.1.w1"]
    like = allocation(experts)
    like = replace(like, matrices=tuple(replace(m, kind="w1") for m in like.matrices))
    one = with_kept(like, [[True] * 3, [False] * 3])
    other = with_kept(like, [[False] * 3, [True] * 3])
    grid = mean_grid(group([one, other]))
    assert numbers(grid) == {("w1", 0): 3.0}
    assert numbers(grid.spread) == {("w1", 0): 0.0}


@settings(max_examples=80, deadline=None)
@given(reports)
def test_the_grid_holds_every_rank(ranks):
    grid = rank_grid(ranks)
    for kind, row in zip(grid.kinds, grid.values, strict=True):
        for layer, value in zip(grid.layers, row, strict=True):
            there = [m.rank for m in ranks.matrices if (m.kind, m.layer) == (kind, layer)]
            assert value == (sum(there) if there else None)
    for kind, value in grid.outside:
        assert value == sum(m.rank for m in ranks.matrices if (m.kind, m.layer) == (kind, None))
    inside = sum(v or 0 for row in grid.values for v in row)
    assert inside + sum(v for _, v in grid.outside) == ranks.budget
    assert list(grid.layers) == sorted(set(grid.layers))


def test_rows_are_in_the_papers_order():
    """Then what the paper has not, as the model has it."""
    kinds = ("zeta", "W_f2", "W_gate", "W_k", "alpha", "W_q", "W_f1", "W_v", "W_o")
    assert rank_grid(full_report(2, kinds)).kinds == (*PAPER_KINDS, "zeta", "W_gate", "alpha")


def test_the_budget_is_told():
    ranks = report([matrix("W_q", 0, 1, 3), matrix("W_k", 0, 2, 3), matrix("W_pool", None, 0, 3)])
    assert rank_grid(ranks).caption == "3 of 9 triplets kept (33%), mean rank 1.00 of 3 matrices"


def test_widths_are_averaged():
    """Over operands, over matrices that share a place, over runs; rows and columns end in means."""
    grid = bit_grid([WIDTHS])
    assert grid.values == ((2, 6), (16, 3))
    assert grid.outside == (("W_pool", 8),)
    assert (grid.row_sums, grid.column_sums, grid.total) == ([4, 9.5], [9, 4.5], 6.75)
    assert "mean width 7.00 bits" in grid.caption
    other = quantized((4, 4), (4, 8), (16, 16), (2, 4), (8, 8))
    both = bit_grid([WIDTHS, other])
    assert both.values == ((3, 6), (16, 3))
    assert "mean over 2 runs" in both.caption
    assert bit_grid([WIDTHS, full_report(1)]) is None
    assert bit_grid([report([])]) is None
    text = draw_grid(grid, width=80, **DIGITS).plain
    assert text.splitlines()[0].split() == ["layer", "0", "1", "mean"]
    assert text.splitlines()[1].split() == ["W_q", "2.0", "6.0", "4.0"]
