"""Calibration and likelihoods against slow, obvious twins, and at their degenerate points."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from bayeslora_cli.tasks.calibration import (
    ECE_BINS,
    auroc,
    brier,
    ece,
    gaussian_nll,
    nll,
    reliability_bins,
)
from tests.tasks.test_metrics import SCORES, slow_nll

LOGITS = st.integers(1, 3).flatmap(
    lambda extra: st.lists(
        st.tuples(
            st.lists(st.floats(-50, 50, width=32), min_size=extra + 1, max_size=extra + 1),
            st.integers(0, extra),
        ),
        min_size=1,
        max_size=10,
    )
)


@settings(deadline=None)
@given(LOGITS)
def test_nll(rows):
    logits, labels = [row for row, _ in rows], [label for _, label in rows]
    got = nll(torch.tensor(logits), torch.tensor(labels))
    assert got == pytest.approx(slow_nll(logits, labels), rel=1e-12, abs=1e-12)


def test_nll_is_in_nats_and_in_float64():
    assert nll(torch.zeros(5, 3), torch.tensor([0, 1, 2, 0, 1])) == pytest.approx(math.log(3))
    # log1p(exp(-20)) is 2e-9: float32 gives 0
    got = nll(torch.tensor([[20.0, 0.0]], dtype=torch.bfloat16), torch.tensor([0]))
    assert got == pytest.approx(math.log1p(math.exp(-20)), rel=1e-6)


@settings(deadline=None)
@given(SCORES, st.sampled_from([0.5, 0.1, 3.0]))
def test_gaussian_nll(both, variance):
    x, y = both
    density = [
        -math.log(math.exp(-((a - b) ** 2) / (2 * variance)) / math.sqrt(2 * math.pi * variance))
        for a, b in zip(x, y, strict=True)
        if (a - b) ** 2 / variance < 1000  # exp underflows beyond
    ]
    assume(len(density) == len(x))
    got = gaussian_nll(torch.tensor(x)[:, None], torch.tensor(y), variance)
    assert got == pytest.approx(sum(density) / len(density), abs=1e-9)


def test_gaussian_nll_is_squared_error_up_to_a_constant():
    x, y = torch.tensor([1.0, 2.0, 4.0]), torch.tensor([1.5, 2.0, 1.0])
    expected = (0.25 + 0 + 9) / 3 + math.log(math.pi) / 2
    assert gaussian_nll(x, y) == pytest.approx(expected)


PROBABILITIES = st.integers(2, 4).flatmap(
    lambda classes: st.lists(
        st.tuples(
            st.lists(st.integers(1, 1000), min_size=classes, max_size=classes),
            st.integers(0, classes - 1),
        ),
        min_size=1,
        max_size=30,
    )
)


def normalised(rows):
    """Probabilities (n, classes) in fp64, none at a bin's edge nor tied at the top, and labels."""
    weights = torch.tensor([row for row, _ in rows], dtype=torch.float64)
    probabilities = weights / weights.sum(-1, keepdim=True)
    top = probabilities.max(-1).values * ECE_BINS
    assume(bool(((top - top.round()).abs() > 1e-4).all()))
    assume(all(sorted(row)[-1] > sorted(row)[-2] for row, _ in rows))
    return probabilities, torch.tensor([label for _, label in rows])


@settings(deadline=None)
@given(PROBABILITIES)
def test_ece_and_its_bins(rows):
    probabilities, labels = normalised(rows)
    bins = {}
    for row, label in zip(probabilities.tolist(), labels.tolist(), strict=True):
        place = int(max(row) * ECE_BINS)
        bins.setdefault(place, []).append((max(row), row.index(max(row)) == label))
    expected = 0.0
    found = reliability_bins(probabilities, labels)
    assert len(found) == ECE_BINS
    for place, members in bins.items():
        confidence = sum(c for c, _ in members) / len(members)
        accuracy = sum(r for _, r in members) / len(members)
        expected += abs(accuracy - confidence) * len(members) / len(rows)
        assert found[place] == pytest.approx(
            {"rows": len(members), "confidence": confidence, "accuracy": accuracy}
        )
    assert ece(probabilities, labels) == pytest.approx(expected, abs=1e-5)
    assert sum(b["rows"] for b in found) == len(rows)


def test_certainty_shares_the_last_bin():
    """A confidence of 1, or a hair above, is neither a bin of its own nor a logit."""
    top = [1.0, 1.0 + 1e-15, 0.94, 0.95]
    probabilities = torch.tensor([[p, 1 - p] for p in top], dtype=torch.float64).clamp(min=0)
    labels = torch.tensor([0, 1, 0, 1])
    assert ece(probabilities, labels) == pytest.approx((1 + 1 + 0.94 + 0.95) / 4 - 0.5, abs=1e-6)
    assert reliability_bins(probabilities, labels)[-1]["rows"] == 4


@settings(deadline=None)
@given(PROBABILITIES)
def test_brier(rows):
    probabilities, labels = normalised(rows)
    total = 0.0
    for row, label in zip(probabilities.tolist(), labels.tolist(), strict=True):
        total += sum((p - (index == label)) ** 2 for index, p in enumerate(row))
    assert brier(probabilities, labels) == pytest.approx(total / len(rows))
    assert 0 <= brier(probabilities, labels) <= 2


@settings(deadline=None)
@given(SCORES, st.data())
def test_gaussian_nll_of_many_variances(both, data):
    """The mean of each example's own."""
    x, y = map(torch.tensor, both)
    spread = torch.tensor(
        data.draw(st.lists(st.floats(0.125, 8), min_size=len(x), max_size=len(x)))
    )
    rows = zip(x, y, spread.tolist(), strict=True)
    expected = [gaussian_nll(a[None], b[None], v) for a, b, v in rows]
    assert gaussian_nll(x, y, spread) == pytest.approx(sum(expected) / len(x), rel=1e-6)


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=10),
    st.lists(st.integers(0, 5), min_size=1, max_size=10),
)
def test_auroc_counts_pairs(inside, outside):
    wins = sum((b > a) + (b == a) / 2 for a in inside for b in outside)
    got = auroc(torch.tensor(inside).double(), torch.tensor(outside).double())
    assert got == pytest.approx(wins / (len(inside) * len(outside)))
