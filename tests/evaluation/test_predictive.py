"""The predictive distribution against sums over the samples, written out."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bayeslora_cli.evaluation.predictive import Predictive
from bayeslora_cli.tasks.calibration import brier, ece, gaussian_nll, nll
from bayeslora_cli.tasks.metrics import accuracy
from bayeslora_cli.tasks.objectives.objective import build_objective
from tests.support.decoders import CAUSAL

SHAPES = st.tuples(st.integers(1, 6), st.integers(1, 7), st.integers(2, 4))  # S, n, classes


def random_logits(samples, rows, outputs, seed, scale=3.0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(samples, rows, outputs, generator=generator) * scale


def predictive_of(logits, classes):
    names = tuple(map(str, range(classes or 0)))
    found = Predictive(build_objective("classification" if classes else "regression", names))
    for sample in logits:
        found.add(sample)
    return found


def slow_entropy(row):
    return -sum(p * math.log(p) for p in row if p > 0)


@settings(deadline=None)
@given(SHAPES, st.integers(0, 99))
def test_classes(shape, seed):
    """Probabilities are averaged, not logits; what the samples agree on is no information."""
    samples, rows, classes = shape
    logits = random_logits(*shape, seed)
    found = predictive_of(logits, classes)
    probabilities = logits.double().softmax(-1)
    mean = probabilities.mean(0)
    torch.testing.assert_close(found.values, mean, rtol=1e-12, atol=1e-15)
    uncertainty = found.uncertainty(sampled=True)
    for row in range(rows):
        total = slow_entropy(mean[row].tolist())
        own = sum(slow_entropy(p[row].tolist()) for p in probabilities) / samples
        assert float(uncertainty["entropy"][row]) == pytest.approx(total, abs=1e-12)
        assert float(uncertainty["mutual_information"][row]) == pytest.approx(
            total - own, abs=1e-12
        )
    assert bool((uncertainty["mutual_information"] >= 0).all())
    assert found.uncertainty(sampled=False).keys() == {"entropy"}

    labels = torch.randint(classes, (rows,), generator=torch.Generator().manual_seed(seed))
    assert found.metrics(("accuracy",), labels) == pytest.approx(
        {
            "accuracy": accuracy(mean.argmax(-1), labels),
            "nll": nll(mean.log(), labels),
            "ece": ece(mean, labels),
            "brier": brier(mean, labels),
        },
        abs=1e-6,
    )


@settings(deadline=None)
@given(st.integers(1, 6), st.integers(2, 7), st.integers(0, 99))
def test_scores(samples, rows, seed):
    """The variance is the samples' about their mean, without bias, and the noise's 1/2."""
    logits = random_logits(samples, rows, 1, seed)
    found = predictive_of(logits, None)
    scores = logits.double().squeeze(-1)
    mean = scores.mean(0)
    variance = scores.var(0, correction=1) if samples > 1 else torch.zeros(rows).double()
    torch.testing.assert_close(found.values, mean, rtol=1e-12, atol=1e-14)
    uncertainty = found.uncertainty(sampled=True)
    assert uncertainty.keys() == {"variance"}
    torch.testing.assert_close(uncertainty["variance"], variance, rtol=1e-9, atol=1e-14)
    assert found.uncertainty(sampled=False) == {}
    labels = torch.randn(rows, generator=torch.Generator().manual_seed(seed))
    metrics = found.metrics(("pearson", "spearman"), labels)
    assert metrics["nll"] == pytest.approx(gaussian_nll(mean, labels, variance + 0.5))
    assert metrics.keys() == {"pearson", "spearman", "pearson_spearman", "nll", "mae", "rmse"}


@pytest.mark.parametrize("classes", [3, None])
def test_samples_that_agree_are_the_mean(classes):
    """To the bit, so that a temperature of 0 has no uncertainty about the weights."""
    logits = random_logits(1, 5, classes or 1, 0)
    once, often = (predictive_of(logits.expand(n, -1, -1), classes) for n in (1, 7))
    assert torch.equal(once.values, often.values)
    information = often.uncertainty(sampled=True)["mutual_information" if classes else "variance"]
    assert torch.equal(information, torch.zeros(5, dtype=torch.float64))


def test_certainty_of_the_wrong_class_costs_a_finite_number():
    found = predictive_of(torch.tensor([[[2000.0, 0.0]]]), 2)
    assert 700 < found.metrics(("accuracy",), torch.tensor([1]))["nll"] < math.inf
    assert found.uncertainty(sampled=True)["entropy"].tolist() == [0.0]


def test_rows_of_tokens_vary_in_their_mean_log_likelihood():
    """Of (n, 2) sums and counts: the unbiased variance of sum / count over the samples."""
    generator = torch.Generator().manual_seed(2)
    counts = torch.tensor([3.0, 5.0, 1.0])
    samples = [
        torch.stack((-torch.rand(3, generator=generator), counts), 1).double() for _ in range(4)
    ]
    predictive = Predictive(CAUSAL)
    for sample in samples:
        predictive.add(sample)
    means = torch.stack([sample[:, 0] / counts for sample in samples])
    found = predictive.uncertainty(sampled=True)["variance"]
    torch.testing.assert_close(found, means.var(0))
    metrics = predictive.metrics(("perplexity",), torch.zeros(3))
    assert metrics["nll"] == pytest.approx(-float((means * counts).sum() / (4 * counts.sum())))
    assert metrics["perplexity"] == pytest.approx(math.exp(metrics["nll"]))
