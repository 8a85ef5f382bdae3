"""Spearman's rank correlation against scipy's."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ConstantInputWarning, spearmanr

from bayeslora_cli.reports.ranks import rank_agreement
from bayeslora_cli.tasks import metrics, rank_correlation
from bayeslora_cli.tasks.rank_correlation import spearman


def test_there_is_one():
    assert rank_agreement.spearman is metrics.rank_correlation.spearman is rank_correlation.spearman


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=2, max_size=20))
@pytest.mark.filterwarnings("ignore::scipy.stats.ConstantInputWarning")
def test_spearman_is_scipys(pairs):
    x, y = np.array(pairs, dtype=float).T
    found, wanted = spearman(x, y), spearmanr(x, y).statistic
    assert (found is None) == np.isnan(wanted)
    assert found is None or found == pytest.approx(wanted)


def test_scipy_warns_where_there_is_no_correlation():
    """What the test above ignores is what it says."""
    with pytest.warns(ConstantInputWarning):
        assert np.isnan(spearmanr([1, 1], [1, 2]).statistic)
