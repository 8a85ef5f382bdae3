"""Metrics against slow, obvious twins in plain Python floats, and at their degenerate points."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from bayeslora_cli.config.catalogue import METRICS, implementation
from bayeslora_cli.tasks.calibration import nll
from tests.support.objectives import SCORE, TWO_CLASSES


def metric(name):
    return implementation(METRICS[name].implementation)


def slow_accuracy(predictions, labels):
    return sum(p == l for p, l in zip(predictions, labels, strict=True)) / len(labels)


def slow_f1(predictions, labels):
    pairs = list(zip(predictions, labels, strict=True))
    tp = pairs.count((1, 1))
    wrong = pairs.count((1, 0)) + pairs.count((0, 1))
    return 2 * tp / (2 * tp + wrong) if tp + wrong else 0.0


def slow_pearson(x, y):
    mean_x, mean_y = math.fsum(x) / len(x), math.fsum(y) / len(y)
    dx, dy = [a - mean_x for a in x], [b - mean_y for b in y]
    norm = math.sqrt(math.fsum(a * a for a in dx)) * math.sqrt(math.fsum(b * b for b in dy))
    return math.fsum(a * b for a, b in zip(dx, dy, strict=True)) / norm


def slow_ranks(x):
    """1 + the number of smaller values + half the number of other equal ones."""
    return [1 + sum(b < a for b in x) + (sum(b == a for b in x) - 1) / 2 for a in x]


def slow_matthews(predictions, labels):
    """For k classes: the correlation of the two one-hot codings (Gorodkin, 2004)."""
    classes = sorted({*predictions, *labels})

    def covariance(a, b):
        total = 0.0
        for c in classes:
            x, y = [float(v == c) for v in a], [float(v == c) for v in b]
            mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
            total += sum((s - mean_x) * (t - mean_y) for s, t in zip(x, y, strict=True))
        return total

    norm = math.sqrt(covariance(predictions, predictions) * covariance(labels, labels))
    return covariance(predictions, labels) / norm if norm else 0.0


def slow_nll(logits, labels):
    total = 0.0
    for row, label in zip(logits, labels, strict=True):
        top = max(row)
        total += top + math.log(math.fsum(math.exp(v - top) for v in row)) - row[label]
    return total / len(labels)


def pairs(values, min_size=1):
    """Two lists of the same length."""
    both = st.lists(st.tuples(values, values), min_size=min_size, max_size=30)
    return both.map(lambda rows: tuple(map(list, zip(*rows, strict=True))))


BINARY = pairs(st.integers(0, 1))
CLASSES = pairs(st.integers(0, 2))
# multiples of 1/8: ties are frequent, and the twins lose nothing to cancellation
SCORES = pairs(st.integers(-40, 40).map(lambda k: k / 8), min_size=2)


@settings(deadline=None)
@given(CLASSES)
def test_accuracy(both):
    assert metric("accuracy")(*map(torch.tensor, both)) == pytest.approx(slow_accuracy(*both))


@settings(deadline=None)
@given(BINARY)
def test_f1(both):
    assert metric("f1")(*map(torch.tensor, both)) == pytest.approx(slow_f1(*both))


@settings(deadline=None)
@given(CLASSES)
def test_macro_f1(both):
    """The mean of F1 over the classes that occur, each in turn the one that counts."""
    predictions, labels = both
    found = [
        slow_f1([int(p == c) for p in predictions], [int(y == c) for y in labels])
        for c in {*predictions, *labels}
    ]
    got = metric("macro_f1")(*map(torch.tensor, both))
    assert got == pytest.approx(sum(found) / len(found))


@settings(deadline=None)
@given(CLASSES)
def test_weighted_f1(both):
    """The mean of the labels' F1, each counted once per row that has it."""
    predictions, labels = both
    found = [slow_f1([int(p == y) for p in predictions], [int(o == y) for o in labels])
             for y in labels]  # fmt: skip
    got = metric("weighted_f1")(*map(torch.tensor, both))
    assert got == pytest.approx(sum(found) / len(found))


@settings(deadline=None)
@given(CLASSES)
def test_auroc(both):
    """The chance that a row of a class is given more of it than another row; ties count half."""
    scores, labels = both
    given_rows = torch.tensor([[s, 1 - s / 2, 0.5] for s in scores], dtype=torch.float64)
    areas = []
    for c in range(3):
        own = [row[c] for row, y in zip(given_rows.tolist(), labels, strict=True) if y == c]
        others = [row[c] for row, y in zip(given_rows.tolist(), labels, strict=True) if y != c]
        wins = [(a > b) + (a == b) / 2 for a in own for b in others]
        areas += [sum(wins) / len(wins)] if wins else []
    expected = sum(areas) / len(areas) if areas else 0.5
    assert metric("auroc")(given_rows, torch.tensor(labels)) == pytest.approx(expected)


@settings(deadline=None)
@given(SCORES)
def test_errors_of_scores(both):
    errors = [abs(x - y) for x, y in zip(*both, strict=True)]
    predictions, labels = map(torch.tensor, both)
    assert metric("mae")(predictions, labels) == pytest.approx(sum(errors) / len(errors))
    square = sum(e * e for e in errors) / len(errors)
    assert metric("rmse")(predictions, labels) == pytest.approx(math.sqrt(square))


@settings(deadline=None)
@given(CLASSES)
def test_matthews(both):
    expected = slow_matthews(*both)
    assert metric("matthews")(*map(torch.tensor, both)) == pytest.approx(expected, abs=1e-9)


@settings(deadline=None)
@given(SCORES)
def test_correlations(both):
    x, y = both
    assume(len(set(x)) > 1 and len(set(y)) > 1)
    got = metric("pearson")(torch.tensor(x), torch.tensor(y))
    assert got == pytest.approx(slow_pearson(x, y), abs=1e-9)
    got = metric("spearman")(torch.tensor(x), torch.tensor(y))
    assert got == pytest.approx(slow_pearson(slow_ranks(x), slow_ranks(y)), abs=1e-9)


def test_f1_and_matthews_count_errors_on_the_right_side():
    predictions, labels = torch.tensor([1, 1, 1, 0, 0]), torch.tensor([1, 1, 0, 1, 0])
    assert metric("f1")(predictions, labels) == pytest.approx(2 / 3)
    assert metric("f1")(1 - predictions, 1 - labels) == pytest.approx(1 / 2)
    assert metric("matthews")(predictions, labels) == pytest.approx(1 / 6)


@pytest.mark.parametrize("name", ["matthews", "pearson", "spearman"])
@pytest.mark.parametrize(
    ("predictions", "labels"),
    [([1, 1, 1], [0, 1, 1]), ([0, 1, 1], [0, 0, 0]), ([1, 1], [1, 1]), ([1], [0])],
)
def test_constant_input_scores_zero_without_warnings(name, predictions, labels):
    score = metric(name)(torch.tensor(predictions), torch.tensor(labels))
    assert score == 0.0


@pytest.mark.parametrize("labels", [[0, 0], [1, 0]])
def test_f1_without_positive_predictions_is_zero(labels):
    assert metric("f1")(torch.tensor([0, 0]), torch.tensor(labels)) == 0.0


def test_nearly_constant_scores_raise_no_warning():
    predictions = 1 + torch.tensor([0.0, 1.0, 2.0, 3.0], dtype=torch.float64) * 2.3e-16
    score = metric("pearson")(predictions, torch.tensor([0.0, 1.0, 2.0, 3.0]))
    assert 0.5 < score <= 1


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_non_finite_values_give_nan(bad):
    labels = torch.tensor([1.0, 2.0, 3.0])
    for name in ("pearson", "spearman"):
        assert math.isnan(metric(name)(torch.tensor([1.0, bad, 2.0]), labels))
    assert math.isnan(nll(torch.tensor([[0.0, bad]]), torch.tensor([1])))


def test_task_metrics_of_a_classification():
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [0.0, 3.0], [1.0, 0.0]])
    labels = torch.tensor([0, 1, 0, 1])
    got = TWO_CLASSES.training_metrics(["accuracy", "f1"], logits, labels)
    assert list(got) == ["accuracy", "f1", "nll"]
    assert got["accuracy"] == 0.5
    assert got["f1"] == 0.5
    assert got["nll"] == pytest.approx(slow_nll(logits.tolist(), labels.tolist()))


@pytest.mark.parametrize("method", ["metrics", "training_metrics"])
def test_task_metrics_of_a_regression(method):
    """Of scores (n,), and of logits (n, 1)."""
    x, y = [0.5, 2.0, 1.0, 4.0], [0.0, 1.0, 2.0, 5.0]
    scores = torch.tensor(x).reshape((-1,) if method == "metrics" else (-1, 1)).requires_grad_()
    got = getattr(SCORE, method)(["pearson", "spearman"], scores, torch.tensor(y))
    pearson, spearman = slow_pearson(x, y), slow_pearson(slow_ranks(x), slow_ranks(y))
    assert pearson != pytest.approx(spearman)
    errors = {"mae": 3.5 / 4, "rmse": math.sqrt(3.25 / 4)} if method == "metrics" else {}
    assert got == pytest.approx(
        {
            "pearson": pearson,
            "spearman": spearman,
            "pearson_spearman": (pearson + spearman) / 2,
            "nll": (0.25 + 1 + 1 + 1) / 4 + math.log(math.pi) / 2,
            **errors,
        }
    )
